"""Which backend a graph runs on, and whether its hosts are of that kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cgexec.config import EngineName
from cgexec.engine.actor_calls import ActorCallsBackend
from cgexec.engine.build import CompiledBackend
from cgexec.engine.in_process_backend import InProcessBackend
from cgexec.engine.protocol import Backend
from cgexec.engine.recipe import GraphRecipe
from cgexec.errors import GraphSpecError
from cgexec.hosts import LocalHandle

_BACKENDS: dict[EngineName, Callable[[GraphRecipe], Backend]] = {
    "compiled": CompiledBackend,
    "actor_calls": ActorCallsBackend,
    "in_process": InProcessBackend,
}


def backend_for(engine: EngineName, recipe: GraphRecipe, actors: Sequence[Any]) -> Backend:
    """Return the backend of a graph over ``actors``.

    Raises:
        GraphSpecError: they are not what the engine runs on.
    """
    for position, actor in enumerate(actors):
        if isinstance(actor, LocalHandle) != (engine == "in_process"):
            wanted = "cgexec.testing.LocalActor" if engine == "in_process" else "handles of Ray's actors"
            raise GraphSpecError(f"GraphConfig(engine={engine!r}) takes {wanted}; host {position} is {actor!r}")
    return _BACKENDS[engine](recipe)
