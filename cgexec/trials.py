"""Whether to try again what pays sometimes: the more often it was in vain, the more seldom."""

from __future__ import annotations

MOST_SKIPPED = 1024


class Trials:
    """Says when something is worth a trial. After one in vain two are skipped, after the next four, and so on."""

    def __init__(self) -> None:
        self._to_skip = 0
        self._skips = 1

    def due(self) -> bool:
        """Return whether to try now."""
        if self._to_skip == 0:
            return True
        self._to_skip -= 1
        return False

    def paid(self) -> None:
        """Note that a trial was worth while."""
        self._skips = 1

    def in_vain(self) -> None:
        """Note that a trial was not."""
        self._to_skip = self._skips = min(2 * self._skips, MOST_SKIPPED)
