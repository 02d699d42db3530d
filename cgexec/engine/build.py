"""Building one generation: bind the nodes, lease the actors, compile. Every step is bounded."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayChannelError, RayTaskError
from ray.experimental.channel.common import ChannelOutputType

from cgexec.classify import Place, Verdict, classify, is_failed_constructor
from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.compilation import compile_graph, discard
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.edges import actor_name
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.handshake import new_key
from cgexec.engine.hub import DRIVER, GraphKey, Hub
from cgexec.engine.preparation import ActorReport, Lease, prepare, probe, refusal, release, silent_or_dead
from cgexec.engine.protocol import Engine, HostReport, HostsLostError, Member
from cgexec.engine.ray_edges import RayHint
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.socket_edges import SocketHint
from cgexec.errors import GraphSpecError

_PROBE_AFTER_BOUND_S = 2.0
_TEARDOWN_AFTER_LOSS_S = 5.0  # no method has run yet, so a loop that is alive leaves at once


class CompiledBackend:
    """Builds compiled graphs over Ray's actors."""

    def __init__(self, recipe: GraphRecipe) -> None:
        self._recipe = recipe

    def build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> CompiledEngine:
        """See ``protocol.Backend``. A host that stopped answering while Ray compiled is killed: Ray waits for ever."""
        return build_generation(self._recipe, generation, members, on_break)

    def probe(self, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:
        """See ``protocol.Backend``."""
        return dict(probe(members, timeout_s))


def lease_of(recipe: GraphRecipe, hub: Hub, *, needs_control: bool) -> Lease:
    """Return the lease that the actors of the generation that ``hub`` serves are asked to take."""
    return Lease(
        key=hub.key,
        graph_name=recipe.name,
        driver=f"process {os.getpid()} on {platform.node()}",
        duration_s=recipe.build_timeout_s,
        secret=hub.secret,
        driver_address=hub.address,
        needs_control=needs_control,
        across_nodes=hub.address.tcp is not None,
        pool_bytes=recipe.pool_bytes,
    )


def build_generation(
    recipe: GraphRecipe,
    generation: int,
    members: Sequence[Member],
    on_break: Callable[[Engine], None],
) -> CompiledEngine:
    """See ``protocol.Backend.build``."""
    deadline = Deadline.after(recipe.build_timeout_s)
    bound = recipe.bind(members)
    hub = _hub_of_driver(recipe, generation)
    lease = lease_of(recipe, hub, needs_control=recipe.transport == "socket")
    replies: dict[int, ActorReport | Exception] = {}
    try:
        replies = prepare(members, lease, bound.methods, deadline.remaining_s())
        reports = _check(members, replies, hub)
        compiled = _compile(recipe, bound, members, hub, _hint(recipe, hub, members, reports), deadline)
    except BaseException:
        hub.shut()
        leased = [member for member in members if isinstance(replies.get(member.info.host_id), ActorReport)]
        silent = [member for member in members if isinstance(replies.get(member.info.host_id), GetTimeoutError)]
        release(leased, recipe.graph_id, _PROBE_AFTER_BOUND_S)
        # A silent one may still take the lease: this reaches it behind the request, whenever that is.
        release(silent, recipe.graph_id, 0)
        raise
    engine = CompiledEngine(compiled, bound, members, reports, recipe.settings, hub, on_break)
    obstacle = engine.settle_in(deadline.remaining_s())
    if obstacle is not None:
        losses = {**silent_or_dead(members, _PROBE_AFTER_BOUND_S), **dict(obstacle.errors)}
        stuck = engine.tear_down(_TEARDOWN_AFTER_LOSS_S)
        raise HostsLostError({**losses, **stuck}, obstacle.fallback)
    return engine


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


def _hint(
    recipe: GraphRecipe, hub: Hub, members: Sequence[Member], reports: Mapping[int, ActorReport]
) -> ChannelOutputType:
    """Return the type hint that makes the graph's channels."""
    if recipe.transport == "ray":
        return RayHint(hub.key, recipe.settings.buffer_size_bytes.value, recipe.settings.max_inflight.value)
    addresses = {actor_name(member.actor): reports[member.info.host_id].address for member in members}
    return SocketHint(hub.key, {name: each for name, each in addresses.items() if each is not None}, hub.address)


def _check(members: Sequence[Member], replies: dict[int, ActorReport | Exception], hub: Hub) -> dict[int, ActorReport]:
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
        raise HostsLostError(silent_or_dead(members, _PROBE_AFTER_BOUND_S), gone)
    for member in members:
        report = reports[member.info.host_id]
        if report.no_control and report.address is None:
            raise GraphSpecError(
                f"host {member.info.host_id} ({member.actor!r}) cannot connect to the driver: {report.no_control}; if "
                "sockets cannot be had between these nodes, use GraphConfig(transport='ray')"
            )
    return reports


def _discard_late(compiling: Future[Any]) -> None:
    if compiling.exception() is None:
        discard(compiling.result())


def _compile(
    recipe: GraphRecipe,
    bound: BoundGraph,
    members: Sequence[Member],
    hub: Hub,
    hint: ChannelOutputType,
    deadline: Deadline,
) -> Any:
    compiling = bounded.start(
        lambda: compile_graph(bound, members, recipe.settings, hub, hint), f"cgexec-compile-{recipe.graph_id[:8]}"
    )
    try:
        return bounded.wait(compiling, deadline.remaining_s(), f"compiling graph {recipe.name!r}")
    except bounded.BoundExceededError as error:
        losses = silent_or_dead(members, _PROBE_AFTER_BOUND_S)
        for member in members:
            if isinstance(losses.get(member.info.host_id), GetTimeoutError):
                ray.kill(member.actor)
        compiling.add_done_callback(_discard_late)
        if losses:
            raise HostsLostError(losses) from error
        raise GraphSpecError(
            f"graph {recipe.name!r} was not compiled within {recipe.build_timeout_s:g} s, though every actor answers; "
            "raise GraphConfig.build_timeout_s"
        ) from error
    except Exception as error:
        # A death may show as an error of a task that Ray's compile has run in an actor.
        behind = error.cause if isinstance(error, RayTaskError) else error
        if classify(behind, Place.LOOP) is Verdict.PREEMPTED:
            raise HostsLostError(silent_or_dead(members, _PROBE_AFTER_BOUND_S), error) from error
        raise GraphSpecError(f"Ray does not compile graph {recipe.name!r}: {type(error).__name__}: {error}") from error
