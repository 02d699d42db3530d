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

Two that look for what the other writes may come to share a core, where one of them was put as something else ran for a
moment; and as neither ever sleeps, the kernel can leave them there for tens of milliseconds, while the other core does
nothing. (57 us where it takes 13. Windows of 20 ms on 2 cores that end so, with a process beside it that works for 4 ms
in 24: 73 of 150, and 12 where the driver moves over.) Then what is waited for comes just as a yield has lasted long,
time after time, and the driver goes to another core.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from pathlib import Path

from cgexec.trials import Trials

SPIN_S = 500e-6
_RAN_HERE_S = 8e-6  # that it took to yield: somebody else has had this core meanwhile
_OFTEN = 4  # looks in a row that end so
_CORE_FIELD = 36  # of what /proc says of a thread, behind its name: the core that it is on


class Spin:
    """How one thread at a time waits. ``may_pay``: whether there is a core that nobody else is to use.

    ``may_move``: whether this is the one that goes, where it turns out to share a core with what it waits for.
    """

    def __init__(self, may_pay: bool, may_move: bool = False) -> None:
        self.may_pay = may_pay
        self._may_move = may_move
        self._trials = Trials()
        self._moves = Trials()
        self._num_shared = 0  # looks in a row that ended as somebody else had run here

    def look(self, poller: select.poll) -> list[tuple[int, int]]:
        """Return what ``poller`` has within a moment; nothing, and at once, where it would not pay to look."""
        now = time.monotonic()
        if not self.may_pay or now < self._trials.not_before:
            return []
        look_until = now + SPIN_S
        while True:
            yielded_at, now = now, time.monotonic()
            if ready := poller.poll(0):
                self._trials.paid()
                if now - yielded_at > _RAN_HERE_S:
                    self._share()
                elif self._num_shared:
                    self._be_apart()
                return ready
            if now >= look_until:
                self._trials.in_vain()
                return []
            if ready := poller.poll(0) or poller.poll(0):  # to yield takes as long as to look: sooner seen, by 2 %
                self._trials.paid()
                if self._num_shared:
                    self._be_apart()
                return ready
            os.sched_yield()

    def _be_apart(self) -> None:
        """Note that what was waited for came while this thread had a core to itself."""
        self._num_shared = 0
        self._moves.paid()

    def _share(self) -> None:
        """Note that what was waited for came as somebody else had this core; go to another if that is the rule."""
        self._num_shared += 1
        if self._may_move and self._num_shared >= _OFTEN and self._moves.due():
            self._num_shared = 1  # so that the next look apart, if it is one, says that it was not in vain
            self._moves.in_vain()
            with suppress(OSError, LookupError, ValueError):  # where that cannot be had, it stays as it is
                move_over()


def move_over() -> None:
    """Have this thread go on on another core that it may use, if there is one; it may use the same as before.

    Raises OSError, LookupError or ValueError where that cannot be had.
    """
    allowed = os.sched_getaffinity(0)
    here = int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[_CORE_FIELD])
    if others := allowed - {here}:
        try:
            os.sched_setaffinity(0, others)
        finally:
            os.sched_setaffinity(0, allowed)
