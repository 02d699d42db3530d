"""What is said of a host, by itself and by what it sends. Apart from ``protocol``, since every host imports this."""

from __future__ import annotations

import time
from typing import NamedTuple


class HostReport(NamedTuple):
    """A host's sign of life. ``incarnation`` changes when its process is started anew."""

    node_id: str
    incarnation: str


class Pulse(NamedTuple):
    """A host's sign of life, however busy it is: which of its methods it is in, None for none, and for how long."""

    method: str | None = None
    for_s: float = 0.0

    @classmethod
    def since(cls, method: str, begun_at: float | None) -> Pulse:
        """Return the pulse of a host in ``method`` since then, on the monotonic clock; None: it is not in it."""
        return cls() if begun_at is None else cls(method, time.monotonic() - begun_at)


class OutputPort(NamedTuple):
    """Where an output of the graph, or an error, comes from: a host, and which of its methods."""

    host_id: int
    method: str
