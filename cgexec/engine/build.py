"""Building one generation: bind the nodes, lease the actors, compile. Every step is bounded."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cgexec.classify import Place, Verdict, classify, is_failed_constructor
from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.compiled import CompiledEngine, compile_graph
from cgexec.engine.graph_spec import BoundGraph, bind_graph
from cgexec.engine.preparation import ActorReport, Lease, prepare, probe, refusal, release
from cgexec.engine.protocol import Member
from cgexec.errors import GraphSpecError
from cgexec.settings import Settings

_PROBE_AFTER_BOUND_S = 2.0
_TEARDOWN_AFTER_LOSS_S = 5.0  # no method has run yet, so a loop that is alive leaves at once


class HostsLostError(Exception):
    """The graph was not built because of a death: ``losses`` says which hosts were found dead or silent, and why.

    There may be none: Ray's own helper actor may have been on a node that went away. Building again may then succeed.
    """

    def __init__(self, losses: dict[int, Exception], reason: Exception | None = None) -> None:
        names = ", ".join(f"host {host_id}: {error}" for host_id, error in losses.items())
        super().__init__(names or f"every host answers, but {reason}")
        self.losses = losses


@dataclass(frozen=True)
class GraphRecipe:
    """What stays the same from one generation of a graph to the next."""

    graph_id: str
    name: str
    build: Callable[..., Any]
    settings: Settings
    build_timeout_s: float

    def lease(self) -> Lease:
        """Return the lease that the actors of this graph are asked to take."""
        driver = f"process {os.getpid()} on {platform.node()}"
        return Lease(self.graph_id, self.name, driver, self.build_timeout_s)


def build_generation(
    recipe: GraphRecipe, members: Sequence[Member], on_loop_end: Callable[[CompiledEngine], None]
) -> CompiledEngine:
    """Build one generation over ``members`` and return its engine.

    ``on_loop_end(engine)`` is called, on a thread of Ray's where nothing may block, whenever an actor's loop ends.

    Raises:
        GraphSpecError: the builder's graph or the caller's actors cannot be used. Every actor is usable afterwards.
        HostsLostError: hosts are dead or do not answer. One that stopped answering while Ray compiled is killed, for
            Ray would wait for it for ever; the others are usable afterwards.
    """
    deadline = Deadline.after(recipe.build_timeout_s)
    bound = _bind(recipe, members)
    replies = prepare(members, recipe.lease(), bound.methods, deadline.remaining_s())
    try:
        reports = _check(members, replies)
        compiled = _compile(recipe, bound, members, deadline)
    except BaseException:
        leased = [member for member in members if isinstance(replies[member.info.host_id], ActorReport)]
        silent = [member for member in members if isinstance(replies[member.info.host_id], GetTimeoutError)]
        release(leased, recipe.graph_id, _PROBE_AFTER_BOUND_S)
        # A silent one may still take the lease: this reaches it behind the request, whenever that is.
        release(silent, recipe.graph_id, 0)
        raise
    engine = CompiledEngine(compiled, bound, members, reports, recipe.settings, recipe.graph_id, on_loop_end)
    losses = engine.settle_in(deadline.remaining_s())
    if losses:
        stuck = engine.tear_down(_TEARDOWN_AFTER_LOSS_S)
        raise HostsLostError({**losses, **stuck})
    return engine


def _bind(recipe: GraphRecipe, members: Sequence[Member]) -> BoundGraph:
    """Call the builder, under the bound: it is the caller's code."""
    try:
        return bounded.call_bounded(
            lambda: bind_graph(recipe.build, members),
            recipe.build_timeout_s,
            f"cgexec-bind-{recipe.graph_id[:8]}",
            "the builder",
        )
    except bounded.BoundExceededError as error:
        raise GraphSpecError(f"{error}; it should only bind nodes, or raise GraphConfig.build_timeout_s") from error


def _check(members: Sequence[Member], replies: dict[int, ActorReport | Exception]) -> dict[int, ActorReport]:
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
    return reports


def _compile(recipe: GraphRecipe, bound: BoundGraph, members: Sequence[Member], deadline: Deadline) -> Any:
    compiling = bounded.start(lambda: compile_graph(bound, recipe.settings), f"cgexec-compile-{recipe.graph_id[:8]}")
    try:
        return bounded.wait(compiling, deadline.remaining_s(), f"compiling graph {recipe.name!r}")
    except bounded.BoundExceededError as error:
        losses = _dead_or_silent(members)
        for member in members:
            if isinstance(losses.get(member.info.host_id), GetTimeoutError):
                ray.kill(member.actor)
        compiling.add_done_callback(lambda done: done.exception() or done.result().teardown())
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
            raise HostsLostError(_dead_or_silent(members), error) from error
        raise GraphSpecError(f"Ray does not compile graph {recipe.name!r}: {type(error).__name__}: {error}") from error


def _dead_or_silent(members: Sequence[Member]) -> dict[int, Exception]:
    replies = probe(members, _PROBE_AFTER_BOUND_S)
    return {host_id: reply for host_id, reply in replies.items() if isinstance(reply, Exception)}
