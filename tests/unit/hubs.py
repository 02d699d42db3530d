"""Several processes' ends of one generation, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cgexec.deadline import Deadline
from cgexec.engine.handshake import new_key
from cgexec.engine.hub import DRIVER, GraphKey, Hub

LONG_S = 30.0
FIRST, SECOND = "aa" * 16, "bb" * 16
CHANNEL = bytes(range(16))


def soon() -> Deadline:
    return Deadline.after(LONG_S)


class Site:
    """Makes the hubs of one generation, and notes in ``ended`` whose control connections have ended."""

    def __init__(self) -> None:
        self.key = GraphKey("graph", 3)
        self.secret = new_key()
        self.hubs: list[Hub] = []
        self.ended: list[tuple[str, str]] = []

    def hub(self, identity: str = DRIVER, node_id: str = "node", **changes: Any) -> Hub:
        """Return a new hub."""
        settings = {"listen_ip": None, "pool_bytes": 1 << 26, **changes}
        hub = Hub(changes.pop("key", self.key), settings.pop("secret", self.secret), identity, node_id, **settings)
        hub.tell_losses(lambda lost: self.ended.append((identity, lost)))
        self.hubs.append(hub)
        return hub


@contextmanager
def a_site() -> Iterator[Site]:
    """Make hubs for as long as the block lasts; fails if a hub's thread does not end."""
    site = Site()
    try:
        yield site
    finally:
        for hub in site.hubs:
            hub.shut()
        ended = [hub.has_ended(LONG_S) for hub in site.hubs]
        site.hubs.clear()
    assert all(ended)
