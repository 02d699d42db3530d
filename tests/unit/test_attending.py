"""An event loop that reads for its coroutines: no answer is lost or mixed up, nothing is heard in vain, nothing leaks.

The wires are real, and so are the event loops; the test itself is the host that answers.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import uvloop
from conftest import eventually, our_threads
from cores import Graph
from hubs import a_site
from interruptions import interrupted_at
from leaks import nothing_left, num_descriptors
from outputs import FAILED, LONG_S, Outputs, engine_over, graph_over
from wires import send

from cgexec import GraphClosedError, JobFailed, JobPreempted, JobStatus, JobSucceeded, attending
from cgexec.asynchronous import executed, outcome, submitted
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.frames import SHORT_BYTES, pack
from cgexec.engine.payload import encode
from cgexec.engine.protocol import EngineBrokenError
from cgexec.lifecycle import GraphEvent
from cgexec.pump import Pump

SHORT_S = 0.2
PUMP = {"cgexec-sender-echo", "cgexec-reader-echo"}

Makes = Callable[..., tuple[Graph, Outputs]]


@pytest.fixture
def graphs() -> Iterator[Makes]:
    """Return a function that makes a graph and the outputs that it reads; ends by proving that nothing is left."""
    made: list[Graph] = []

    def make(num_generations: int = 1, **config: Any) -> tuple[Graph, Outputs]:
        generations = [Outputs(sites[number]) for number in range(num_generations)]
        graph = graph_over(generations[0], **config)
        graph.generations = generations  # type: ignore[attr-defined]
        graph.next = engine_over(generations[1]) if num_generations > 1 else None
        made.append(graph)
        return graph, generations[0]

    run(lambda: asyncio.sleep(0), uvloop.new_event_loop)  # the first leaves a pipe, for all that come
    with nothing_left(), a_site() as first, a_site() as second:
        sites = [first, second]
        yield make
        for graph in made:
            graph.core.close()
            graph.core.abandon(GraphClosedError("closed"))
            graph.core.stop_threads(LONG_S)
            vars(graph).clear()
        made.clear()
        sites.clear()


def run(main: Callable[[], Awaitable[Any]], loop_factory: Any = None) -> Any:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(asyncio.wait_for(main(), LONG_S))


def answer(outputs: Outputs, execution: int, value: Any = None) -> list[Any]:
    """Answer an execution as its own hosts would; return what it comes to."""
    values = [f"{place}-{execution}" if value is None else value for place in range(2)]
    for place, each in enumerate(values):
        outputs.send(place, each, execution)
    return values


def pump_threads() -> set[str]:
    return PUMP & set(our_threads())


def looks_of(core: Any) -> list[float]:
    """Return a list to which a note is added whenever the listening event loop looks."""
    noted: list[float] = []
    look = core._attendance.look

    def noting(*args: Any, **kwargs: Any) -> None:
        noted.append(time.monotonic())
        look(*args, **kwargs)

    core._attendance.look = noting
    return noted


async def attended(core: Any, num: int = 1) -> list[asyncio.Task[JobStatus]]:
    """Return coroutines that wait for executions which the event loop has sent, and attends to."""
    tasks = [asyncio.ensure_future(executed(core, (number,), {}, -1)) for number in range(num)]
    while core.stats().in_flight < num or not core._notices.attended():
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_gets_its_own_answer_without_a_thread(graphs: Makes, loop_factory: Any) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        for first in range(0, 60, 3):
            tasks = [asyncio.ensure_future(executed(graph.core, (number,), {}, -1)) for number in range(3)]
            await asyncio.sleep(0)
            expected = [answer(outputs, first + place) for place in range(3)]
            assert [(await task).result for task in tasks] == expected

    run(main, loop_factory)
    assert pump_threads() == set()


def test_an_answer_that_has_come_before_anybody_waits_for_it_is_seen(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        execution = await submitted(graph.core, (1,), {})
        expected = answer(outputs, 0)
        assert (await outcome(graph.core, execution, -1)).result == expected
        assert (await outcome(graph.core, execution, -1)).result == expected

    run(main)
    assert pump_threads() == set()


def test_what_a_thread_received_ahead_of_its_turn_before_anybody_waited_for_it_is_seen(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        first = graph.core.submit((1,), {})
        second = await submitted(graph.core, (2,), {})
        expected = [answer(outputs, number) for number in range(2)]
        assert await asyncio.to_thread(first.result, LONG_S) == expected[0]
        assert graph.core.current_engine().has_arrived(), "nothing is left in the wires to be heard of"
        assert (await outcome(graph.core, second, -1)).result == expected[1]

    run(main)
    assert pump_threads() == set()


def test_what_a_thread_receives_ahead_of_its_turn_meanwhile_is_seen(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        first = graph.core.submit((1,), {})
        task = asyncio.ensure_future(executed(graph.core, (2,), {}, -1))
        while not graph.core._notices.attended():
            await asyncio.sleep(0)
        expected = [answer(outputs, number) for number in range(2)]
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(first.result(LONG_S)))
        thread.start()
        thread.join(LONG_S)  # on the event loop's thread, which thus hears of nothing
        assert found == expected[:1]
        assert graph.core.current_engine().has_arrived()
        assert (await task).result == expected[1]

    run(main)
    assert pump_threads() == set()


def test_while_a_thread_reads_the_loop_hears_nothing_and_hears_again(graphs: Makes) -> None:
    graph, outputs = graphs()
    noted = looks_of(graph.core)

    async def main() -> None:
        first = graph.core.submit((1,), {})
        reading = asyncio.ensure_future(asyncio.to_thread(first.result, LONG_S))
        assert await asyncio.to_thread(eventually, lambda: graph.core._reader.reading)
        task = asyncio.ensure_future(executed(graph.core, (2,), {}, -1))
        await asyncio.sleep(SHORT_S)
        assert len(noted) < 100, "it looks again and again"
        assert (await asyncio.gather(reading, _later(answer, outputs, 0)))[0] == ["0-0", "1-0"]
        assert (await asyncio.gather(task, _later(answer, outputs, 1)))[0].result == ["0-1", "1-1"]

    run(main)


async def _later(call: Callable[..., Any], *args: Any) -> Any:
    await asyncio.sleep(0.01)
    return call(*args)


class Noted:
    """Notes on which thread it is loaded."""

    loaded_on: list[threading.Thread] = []  # noqa: RUF012 - what pickle loads is another

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, int]) -> None:
        self.loaded_on.append(threading.current_thread())
        vars(self).update(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Noted) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", [Noted(1), "x" * (SHORT_BYTES + 600), b"x" * 10_000_000, [Noted(2)]])
def test_what_takes_long_or_runs_somebodys_code_is_loaded_elsewhere(graphs: Makes, value: Any) -> None:
    graph, outputs = graphs()
    Noted.loaded_on.clear()

    async def main() -> None:
        for number in range(30):
            (task,) = [asyncio.ensure_future(executed(graph.core, (number,), {}, -1))]
            await asyncio.sleep(0)
            expected = answer(outputs, number, value if number % 3 == 0 else None)
            assert (await task).result == expected

    run(main)
    assert threading.current_thread() not in Noted.loaded_on
    assert pump_threads() == PUMP


def test_a_failure_is_read_elsewhere_and_is_an_answer(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        tasks = await attended(graph.core, 2)
        send(outputs.wires[0], FAILED, 0)
        assert isinstance(await tasks[0], JobFailed)
        outputs.send(1, "late", 0)
        expected = answer(outputs, 1)
        assert (await tasks[1]).result == expected

    run(main)


def test_a_failure_that_a_thread_has_read_does_not_wait_for_the_other_host(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        (task,) = await attended(graph.core)
        send(outputs.wires[0], FAILED, 0)
        thread = threading.Thread(target=next(iter(graph.core._reader.in_flight)).done)
        thread.start()
        thread.join(LONG_S)  # on the event loop's thread, which thus hears of nothing
        assert isinstance(await task, JobFailed)
        outputs.send(1, "late", 0)

    run(main)


def test_half_a_frame_keeps_nobody_busy_and_is_read_when_the_rest_comes(graphs: Makes) -> None:
    graph, outputs = graphs()
    noted = looks_of(graph.core)
    frame = b"".join(map(bytes, pack(encode("a whole frame"), 3, 0)))

    async def main() -> None:
        (task,) = await attended(graph.core)
        outputs.send(1, "b", 0)
        os.write(outputs.wires[0].fileno(), frame[:50])
        await asyncio.sleep(SHORT_S)
        os.write(outputs.wires[0].fileno(), frame[50:])
        assert (await task).result == ["a whole frame", "b"]

    run(main)
    assert len(noted) < 100, "it looks again and again"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_runs_ahead_keeps_nobody_busy(graphs: Makes, size: int) -> None:
    graph, outputs = graphs()
    noted = looks_of(graph.core)

    async def main() -> None:
        tasks = await attended(graph.core, 3)
        for number in range(3):
            outputs.send(0, f"{number}" * size, number)
        await asyncio.sleep(SHORT_S)
        for number, task in enumerate(tasks):
            outputs.send(1, "b", number)
            assert (await task).result == [f"{number}" * size, "b"]

    run(main)
    assert len(noted) < 100, "it looks again and again"


def test_what_comes_for_nobody_keeps_nobody_busy(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        (task,) = await attended(graph.core)
        answer(outputs, 0)
        await task
        noted = looks_of(graph.core)
        outputs.send(0, "of an execution that is about to be sent", 1)
        await asyncio.sleep(SHORT_S)
        assert len(noted) < 100, "it looks again and again"
        (task,) = await attended(graph.core)
        outputs.send(1, "b", 1)
        assert (await task).result == ["of an execution that is about to be sent", "b"]

    run(main)


def test_what_nobody_waits_for_is_taken_in_passing(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        first = await submitted(graph.core, (1,), {})
        task = asyncio.ensure_future(executed(graph.core, (2,), {}, -1))
        await asyncio.sleep(0)
        answers = [answer(outputs, number) for number in range(2)]
        assert (await task).result == answers[1]
        assert first.result(0) == answers[0]

    run(main)
    assert pump_threads() == set()


def test_cancelled_coroutines_leave_nothing_to_attend_to(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        tasks = await attended(graph.core, 2)
        for task in tasks:
            task.cancel()
        assert await asyncio.gather(*tasks, return_exceptions=True)
        assert not graph.core._notices.attended()
        for number in range(2):
            answer(outputs, number)
        (task,) = await attended(graph.core)
        expected = answer(outputs, 2)
        assert (await task).result == expected

    run(main)
    assert len(graph.ran_out) == 2
    assert pump_threads() == set()


@pytest.mark.parametrize("retry_preempted", [0, 1])
def test_a_generation_that_breaks_is_let_go_and_the_next_attended(graphs: Makes, retry_preempted: int) -> None:
    graph, outputs = graphs(2, retry_preempted=retry_preempted)
    core, (_, later) = graph.core, graph.generations  # type: ignore[attr-defined]

    async def main() -> None:
        tasks = await attended(core, 2)
        expected = [answer(outputs, 0)]
        assert (await tasks[0]).result == expected[0]
        outputs.wires[0].shut()
        while core.current_engine() is not graph.next:
            await asyncio.sleep(0.001)
        if retry_preempted:
            expected.append(answer(later, 0))
            assert (await tasks[1]).result == expected[1]
        else:
            assert isinstance(await tasks[1], JobPreempted)
        task = asyncio.ensure_future(executed(core, (3,), {}, -1))
        await asyncio.sleep(0.01)
        expected = answer(later, retry_preempted)
        assert (await task).result == expected
        await asyncio.sleep(0.01)  # for the loop to let go of the first
        assert core._attendance._listener.engine is graph.next

    run(main)


def test_generation_after_generation_leaves_no_descriptor(graphs: Makes) -> None:
    graph, outputs = graphs()
    core = graph.core

    async def main() -> None:
        counted = []
        for number in range(20):
            (task,) = await attended(core)
            expected = answer(outputs, number)
            assert (await task).result == expected
            engine: Any = core.current_engine()
            core.break_off(engine, graph.why)
            engine.broken = False
            core.happened(GraphEvent.REBUILD, "")
            core.open(engine, ())
            await asyncio.sleep(0.01)
            counted.append(num_descriptors())
        assert len(set(counted[2:])) == 1, counted

    run(main)


def test_a_second_event_loop_is_read_for_by_the_threads(graphs: Makes) -> None:
    graph, outputs = graphs()
    may_answer, answers = threading.Event(), {}

    def another() -> None:
        answers["second"] = run(lambda: executed(graph.core, (2,), {}, -1)).result

    async def main() -> None:
        (task,) = await attended(graph.core)
        thread = threading.Thread(target=another)
        thread.start()
        while graph.core.stats().in_flight < 2 or not graph.core._notices.watched():
            await asyncio.sleep(0.001)
        may_answer.set()
        expected = [answer(outputs, number) for number in range(2)]
        assert (await task).result == expected[0]
        await asyncio.to_thread(thread.join, LONG_S)
        assert answers["second"] == expected[1]

    run(main)
    assert pump_threads() == PUMP


def test_one_event_loop_after_another(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        (task,) = await attended(graph.core)
        expected = answer(outputs, graph.core.stats().succeeded)
        assert (await task).result == expected

    for _ in range(5):
        run(main)
    assert pump_threads() == set()


def test_a_closed_event_loop_does_not_keep_the_next_from_reading(graphs: Makes) -> None:
    graph, outputs = graphs()
    loop = asyncio.new_event_loop()
    left = loop.create_task(executed(graph.core, (1,), {}, -1))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert graph.core._notices.attended()
    loop.close()
    coroutine = left.get_coro()

    async def main() -> None:
        task = asyncio.ensure_future(executed(graph.core, (2,), {}, -1))
        await asyncio.sleep(0.01)
        answer(outputs, 0)
        expected = answer(outputs, 1)
        assert (await task).result == expected

    run(main)
    coroutine.close()  # type: ignore[union-attr]


def test_those_in_line_are_sent_in_their_order(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        tasks = [asyncio.ensure_future(executed(graph.core, (number,), {}, -1)) for number in range(12)]
        await asyncio.sleep(0.01)
        assert graph.core.stats().in_line == 8
        expected = [answer(outputs, number) for number in range(12)]
        assert [(await task).result for task in tasks] == expected

    run(main)


def test_nobody_sends_what_the_event_loop_is_just_sending(graphs: Makes) -> None:
    graph, outputs = graphs()
    sent: list[Any] = []

    class Slow(CompiledEngine):
        def send(self, encoded: Any, deadline: Any) -> None:
            sent.append(threading.current_thread())
            graph.core._changed.within(LONG_S, graph.core._changed.notify_all)
            time.sleep(0.05)  # the sender, if it is awake, has all the time that it needs
            super().send(encoded, deadline)

    async def main() -> None:
        graph.core.current_engine().__class__ = Slow
        with graph.core._changed:
            graph.core._pump.start()
        for number in range(5):
            task = asyncio.ensure_future(executed(graph.core, (number,), {}, -1))
            await asyncio.sleep(0)
            expected = answer(outputs, number)
            assert (await task).result == expected
        assert sent == [threading.main_thread()] * 5

    run(main)


def test_what_was_not_written_as_the_generation_broke_is_sent_on_the_next(graphs: Makes) -> None:
    graph, _ = graphs(2)
    _, later = graph.generations  # type: ignore[attr-defined]

    class Broken(CompiledEngine):
        def send(self, encoded: Any, deadline: Any) -> None:
            self.broken = True
            raise EngineBrokenError(ConnectionError("gone"))

    async def main() -> None:
        graph.core.current_engine().__class__ = Broken
        task = asyncio.ensure_future(executed(graph.core, (1,), {}, -1))
        while graph.core.stats().in_flight == 0:
            await asyncio.sleep(0.001)
        expected = answer(later, 0)
        status = await task
        assert (status.result, status.info.attempts) == (expected, 1)

    run(main)


def test_a_graph_that_is_closed_as_the_event_loop_sends_says_so(graphs: Makes) -> None:
    graph, _ = graphs()

    class Closing(CompiledEngine):
        def send(self, encoded: Any, deadline: Any) -> None:
            graph.core.close()
            self.broken = True
            raise EngineBrokenError(ConnectionError("gone"))

    async def main() -> None:
        graph.core.current_engine().__class__ = Closing
        with pytest.raises(GraphClosedError):
            await executed(graph.core, (1,), {}, -1)

    run(main)
    assert graph.core.stats().in_line == 0


def test_without_a_descriptor_the_threads_read(graphs: Makes, monkeypatch: Any) -> None:
    graph, outputs = graphs()

    def none_left(_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(type(outputs.all), "readiness", none_left)

    async def main() -> None:
        task = asyncio.ensure_future(executed(graph.core, (1,), {}, -1))
        await asyncio.sleep(0.01)
        expected = answer(outputs, 0)
        assert (await task).result == expected

    run(main)
    assert pump_threads() == PUMP


def test_where_no_thread_can_be_started_the_event_loop_tries_again(
    graphs: Makes, monkeypatch: Any, caplog: Any
) -> None:
    graph, outputs = graphs()
    start, refused = Pump.start, []

    def seldom(pump: Pump) -> None:
        if len(refused) < 3:
            refused.append(pump)
            raise RuntimeError("can't start new thread")
        start(pump)

    monkeypatch.setattr(attending, "_PAUSE_S", 0.01)

    async def main() -> None:
        (task,) = await attended(graph.core)
        monkeypatch.setattr(Pump, "start", seldom)
        expected = answer(outputs, 0, "x" * (SHORT_BYTES + 600))
        assert (await task).result == expected

    run(main)
    assert len(refused) == 3
    refused.clear()
    caplog.clear()  # what was logged holds the graph


def test_one_loop_is_told_when_another_has_read(graphs: Makes) -> None:
    """The other is in the middle of it, for an execution that nobody waits for, as this one begins to listen."""
    graph, outputs = graphs()
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(run(lambda: executed(graph.core, (2,), {}, -1)).result))

    class Overtaken(CompiledEngine):
        def collect_at_once(self, received: Any) -> None:
            self.__class__ = CompiledEngine  # once
            outputs.send(0, "a1", 1)
            caller.start()
            assert eventually(graph.core._notices.attended)
            CompiledEngine.collect_at_once(self, received)
            assert self.has_arrived(), "what the other loop waits for has been received here"

    graph.core.current_engine().__class__ = Overtaken

    async def first() -> None:
        await submitted(graph.core, (1,), {})
        answer(outputs, 0)
        while graph.core.stats().succeeded < 1:
            await asyncio.sleep(0.001)
        outputs.send(1, "b1", 1)
        await asyncio.to_thread(caller.join, LONG_S)

    run(first)
    assert answers == [["a1", "b1"]]


def test_what_is_to_be_sent_again_is_left_to_the_pump(graphs: Makes) -> None:
    graph, _ = graphs(2, retry_preempted=1, submit_timeout_s=0.01)
    core, (_, later) = graph.core, graph.generations  # type: ignore[attr-defined]
    sent: list[Any] = []

    class Lost(CompiledEngine):
        def send(self, encoded: Any, deadline: Any) -> None:
            super().send(encoded, deadline)
            core.break_off(self, graph.why)
            core.happened(GraphEvent.REBUILD, "")
            timer = threading.Timer(SHORT_S, core.open, (graph.next, ()))  # longer than the submit timeout
            timer.start()

    class Noting(CompiledEngine):
        def send(self, encoded: Any, deadline: Any) -> None:
            sent.append(threading.current_thread())
            super().send(encoded, deadline)

    async def main() -> None:
        core.current_engine().__class__, graph.next.__class__ = Lost, Noting
        task = asyncio.ensure_future(executed(core, (1,), {}, LONG_S))
        while not sent:
            await asyncio.sleep(0.001)
        expected = answer(later, 0)
        status = await task
        assert (status.result, status.info.attempts) == (expected, 2)
        await asyncio.sleep(0.01)
        assert [thread.name for thread in sent] == ["cgexec-sender-echo"]

    run(main)


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_in_the_way_of_an_output_that_has_come_keeps_nobody_busy(graphs: Makes, ended: bool) -> None:
    graph, outputs = graphs()
    noted = looks_of(graph.core)
    frame = b"".join(map(bytes, pack(encode("a whole frame"), 3, 1)))

    async def main() -> None:
        tasks = await attended(graph.core, 2)
        outputs.send(0, "a0", 0)
        if ended:
            outputs.send(0, "a whole frame", 1)
            outputs.wires[0].shut()
        else:
            os.write(outputs.wires[0].fileno(), frame[:60])
        await asyncio.sleep(SHORT_S)
        assert len(noted) < 100, "it looks again and again"
        if not ended:
            os.write(outputs.wires[0].fileno(), frame[60:])
        for number, first in enumerate(["a0", "a whole frame"]):
            outputs.send(1, "b", number)
            assert (await tasks[number]).result == [first, "b"]

    run(main)


def test_what_was_in_time_is_an_answer_though_the_loop_was_late(graphs: Makes) -> None:
    graph, outputs = graphs()

    async def main() -> None:
        for number, value in enumerate(["short", "x" * (SHORT_BYTES + 600)]):
            task = asyncio.ensure_future(executed(graph.core, (1,), {}, 0.05))
            while not graph.core._notices.attended():
                await asyncio.sleep(0)
            expected = answer(outputs, number, value)
            time.sleep(0.1)
            assert (await task).result == expected

    run(main)


def test_with_no_thread_to_be_had_the_event_loop_reads_all_the_same(
    graphs: Makes, monkeypatch: Any, caplog: Any
) -> None:
    graph, outputs = graphs()

    def none_left(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Pump, "start", none_left)
    monkeypatch.setattr(graph.core._attendance._trials, "due", lambda: False)

    async def main() -> None:
        (task,) = await attended(graph.core)
        expected = answer(outputs, 0)
        assert (await task).result == expected

    run(main)
    caplog.clear()


def test_what_is_never_said_of_a_read_is_looked_for_all_the_same(graphs: Makes, monkeypatch: Any) -> None:
    """An interruption may come wherever that is said."""
    graph, outputs = graphs()
    monkeypatch.setattr(graph.core._reader, "_when_read", lambda: None)

    async def main() -> None:
        first = graph.core.submit((1,), {})
        reading = asyncio.ensure_future(asyncio.to_thread(first.result, LONG_S))
        assert await asyncio.to_thread(eventually, lambda: graph.core._reader.reading)
        task = asyncio.ensure_future(executed(graph.core, (2,), {}, -1))
        await asyncio.sleep(0.01)
        expected = [answer(outputs, number) for number in range(2)]
        assert await reading == expected[0]
        assert (await task).result == expected[1]

    run(main)


def test_a_listener_that_ends_may_be_interrupted_and_the_graph_be_closed_again(graphs: Makes, monkeypatch: Any) -> None:
    graph, outputs = graphs()
    core = graph.core

    async def main() -> None:
        (task,) = await attended(core)
        expected = answer(outputs, 0)
        assert (await task).result == expected
        loop, soon = asyncio.get_running_loop(), asyncio.get_running_loop().call_soon_threadsafe

        def interrupted(*_: Any) -> None:
            monkeypatch.setattr(loop, "call_soon_threadsafe", soon)
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        core.close()
        with pytest.raises(KeyboardInterrupt):
            core.abandon(GraphClosedError("closed"))
        core.abandon(GraphClosedError("closed"))
        for wire in outputs.wires:
            wire.shut()
        await asyncio.sleep(0.05)
        assert len(loop._selector.get_map()) == 1, "the reader of the one that was interrupted stays"  # type: ignore[attr-defined]

    run(main)


def interrupted_once(place: int, seen: list[str]) -> None:
    """Interrupt a coroutine's execution at one step, and see whether the graph still answers the next."""
    with a_site() as first, a_site() as second:
        generations = [Outputs(first), Outputs(second)]
        graph = graph_over(generations[0])
        graph.next = engine_over(generations[1])

        class Answering(CompiledEngine):
            def send(self, encoded: Any, deadline: Any) -> None:
                execution = self._num_sent
                super().send(encoded[1:], deadline)
                answer(generations[self is graph.next], execution, encoded[0])

            def encode(self, args: Any, kwargs: Any) -> Any:
                return [args[0], *super().encode(args, kwargs)]

        for engine in (graph.core.current_engine(), graph.next):
            engine.__class__ = Answering  # type: ignore[union-attr]
        loop = asyncio.new_event_loop()
        with suppress(KeyboardInterrupt), interrupted_at(place, seen):
            loop.run_until_complete(executed(graph.core, (1,), {}, LONG_S))
        assert not graph.core._changed._is_owned(), f"{place}: {seen}"
        for number in (7, 8):
            status = loop.run_until_complete(executed(graph.core, (number,), {}, LONG_S))
            assert isinstance(status, JobSucceeded), f"{place}: {seen}: {status}"
            assert status.result == [number, number], f"{place}: {seen}"
        assert graph.core.stats().in_line == 0, f"{place}: {seen}"
        graph.core.close()
        graph.core.abandon(GraphClosedError("closed"))
        graph.core.stop_threads(LONG_S)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        vars(graph).clear()
        generations.clear()


@pytest.mark.clause("C1")
def test_an_interruption_at_any_step_leaves_a_graph_that_answers() -> None:
    place, seen = 0, [""]
    with nothing_left():
        while seen:
            place, seen = place + 1, []
            interrupted_once(place, seen)
    assert place > 100


def test_a_thread_and_coroutines_side_by_side_get_their_own_answers(graphs: Makes) -> None:
    graph, outputs = graphs()
    num_each, stop = 300, threading.Event()
    inputs: list[int] = []
    engine: Any = graph.core.current_engine()
    encode_as_it_was = engine.encode

    class Answering(CompiledEngine):
        def encode(self, args: Any, kwargs: Any) -> Any:
            return [args[0], *encode_as_it_was(args, kwargs)]

        def send(self, encoded: Any, deadline: Any) -> None:
            execution = self._num_sent
            inputs.append(encoded[0])
            super().send(encoded[1:], deadline)
            threads.submit(self.answer, execution, encoded[0])

        def answer(self, execution: int, value: int) -> None:
            for place in range(2):
                outputs.send(place, (value, place) if value % 7 else "x" * 20_000 + str(value), execution)

    def check(number: int, status: Any) -> None:
        assert isinstance(status, JobSucceeded), status
        assert status.result == [(number, p) if number % 7 else "x" * 20_000 + str(number) for p in range(2)]

    def synchronous() -> int:
        number = 1_000_000
        while not stop.is_set():
            number += 1
            check(number, graph.core.execute((number,), {}, LONG_S))
            if number % 5 == 0:
                time.sleep(0.001)
        return number

    async def some(first: int) -> None:
        for number in range(first, first + num_each):
            check(number, await executed(graph.core, (number,), {}, LONG_S))

    async def main() -> None:
        await asyncio.gather(*(some(1000 * place) for place in range(3)))

    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(1) as caller:
        engine.__class__ = Answering
        calling = caller.submit(synchronous)
        try:
            run(main)
        finally:
            stop.set()
        assert calling.result(LONG_S) > 1_000_000
    assert len(inputs) == len(set(inputs)), "an input was sent twice"
