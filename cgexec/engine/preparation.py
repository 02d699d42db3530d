"""Asking the actors: are you there, can you serve this graph, and who are you.

One ``__ray_call__`` per actor, all in parallel, bounded. The functions marked *in the actor* run there; that they can
be loaded at all shows that cgexec can be imported.

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
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from cgexec.deadline import Deadline
from cgexec.engine.edges import actor_name
from cgexec.engine.handshake import Address, HandshakeError
from cgexec.engine.hub import GraphKey, Hub, HubClosedError, find_hub, hubs_of
from cgexec.engine.protocol import HostReport, Member, SessionOverError, losses_among
from cgexec.engine.session import Session
from cgexec.engine.tasks import loops_here
from cgexec.errors import GraphSpecError
from cgexec.isolation import bare

_LOOP_POLL_S = 0.02
_LOOK_S = 0.1  # in one go, so that a shutdown of Ray is noticed
_ASK_AGAIN_S = 0.02
_SETTLE_S = 0.1  # for an actor to settle in, in one go
_LEAVING_S = 2.0  # for the loop of another graph that ends; one that is inside a method may take longer


@dataclass(frozen=True)
class Lease:
    """What an actor is asked to serve: ``graph_name`` and ``driver`` are for people.

    ``secret`` is the generation's key, ``driver_address`` where the driver listens. ``needs_control``: whether the
    actor is of no use if it cannot connect there. ``across_nodes``: whether to listen for other nodes as well.
    """

    key: GraphKey
    graph_name: str
    driver: str
    duration_s: float
    secret: bytes = field(repr=False)
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


@dataclass(frozen=True)
class ActorReport(HostReport):
    """What an actor says of itself.

    ``leased_to`` names the other graph it is in, if any; ``unfit_methods`` says, by name, why a method cannot be part
    of a graph; ``max_concurrency`` how many ordinary calls it does side by side, on threads. ``address`` is where it
    listens for this graph, None if it does not; ``no_control`` why it is not connected to the driver, empty if it is.
    """

    leased_to: str | None
    unfit_methods: dict[str, str]
    max_concurrency: int = 1
    address: Address | None = None
    no_control: str = ""


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
    report = ActorReport(
        node_id=ray.get_runtime_context().get_node_id(),
        incarnation=_state.incarnation,
        leased_to=leased_to,
        unfit_methods=refused,
        max_concurrency=_max_concurrency(),
    )
    return _open_hub(lease, report) if is_free else report


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
        report = replace(report, address=hub.address)
        hub.connect_control(lease.driver_address, Deadline.after(lease.duration_s))
    except (OSError, HandshakeError, HubClosedError) as error:
        report = replace(report, no_control=str(error))
        if lease.needs_control:
            end_graph(None, lease.graph_id)
            report = replace(report, address=None)
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


def _call_all(
    ask: Callable[[Callable[[], Any]], Any],
    members: Sequence[Member],
    timeout_s: float,
    call: Callable[[Member], ray.ObjectRef[Any]],
) -> dict[int, Any | Exception]:
    answers: dict[int, Any | Exception] = {}
    refs: dict[int, ray.ObjectRef[Any]] = {}
    for member in members:
        host_id = member.info.host_id
        try:
            refs[host_id] = ask(partial(call, member))
        except SessionOverError:
            raise
        except Exception as error:  # noqa: BLE001 - a handle of an earlier Ray session is refused right here
            answers[host_id] = error
    deadline, left = Deadline.after(timeout_s), list(refs.values())
    while left:
        slice_s = deadline.slice_s(_LOOK_S)
        _, left = ask(partial(ray.wait, left, num_returns=len(left), timeout=slice_s, fetch_local=False))
        if slice_s == 0:
            break
    for host_id, ref in refs.items():
        try:
            answers[host_id] = ask(partial(ray.get, ref, timeout=0))
        except SessionOverError:
            raise
        except GetTimeoutError:
            answers[host_id] = GetTimeoutError(f"host {host_id} did not answer within {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever the actor answers with is the answer
            answers[host_id] = bare(error)
    return answers


def call_all(
    session: Session, members: Sequence[Member], timeout_s: float, call: Callable[[Member], ray.ObjectRef[Any]]
) -> dict[int, Any | Exception]:
    """Return, for each host, what its actor answered, or the exception: a GetTimeoutError if it kept silent.

    Raises SessionOverError, as all do that ask the actors.
    """
    return _call_all(session.ask, members, timeout_s, call)


def probe(session: Session, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:
    """Ask every actor for a sign of life, in parallel; returns within ``timeout_s`` or a little later.

    "Unavailable" is no answer: Ray says so of a process that has died before it knows whether it will start another in
    its place. Such an actor is asked again, and answers once it runs or Ray has given it up.
    """
    deadline, replies = Deadline.after(timeout_s), dict[int, HostReport | Exception]()
    left = list(members)
    while True:
        replies |= call_all(
            session, left, deadline.remaining_s(), lambda member: member.actor.__ray_call__.remote(give_sign_of_life)
        )
        left = [member for member in left if isinstance(replies[member.info.host_id], ActorUnavailableError)]
        if not left or deadline.remaining_s() < _ASK_AGAIN_S:
            return replies
        time.sleep(_ASK_AGAIN_S)


def prepare(
    session: Session, members: Sequence[Member], lease: Lease, methods: Mapping[int, Sequence[str]], timeout_s: float
) -> dict[int, ActorReport | Exception]:
    """Lease every actor to a graph, in parallel; returns within ``timeout_s`` or a little later."""
    own = ray.get_runtime_context().get_actor_id()
    for member in members:
        # Asked here, since a call of an actor to itself would wait for itself for ever.
        if own is not None and actor_name(member.actor) == own:
            raise GraphSpecError(
                f"host {member.info.host_id} is the actor that drives the graph: it cannot also be part of it"
            )
    return call_all(
        session,
        members,
        timeout_s,
        lambda member: member.actor.__ray_call__.remote(take_lease, lease, tuple(methods[member.info.host_id])),
    )


def await_loops(
    session: Session,
    members: Sequence[Member],
    key: GraphKey,
    num_tasks: Mapping[int, int],
    timeout_s: float,
) -> dict[int, str | Exception]:
    """Wait, in parallel, for every actor to settle in; ``num_tasks``: how many each host has.

    Returns, for each, what is missing when the time is up. An actor is asked again and again: its loop, which Ray runs
    in a concurrency group of its own, may reach it later than the question, and while the actor's main thread waits it
    hands nothing on to any group.
    """
    deadline, found = Deadline.after(timeout_s), dict[int, str | Exception]()
    left = list(members)
    while left:
        slice_s = min(_SETTLE_S, deadline.remaining_s() / 2)  # and as long again to say so
        replies = call_all(
            session,
            left,
            deadline.remaining_s(),
            lambda member, slice_s=slice_s: member.actor.__ray_call__.remote(  # type: ignore[misc]
                settle_in, key, num_tasks[member.info.host_id], slice_s
            ),
        )
        for member in list(left):
            reply = replies[member.info.host_id]
            found[member.info.host_id], final = (reply, True) if isinstance(reply, Exception) else reply
            if final or deadline.remaining_s() < 2 * _SETTLE_S:
                left.remove(member)
    return found


def obstacles_among(replies: Mapping[int, object]) -> str:
    """Return what is in the way, of actors that answer with nothing when they are ready."""
    return "; ".join(f"on host {host_id}, {reply}" for host_id, reply in replies.items() if reply)


def release(session: Session, members: Sequence[Member], graph_id: str, timeout_s: float) -> None:
    """Have every actor leave the graph and give back its lease; actors that are dead or silent are passed over.

    0: they are told, and not waited for. Nothing happens if there is no Ray any more.
    """
    with suppress(SessionOverError):
        _call_all(
            session.leave, members, timeout_s, lambda member: member.actor.__ray_call__.remote(end_graph, graph_id)
        )


def silent_or_dead(session: Session, members: Sequence[Member], timeout_s: float) -> dict[int, Exception]:
    """Return the hosts whose actors do not answer an ordinary call within ``timeout_s``, and why."""
    return losses_among(probe(session, members, timeout_s))


def _import_error(reply: object) -> ImportError | None:
    """Return the ImportError behind ``reply``: raised in the actor, or by Ray loading the function to call there."""
    cause = getattr(reply, "cause", None)
    found = getattr(cause, "client_exc", cause)
    return found if isinstance(found, ImportError) else None


def refusal(host_id: int, actor: Any, reply: ActorReport | Exception) -> GraphSpecError | None:
    """Return why ``reply`` rules an actor out as a matter of the caller's making, or None if it does not."""
    name = f"host {host_id} ({actor!r})"
    if isinstance(reply, ActorReport):
        if reply.leased_to is not None:
            return GraphSpecError(f"{name} is in {reply.leased_to}: close that graph first")
        for method, why in reply.unfit_methods.items():
            return GraphSpecError(f"{method}() of {name} {why}")
        return None
    missing = _import_error(reply)
    if missing is not None:
        return GraphSpecError(
            f"cgexec cannot be imported on {name}: {missing}; install it on every node, or ship it with "
            "ray.init(runtime_env={'pip': ['cgexec']}) or runtime_env={'py_modules': [cgexec]}"
        )
    return None
