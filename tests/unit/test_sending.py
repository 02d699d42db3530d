"""The line in which executions wait to be sent. The engine is a stand-in."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION
from typing import Any, ClassVar

import pytest
from conftest import eventually
from cores import CLOSED, Graph, Script, plain, value
from ray.exceptions import ActorDiedError, RayCgraphCapacityExceeded

from cgexec import (
    GraphClosedError,
    GraphConfig,
    GraphExecutor,
    GraphFailedError,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    as_completed,
    chain,
    fan_out,
    sending,
    wait,
)
from cgexec.asynchronous import executed, outcome, submitted
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Break, EngineBrokenError, Output, OutputError, OutputValue
from cgexec.notices import Callbacks
from cgexec.testing import Fault, FaultPlan, LocalActor, kill

DIED = Break(((1, ActorDiedError()),), CLOSED)


class Encoding(Script):
    """Does something while an input is encoded."""

    def __init__(self, meanwhile: Callable[[Any], object], **steps: Any) -> None:
        super().__init__(**steps)
        self.meanwhile = meanwhile

    def encode(self, args: Any, kwargs: Any) -> Any:
        self.meanwhile(plain(args[0]))
        return plain(args[0])


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


class Writing(Script):
    """Says when it has begun to send, and goes on when it may."""

    def __init__(self, **steps: Any) -> None:
        super().__init__(**steps)
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def send(self, encoded: Any, deadline: Any) -> None:
        self.begun.set()
        assert self.may_go_on.wait(30)
        super().send(encoded, deadline)


def test_who_has_cancelled_is_not_sent_unless_it_is_being_sent(graphs: Any) -> None:
    engine = Writing(collect=[value(1), value(3)])
    core = graphs(engine).core
    first, second, third = [core.submit_later((number,), {}) for number in (1, 2, 3)]
    assert engine.begun.wait(30)
    core.withdraw(first)
    core.withdraw(second)
    engine.may_go_on.set()
    assert first.result() == [1, 1]
    assert third.result() == [3, 3]
    refused = second.status()
    assert isinstance(refused, JobError)
    assert "cancelled" in str(refused.error)
    assert refused.info.attempts == 0
    assert engine.sent == [1, 3]


class Hesitation:
    """Something to do meanwhile: says that it has begun, and goes on when it may."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, number: int) -> None:
        if number == self.number:
            self.begun.set()
            assert self.may_go_on.wait(30)


@pytest.mark.parametrize("ending", ["cancelled", "late", "closed"])
def test_what_ends_while_it_is_serialised_is_settled_at_once_and_not_sent(graphs: Any, ending: str) -> None:
    hesitate = Hesitation(1)
    engine = Encoding(hesitate, collect=[value(2)])
    core = graphs(engine).core
    first, second = [core.submit_later((number,), {}) for number in (1, 2)]
    assert hesitate.begun.wait(30)
    {"cancelled": core.withdraw, "late": core.refuse_late, "closed": lambda _: core.close()}[ending](first)
    assert isinstance(first.status(0), JobError)
    assert first.info.attempts == 0
    hesitate.may_go_on.set()
    if ending == "closed":
        assert isinstance(second.status(0), JobError)
        core.abandon(GraphClosedError("closed"))
        core.stop_threads(30)
        assert engine.sent == []
    else:
        assert second.result() == [2, 2]
        assert engine.sent == [2]


def test_an_answer_is_read_while_another_input_is_serialised(graphs: Any) -> None:
    hesitate = Hesitation(2)
    core = graphs(Encoding(hesitate, collect=[value(1), value(2)])).core
    told = threading.Event()
    first, second = [core.submit_later((number,), {}) for number in (1, 2)]
    assert core.tell(first, told.set)
    assert hesitate.begun.wait(30)
    assert told.wait(30)
    assert first.final is not None
    hesitate.may_go_on.set()
    assert second.result() == [2, 2]


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


def test_what_had_arrived_stays_where_what_was_lost_is_never_sent_again(graphs: Any) -> None:
    graph = graphs(Script(collect=[{0: OutputValue(1)}, EngineBrokenError(CLOSED)]), DIED, retry_preempted=1)
    execution = graph.core.submit((1,), {})
    assert execution.status(0.2).info.state == "pending"
    assert eventually(lambda: graph.core.stats().in_line == 1)
    assert [status.info.state for status in execution.outputs(0)] == ["pending", "pending"], "it may come to be another"
    graph.core.fail(GraphFailedError("too few are left"), [])
    first, second = execution.outputs(5)
    assert (first.result, type(second), type(execution.status(0))) == (1, JobPreempted, JobPreempted)


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


def test_what_is_lost_while_it_is_sent_for_somebody_else_is_sent_again_once(graphs: Any) -> None:
    graph = graphs(Script(send=[EngineBrokenError(CLOSED, sent=True)]), DIED, retry_preempted=5)
    graph.next = Script(collect=[value(number) for number in (1, 2, 3)])
    executions = [graph.core.submit_later((number,), {}) for number in (1, 2, 3)]
    assert [execution.result() for execution in executions] == [[1, 1], [2, 2], [3, 3]]
    assert graph.next.sent == [1, 2, 3]
    assert graph.core.stats().in_line == 0


def test_who_waits_for_what_is_sent_again_is_woken(graphs: Any) -> None:
    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), DIED, retry_preempted=1)
    graph.next, graph.may_recover = Script(collect=[value(1)]), threading.Event()
    execution = graph.core.submit((1,), {})
    statuses: list[JobStatus] = []
    waiting = threading.Thread(target=lambda: statuses.append(execution.status(-1)), daemon=True)
    waiting.start()
    assert eventually(lambda: graph.breaks and graph.core._changed._waiting)
    assert [status.info.state for status in execution.outputs(0)] == ["pending"] * 2
    graph.may_recover.set()
    waiting.join(30)
    assert statuses
    assert isinstance(statuses[0], JobSucceeded)


class Loading(Script):
    """Its first output takes long to load, and the host is gone before that is done."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def collect(self, outputs: Any, timeout_s: float) -> None:
        self.meanwhile()
        outputs[:] = value(1).values()


def test_what_is_read_when_it_has_been_lost_already_is_sent_again(graphs: Any) -> None:
    hesitate = Hesitation(0)
    engine = Loading(lambda: hesitate(0))
    graph = graphs(engine, DIED, retry_preempted=1)
    graph.next = Script(collect=[value(2), value(3)])
    execution = graph.core.submit((1,), {})
    statuses: list[JobStatus] = []
    waiting = threading.Thread(target=lambda: statuses.append(execution.status()), daemon=True)
    waiting.start()
    assert hesitate.begun.wait(30)
    graph.recover(engine)
    hesitate.may_go_on.set()
    waiting.join(30)
    assert [status.result for status in statuses if isinstance(status, JobSucceeded)] == [[2, 2]]
    assert graph.core.submit((2,), {}).result() == [3, 3]
    assert graph.next.sent == [1, 2]


def test_what_is_lost_again_stays_in_its_order(graphs: Any) -> None:
    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), DIED, retry_preempted=5)
    hesitate = Hesitation(2)
    second, third = Encoding(hesitate, collect=[{}] * 10_000), Script(collect=[value(1), value(2)])
    graph.next = second
    executions = [graph.core.submit((number,), {}) for number in (1, 2)]
    assert isinstance(executions[0].status(0), JobError)  # looks, and finds the graph broken
    assert hesitate.begun.wait(30)  # one has been sent again, two is about to be
    graph.next = third
    graph.broke(second, CLOSED)
    assert eventually(lambda: graph.core.current_engine() is third)
    hesitate.may_go_on.set()
    assert [execution.result() for execution in executions] == [[1, 1], [2, 2]]
    assert third.sent == [1, 2]


def test_what_is_sent_again_is_what_was_submitted_whatever_has_become_of_it(graphs: Any) -> None:
    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), DIED, retry_preempted=1)
    graph.next = Script(collect=[value(1)])
    asked = [1, 2, 3]
    execution = graph.core.submit((asked,), {})
    asked.clear()
    assert isinstance(execution.status(), JobSucceeded)
    assert graph.next.sent == [[1, 2, 3]]


class Nosy:
    """An input that has a look at the graph as it goes."""

    def __init__(self, core: Any) -> None:
        self.core, self.seen = core, []

    def __del__(self) -> None:
        if self.core is not None:
            self.seen.append(self.core.stats())

    def __reduce__(self) -> Any:
        return Nosy, (None,)


def test_an_input_may_do_anything_as_it_goes(graphs: Any) -> None:
    engine = Script(collect=[value(1)])
    engine.encode = lambda _args, _kwargs: 1  # type: ignore[method-assign] # keeps nothing of it
    core = graphs(engine).core
    nosy = Nosy(core)
    seen = nosy.seen
    execution = core.submit_later((nosy,), {})
    del nosy
    assert execution.result() == [1, 1]
    assert eventually(lambda: seen)


def test_giving_up_leaves_no_signal_and_has_the_hosts_looked_after(graphs: Any) -> None:
    graph = graphs(Script(collect=[{}] * 100_000))
    execution = graph.core.submit((1,), {})

    async def impatient() -> None:
        for _ in range(5):
            assert (await execution.status_async(0.001)).info.state == "pending"
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(execution.status_async(), 0.001)

    asyncio.run(impatient())
    assert not graph.core._notices.watched()
    assert execution.signals == ()
    assert len(graph.ran_out) >= 10
    told = len(graph.ran_out)
    assert not wait([execution], 0).done
    assert len(graph.ran_out) == told + 1


def test_late_coroutines_are_refused_behind_what_takes_long_to_serialise(graphs: Any) -> None:
    hesitate = Hesitation(1)
    graph = graphs(Encoding(hesitate, collect=[value(1)]), submit_timeout_s=0.1)
    core = graph.core

    async def callers() -> list[JobStatus]:
        first = asyncio.ensure_future(asyncio.to_thread(lambda: core.submit((1,), {}).status()))
        await asyncio.to_thread(hesitate.begun.wait, 30)
        statuses = [await executed(core, (2,), {}, 5), (await submitted(core, (3,), {})).status(0)]
        hesitate.may_go_on.set()
        return [*statuses, await first]

    *late, answered = asyncio.run(callers())
    for status in late:
        assert isinstance(status, JobError)
        assert isinstance(status.error, RayCgraphCapacityExceeded)
        assert status.info.attempts == 0
    assert graph.ran_out
    assert isinstance(answered, (JobSucceeded, JobError))


FAILED: dict[int, Output] = {0: OutputError(ValueError("no"), 0, "step"), 1: OutputValue(1)}


def test_what_nobody_was_given_is_reported_however_they_had_waited(graphs: Any) -> None:
    may_answer = threading.Event()

    class Failing(Script):
        def collect(self, outputs: Any, timeout_s: float) -> None:
            if may_answer.wait(min(timeout_s, 0.05)):
                outputs[:] = FAILED.values()

    graph = graphs(Failing())
    core = graph.core

    async def impatient() -> None:
        assert (await executed(core, (1,), {}, 0.001)).info.state == "pending"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(core.submit((2,), {}).status_async(), 0.001)

    asyncio.run(impatient())
    may_answer.set()
    core.drain(Deadline.after(30))
    assert eventually(lambda: core.stats() and len(graph.unasked) == 2), graph.unasked


def test_the_first_exception_is_enough_whichever_comes_first(graphs: Any) -> None:
    for _ in range(10):  # sets have their own order
        core = graphs(Script(collect=[FAILED, value(1)])).core
        bad, good = core.submit((1,), {}), core.submit((2,), {})
        assert isinstance(bad.status(), JobError)
        assert isinstance(good.status(), JobSucceeded)
        found = wait([bad, good, core.submit((3,), {})], 30, FIRST_EXCEPTION)
        assert found.done == {bad, good}


def test_a_look_sees_what_has_arrived(graphs: Any) -> None:
    core = graphs(Script(collect=[value(1), value(2)])).core
    first, second = core.submit((1,), {}), core.submit((2,), {})
    assert wait([first], 0).done == {first}
    assert list(as_completed([second], 0)) == [second]


def test_a_callback_on_what_has_settled_may_raise(graphs: Any, caplog: Any) -> None:
    core = graphs(Script(collect=[value(1)])).core
    execution = core.submit((1,), {})
    execution.result()
    execution.add_done_callback(lambda _: 1 / 0)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("callback", [None, "later"])
def test_a_callback_can_be_called(graphs: Any, callback: Any) -> None:
    execution = graphs(Script(collect=[value(1)])).core.submit((1,), {})
    with pytest.raises(TypeError, match="a callback is called with the execution"):
        execution.add_done_callback(callback)
    assert execution.result() == [1, 1]


@pytest.mark.parametrize("ask", [wait, as_completed])
@pytest.mark.parametrize("executions", ["ab", [None], [1, 2]])
def test_executions_are_waited_for_and_nothing_else(ask: Any, executions: Any) -> None:
    with pytest.raises(TypeError, match="is no Execution"):
        ask(executions)


def test_who_will_not_wait_for_a_slot_waits_for_those_before_to_be_sent(graphs: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sending, "_FOR_ITS_TURN_S", 30.0)
    hesitate = Hesitation(0)
    core = graphs(Encoding(hesitate), submit_timeout_s=0).core
    threads = [threading.Thread(target=core.submit, args=((0,), {}))]
    threads[0].start()
    assert hesitate.begun.wait(30)
    found: list[Any] = []
    threads.append(threading.Thread(target=lambda: found.append(core.try_submit((1,), {}))))
    threads[1].start()
    assert eventually(lambda: core.stats().in_line == 2)
    hesitate.may_go_on.set()
    for thread in threads:
        thread.join(30)
    assert core.stats().in_flight == 2
    assert found[0] is not None
    assert core.try_submit((2,), {}) is None, "it is full"


def test_who_will_not_wait_does_not_wait_for_long_for_those_before(graphs: Any) -> None:
    hesitate = Hesitation(0)
    core = graphs(Encoding(hesitate), submit_timeout_s=0).core
    slow = threading.Thread(target=core.submit, args=((0,), {}))
    slow.start()
    assert hesitate.begun.wait(30)
    assert core.try_submit((1,), {}) is None
    refused = core.submit((2,), {}).status(0)
    assert isinstance(refused.error, RayCgraphCapacityExceeded)
    assert "1 others in line" in str(refused.error)
    hesitate.may_go_on.set()
    slow.join(30)
    assert core.stats().in_flight == 1


def test_a_coroutine_that_ends_in_the_garbage_collector_takes_no_lock(graphs: Any) -> None:
    engine = Script(collect=[{}] * 100_000)
    core = graphs(engine).core
    loop = asyncio.new_event_loop()
    waiting = [executed(core, (1,), {}, -1), outcome(core, core.submit((2,), {}), -1)]
    tasks = [loop.create_task(each) for each in waiting]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()  # with both in flight: they are ended wherever the collector happens to run
    with core._changed:
        for each in waiting:
            each.close()
    assert all(not task.done() for task in tasks)
    assert not core._notices.watched()


def test_a_value_that_takes_for_ever_to_load_does_not_keep_the_next_generation_unread(graphs: Any) -> None:
    may_end = threading.Event()

    class Loading(Script):
        def collect(self, outputs: Any, timeout_s: float) -> None:
            assert may_end.wait(60)

    graph = graphs(Loading(), DIED)
    graph.next = Script(collect=[value(2)])
    first = graph.core.submit((1,), {})
    reading = threading.Thread(target=first.status, args=(60,), daemon=True)
    reading.start()
    assert eventually(lambda: graph.core._reader.reading)
    graph.broke(graph.core.current_engine(), CLOSED)
    assert eventually(lambda: graph.core.current_engine() is graph.next)
    assert graph.core.submit((2,), {}).result(30) == [2, 2]
    may_end.set()
    reading.join(30)
    assert not reading.is_alive()
    assert isinstance(first.status(0), JobPreempted)


def test_what_an_input_submits_as_it_is_serialised_does_not_wait_for_itself(graphs: Any) -> None:
    nested: list[JobStatus] = []
    core = graphs(Encoding(lambda _: nested.append(core.submit((2,), {}).status()), collect=[value(1)])).core
    assert core.submit((1,), {}).result() == [1, 1]
    assert isinstance(nested[0], JobError)
    assert "it would wait for itself" in str(nested[0].error)
    assert core.stats().in_line == 0


class SpeechlessError(BaseException):
    """An exception without a text."""

    def __str__(self) -> str:
        raise SpeechlessError


class Speechless:
    """Raises such an exception as it is serialised."""

    def __reduce__(self) -> Any:
        raise SpeechlessError


class Once:
    """Is another number each time it is serialised."""

    num_times = 0

    def __reduce__(self) -> Any:
        Once.num_times += 1
        return int, (Once.num_times,)


@pytest.mark.parametrize("kept", [0, 1])
def test_an_error_without_a_text_is_an_outcome_like_others(kept: int) -> None:
    hosts, config = [LocalActor(Echo)], GraphConfig(engine="in_process", submit_timeout_s=20, retry_preempted=kept)
    with GraphExecutor(hosts, chain("step"), config=config) as graph:

        async def both() -> list[JobStatus]:
            return await asyncio.gather(graph.execute_async(Speechless()), graph.execute_async(1))

        failed, answered = asyncio.run(both())
        assert isinstance(failed, JobFailed)
        assert isinstance(answered, JobSucceeded)
        graph.submit(Speechless())
        gc.collect()
        assert eventually(lambda: graph.stats().never_collected == 1)
        kill(hosts[0])  # the graph's own thread is there to notice
        assert eventually(lambda: graph.state is GraphState.FAILED)


def test_what_is_sent_again_is_what_was_sent_the_first_time() -> None:
    Once.num_times = 0
    config = GraphConfig(engine="in_process", retry_preempted=1)
    for value_, right in ((Once(), 1), (pickle.PickleBuffer(b"as it is"), memoryview(b"as it is"))):
        Echo.given.clear()
        hosts = [LocalActor(Echo), LocalActor(Echo, faults=FaultPlan(Fault("die", host=1, execution=0)))]
        with GraphExecutor(hosts, fan_out("step"), config=config) as graph:
            status = graph.execute(value_)
            assert isinstance(status, JobSucceeded)
            assert status.info.attempts == 2
        assert {type(each) for each in Echo.given} == {type(right)}
        assert all(each == right for each in Echo.given)
    assert Once.num_times == 1


def test_what_try_submit_refuses_is_not_counted(graphs: Any) -> None:
    hesitate = Hesitation(1)
    core = graphs(Encoding(hesitate, collect=[value(1)])).core
    slow = threading.Thread(target=lambda: core.submit((1,), {}).status(), daemon=True)
    slow.start()
    assert hesitate.begun.wait(30)
    assert [core.try_submit((number,), {}) for number in (2, 3)] == [None, None]
    hesitate.may_go_on.set()
    slow.join(30)
    stats = core.stats()
    assert (stats.submitted, stats.succeeded, stats.error, stats.in_line, stats.in_flight) == (1, 1, 0, 0, 0)


def test_without_a_thread_to_be_had_nothing_is_left_in_line(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs(Script(collect=[EngineBrokenError(CLOSED)]), DIED, retry_preempted=1)
    graph.next = Script(collect=[value(3)])
    execution = graph.core.submit((1,), {})
    with monkeypatch.context() as patch:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith("cgexec-"):
                raise RuntimeError("can't start new thread")
            start(thread)

        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            graph.core.submit_later((2,), {})
        assert isinstance(execution.status(), JobPreempted)
    assert graph.core.submit((3,), {}).result() == [3, 3]
    assert graph.core.stats().in_line == 0


def test_a_callback_that_comes_after_the_end_is_called_after_all_others() -> None:
    called: list[int] = []
    may_end = threading.Event()
    callbacks = Callbacks("graph")
    callbacks.start()
    callbacks.call(lambda: (may_end.wait(30), called.append(1)))
    callbacks.end()
    callbacks.call(lambda: called.append(2))
    may_end.set()
    assert eventually(lambda: called == [1, 2])


class Echo:
    """Gives back what it is given, and notes it."""

    given: ClassVar[list[Any]] = []

    def step(self, message: Any) -> Any:
        Echo.given.append(message)
        return message if isinstance(message, int) else None
