"""What an actor finds out about itself before it joins a graph, without the actor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from cgexec import GraphSpecError
from cgexec.engine import preparation
from cgexec.engine.handshake import Address
from cgexec.engine.hub import GraphKey
from cgexec.engine.preparation import ActorReport, Lease, _unfit, end_graph, loop_is_running, refusal

LONG_S = 30.0


@contextmanager
def a_thread_inside(function: Callable[[Callable[[], object]], object]) -> Iterator[None]:
    """Keep a thread inside ``function`` for as long as the block lasts."""
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay() -> None:
        is_inside.set()
        may_leave.wait(LONG_S)

    thread = threading.Thread(target=function, args=(stay,))
    thread.start()
    try:
        assert is_inside.wait(LONG_S)
        yield
    finally:
        may_leave.set()
        thread.join(LONG_S)
    assert not thread.is_alive()


def do_exec_tasks(call: Callable[[], object]) -> object:
    return call()


def do_profile_tasks(call: Callable[[], object]) -> object:
    return call()


def do_something_else(call: Callable[[], object]) -> object:
    return call()


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"), [(do_exec_tasks, True), (do_profile_tasks, True), (do_something_else, False)]
)
def test_a_loop_is_seen_on_whatever_thread_and_however_deep_it_runs(function: Any, expected: bool) -> None:
    assert not loop_is_running()
    with a_thread_inside(function):
        assert loop_is_running() is expected
    assert not loop_is_running()


def test_the_names_of_the_loops_are_those_that_ray_uses() -> None:
    from ray.dag import compiled_dag_node

    assert all(callable(getattr(compiled_dag_node, name)) for name in preparation._LOOP_FUNCTIONS)


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
def test_a_method_that_would_return_what_cannot_be_sent_is_unfit(name: str, reason: str | None) -> None:
    answer = _unfit(getattr(Worker, name, None))
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


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh = preparation._ActorState()
    monkeypatch.setattr(preparation, "_state", fresh)
    return fresh


@pytest.mark.parametrize(
    ("held", "expired", "loop", "asking", "answer"),
    [
        (None, True, False, MINE, None),
        (None, True, False, None, None),
        (None, True, True, MINE, "a compiled graph that cgexec did not build"),
        (None, True, True, None, "a compiled graph that cgexec did not build"),
        (MINE, False, True, MINE, None),
        (MINE, False, False, MINE, None),
        (MINE, False, False, OTHER, "graph 'mine' of process 1 on here"),
        (MINE, True, True, OTHER, "graph 'mine' of process 1 on here"),
        (MINE, True, False, OTHER, None),
    ],
)
def test_a_lease_counts_until_it_expires_or_for_as_long_as_a_loop_runs(
    state: Any, held: Lease | None, expired: bool, loop: bool, asking: Lease | None, answer: str | None
) -> None:
    state.lease = held
    state.expires_at = time.monotonic() + (-1.0 if expired else LONG_S)
    with a_thread_inside(do_exec_tasks if loop else do_something_else):
        assert preparation._other_graph(asking) == answer


@pytest.mark.parametrize(("graph_id", "left"), [("graph-1", None), ("graph-2", MINE)])
def test_only_the_graph_that_has_the_lease_can_give_it_back(state: Any, graph_id: str, left: Lease | None) -> None:
    state.lease = MINE
    end_graph(None, graph_id)
    assert state.lease is left


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
