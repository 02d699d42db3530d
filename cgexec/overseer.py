"""Who looks after a graph, as far as its executions know."""

from __future__ import annotations

from typing import Protocol

from cgexec.engine.protocol import Engine
from cgexec.status import JobStatus


class Overseer(Protocol):
    """Who is told what befalls the executions. Nothing of it may block, or take the graph's lock."""

    def broke(self, engine: Engine, seen: Exception) -> None:
        """``engine`` has broken, as far as ``seen`` shows."""

    def wait_ran_out(self, engine: Engine) -> None:
        """``engine`` has kept somebody waiting for longer than they would."""

    def never_collected(self, status: JobStatus) -> None:
        """Nobody has asked for, and nobody can any more, this outcome, which is no success."""
