"""How a generation is left: torn down once, by whoever comes first, within a bound that may be brought forward."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray.exceptions import RayChannelTimeoutError

from cgexec.changed import Changed
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Member

_SECOND_WAITS_S = 5.0
_CLEAN_UP_S = 1.0  # at most, once no host is in the graph any more; one that is busy elsewhere may take longer
_MIN_CLEAN_UP_S = 0.5


class Departure:
    """The state of one teardown. Guarded by ``changed``, which is notified when the bound comes closer."""

    def __init__(self, changed: Changed) -> None:
        self._changed = changed
        self._done = threading.Event()
        self.begun = False
        self.by = Deadline.after(-1)

    def leave(self, tear_down: Callable[[], dict[int, Exception]]) -> dict[int, Exception]:
        """Tear down, if nobody has begun to: return the hosts that had to be killed.

        A second caller waits for the first, within a bound, and returns none; one that comes after an interruption
        tears down again.
        """
        first = False
        try:
            with self._changed:
                first, self.begun = not self.begun, True
            if first:
                return tear_down()
        except BaseException:
            if first:
                self.begun = False
            raise
        finally:
            if first:
                self._done.set()
        self._done.wait(_SECOND_WAITS_S)
        return {}

    def hurry(self, timeout_s: float) -> None:
        """Bring the bound forward to ``timeout_s`` from now, if that is sooner."""
        with self._changed:
            sooner = Deadline.after(timeout_s)
            if sooner.at < self.by.at:
                self.by = sooner
                self._changed.notify_all()

    def clean_up_by(self) -> Deadline:
        """Return when to be done with what is left to do once no host is in the graph any more."""
        return Deadline.after(min(_CLEAN_UP_S, max(_MIN_CLEAN_UP_S, self.by.remaining_s())))


def stuck_host(member: Member) -> RayChannelTimeoutError:
    """Return what is said of a host that had not left when the time was up."""
    reason = "was still in the graph when its teardown had to end, and was killed"
    return RayChannelTimeoutError(f"host {member.info.host_id} {reason}")
