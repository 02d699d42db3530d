"""What an actor finds out about itself before it joins a graph, without the actor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import eventually
from hubs import FIRST, LONG_S, a_site
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from cgexec import GraphSpecError
from cgexec.deadline import Deadline
from cgexec.engine import in_actor
from cgexec.engine.handshake import Address
from cgexec.engine.hub import GraphKey
from cgexec.engine.in_actor import ActorReport, Lease, end_graph, take_lease, unfit
from cgexec.engine.preparation import refusal

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


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh = in_actor._ActorState()
    monkeypatch.setattr(in_actor, "_state", fresh)
    return fresh


def lent(state: Any, held: Lease, expires_in_s: float) -> None:
    state.lease, state.expires_at = held, time.monotonic() + expires_in_s


@pytest.mark.parametrize("expired", [False, True])
def test_a_lease_counts_while_its_driver_is_connected_and_until_it_expires(state: Any, expired: bool) -> None:
    with a_site() as site:
        driver, actor = site.hub(), site.hub(FIRST)
        lent(state, lease(site.key.graph_id, "mine", "process 1 on here"), -1.0 if expired else LONG_S)
        assert in_actor._binds(state.lease) is not expired
        actor.connect_control(driver.address, Deadline.after(LONG_S))
        assert in_actor._binds(state.lease)
        driver.shut()
        assert eventually(lambda: not in_actor._binds(state.lease))


@pytest.mark.parametrize(("graph_id", "is_free"), [("graph-1", True), ("graph-2", False)])
def test_only_the_graph_that_has_the_lease_can_give_it_back(state: Any, graph_id: str, is_free: bool) -> None:
    lent(state, MINE, LONG_S)
    end_graph(None, graph_id)
    assert in_actor._binds(MINE) is not is_free


class Loops:
    """Which graphs' loops run, look by look; the last for ever."""

    def __init__(self, *looks: set[GraphKey | None]) -> None:
        self.looks = list(looks)

    def __call__(self) -> set[GraphKey | None]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


@pytest.fixture
def inside_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(get_node_id=lambda: "node", get_accelerator_ids=dict)
    monkeypatch.setattr(in_actor.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(in_actor, "_max_concurrency", lambda: 1)
    monkeypatch.setattr(in_actor, "_open_hub", lambda _lease, report: report)
    monkeypatch.setattr(in_actor, "loops_here", Loops(set()))
    monkeypatch.setattr(in_actor, "_LEAVING_S", 0.1)


FOREIGN = "a compiled graph that cgexec did not build"
NONE: set[GraphKey | None] = set()


@pytest.mark.parametrize(
    ("held", "expires_in_s", "loops", "asking", "leased_to"),
    [
        (None, 0.0, Loops(NONE), MINE, None),
        (None, 0.0, Loops({None}), MINE, FOREIGN),
        (None, 0.0, Loops({None}, NONE), MINE, None),  # its tasks were garbage
        (MINE, LONG_S, Loops(NONE), MINE, None),
        (MINE, -1.0, Loops({MINE.key}), MINE, None),  # of an earlier generation: the next one comes after it
        (MINE, LONG_S, Loops({None}), MINE, FOREIGN),
        (MINE, LONG_S, Loops(NONE), OTHER, MINE.title),
        (MINE, -1.0, Loops(NONE), OTHER, None),
        (MINE, -1.0, Loops({MINE.key}), OTHER, MINE.title),
        (MINE, -1.0, Loops({MINE.key}, {MINE.key}, NONE), OTHER, None),  # it was leaving
        (None, 0.0, Loops({MINE.key}), OTHER, "a graph that has ended, but not yet here"),
    ],
)
@pytest.mark.usefixtures("inside_an_actor")
def test_an_actor_takes_a_lease_unless_it_is_in_another_graph(
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    held: Lease | None,
    expires_in_s: float,
    loops: Loops,
    asking: Lease,
    leased_to: str | None,
) -> None:
    monkeypatch.setattr(in_actor, "loops_here", loops)
    state.lease, state.expires_at = held, time.monotonic() + expires_in_s
    assert take_lease(Worker(), asking, ["plain"]).leased_to == leased_to
    assert state.lease is (asking if leased_to is None else held)


@pytest.mark.usefixtures("inside_an_actor")
def test_the_loop_of_a_graph_that_goes_on_is_not_waited_for(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_site() as site:
        site.hub(FIRST)
        monkeypatch.setattr(in_actor, "loops_here", Loops({site.key}))
        monkeypatch.setattr(in_actor, "_LEAVING_S", 1e9)
        going_on = MINE._replace(key=site.key)
        lent(state, going_on, -1.0)
        assert take_lease(Worker(), OTHER, ["plain"]).leased_to == going_on.title


@pytest.mark.usefixtures("inside_an_actor")
def test_an_actor_with_an_unfit_method_takes_no_lease(state: Any) -> None:
    said = take_lease(Worker(), MINE, ["plain", "coroutine"])
    assert set(said.unfit_methods) == {"coroutine"}
    assert state.lease is None


def test_every_process_is_an_incarnation_of_its_own() -> None:
    assert in_actor._ActorState().incarnation != in_actor._ActorState().incarnation


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
