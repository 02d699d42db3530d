"""What runs in an actor beside its loop: reporting, leases, and its hub from the first moment to the last.

Whatever an actor imports for a graph it imports with this module, and a new actor is busy with that for as long as with
all the rest of a build: so it imports nothing that drivers alone need, no numpy, and makes no dataclasses.

Leases
------
Ray compiles a graph over an actor that is in another live graph, and both then hang. Each actor therefore remembers
which graph it is leased to, in this module. A lease alone does not bind for ever: its driver may be gone. It counts
while the actor is connected to that driver, or until it expires, which leaves a graph that is being built the time to
connect. A graph that has ended may have left its loop in an actor, on its way out, and a graph that is none of ours
takes no lease: so the tasks of loops are looked for as well, among the live objects. (Not on the stacks: CPython before
3.11.9 may stop or crash a process whose stacks are looked at while its threads end, python/cpython#106883. Nor by a
call to the concurrency group in which Ray runs the loops: in an asynchronous actor, one that waits there keeps all that
come after it waiting.)
"""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from cgexec.deadline import Deadline
from cgexec.engine.handshake import Address, HandshakeError
from cgexec.engine.hub import GraphKey, Hub, HubClosedError, find_hub, hubs_of
from cgexec.engine.reports import HostReport

_LOOP_POLL_S = 0.02
_LEAVING_S = 2.0  # for the loop of another graph that ends; one that is inside a method may take longer


class Lease(NamedTuple):
    """What an actor is asked to serve: ``graph_name`` and ``driver`` are for people.

    ``secret`` is the generation's key, ``driver_address`` where the driver listens. ``needs_control``: whether the
    actor is of no use if it cannot connect there. ``across_nodes``: whether to listen for other nodes as well.
    """

    key: GraphKey
    graph_name: str
    driver: str
    duration_s: float
    secret: bytes
    driver_address: Address
    needs_control: bool
    across_nodes: bool
    pool_bytes: int

    @property
    def graph_id(self) -> str:
        """The graph, whichever its generation."""
        return self.key.graph_id

    @property
    def title(self) -> str:
        """The graph, for people."""
        return f"graph {self.graph_name!r} of {self.driver}"

    def __repr__(self) -> str:  # which does not tell the secret
        return f"<a lease to {self.title}, {self.key}>"


class ActorReport(NamedTuple):
    """What an actor says of itself: as ``HostReport``, and more.

    ``leased_to`` names the other graph it is in, if any; ``unfit_methods`` says, by name, why a method cannot be part
    of a graph; ``max_concurrency`` how many ordinary calls it does side by side, on threads. ``address`` is where it
    listens for this graph, None if it does not; ``no_control`` why it is not connected to the driver, empty if it is.
    ``gpu_ids`` are those that Ray has given it.
    """

    node_id: str
    incarnation: str
    leased_to: str | None
    unfit_methods: dict[str, str]
    max_concurrency: int = 1
    address: Address | None = None
    no_control: str = ""
    gpu_ids: Sequence[str] = ()


class _ActorState:
    """What this process remembers of its leases; one per process, since Ray runs one actor in each."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.incarnation = uuid.uuid4().hex
        self.lease: Lease | None = None
        self.expires_at = 0.0


_state = _ActorState()


def _binds(held: Lease) -> bool:
    """Return whether a lease counts: its driver is connected, or may be about to be. *In the actor.*"""
    hubs = hubs_of(held.graph_id)
    if any(hub.is_abandoned() for hub in hubs):
        return False
    return time.monotonic() < _state.expires_at or any(hub.controls.wires() for hub in hubs)


def unfit(method: Any) -> str | None:
    """Return why a method cannot be part of a graph, or None if it can."""
    if inspect.iscoroutinefunction(method):
        return "is an `async def` method: it would return a coroutine, which cannot be sent; make it a plain method"
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        return "is a generator: it would return an iterator, which cannot be sent; return a list"
    return None


def give_sign_of_life(_instance: Any) -> HostReport:
    """Report on this actor. *In the actor.*"""
    return HostReport(ray.get_runtime_context().get_node_id(), _state.incarnation)


def take_lease(instance: Any, lease: Lease, methods: Sequence[str]) -> ActorReport:
    """Report on this actor and, if it is free, take the lease. *In the actor.*"""
    refused = {name: why for name in methods if (why := unfit(getattr(type(instance), name, None)))}
    staying = _loops_that_stay(lease.graph_id)
    with _state.lock:
        leased_to = _other_graph(lease.graph_id, staying)
        is_free = leased_to is None and not refused
        if is_free:
            _state.lease = lease
            _state.expires_at = time.monotonic() + lease.duration_s
    context = ray.get_runtime_context()
    report = ActorReport(
        node_id=context.get_node_id(),
        incarnation=_state.incarnation,
        leased_to=leased_to,
        unfit_methods=refused,
        max_concurrency=_max_concurrency(),
        gpu_ids=context.get_accelerator_ids().get("GPU", []),
    )
    if not is_free:
        return report
    _load_tasks()
    return _open_hub(lease, report)


def _loops_that_stay(graph_id: str) -> set[GraphKey | None]:
    """Return the loops of other graphs in this process; those of graphs that end have a moment. *In the actor.*"""
    if not (loops := _loops_of_others(graph_id)):
        return loops
    time.sleep(_LOOP_POLL_S)
    gc.collect()  # the tasks of a loop that has left may be in a cycle
    leave_by = Deadline.after(_LEAVING_S)
    while (loops := _loops_of_others(graph_id)) and all(map(_is_ending, loops)) and leave_by.remaining_s() > 0:
        time.sleep(_LOOP_POLL_S)
    return loops


def loops_here() -> set[GraphKey | None]:
    """Do as ``tasks.loops_here``, which looks at every object of the process: not before a loop can have begun here."""
    if "ray.dag.compiled_dag_node" not in sys.modules:  # whose function a loop is
        return set()
    from cgexec.engine import tasks

    return tasks.loops_here()


def _load_tasks() -> None:
    """Import what the loop will need, while the other actors do. Ray's compile asks one actor after the other."""
    from cgexec.engine import socket_edges, tasks  # noqa: F401


def _loops_of_others(graph_id: str) -> set[GraphKey | None]:
    return {key for key in loops_here() if key is None or key.graph_id != graph_id}


def _is_ending(key: GraphKey | None) -> bool:
    """Return whether a loop is of a graph that has ended here, or is about to."""
    return key is not None and all(hub.is_abandoned() for hub in hubs_of(key.graph_id))


def _other_graph(graph_id: str, loops: set[GraphKey | None]) -> str | None:
    """Return the other graph that this actor is in, for people, or None. *In the actor.*"""
    held = _state.lease
    if held is not None and held.graph_id != graph_id and (held.key in loops or _binds(held)):
        return held.title
    if None in loops:
        return "a compiled graph that cgexec did not build"
    return "a graph that has ended, but not yet here" if loops else None


def _max_concurrency() -> int:
    """Return how many calls this actor does side by side: an asynchronous one, plain methods one by one.

    *In the actor.* Private, since nothing public says it of an actor: the core worker and what it is asked.
    """
    worker: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined] # made by its connect()
    return 1 if worker.current_actor_is_asyncio() else int(worker.current_actor_max_concurrency())


def _open_hub(lease: Lease, report: ActorReport) -> ActorReport:
    """Listen for the other hosts, and connect to the driver. *In the actor.*"""
    for old in hubs_of(lease.graph_id):
        old.shut()
    try:
        hub = Hub(
            lease.key,
            lease.secret,
            str(ray.get_runtime_context().get_actor_id()),
            report.node_id,
            listen_ip=ray.util.get_node_ip_address() if lease.across_nodes else None,
            pool_bytes=lease.pool_bytes,
        )
        hub.tell_losses(lambda _driver: end_graph(None, lease.graph_id, hub))  # it has died, or let go of the graph
        report = report._replace(address=hub.address)
        hub.connect_control(lease.driver_address, Deadline.after(lease.duration_s))
    except (OSError, HandshakeError, HubClosedError) as error:
        report = report._replace(no_control=str(error))
        if lease.needs_control:
            end_graph(None, lease.graph_id)
            report = report._replace(address=None)
    except BaseException:  # the system has no thread left, say
        end_graph(None, lease.graph_id)
        raise
    return report


def end_graph(_instance: Any, graph_id: str, hub: Hub | None = None) -> None:
    """Leave the graph and give its lease back, if this actor has it. *In the actor.*

    Only the generation of ``hub``, if that is given: another may have begun. Whatever waits on a channel is woken.
    """
    with _state.lock:  # first: once the loop has ended, the actor is free
        held = _state.lease
        if held is not None and held.graph_id == graph_id and (hub is None or held.key == hub.key):
            _state.expires_at = 0.0
    for each in hubs_of(graph_id) if hub is None else [hub]:
        each.shut()


def settle_in(_instance: Any, key: GraphKey, num_tasks: int, timeout_s: float) -> tuple[str, bool]:
    """Wait until every task of this actor's loop has its channels open and connected. *In the actor.*

    Returns what is missing, nothing as a rule; and whether that is for good.
    """
    try:
        hub = find_hub(key)
    except HubClosedError as error:
        return str(error), True
    missing = hub.missing_after(num_tasks, Deadline.after(timeout_s))
    return missing, not missing or hub.closed
