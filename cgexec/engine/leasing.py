"""The driver's part of preparing the actors: its hub, their leases, and giving those back if nothing comes of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.exceptions import GetTimeoutError, RayChannelError

from cgexec.classify import is_failed_constructor
from cgexec.deadline import Deadline
from cgexec.engine.handshake import new_key
from cgexec.engine.hub import DRIVER, GraphKey, Hub
from cgexec.engine.in_actor import ActorReport, Lease
from cgexec.engine.preparation import prepare, refusal, release, silent_or_dead
from cgexec.engine.protocol import HostsLostError, Member
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.session import Session
from cgexec.errors import GraphSpecError

PROBE_AFTER_BOUND_S = 2.0


@contextmanager
def leased_actors(
    session: Session,
    recipe: GraphRecipe,
    generation: int,
    members: Sequence[Member],
    methods: Mapping[int, Sequence[str]],
    deadline: Deadline,
) -> Iterator[tuple[Hub, dict[int, ActorReport]]]:
    """Lease every actor to a new generation, and open the driver's hub for it; undone if the block raises.

    Raises:
        GraphSpecError: an actor cannot serve, as a matter of the caller's making.
        HostsLostError: hosts are dead or do not answer.
        SessionOverError: there are no hosts any more.
    """
    hub = _hub_of_driver(recipe, generation)
    not_heard: Exception = GetTimeoutError("the actor was not heard")
    replies: dict[int, ActorReport | Exception] = {member.info.host_id: not_heard for member in members}
    try:
        replies = prepare(session, members, _lease_of(recipe, hub), methods, deadline.remaining_s())
        yield hub, _check(session, members, replies, hub)
    except BaseException:
        hub.shut()
        leased = [member for member in members if isinstance(replies[member.info.host_id], ActorReport)]
        release(session, leased, recipe.graph_id, PROBE_AFTER_BOUND_S)
        # Who has not reported may have taken the lease, or may still: this reaches it behind the request.
        release(session, [member for member in members if member not in leased], recipe.graph_id, 0)
        raise


def _lease_of(recipe: GraphRecipe, hub: Hub) -> Lease:
    """Return the lease that the actors of the generation that ``hub`` serves are asked to take."""
    return Lease(
        key=hub.key,
        graph_name=recipe.name,
        driver=f"process {os.getpid()} on {platform.node()}",
        duration_s=recipe.build_timeout_s,
        secret=hub.secret,
        driver_address=hub.address,
        needs_control=recipe.transport == "socket",
        across_nodes=hub.address.tcp is not None,
        pool_bytes=recipe.pool_bytes,
    )


def _hub_of_driver(recipe: GraphRecipe, generation: int) -> Hub:
    """Return the driver's own hub for a new generation."""
    return Hub(
        GraphKey(recipe.graph_id, generation),
        new_key(),
        DRIVER,
        ray.get_runtime_context().get_node_id(),
        listen_ip=ray.util.get_node_ip_address() if _has_several_nodes() else None,
        pool_bytes=recipe.pool_bytes,
    )


def _has_several_nodes() -> bool:
    return len([node for node in ray.nodes() if node["Alive"]]) > 1


def _check(
    session: Session, members: Sequence[Member], replies: dict[int, ActorReport | Exception], hub: Hub
) -> dict[int, ActorReport]:
    """Return the reports, if every actor can serve. What is the caller's to mend comes before what is lost."""
    for member in members:
        problem = refusal(member.info.host_id, member.actor, replies[member.info.host_id])
        if problem is not None:
            raise problem
    reports = {host_id: reply for host_id, reply in replies.items() if isinstance(reply, ActorReport)}
    losses = {host_id: reply for host_id, reply in replies.items() if isinstance(reply, Exception)}
    for host_id, error in losses.items():
        if is_failed_constructor(error):
            raise GraphSpecError(f"host {host_id}: the actor's constructor raised: {error}") from error
    if losses:
        raise HostsLostError(losses)
    if hub.is_abandoned():  # known before Ray knows, whose compile would wait for who has gone
        gone = RayChannelError("a host left while the graph was being built")
        raise HostsLostError(silent_or_dead(session, members, PROBE_AFTER_BOUND_S), gone)
    for member in members:
        report = reports[member.info.host_id]
        if report.no_control and report.address is None:
            raise GraphSpecError(
                f"host {member.info.host_id} ({member.actor!r}) cannot connect to the driver: {report.no_control}; if "
                "sockets cannot be had between these nodes, use GraphConfig(transport='ray')"
            )
    return reports
