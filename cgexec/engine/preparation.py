"""Asking the actors: are you there, can you serve this graph, and who are you.

One ``__ray_call__`` per actor, all in parallel, bounded. What runs there is in ``in_actor``; that it can be loaded at
all shows that cgexec can be imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from cgexec.deadline import Deadline
from cgexec.engine.edges import actor_name
from cgexec.engine.hub import GraphKey
from cgexec.engine.in_actor import ActorReport, Lease, end_graph, give_sign_of_life, settle_in, take_lease
from cgexec.engine.protocol import Member, SessionOverError, losses_among
from cgexec.engine.reports import HostReport
from cgexec.engine.session import Session
from cgexec.errors import GraphSpecError
from cgexec.isolation import bare

_LOOK_S = 0.1  # in one go, so that a shutdown of Ray is noticed
_ASK_AGAIN_S = 0.02
_SETTLE_S = 0.1  # for an actor to settle in, in one go


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
