"""A point in time after which a call must have answered."""

from __future__ import annotations

import math
import threading
import time


class Deadline:
    """A moment on the monotonic clock; ``math.inf`` never passes."""

    __slots__ = ("at",)

    def __init__(self, since: float, seconds: float) -> None:
        """Make the deadline ``seconds`` after ``since``, on the monotonic clock; -1 and 0 as in ``after``."""
        self.at = math.inf if seconds == -1 else since + seconds

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline ``seconds`` from now. -1 never passes, 0 has passed already, as in Ray."""
        return cls(time.monotonic(), seconds)

    def remaining_s(self) -> float:
        """Return the seconds left: never negative, infinite if the deadline never passes."""
        return max(0.0, self.at - time.monotonic())

    def late_s(self) -> float:
        """Return for how many seconds it has passed; 0 if it has not."""
        return max(0.0, time.monotonic() - self.at)

    def wait_s(self) -> float | None:
        """Return the seconds left as ``threading`` takes them: None for ever."""
        return None if self.at == math.inf else self.slice_s(threading.TIMEOUT_MAX)

    def slice_s(self, longest_s: float) -> float:
        """Return the seconds to wait in one go: what is left, but at most ``longest_s``."""
        return min(self.remaining_s(), longest_s)
