"""Building one generation: bind the nodes, lease the actors, compile. Every step is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.experimental.channel.common import ChannelOutputType

from cgexec.classify import Place, Verdict, classify
from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.compilation import compile_graph, end_groups, groups_of, let_go
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.edges import actor_name
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.hub import Hub
from cgexec.engine.in_actor import ActorReport
from cgexec.engine.leasing import PROBE_AFTER_BOUND_S, leased_actors
from cgexec.engine.over_ray import BackendOverRay
from cgexec.engine.preparation import silent_or_dead
from cgexec.engine.protocol import Engine, HostsLostError, Member, SessionOverError
from cgexec.engine.ray_edges import RayHint
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.session import Session
from cgexec.engine.socket_edges import SocketHint
from cgexec.errors import GraphSpecError
from cgexec.interruption import is_interruption
from cgexec.texts import told

_TEARDOWN_AFTER_LOSS_S = 5.0  # no method has run yet, so a loop that is alive leaves at once


class CompiledBackend(BackendOverRay):
    """Builds compiled graphs over Ray's actors."""

    def _build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> CompiledEngine:
        """Build, as ``build`` says. A host that stopped answering while Ray compiled is killed: Ray waits for ever."""
        recipe, session = self._recipe, self._session
        deadline = Deadline.after(recipe.build_timeout_s)
        bound = recipe.bind(members)
        engine: CompiledEngine | None = None
        try:
            with leased_actors(session, recipe, generation, members, bound.methods, deadline) as (hub, reports):
                hint = _hint(recipe, hub, members, reports)
                compiled = _compile(session, recipe, bound, members, reports, hub, hint, deadline)
                try:
                    engine = CompiledEngine(session, compiled, bound, members, reports, recipe.settings, hub, on_break)
                except SessionOverError:
                    hub.shut()
                    _discard(session, compiled)
                    raise
            obstacle = engine.settle_in(deadline.remaining_s())
            if obstacle is None:
                return engine
            losses = {**silent_or_dead(session, members, PROBE_AFTER_BOUND_S), **dict(obstacle.errors)}
        except BaseException as error:  # Ctrl-C, say: nobody else knows the engine
            if engine is not None:
                engine.tear_down(0 if isinstance(error, SessionOverError) else _TEARDOWN_AFTER_LOSS_S)
            raise
        stuck = engine.tear_down(_TEARDOWN_AFTER_LOSS_S)
        raise HostsLostError({**losses, **stuck}, obstacle.fallback)


def _hint(
    recipe: GraphRecipe, hub: Hub, members: Sequence[Member], reports: Mapping[int, ActorReport]
) -> ChannelOutputType:
    """Return the type hint that makes the graph's channels."""
    if recipe.transport == "ray":
        return RayHint(hub.key, recipe.settings.buffer_size_bytes.value, recipe.settings.max_inflight.value)
    addresses = {actor_name(member.actor): reports[member.info.host_id].address for member in members}
    return SocketHint(hub.key, {name: each for name, each in addresses.items() if each is not None}, hub.address)


def _discard(session: Session, compiled: Any) -> None:
    """Undo a compile that ended when nobody wanted its graph any more."""
    with suppress(SessionOverError):
        session.leave(partial(let_go, compiled, _TEARDOWN_AFTER_LOSS_S))
        session.leave(partial(end_groups, groups_of(compiled)))


def _discard_late(session: Session, compiling: Future[Any]) -> None:
    if compiling.exception() is None:
        _discard(session, compiling.result())


def _compiled_by(session: Session, recipe: GraphRecipe, compile_it: Callable[[], Any], deadline: Deadline) -> Any:
    """Return what ``compile_it()`` compiles on another thread; what comes when nobody waits any more is discarded."""
    compiling = bounded.start(lambda: session.ask(compile_it), f"cgexec-compile-{recipe.graph_id[:8]}")
    try:
        return bounded.wait(compiling, deadline.remaining_s(), f"compiling graph {recipe.name!r}")
    except BaseException:
        compiling.add_done_callback(partial(_discard_late, session))
        raise


def _compile(
    session: Session,
    recipe: GraphRecipe,
    bound: BoundGraph,
    members: Sequence[Member],
    reports: Mapping[int, ActorReport],
    hub: Hub,
    hint: ChannelOutputType,
    deadline: Deadline,
) -> Any:
    try:
        return _compiled_by(
            session, recipe, lambda: compile_graph(bound, members, reports, recipe.settings, hub, hint), deadline
        )
    except bounded.BoundExceededError as error:
        losses = silent_or_dead(session, members, PROBE_AFTER_BOUND_S)
        for member in members:
            if isinstance(losses.get(member.info.host_id), GetTimeoutError):
                session.ask(partial(ray.kill, member.actor))
        if losses:
            raise HostsLostError(losses) from error
        raise GraphSpecError(
            f"graph {recipe.name!r} was not compiled within {recipe.build_timeout_s:g} s, though every actor answers; "
            "raise GraphConfig.build_timeout_s"
        ) from error
    except SessionOverError:
        raise
    except Exception as error:
        if is_interruption(error):
            raise
        # A death may show as an error of a task that Ray's compile has run in an actor.
        behind = error.cause if isinstance(error, RayTaskError) else error
        if classify(behind, Place.LOOP) is Verdict.PREEMPTED:
            raise HostsLostError(silent_or_dead(session, members, PROBE_AFTER_BOUND_S), error) from error
        raise GraphSpecError(f"Ray does not compile graph {recipe.name!r}: {told(error)}") from error
