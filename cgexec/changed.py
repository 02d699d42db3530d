"""The condition of a graph: its lock, and who sleeps until something has changed."""

from __future__ import annotations

import threading


class Changed(threading.Condition):
    """A condition whose ``notify_all`` costs next to nothing while nobody waits, as beside a lone caller."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self._num_waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as a Condition does."""
        self._num_waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._num_waiting -= 1

    def notify_all(self) -> None:
        """Wake all who wait. The lock is held, as for every Condition."""
        if self._num_waiting:
            super().notify_all()
