"""Looking again and again for a moment before going to sleep, where that is sooner than being woken.

Between two processes that each have a core, being woken takes longer than all else that a small execution does. So
whoever waits for a frame looks for up to ``SPIN_S`` before it sleeps, if every process of the graph has a core of its
own: else the one that looks keeps the one that works from working. Where a spin was for nothing, since methods take
their time or something else wants the cores, the next waits sleep at once: two of them, four after the next such spin,
and so on. So an idle graph sleeps, and so does, nearly always, one that is not quick.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from functools import partial

SPIN_S = 100e-6
MOST_SKIPPED = 1024


class Spin:
    """How the threads of one process wait for the frames of a graph over ``num_processes``, the driver's included."""

    def __init__(self, num_processes: int) -> None:
        self.may_pay = num_processes <= len(os.sched_getaffinity(0))
        self._to_skip = 0
        self._skips = 1

    def polling(self, poller: select.poll) -> Callable[[int | None], list[tuple[int, int]]]:
        """Return what to call for ``poller.poll``."""
        return partial(self.poll, poller) if self.may_pay else poller.poll

    def poll(self, poller: select.poll, timeout_ms: int | None) -> list[tuple[int, int]]:
        """Return what ``poller.poll(timeout_ms)`` returns, as soon as there is something."""
        if not self.may_pay or timeout_ms == 0:
            return poller.poll(timeout_ms)
        if self._to_skip > 0:
            self._to_skip -= 1
            return poller.poll(timeout_ms)
        look_until = time.monotonic() + SPIN_S
        while time.monotonic() < look_until:
            if ready := poller.poll(0):
                self._skips = 1
                return ready
        self._to_skip = self._skips = min(2 * self._skips, MOST_SKIPPED)
        return poller.poll(timeout_ms)
