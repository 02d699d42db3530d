"""Looking again and again for a moment before going to sleep, where that is sooner than being woken.

Between two processes that each have a core, being woken takes longer than all that a small execution does beside it. So
whoever waits for a frame looks for up to ``SPIN_S`` before it sleeps. That is bounded, and pays only if

- every process of the graph has a core of its own: else the one that looks keeps the one that works from working;
- what comes, comes soon: after a wait that was longer the next ones sleep at once, until one turns out to be short.

An idle graph therefore sleeps, and so does one whose methods take their time.
"""

from __future__ import annotations

import os
import select
import time

SPIN_S = 100e-6
_SHORT_S = 1.5 * SPIN_S  # a wait after which the next one is worth a spin: being woken took part of it


class Spin:
    """How the threads of one process wait for the frames of a graph over ``num_processes``, the driver's included."""

    def __init__(self, num_processes: int) -> None:
        self.may_pay = num_processes <= len(os.sched_getaffinity(0))
        self._pays = self.may_pay

    def poll(self, poller: select.poll, timeout_ms: int | None) -> list[tuple[int, int]]:
        """Return what ``poller.poll(timeout_ms)`` returns, as soon as there is something."""
        if not self.may_pay or timeout_ms == 0:
            return poller.poll(timeout_ms)
        started = time.monotonic()
        if self._pays:
            look_until = started + SPIN_S
            while time.monotonic() < look_until:
                if ready := poller.poll(0):
                    return ready
        ready = poller.poll(timeout_ms)
        self._pays = time.monotonic() - started < _SHORT_S
        return ready
