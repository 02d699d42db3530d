"""The line in which executions wait to be sent. The engine is a stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import eventually
from cores import CLOSED, Graph, Script, value
from ray.exceptions import ActorDiedError, RayCgraphCapacityExceeded

from cgexec import GraphClosedError, GraphFailedError, JobError, JobFailed, JobPreempted, JobSucceeded
from cgexec.engine.protocol import Break, EngineBrokenError

DIED = Break(((1, ActorDiedError()),), CLOSED)


class Encoding(Script):
    """Does something while an input is encoded."""

    def __init__(self, meanwhile: Callable[[Any], object], **steps: Any) -> None:
        super().__init__(**steps)
        self.meanwhile = meanwhile

    def encode(self, args: Any, kwargs: Any) -> Any:
        self.meanwhile(args[0])
        return args[0]


@pytest.fixture
def graphs() -> Any:
    """Return a function that makes graphs, whose threads are ended with the test."""
    made: list[Graph] = []

    def make(*args: Any, **kwargs: Any) -> Graph:
        made.append(Graph(*args, **kwargs))
        return made[-1]

    yield make
    for graph in made:
        graph.core.close()
        graph.core.abandon(GraphClosedError("closed"))
        graph.core.stop_threads(30)


def test_who_does_not_wait_is_sent_and_read_all_the_same(graphs: Any) -> None:
    engine = Script(collect=[value(1), value(2)])
    core = graphs(engine).core
    told = threading.Event()
    executions = [core.submit_later((number,), {}) for number in (1, 2)]
    assert core.tell(executions[1], told.set)
    assert told.wait(30)
    assert [execution.result(0) for execution in executions] == [[1, 1], [2, 2]]
    assert engine.sent == [1, 2]


def test_who_has_cancelled_is_not_sent_unless_it_is_being_sent(graphs: Any) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def hesitate(number: int) -> None:
        begun.set()
        assert may_go_on.wait(30)

    engine = Encoding(hesitate, collect=[value(1), value(3)])
    core = graphs(engine).core
    first, second, third = [core.submit_later((number,), {}) for number in (1, 2, 3)]
    assert begun.wait(30)
    core.withdraw(first)
    core.withdraw(second)
    may_go_on.set()
    assert first.result() == [1, 1]
    assert third.result() == [3, 3]
    refused = second.status()
    assert isinstance(refused, JobError)
    assert "cancelled" in str(refused.error)
    assert refused.info.attempts == 0
    assert engine.sent == [1, 3]


def test_closing_refuses_the_line_and_ends_its_threads(graphs: Any) -> None:
    core = graphs(Script(collect=[{}] * 10_000)).core
    executions = [core.submit_later((number,), {}) for number in range(5)]
    assert eventually(lambda: core.stats().in_flight == 2)
    core.close()
    for execution in executions[2:]:
        status = execution.status(0)
        assert isinstance(status, JobError)
        assert isinstance(status.error, GraphClosedError)
    with pytest.raises(GraphClosedError):
        core.submit_later((9,), {})
    core.abandon(GraphClosedError("closed"))
    core.stop_threads(30)
    assert all(execution.final is not None for execution in executions)


def test_a_graph_that_fails_refuses_the_line(graphs: Any) -> None:
    graph = graphs(Script(collect=[{}] * 10_000))
    waiting = [graph.core.submit_later((number,), {}) for number in range(4)]
    assert eventually(lambda: graph.core.stats().in_flight == 2)
    engine = graph.core.current_engine()
    graph.core.break_off(engine, DIED)
    graph.core.fail(GraphFailedError("given up"), ())
    statuses = [execution.status(5) for execution in waiting]
    assert [type(status) for status in statuses] == [JobPreempted] * 2 + [JobError] * 2
    assert isinstance(statuses[2].error, GraphFailedError)


def test_what_is_late_is_refused_in_its_turn(graphs: Any) -> None:
    core = graphs(Script(collect=[{}] * 10_000), submit_timeout_s=0.05).core
    executions = [core.submit_later((number,), {}) for number in range(4)]
    for execution in executions[2:]:
        status = execution.status(5)
        assert isinstance(status, JobError)
        assert isinstance(status.error, RayCgraphCapacityExceeded)


@pytest.mark.parametrize("error", [ValueError("unfit"), SystemExit(3), KeyboardInterrupt()])
def test_an_input_that_raises_whatever_is_an_outcome_and_the_line_goes_on(graphs: Any, error: BaseException) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise error

    core = graphs(Encoding(fail, collect=[value(2)])).core
    unfit, fit = [core.submit_later((number,), {}) for number in (1, 2)]
    assert fit.result() == [2, 2]
    status = unfit.status(5)
    assert isinstance(status, JobFailed)
    assert type(error).__name__ in f"{type(status.error).__name__} {status.error}"


def test_what_is_sent_again_comes_before_those_in_line_and_in_its_order(graphs: Any) -> None:
    graph = graphs(Script(collect=[value(0), EngineBrokenError(CLOSED)]), DIED, retry_preempted=1)
    graph.next = Script(collect=[value(number) for number in (1, 2, 3)])
    core = graph.core
    first = core.submit((0,), {})
    assert first.result() == [0, 0]
    lost = [core.submit((number,), {}) for number in (1, 2)]
    behind = core.submit_later((3,), {})
    assert [execution.result() for execution in (*lost, behind)] == [[1, 1], [2, 2], [3, 3]]
    assert graph.next.sent == [1, 2, 3]
    assert [execution.info.attempts for execution in (*lost, behind)] == [2, 2, 1]
    assert core.stats().retried == 2


def test_what_is_lost_while_it_is_sent_is_sent_again_too(graphs: Any) -> None:
    graph = graphs(Script(send=[EngineBrokenError(CLOSED, sent=True)]), DIED, retry_preempted=1)
    graph.next = Script(collect=[value(1)])
    execution = graph.core.submit((1,), {})
    assert execution.result() == [1, 1]
    assert (execution.info.attempts, execution.info.generation) == (2, 1)
    assert graph.next.sent == [1]


def test_what_no_longer_fits_has_the_outcome_of_its_loss(graphs: Any) -> None:
    def fits(number: int) -> None:
        if number == 1:
            raise TypeError("three arguments, and two hosts")

    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), DIED, retry_preempted=5)
    graph.next = Encoding(fits, collect=[value(2)])
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobPreempted)
    assert status.info.attempts == 1
    assert isinstance(graph.core.submit((2,), {}).status(), JobSucceeded)


def test_an_error_that_is_no_loss_of_a_host_is_not_sent_again(graphs: Any) -> None:
    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), Break((), CLOSED), retry_preempted=5)
    graph.next = Script()
    status = graph.core.submit((1,), {}).status()
    assert isinstance(status, JobError)
    assert graph.next.sent == []
