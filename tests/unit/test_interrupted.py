"""Ctrl-C at every single step of a call: what was in flight is answered, and the graph goes on or can be closed.

Every step is tried, one run after the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import eventually
from interruptions import interrupted_at

from cgexec import GraphClosedError, GraphConfig, GraphExecutor, GraphState, JobStatus, JobSucceeded, chain, supervisor
from cgexec.engine.in_process import InProcessEngine
from cgexec.engine.local_actor import world
from cgexec.testing import LocalActor, kill

CONFIG = GraphConfig(engine="in_process", get_timeout_s=5, submit_timeout_s=5, teardown_timeout_s=1)


class Passing:
    """Passes on."""

    def work(self, value: int) -> int:
        """Return it."""
        return value


CALLS: dict[str, Callable[[GraphExecutor, Any], object]] = {
    "execute": lambda graph, _: graph.execute(2),
    "submit": lambda graph, _: graph.submit(2),
    "try_submit": lambda graph, _: graph.try_submit(2),
    "status": lambda _, executions: executions[1].status(),
    "outputs": lambda _, executions: executions[1].outputs(),
    "done": lambda _, executions: executions[1].done(),
    "close": lambda graph, _: graph.close(0.5),
}


@pytest.mark.clause("C1")
@pytest.mark.clause("C2")
@pytest.mark.parametrize("call", CALLS)
def test_an_interruption_at_any_step_costs_no_more_than_the_generation(call: str) -> None:
    place, seen = 0, [""]
    while seen:
        place, seen = place + 1, []
        check(CALLS[call], place, seen)
    assert place > 30


def check(call: Callable[[GraphExecutor, Any], object], place: int, seen: list[str]) -> None:
    graph = GraphExecutor([LocalActor(Passing) for _ in range(2)], chain("work"), config=CONFIG)
    executions = [graph.submit(number) for number in range(2)]
    was_raised = False
    try:
        with interrupted_at(place, seen):
            call(graph, executions)
    except KeyboardInterrupt:
        was_raised = True
    where = f"{place}: {seen}"
    assert was_raised == bool(seen), where
    assert not world._is_owned(), where
    assert not graph._core._changed._is_owned(), where
    for number, execution in enumerate(executions):
        status = execution.status()
        assert status.info.state != "pending", where
        assert not isinstance(status, JobSucceeded) or status.result == number, where
    for number in (7, 8):
        try:
            after: JobStatus = graph.execute(number)
        except GraphClosedError:
            assert call is CALLS["close"], where
        else:
            assert isinstance(after, JobSucceeded), where
            assert after.result == number, where
    stats = graph.stats()
    assert (stats.in_line, stats.in_flight) == (0, 0), where
    graph.close(0.5)
    assert not graph._supervisor._thread.is_alive(), where
    assert [actor._process.leased_to for actor in graph.actors] == [None, None], where


@pytest.mark.clause("C4")
def test_no_host_is_waited_for_long_to_account_for_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    why_broken, collect = InProcessEngine.why_broken, InProcessEngine.collect

    def noted(engine: InProcessEngine, seen: Exception, timeout_s: float) -> Any:
        waits.append(timeout_s)
        return why_broken(engine, seen, timeout_s)

    def interrupted(*_args: Any) -> None:
        monkeypatch.setattr(InProcessEngine, "collect", collect)
        raise KeyboardInterrupt

    monkeypatch.setattr(InProcessEngine, "why_broken", noted)
    actors = [LocalActor(Passing) for _ in range(2)]
    with GraphExecutor(actors, chain("work"), config=CONFIG) as graph:
        monkeypatch.setattr(InProcessEngine, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            graph.execute(1)
        assert graph.execute(2).result == 2
        kill(actors[0])
        assert eventually(lambda: graph.generation == 2)
        assert graph.execute(3).result == 3
    assert waits == [supervisor._COINCIDENCE_TIMEOUT_S, supervisor._CULPRIT_TIMEOUT_S]


@pytest.mark.clause("C7")
def test_an_interruption_amid_a_rebuild_on_request_is_no_host_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = InProcessEngine.collect

    def interrupted(*_args: Any) -> None:
        monkeypatch.setattr(InProcessEngine, "collect", collect)
        requesting.start()
        assert eventually(lambda: graph.state is GraphState.REBUILDING)
        raise KeyboardInterrupt

    with GraphExecutor([LocalActor(Passing) for _ in range(2)], chain("work"), config=CONFIG) as graph:
        requesting = threading.Thread(target=graph.rebuild)
        monkeypatch.setattr(InProcessEngine, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            graph.execute(1)
        requesting.join(30)
        assert not requesting.is_alive()
        assert graph.execute(2).result == 2
        said = "; ".join(map(str, graph.history))
    assert "a read or a write went wrong in this process" in said
    assert "left the graph" not in said


@pytest.mark.clause("C6")
def test_an_interruption_while_a_graph_is_opened_leaves_the_actors_free() -> None:
    place, seen = 0, [""]
    while seen:
        place, seen = place + 1, []
        actors = [LocalActor(Passing) for _ in range(2)]
        opened: list[GraphExecutor] = []
        with contextlib.suppress(KeyboardInterrupt), interrupted_at(place, seen):
            opened.append(GraphExecutor(actors, chain("work"), config=CONFIG))
        for graph in opened:
            graph.close()
        del opened
        # If there was a graph already, it is closed now by the thread that watches over it: nobody refers to it.
        assert eventually(lambda: all(actor._process.leased_to is None for actor in actors)), f"{place}: {seen}"  # noqa: B023
        with GraphExecutor(actors, chain("work"), config=CONFIG) as again:
            status = again.execute(place)
            assert isinstance(status, JobSucceeded), f"{place}: {seen}"
            assert status.result == place
    assert place > 100
