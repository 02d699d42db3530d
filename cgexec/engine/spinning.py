"""Looking again and again for a moment before going to sleep, where that is sooner than being woken.

Whoever has slept finds its caches full of what others ran meanwhile, and takes two or three times as long for all that
it does next: for the driver of a small graph that is half of an execution. In a graph that is a chain, with one
execution in flight, one host at a time is at work: with a second core to itself, the driver looks for up to ``SPIN_S``
before it sleeps, and lets whoever wants that core go first. (Measured on 2 cores: chain of 4, 179 us where it took 219;
1 actor, 44 where it took 63. Hosts that look as well make it longer, and so does it in a graph with branches: each then
keeps others from working. A graph of one host is another matter, for there are two cores for two: 25 us where it took
42.) Where a spin was for nothing, since methods take their time, the next one comes a millisecond later at the soonest,
after the next such spin two, and so on up to 0.1 s (``Trials``). So an idle graph sleeps, and one that is not quick
spends half a percent of a core.
"""

from __future__ import annotations

import os
import select
import time

from cgexec.trials import Trials

SPIN_S = 500e-6


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Spin:
    """How one thread at a time waits. ``may_pay``: whether there is a core that nobody else is to use."""

    def __init__(self, may_pay: bool) -> None:
        self.may_pay = may_pay
        self._trials = Trials()

    def look(self, poller: select.poll) -> list[tuple[int, int]]:
        """Return what ``poller`` has within a moment; nothing, and at once, where it would not pay to look."""
        if not self.may_pay or not self._trials.due():
            return []
        look_until = time.monotonic() + SPIN_S
        while True:
            looks_last = time.monotonic() >= look_until
            if ready := poller.poll(0):
                self._trials.paid()
                return ready
            if looks_last:
                self._trials.in_vain()
                return []
            os.sched_yield()
