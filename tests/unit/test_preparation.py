"""What an actor finds out about itself before it joins a graph, without the actor."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hubs import FIRST, LONG_S, a_site
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from cgexec import GraphSpecError
from cgexec.engine import preparation
from cgexec.engine.handshake import Address
from cgexec.engine.hub import GraphKey
from cgexec.engine.preparation import ActorReport, Lease, end_graph, graphs_running, refusal, unfit
from cgexec.engine.tasks import FramedTask


@contextmanager
def a_thread_inside(function: Callable[..., object], tasks: Sequence[object] = ()) -> Iterator[None]:
    """Keep a thread inside ``function`` for as long as the block lasts."""
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay() -> None:
        is_inside.set()
        may_leave.wait(LONG_S)

    thread = threading.Thread(target=function, args=(stay, tasks))
    thread.start()
    try:
        assert is_inside.wait(LONG_S)
        yield
    finally:
        may_leave.set()
        thread.join(LONG_S)
    assert not thread.is_alive()


def do_exec_tasks(call: Callable[[], object], tasks: Sequence[object]) -> object:
    return call()


def do_profile_tasks(call: Callable[[], object], tasks: Sequence[object]) -> object:
    return call()


def do_something_else(call: Callable[[], object], tasks: Sequence[object]) -> object:
    return call()


def task_of(key: GraphKey) -> FramedTask:
    task = FramedTask.__new__(FramedTask)
    task.key = key
    return task


# -- the loop ----------------------------------------------------------------------------------------------------------


KEY = GraphKey("graph-1", 0)


@pytest.mark.parametrize("function", [do_exec_tasks, do_profile_tasks])
@pytest.mark.parametrize(
    ("tasks", "expected"),
    [((), None), ((object(),), None), ((object(), task_of(KEY)), KEY)],
    ids=["none", "ray", "ours"],
)
def test_a_loop_is_seen_on_whatever_thread_and_however_deep_it_runs(
    function: Any, tasks: Sequence[object], expected: GraphKey | None
) -> None:
    assert graphs_running() == []
    with a_thread_inside(function, tasks):
        assert graphs_running() == [expected]
    assert graphs_running() == []


def test_another_function_is_no_loop() -> None:
    with a_thread_inside(do_something_else, (task_of(KEY),)):
        assert graphs_running() == []


def test_the_names_of_the_loops_are_those_that_ray_uses() -> None:
    from ray.dag import compiled_dag_node

    for name in preparation._LOOP_FUNCTIONS:
        assert "tasks" in inspect.signature(getattr(compiled_dag_node, name)).parameters


def test_a_loop_whose_graph_has_ended_here_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_LEAVING_S", LONG_S)
    returned = threading.Event()

    def wait() -> None:
        preparation._await_leaving()
        returned.set()

    thread = threading.Thread(target=wait)
    with a_thread_inside(do_exec_tasks, (task_of(KEY),)):
        thread.start()
        assert not returned.wait(0.1)
    assert returned.wait(LONG_S)
    thread.join(LONG_S)


@pytest.mark.parametrize("tasks", [(), (object(),)])
def test_a_loop_that_is_not_ours_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tasks: Sequence[object]) -> None:
    monkeypatch.setattr(preparation, "_LEAVING_S", 1e9)
    with a_thread_inside(do_exec_tasks, tasks):
        preparation._await_leaving()


def test_a_loop_that_stays_is_waited_for_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_LEAVING_S", 0.01)
    with a_thread_inside(do_exec_tasks, (task_of(KEY),)):
        preparation._await_leaving()


def test_a_loop_whose_graph_goes_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_LEAVING_S", 1e9)
    with a_site() as site, a_thread_inside(do_exec_tasks, (task_of(site.key),)):
        site.hub(FIRST)
        preparation._await_leaving()


# -- methods -----------------------------------------------------------------------------------------------------------


class Worker:
    def plain(self, x: int) -> int:
        return x

    async def coroutine(self, x: int) -> int:
        return x

    def generator(self, x: int) -> Iterator[int]:
        yield x

    async def async_generator(self, x: int) -> Any:
        yield x

    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def of_the_class(cls, x: int) -> int:
        return x


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("plain", None),
        ("static", None),
        ("of_the_class", None),
        ("missing", None),
        ("coroutine", "async def"),
        ("generator", "generator"),
        ("async_generator", "generator"),
    ],
)
def test_a_method_that_would_return_what_cannot_be_sent_isunfit(name: str, reason: str | None) -> None:
    answer = unfit(getattr(Worker, name, None))
    if reason is None:
        assert answer is None
    else:
        assert answer is not None
        assert reason in answer


# -- leases ------------------------------------------------------------------------------------------------------------


def lease(graph_id: str, name: str, driver: str) -> Lease:
    return Lease(
        key=GraphKey(graph_id, 0),
        graph_name=name,
        driver=driver,
        duration_s=60.0,
        secret=b"secret",
        driver_address=Address("node", b"\0name", None),
        needs_control=True,
        across_nodes=False,
        pool_bytes=0,
    )


MINE = lease("graph-1", "mine", "process 1 on here")
OTHER = lease("graph-2", "other", "process 2 on there")
MINE_RUNS = (task_of(KEY),)
FOREIGN = "a compiled graph that cgexec did not build"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh = preparation._ActorState()
    monkeypatch.setattr(preparation, "_state", fresh)
    return fresh


@pytest.mark.parametrize(
    ("held", "expired", "loop", "asking", "answer"),
    [
        (None, True, None, MINE, None),
        (None, True, None, None, None),
        (None, True, (), MINE, FOREIGN),
        (None, True, (), None, FOREIGN),
        (MINE, False, MINE_RUNS, MINE, None),
        (MINE, False, None, MINE, None),
        (MINE, False, None, OTHER, "graph 'mine' of process 1 on here"),
        (MINE, True, MINE_RUNS, OTHER, "graph 'mine' of process 1 on here"),
        (MINE, True, None, OTHER, None),
        (MINE, True, (), OTHER, FOREIGN),
    ],
)
def test_a_lease_counts_until_it_expires_or_for_as_long_as_a_loop_runs(
    state: Any, held: Lease | None, expired: bool, loop: Any, asking: Lease | None, answer: str | None
) -> None:
    state.lease = held
    state.expires_at = time.monotonic() + (-1.0 if expired else LONG_S)
    with a_thread_inside(do_something_else if loop is None else do_exec_tasks, loop or ()):
        assert preparation._other_graph(asking) == answer


@pytest.mark.parametrize(("graph_id", "is_free"), [("graph-1", True), ("graph-2", False)])
def test_only_the_graph_that_has_the_lease_can_give_it_back(state: Any, graph_id: str, is_free: bool) -> None:
    state.lease, state.expires_at = MINE, time.monotonic() + LONG_S
    end_graph(None, graph_id)
    assert (preparation._other_graph(OTHER) is None) is is_free


def test_every_process_is_an_incarnation_of_its_own() -> None:
    assert preparation._ActorState().incarnation != preparation._ActorState().incarnation


# -- refusals ----------------------------------------------------------------------------------------------------------


def report(leased_to: str | None = None, unfit: dict[str, str] | None = None) -> ActorReport:
    return ActorReport("node", "incarnation", leased_to, unfit or {})


def task_error(cause: Exception) -> Exception:
    error = RayTaskError("f", "tb", cause, proctitle="worker", pid=1, ip="127.0.0.1")
    return error.as_instanceof_cause()


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        (report("graph 'other' of process 2"), ("graph 'other' of process 2", "close that graph first")),
        (report(unfit={"step": "is a generator"}), ("step() of", "is a generator")),
        (task_error(ModuleNotFoundError("No module named 'cgexec'")), ("cannot be imported", "cgexec", "runtime_env")),
        (task_error(ImportError("cannot import")), ("cannot be imported", "cannot import", "runtime_env")),
    ],
    ids=["leased", "unfit", "module missing", "import fails"],
)
def test_what_the_caller_can_mend_is_a_refusal_that_says_how(reply: Any, parts: tuple[str, ...]) -> None:
    problem = refusal(3, "the actor", reply)
    assert isinstance(problem, GraphSpecError)
    for part in ("host 3 ('the actor')", *parts):
        assert part in str(problem)


@pytest.mark.parametrize(
    "reply",
    [report(), ActorDiedError(), GetTimeoutError("silent"), task_error(ValueError("x"))],
    ids=lambda reply: type(reply).__name__,
)
def test_an_actor_that_is_ready_or_gone_is_not_refused(reply: Any) -> None:
    assert refusal(3, "the actor", reply) is None
