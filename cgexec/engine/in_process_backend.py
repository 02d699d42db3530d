"""Builds graphs over local actors: checks them, leases them, and lets happen to them what is to happen meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.in_actor import unfit
from cgexec.engine.in_process import InProcessEngine, meet_faults, replies_of
from cgexec.engine.local_actor import process_of, world
from cgexec.engine.protocol import Engine, HostsLostError, Member, losses_among
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.reports import HostReport
from cgexec.errors import GraphSpecError

T = TypeVar("T")


class InProcessBackend:
    """Builds graphs over local actors."""

    def __init__(self, recipe: GraphRecipe) -> None:
        self._recipe = recipe

    def build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> InProcessEngine:
        """See ``protocol.Backend``."""
        bound = self._recipe.bind(members)
        for member in members:
            meet_faults(member, "build")
        engine: InProcessEngine | None = None
        try:
            with world:
                self._check_locked(members, bound)
                for member in members:
                    process_of(member.actor).leased_to = (self._recipe.graph_id, self._recipe.name)
            engine = InProcessEngine(self._recipe, bound, members, generation, on_break)
            losses = losses_among(replies_of(members))
        except BaseException:  # Ctrl-C, say
            self._give_back(members, engine)
            raise
        if losses:
            self._give_back(members, engine)
            raise HostsLostError(losses)
        return engine

    def _check_locked(self, members: Sequence[Member], bound: BoundGraph) -> None:
        for member in members:
            process = process_of(member.actor)
            name = f"host {member.info.host_id} ({member.actor!r})"
            if process.leased_to is not None and process.leased_to[0] != self._recipe.graph_id:
                raise GraphSpecError(f"{name} is in graph {process.leased_to[1]!r}: close that graph first")
            for method in bound.methods[member.info.host_id]:
                why = unfit(getattr(type(process.instance), method, None))
                if why is not None:
                    raise GraphSpecError(f"{method}() of {name} {why}")

    def _give_back(self, members: Sequence[Member], engine: InProcessEngine | None) -> None:
        """Undo what was begun: the leases are taken before there is an engine."""
        if engine is not None:
            engine.tear_down(0)
            return
        with world:
            for member in members:
                process = process_of(member.actor)
                if process.leased_to is not None and process.leased_to[0] == self._recipe.graph_id:
                    process.leased_to = None

    def probe(self, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:  # noqa: ARG002
        """See ``protocol.Backend``; whether a host would answer is known at once."""
        for member in members:
            meet_faults(member, "probe")
        return replies_of(members)

    def ask(self, call: Callable[[], T]) -> T:
        """See ``protocol.Backend``; local actors do not go away all at once."""
        return call()
