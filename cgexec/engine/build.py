"""Building one generation: bind the nodes, lease the actors, compile. Every step is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.experimental.channel.common import ChannelOutputType

from cgexec.classify import Place, Verdict, classify
from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.compilation import compile_graph, discard
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.edges import actor_name
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.hub import Hub
from cgexec.engine.leasing import PROBE_AFTER_BOUND_S, leased_actors
from cgexec.engine.preparation import ActorReport, probe, silent_or_dead
from cgexec.engine.protocol import Engine, HostReport, HostsLostError, Member
from cgexec.engine.ray_edges import RayHint
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.socket_edges import SocketHint
from cgexec.errors import GraphSpecError

_TEARDOWN_AFTER_LOSS_S = 5.0  # no method has run yet, so a loop that is alive leaves at once


class CompiledBackend:
    """Builds compiled graphs over Ray's actors."""

    def __init__(self, recipe: GraphRecipe) -> None:
        self._recipe = recipe

    def build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> CompiledEngine:
        """See ``protocol.Backend``. A host that stopped answering while Ray compiled is killed: Ray waits for ever."""
        recipe = self._recipe
        deadline = Deadline.after(recipe.build_timeout_s)
        bound = recipe.bind(members)
        with leased_actors(recipe, generation, members, bound.methods, deadline) as (hub, reports):
            compiled = _compile(recipe, bound, members, hub, _hint(recipe, hub, members, reports), deadline)
        engine = CompiledEngine(compiled, bound, members, reports, recipe.settings, hub, on_break)
        obstacle = engine.settle_in(deadline.remaining_s())
        if obstacle is not None:
            losses = {**silent_or_dead(members, PROBE_AFTER_BOUND_S), **dict(obstacle.errors)}
            stuck = engine.tear_down(_TEARDOWN_AFTER_LOSS_S)
            raise HostsLostError({**losses, **stuck}, obstacle.fallback)
        return engine

    def probe(self, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:
        """See ``protocol.Backend``."""
        return probe(members, timeout_s)


def _hint(
    recipe: GraphRecipe, hub: Hub, members: Sequence[Member], reports: Mapping[int, ActorReport]
) -> ChannelOutputType:
    """Return the type hint that makes the graph's channels."""
    if recipe.transport == "ray":
        return RayHint(hub.key, recipe.settings.buffer_size_bytes.value, recipe.settings.max_inflight.value)
    addresses = {actor_name(member.actor): reports[member.info.host_id].address for member in members}
    return SocketHint(hub.key, {name: each for name, each in addresses.items() if each is not None}, hub.address)


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
        losses = silent_or_dead(members, PROBE_AFTER_BOUND_S)
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
            raise HostsLostError(silent_or_dead(members, PROBE_AFTER_BOUND_S), error) from error
        raise GraphSpecError(f"Ray does not compile graph {recipe.name!r}: {type(error).__name__}: {error}") from error
