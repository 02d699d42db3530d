"""What becomes of an execution when sending or reading goes wrong. The engine is a stand-in; nothing waits for real."""

from __future__ import annotations

import functools
import signal
from typing import Any

import pytest
from cores import CLOSED, MEMBERS, Graph, Script, value
from ray.exceptions import ActorDiedError, RayChannelError, RayChannelTimeoutError, RayTaskError

from cgexec import (
    GraphClosedError,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    reading,
)
from cgexec.engine.protocol import Break, EngineBrokenError, OutputError, OutputValue, SendTimeoutError
from cgexec.lifecycle import GraphEvent


def test_what_was_read_stays_with_its_execution_over_waits_that_ran_out() -> None:
    engine = Script(collect=[{0: OutputValue("first")}, {}, {}, {1: OutputValue("first")}, value(2)])
    graph = Graph(engine)
    core = graph.core
    first, second = core.submit(("first",), {}), core.submit(("second",), {})
    pending = first.status(0)
    assert pending.info.state == "pending"
    assert "step() of host 1" in str(pending.error)
    assert graph.ran_out == [engine]
    assert "1 are ahead of it" in str(second.status(0).error)
    assert first.result() == ["first", "first"]
    assert second.result() == [2, 2]


def test_ctrl_c_while_reading_is_raised_and_no_later_answer_is_trusted() -> None:
    graph = Graph(Script(collect=[KeyboardInterrupt(), value(1)]))
    execution = graph.core.submit((1,), {})
    with pytest.raises(KeyboardInterrupt):
        execution.status()
    status = execution.status()
    assert isinstance(status, JobError)
    assert status.info.state == "error"
    assert "KeyboardInterrupt" in str(graph.breaks[0])


class _AlarmError(TimeoutError):
    pass


class _Callable:
    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Ringing:
    """An engine during whose step, ``where``, a signal arrives whose handler raises."""

    def __init__(self, engine: Script, where: str) -> None:
        self._engine, self._where = engine, where

    def __getattr__(self, name: str) -> Any:
        if name == self._where:
            self._where = ""
            signal.raise_signal(signal.SIGALRM)
        return getattr(self._engine, name)


@pytest.mark.parametrize("wrap", [lambda handler: handler, functools.partial, _Callable])
@pytest.mark.parametrize("where", ["encode", "send", "collect"])
def test_what_a_signal_handler_raises_is_raised_to_the_caller(where: str, wrap: Any) -> None:
    def ring(_number: int, _frame: object) -> None:
        raise _AlarmError("it rang")

    graph = Graph(_Ringing(Script(collect=[value(1)]), where))
    graph.next = Script(collect=[value(2)])
    before = signal.signal(signal.SIGALRM, wrap(ring))
    try:
        with pytest.raises(_AlarmError, match="it rang"):
            graph.core.submit((1,), {}).status()
    finally:
        signal.signal(signal.SIGALRM, before)
    lost_the_generation = where != "encode"
    assert len(graph.breaks) == lost_the_generation
    assert graph.core.submit((2,), {}).result() == ([2, 2] if lost_the_generation else [1, 1])


def test_the_same_exception_of_the_engine_is_no_interruption() -> None:
    graph = Graph(Script(collect=[_AlarmError("a bug")]))
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobError)
    assert isinstance(graph.breaks[0], _AlarmError)


def test_ctrl_c_while_sending_is_raised_and_the_execution_settles() -> None:
    engine = Script(send=[KeyboardInterrupt()])
    graph = Graph(engine)
    graph.next = Script(collect=[value(2)])
    with pytest.raises(KeyboardInterrupt):
        graph.core.submit((1,), {})
    assert "KeyboardInterrupt" in str(graph.breaks[0])
    assert graph.core.submit((2,), {}).result() == [2, 2]
    assert graph.next.sent == [2]


def test_a_second_ctrl_c_keeps_nobody_from_being_told_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told, texts = Script(), [], []

    class InterruptingError(RayChannelError):
        def __init__(self, text: str) -> None:
            texts.append(text)
            if len(texts) == 1:
                raise KeyboardInterrupt
            super().__init__(text)

    monkeypatch.setattr(reading, "RayChannelError", InterruptingError)
    with pytest.raises(KeyboardInterrupt):
        reading.condemn(engine, KeyboardInterrupt(), "a read", lambda _, reason: told.append(reason))
    assert (engine.broken, engine.condemned) == (True, True)
    assert [str(reason) for reason in told] == ["System error: something interrupted a read"]


def test_a_defect_of_the_engine_is_a_status_and_costs_a_generation() -> None:
    graph = Graph(Script(collect=[AttributeError("a defect")]))
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobError)
    assert isinstance(graph.breaks[0], AttributeError)


def test_what_was_not_sent_at_a_break_goes_to_the_next_generation() -> None:
    graph = Graph(Script(send=[EngineBrokenError(CLOSED)]))
    graph.next = Script(collect=[value(1)])
    execution = graph.core.submit((1,), {})
    status = execution.status()
    assert isinstance(status, JobSucceeded)
    assert (status.info.generation, status.info.attempts) == (1, 1)
    assert graph.next.sent == [1]


def test_a_graph_is_broken_as_soon_as_its_engine_is() -> None:
    engine = Script()
    graph = Graph(engine, submit_timeout_s=0)
    graph.next = Script(collect=[value(2)])
    engine.broken = True
    assert graph.core.state is GraphState.BROKEN
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobError)
    assert "is broken and was not ready" in str(status.error)
    assert status.info.attempts == 0
    graph.recover(engine)
    assert graph.core.state is GraphState.READY
    assert graph.core.submit((2,), {}).result() == [2, 2]


class Looked(Script):
    """Something happens to its graph whenever somebody looks whether it is broken, which it is."""

    meanwhile: Any = None

    @property
    def broken(self) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return True

    @broken.setter
    def broken(self, _: bool) -> None: ...


@pytest.mark.parametrize("state", [GraphState.CLOSED, GraphState.READY])
def test_a_graph_that_is_closed_or_rebuilt_as_it_is_looked_at_is_not_broken(state: GraphState) -> None:
    engine = Looked()
    core = Graph(engine).core

    def meanwhile() -> None:
        if state is GraphState.CLOSED:
            core.close()
        else:
            core.happened(GraphEvent.REBUILD, "on request")
            core.break_off(engine, Break((), CLOSED))  # type: ignore[arg-type]
            core.open(Script(), MEMBERS)  # type: ignore[arg-type]

    assert core.state is GraphState.BROKEN
    engine.meanwhile = meanwhile
    assert core.state is state


def test_what_was_sent_in_part_at_a_break_is_lost_and_not_sent_again() -> None:
    died = ActorDiedError()
    graph = Graph(Script(send=[EngineBrokenError(CLOSED, sent=True)]), Break(((1, died),), CLOSED))
    graph.next = Script()
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobPreempted)
    assert isinstance(status.error, ActorDiedError)
    assert (status.info.generation, status.info.attempts) == (0, 1)
    assert [lost.info.host_id for lost in status.info.lost_hosts] == [1]
    assert graph.next.sent == []


def test_no_room_in_the_channel_is_an_error_of_which_nothing_was_sent() -> None:
    core = Graph(Script(send=[SendTimeoutError("no room")], collect=[value(2)])).core
    status = core.submit((1,), {}).status()
    assert isinstance(status, JobError)
    assert isinstance(status.error, RayChannelTimeoutError)
    assert (status.info.state, status.info.attempts) == ("error", 0)
    assert core.submit((2,), {}).result() == [2, 2]


def test_outputs_that_arrived_before_a_break_stay_available() -> None:
    died = ActorDiedError()
    failed = OutputError(RayTaskError("step", "traceback", ValueError("raised")), 0, "step")
    graph = Graph(Script(collect=[{0: failed}, EngineBrokenError(CLOSED)]), Break(((1, died),), CLOSED))
    execution = graph.core.submit((1,), {})
    first, second = execution.outputs()
    assert isinstance(first, JobFailed)
    assert isinstance(second, JobPreempted)


def test_closing_settles_what_is_in_flight_once() -> None:
    core = Graph(Script()).core
    execution = core.submit((1,), {})
    assert core.close()
    assert not core.close()
    core.abandon(GraphClosedError("closed"))
    status = execution.status()
    assert isinstance(status, JobError)
    assert isinstance(status.error, GraphClosedError)
    assert status.info.state == "error"
    assert [type(output) for output in execution.outputs()] == [JobError, JobError]
