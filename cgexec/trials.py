"""Whether to try again what pays sometimes: the more often it was in vain, the more seldom."""

from __future__ import annotations

import time

FIRST_PAUSE_S = 1e-3
LONGEST_PAUSE_S = 0.1


class Trials:
    """Says when something is worth a trial: after one in vain not for a millisecond, after the next for two, and so on.

    In time, not in turns: what disturbs, disturbs for a while, and then all is to be as before, soon, whoever calls how
    often.
    """

    def __init__(self) -> None:
        self.not_before = 0.0  # on the monotonic clock: what ``due`` goes by, for whoever knows the time
        self._pause_s = FIRST_PAUSE_S

    def due(self) -> bool:
        """Return whether to try now."""
        return time.monotonic() >= self.not_before

    def paid(self) -> None:
        """Note that a trial was worth while."""
        self._pause_s = FIRST_PAUSE_S

    def in_vain(self) -> None:
        """Note that a trial was not."""
        self.not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
