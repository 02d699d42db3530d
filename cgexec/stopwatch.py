"""An actor that adds up measured times by name."""

from __future__ import annotations

import ray


class Stopwatch:
    """Totals and counts of durations, by name."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, int]] = {}

    def measure(self, name: str, time: float) -> None:
        """Add one duration of ``time`` seconds under ``name``."""
        total, count = self.get(name)
        self._totals[name] = (total + time, count + 1)

    def get(self, name: str) -> tuple[float, int]:
        """Return (sum of the durations in seconds, how many): (0.0, 0) if there is none under ``name``."""
        return self._totals.get(name, (0.0, 0))

    def average(self, name: str) -> float:
        """Return the mean duration in seconds.

        Raises:
            KeyError: nothing was measured under ``name``; the message lists the names there are.
        """
        total, count = self.get(name)
        if count == 0:
            raise KeyError(f"nothing was measured as {name!r}; there is {sorted(self._totals) or 'nothing at all'}")
        return total / count


# Ray's decorator, applied as a function, leaves the plain class importable and testable.
StopwatchActor = ray.remote(num_cpus=0)(Stopwatch)
