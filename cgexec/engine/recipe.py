"""What stays the same from one generation of a graph to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cgexec.config import Transport
from cgexec.engine import bounded
from cgexec.engine.graph_spec import BoundGraph, bind_graph
from cgexec.engine.protocol import Member
from cgexec.errors import GraphSpecError
from cgexec.settings import Settings


@dataclass(frozen=True)
class GraphRecipe:
    """A graph, whichever its generation."""

    graph_id: str
    name: str
    build: Callable[..., Any]
    settings: Settings
    build_timeout_s: float
    transport: Transport
    pool_bytes: int

    def bind(self, members: Sequence[Member]) -> BoundGraph:
        """Call the builder, under the bound: it is the caller's code. Raises GraphSpecError: see ``bind_graph``."""
        try:
            return bounded.call_theirs(
                lambda: bind_graph(self.build, members),
                self.build_timeout_s,
                f"cgexec-bind-{self.graph_id[:8]}",
                "the builder",
            )
        except bounded.ExitedError as error:
            raise GraphSpecError(str(error)) from error
        except bounded.BoundExceededError as error:
            raise GraphSpecError(f"{error}; it should only bind nodes, or raise GraphConfig.build_timeout_s") from error
