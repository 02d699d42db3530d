"""Values, errors, callers and systems that are awkward: what they may cost, and what not. In one process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from conftest import eventually
from ray.exceptions import ActorDiedError, RayTaskError

from cgexec import (
    GraphConfig,
    GraphExecutor,
    GraphFailedError,
    GraphSpecError,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
    chain,
    fan_out,
)
from cgexec.engine.in_process import InProcessEngine
from cgexec.lifecycle import GraphEvent
from cgexec.testing import (
    Fault,
    FaultPlan,
    LocalActor,
    Message,
    Recorder,
    kill,
    resume,
    stop,
)

LOCAL = GraphConfig(engine="in_process", teardown_timeout_s=1.0)


# -- values and errors that are awkward --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Lets nobody set anything, its traceback neither."""

    number: int


class Unsendable:
    """Raises as it is serialised."""

    def __reduce__(self) -> Any:
        raise FrozenError(1)


@pytest.mark.parametrize("call", ["execute", "execute_async"])
def test_an_input_that_raises_what_is_frozen_is_refused_and_the_line_moves_on(call: str) -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        for number in range(2):
            bad: Any = Unsendable()
            status = graph.execute(bad) if call == "execute" else asyncio.run(graph.execute_async(bad))
            assert isinstance(status, JobFailed)
            assert "FrozenError: 1" in str(status.error)
            assert isinstance(graph.execute(Message(number)), JobSucceeded)


def test_a_builder_that_raises_what_is_frozen_fails_the_graph_and_ends_nothing_else() -> None:
    def build(inp: Any, actors: Any) -> Any:
        if len(actors) == 1:
            raise FrozenError(2)
        return [actor.work.bind(inp) for actor in actors]

    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, build, config=LOCAL) as graph:
        kill(actors[0])
        with pytest.raises(GraphFailedError, match="FrozenError"):
            graph.rebuild()
        assert graph.state is GraphState.FAILED
        assert isinstance(graph.execute(Message(1)), JobError)


class Loading:
    """Calls ``what`` in the process that loads it, and is what that returns."""

    what: Callable[[], Any]

    def __reduce__(self) -> Any:
        return load, ()


def load() -> Any:
    return Loading.what()


class Returner:
    """Returns what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def work(self, what: str) -> Any:
        """Return something to load, or the name."""
        self.asked.append(what)
        return Loading() if what == "loading" else what


def test_a_value_that_takes_long_to_load_keeps_nobody_else_waiting() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> str:
        begun.set()
        assert go_on.wait(30)
        return "loaded"

    Loading.what = staticmethod(wait)
    with (
        GraphExecutor([LocalActor(Returner)], chain("work"), config=LOCAL) as graph,
        GraphExecutor([LocalActor(Returner)], chain("work"), config=LOCAL) as other,
    ):
        execution = graph.submit("loading")
        waiting = threading.Thread(target=execution.status)
        waiting.start()
        assert begun.wait(30)
        assert other.execute("plain").result == "plain"  # type: ignore[attr-defined]
        go_on.set()
        waiting.join()
        assert execution.result() == "loaded"


@pytest.mark.parametrize("timeout_s", [-1, 20])
def test_a_result_that_waits_for_its_own_graph_as_it_is_loaded_is_told_so(timeout_s: float) -> None:
    with GraphExecutor([LocalActor(Returner)], chain("work"), config=LOCAL) as graph:
        Loading.what = staticmethod(lambda: graph.execute("plain", timeout_s=timeout_s))
        status = graph.execute("loading")
        assert isinstance(status, JobError)
        assert "waits for the graph that it came from" in str(status.error)
        assert isinstance(graph.execute("plain"), JobSucceeded)


def test_without_fail_fast_a_wait_after_a_first_error_sleeps() -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, fan_out("work"), config=replace(LOCAL, fail_fast=False)) as graph:
        engine: Any = graph._core.current_engine()
        looks, collect = [], engine.collect
        engine.collect = lambda *arguments: (looks.append(arguments), collect(*arguments))
        assert isinstance(graph.execute(Message(1, {0: ["raise"], 1: ["sleep:1"]})), JobFailed)
        assert len(looks) < 30


def test_what_nobody_holds_any_more_is_not_kept() -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        execution = graph.submit(Message(1))
        assert eventually(execution.done)
        gone = weakref.ref(execution.status().result)  # type: ignore[attr-defined]
        del execution
        assert gone() is None
        graph.submit(Message(2))
        graph.close()
        assert not graph._core._reader.spent


def test_a_job_that_was_stopped_does_not_outlive_its_graph() -> None:
    plan = FaultPlan(Fault("stop", host=0))
    actor = LocalActor(Recorder, 0, faults=plan)
    with GraphExecutor([actor], chain("work"), config=LOCAL) as graph:
        graph.submit(Message(1))
        assert eventually(lambda: plan.happened and actor._process.at_work is None)
        engine: Any = graph._core.current_engine()
        leaving = threading.Thread(target=engine.tear_down, args=(20,))
        leaving.start()
        assert eventually(lambda: not actor._process._mailbox)
        resume(actor)
        leaving.join()
        assert actor._process.death is None
    assert actor._process.instance.given == []


def test_a_result_that_takes_for_ever_to_load_keeps_neither_a_close_nor_a_rebuild_waiting() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(60)

    Loading.what = staticmethod(wait)
    actors = [LocalActor(Returner) for _ in range(2)]
    with GraphExecutor(actors, lambda inp, hosts: hosts[-1].work.bind(inp), config=LOCAL) as graph:
        execution = graph.submit("loading")
        process = actors[1]._process
        assert eventually(lambda: process.instance.asked and process.at_work is None), "it has not arrived"
        kill(actors[0])
        assert begun.wait(30)
        assert graph.execute("plain", timeout_s=30).result == "plain"  # type: ignore[attr-defined]
        assert graph.generation == 1
        assert isinstance(execution.status(0), JobPreempted)
        begun.clear()
        execution = graph.submit("loading")
        closing = threading.Thread(target=graph.close, args=(0.5,))
        closing.start()
        assert begun.wait(30)
        closing.join(30)
        assert not closing.is_alive()
        assert isinstance(execution.status(0), JobError)
        go_on.set()


def test_two_graphs_that_are_opened_at_once_over_the_same_actors() -> None:
    for _ in range(20):
        actors = [LocalActor(Recorder, label) for label in range(12)]
        together, opened = threading.Barrier(2), []

        def open_one(actors: list[LocalActor] = actors, together: Any = together, opened: list[Any] = opened) -> None:
            together.wait(30)
            with contextlib.suppress(GraphSpecError):
                opened.append(GraphExecutor(actors, fan_out("work"), config=LOCAL))

        threads = [threading.Thread(target=open_one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (graph,) = opened
        assert isinstance(graph.execute(Message(1)), JobSucceeded)
        graph.close()


# -- errors, and what they hold ----------------------------------------------------------------------------------------


def lose_and_raise(graph: GraphExecutor, actor: LocalActor) -> None:
    """Have an execution lost, and its error raised in this frame, which refers to the graph."""
    execution = graph.submit(Message(1, {1: ["sleep:0.2"]}))
    kill(actor)
    with pytest.raises(ActorDiedError):
        execution.result()
    assert eventually(lambda: graph.lost_hosts)
    with pytest.raises(ActorDiedError):
        raise graph.lost_hosts[0].cause


def test_who_has_raised_what_an_execution_was_lost_to_holds_no_graph() -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    graph = GraphExecutor(actors, chain("work"), config=LOCAL)
    lose_and_raise(graph, actors[1])
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None
    assert eventually(lambda: actors[0]._process.leased_to is None), "a forgotten graph was not closed"


def test_a_graph_that_has_failed_keeps_nothing_of_who_was_told_so() -> None:
    graph = GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL)
    kill(graph.actors[0])
    for ask in (graph.rebuild, graph.submit(Message(1)).result, graph.submit(Message(2)).result):
        with pytest.raises(GraphFailedError):
            ask()
    failure: Any = graph._core._failure
    assert failure.__traceback__ is None
    assert failure is not graph.failure
    graph.close()


def test_a_result_that_was_raised_is_in_no_cycle() -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        gc.collect()
        gc.disable()
        try:
            execution = graph.submit(Message(1, {0: ["raise"]}))
            gone = weakref.ref(execution)
            with contextlib.suppress(ValueError):
                execution.result()
            del execution
            assert gone() is None
        finally:
            gc.enable()


# -- futures, callbacks and threads ------------------------------------------------------------------------------------


def test_a_future_waits_for_no_callback() -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        other = graph.submit(Message(2))
        found: list[Any] = []
        called = threading.Event()

        def ask_another(_: Any) -> None:
            found.append(other.future().result(30))
            called.set()

        graph.submit(Message(1)).add_done_callback(ask_another)
        assert called.wait(30)
        assert found[0].result.number == 2


def test_a_future_that_was_cancelled_has_collected_nothing(caplog: Any) -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        future = graph.submit(Message(1, {0: ["sleep:0.2", "raise"]})).future()
        assert future.cancel()
        assert eventually(lambda: graph.stats().never_collected == 1)
    assert "nobody asked what became of execution 0" in caplog.text


def test_who_is_cancelled_while_the_graph_is_rebuilt_has_collected_nothing() -> None:
    rebuilding, go_on = threading.Event(), threading.Event()

    def hook(*_: Any) -> None:
        rebuilding.set()
        go_on.wait(30)

    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(on_rebuild=hook)) as graph:

        async def ask() -> None:
            asking = asyncio.create_task(graph.execute_async(Message(1, {1: ["sleep:0.2"]})))
            await asyncio.sleep(0.05)
            kill(actors[1])
            assert await asyncio.to_thread(rebuilding.wait, 30)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        asyncio.run(ask())
        go_on.set()  # the thread that is in the hook says it
        assert eventually(lambda: graph.stats().never_collected == 1)


@pytest.mark.parametrize("call", ["map", "map_async"])
def test_what_was_sent_is_answered_before_what_the_inputs_raise(call: str) -> None:
    def inputs() -> Any:
        yield from (Message(number) for number in range(3))
        raise LookupError("no more")

    found: list[Any] = []

    def collect() -> None:
        for status in graph.map(inputs()):
            found.append(status.result.number)  # type: ignore[attr-defined] # noqa: PERF401

    async def collect_async() -> None:
        async for status in graph.map_async(inputs()):
            found.append(status.result.number)  # type: ignore[attr-defined] # noqa: PERF401

    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        with pytest.raises(LookupError, match="no more"):
            collect() if call == "map" else asyncio.run(collect_async())
        assert found == [0, 1, 2]


class NoThreadOnce(threading.Thread):
    """Cannot be started the first time."""

    refused: ClassVar[list[str]] = []

    def start(self) -> None:
        if self.name.startswith("cgexec-") and not self.refused:
            self.refused.append(self.name)
            raise RuntimeError("can't start new thread")
        super().start()


def test_a_thread_that_cannot_be_started_once_is_started_the_next_time(monkeypatch: Any) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    policy = RebuildPolicy(probe_timeout_s=0.3)
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=policy) as graph:
        monkeypatch.setattr(NoThreadOnce, "refused", [])
        monkeypatch.setattr(threading, "Thread", NoThreadOnce)
        execution, called = graph.submit(Message(1)), threading.Event()
        with pytest.raises(RuntimeError, match="can't start"):
            execution.add_done_callback(lambda _: called.set())
        execution.add_done_callback(lambda _: called.set())
        assert called.wait(30)
        NoThreadOnce.refused.clear()
        stop(actors[1])
        execution = graph.submit(Message(2))
        assert execution.status(0.05).info.state == "pending"
        assert NoThreadOnce.refused == ["cgexec-watch-graph"]
        assert execution.status(0.05).info.state == "pending"
        assert isinstance(execution.status(30), JobPreempted)


def test_a_rebuild_that_fails_by_itself_is_answered(monkeypatch: Any) -> None:
    graph = GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL)
    monkeypatch.setattr(graph._supervisor._watch, "begin", lambda _: 1 / 0)
    with pytest.raises(GraphFailedError, match="the rebuild itself failed: ZeroDivisionError"):
        graph.rebuild()
    assert graph.state is GraphState.FAILED
    graph.close()


def test_a_graph_whose_supervisor_cannot_be_started_leaves_its_actors(monkeypatch: Any) -> None:
    monkeypatch.setattr(NoThreadOnce, "refused", [])
    monkeypatch.setattr(threading, "Thread", NoThreadOnce)
    actors = [LocalActor(Recorder, 0)]
    with pytest.raises(RuntimeError, match="can't start"):
        GraphExecutor(actors, chain("work"), config=LOCAL)
    with GraphExecutor(actors, chain("work"), config=LOCAL) as graph:
        assert isinstance(graph.execute(Message(1)), JobSucceeded)


# -- what has arrived, and how long a close may take -------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "death"])
def test_what_has_arrived_is_delivered_though_there_is_no_time_to_wait(ending: str) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    config = replace(LOCAL, teardown_timeout_s=0)
    with GraphExecutor(actors, lambda inp, hosts: hosts[-1].work.bind(inp), config=config) as graph:
        executions = [graph.submit(Message(number)) for number in range(5)]
        assert eventually(lambda: len(actors[1]._process.instance.given) == 5 and actors[1]._process.at_work is None)
        if ending == "close":
            graph.close(0)
        else:
            kill(actors[0])
        assert [execution.result().number for execution in executions] == list(range(5))


class HasCauseError(Exception):
    """Has an attribute where Ray wants to put one."""

    cause = property(lambda _self: "a disk")


class FinalError(Exception):
    """Cannot be derived from."""

    def __init_subclass__(cls, **_: Any) -> None:
        raise SystemExit("it is final")


class Raiser:
    """Raises what it is asked for."""

    def work(self, what: str) -> Any:
        """Raise one of the awkward."""
        error: Exception = {"frozen": FrozenError(1), "cause": HasCauseError("x"), "final": FinalError("x")}[what]
        raise error


@pytest.mark.parametrize("what", ["frozen", "cause", "final"])
def test_an_error_that_ray_cannot_make_its_own_costs_no_generation(what: str) -> None:
    with GraphExecutor([LocalActor(Raiser)], chain("work"), config=LOCAL) as graph:
        status = graph.execute(what)
        assert isinstance(status, JobFailed)
        assert isinstance(status.error, RayTaskError)
        assert graph.generation == 0


def test_the_waits_of_a_close_do_not_add_up() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(_: Any = None) -> None:
        begun.release()
        go_on.wait(60)

    Loading.what = staticmethod(wait)
    graph = GraphExecutor([LocalActor(Returner)], chain("work"), config=LOCAL)
    graph.submit("plain").add_done_callback(wait)
    graph.submit("plain").future().add_done_callback(wait)
    graph.submit("loading").add_done_callback(lambda _: None)
    for _ in range(3):
        assert begun.acquire(timeout=30)
    started = time.monotonic()
    graph.close(0)
    took_s = time.monotonic() - started
    go_on.set()
    assert took_s < 1.0 + 5  # for a machine that is busy


# -- between the break of an engine and its handling -------------------------------------------------------------------

SAID = {False: "an actor left the graph", True: "a read or a write went wrong in this process"}


def rebuilds_of(graph: GraphExecutor) -> list[str]:
    """Return what each rebuild was for."""
    return [entry.detail for entry in graph.history if entry.event is GraphEvent.REBUILD]


@pytest.mark.clause("C4")
@pytest.mark.parametrize("condemned", [False, True])
def test_a_rebuild_asked_for_before_a_break_is_told_is_one_rebuild(condemned: bool) -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        engine: Any = graph._core.current_engine()
        engine.broken, engine.condemned = True, condemned
        assert graph.state is GraphState.BROKEN
        graph.rebuild()
        assert (graph.state, graph.generation) == (GraphState.READY, 1)
        assert SAID[condemned] in "; ".join(map(str, graph.history))
        graph._supervisor._on_break(engine)
        graph._supervisor.request_rebuild().result(30)  # handled after it
        assert rebuilds_of(graph) == ["on request", "on request"]
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C4")
@pytest.mark.parametrize("condemned", [False, True])
def test_a_break_that_nobody_explains_says_whose_it_was(condemned: bool) -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        engine: Any = graph._core.current_engine()
        engine.broken, engine.condemned = True, condemned
        graph._supervisor._on_break(engine)
        assert eventually(lambda: graph.generation == 1)
        assert SAID[condemned] in "; ".join(map(str, graph.history))
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C4")
def test_a_rebuild_asked_for_while_a_break_is_explained_costs_no_rebuild_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()
    why_broken = InProcessEngine.why_broken

    def slowly(*args: Any) -> Any:
        assert asked.wait(30)
        return why_broken(*args)

    monkeypatch.setattr(InProcessEngine, "why_broken", slowly)
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(max_rebuilds=1)) as graph:
        kill(actors[0])
        assert graph.state is GraphState.BROKEN
        done = graph._supervisor.request_rebuild()
        asked.set()
        done.result(30)
        assert (graph.state, graph.generation) == (GraphState.READY, 1)
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C4")
def test_who_asks_before_the_actors_are_bound_shares_a_rebuild() -> None:
    shared: list[Future[None]] = []

    def replace_it(_info: Any) -> Any:
        shared.append(graph._supervisor.request_rebuild())
        return LocalActor(Recorder, 2)

    actors = [LocalActor(Recorder, label) for label in range(2)]
    policy = RebuildPolicy(replace=replace_it, max_rebuilds=1)
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=policy) as graph:
        kill(actors[0])
        assert eventually(lambda: shared)
        shared[0].result(30)
        assert rebuilds_of(graph) == ["after a system error"]
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C4")
def test_who_asks_when_the_actors_have_been_bound_has_another_rebuild() -> None:
    later: list[Future[None]] = []

    def ask_again(generation: int, _infos: Any, _actors: Any) -> None:
        if generation == 1:
            later.append(graph._supervisor.request_rebuild())

    policy = RebuildPolicy(on_rebuild=ask_again)
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL, policy=policy) as graph:
        graph.rebuild()
        later[0].result(30)
        assert rebuilds_of(graph) == ["on request", "on request"]
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C4")
def test_a_rebuild_whose_generation_has_broken_already_was_done_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL) as graph:
        opened = graph._core.open

        def breaking(engine: Any, members: Any) -> bool:
            if graph.generation == 0:
                kill(actors[0])
            return opened(engine, members)

        monkeypatch.setattr(graph._core, "open", breaking)
        graph.rebuild()
        assert eventually(lambda: graph.generation == 2)
        assert [lost.info.host_id for lost in graph.lost_hosts] == [0]
        assert graph.execute(Message(1)).result.number == 1


@pytest.mark.clause("C7")
def test_a_rebuild_asked_for_as_ray_goes_is_answered_whatever_its_teardown_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GraphExecutor([LocalActor(Recorder, 0)], chain("work"), config=LOCAL) as graph:
        engine: Any = graph._core.current_engine()
        engine.session_over = True
        monkeypatch.setattr(engine, "tear_down", lambda _: 1 / 0)
        for why in ("ZeroDivisionError", "Ray was shut down"):
            with pytest.raises(GraphFailedError, match=why):
                graph._supervisor.request_rebuild().result(30)
        assert graph.state is GraphState.FAILED
