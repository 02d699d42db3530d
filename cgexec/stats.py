"""How often a graph did what, and how long it took."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgexec.status import JobStatus

MOST_LATENCIES = 1000


@dataclass(frozen=True)
class GraphStats:
    """What one graph had done when it was asked.

    Every execution that was ``submitted`` is ``in_line`` or ``in_flight``, or has settled as one of ``succeeded``,
    ``failed``, ``preempted`` and ``error``. (One that has settled early, by ``fail_fast``, keeps its slot until its
    other outputs have arrived.) ``never_collected`` counts those that did not succeed and whose handles
    were dropped with nobody having asked; ``retried`` how often one was sent again after a system error;
    ``waits_ran_out`` how often somebody gave up a wait. ``latency_s`` has the quantiles "p50", "p90" and "p99", and the
    longest, "max", of the seconds from submission to outcome of the last executions that succeeded, 1,000 at most; NaN
    if there was none.
    """

    submitted: int
    in_line: int
    in_flight: int
    succeeded: int
    failed: int
    preempted: int
    error: int
    never_collected: int
    retried: int
    waits_ran_out: int
    generation: int
    latency_s: Mapping[str, float]


class Tally:
    """Counts for one graph, under its lock."""

    def __init__(self) -> None:
        self._never_collected = 0
        self._more_never_collected: deque[None] = deque()
        self.retried = 0
        self.waits_ran_out = 0
        self.settled: Counter[str] = Counter()
        self._latencies_s: deque[float] = deque(maxlen=MOST_LATENCIES)

    def note_never_collected(self) -> None:
        """Count an execution of whose outcome nobody has asked. Without the lock."""
        self._more_never_collected.append(None)

    def note(self, status: JobStatus) -> None:
        """Count an execution that has settled."""
        info: Any = status.info  # an ExecutionInfo, as of whatever settles
        self.settled[info.state] += 1
        if info.state == "succeeded":
            self._latencies_s.append(info.elapsed_s)

    def take_back(self, status: JobStatus) -> None:
        """Do not count an execution that did not succeed after all."""
        self.settled[status.info.state] -= 1

    def stats(self, *, in_line: int, in_flight: int, generation: int) -> GraphStats:
        """Return what was counted."""
        while self._more_never_collected:
            self._more_never_collected.popleft()
            self._never_collected += 1
        return GraphStats(
            submitted=in_line + in_flight + self.settled.total(),
            in_line=in_line,
            in_flight=in_flight,
            succeeded=self.settled["succeeded"],
            failed=self.settled["failed"],
            preempted=self.settled["preempted"],
            error=self.settled["error"],
            never_collected=self._never_collected,
            retried=self.retried,
            waits_ran_out=self.waits_ran_out,
            generation=generation,
            latency_s=quantiles(list(self._latencies_s)),
        )


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return some quantiles of ``values``: for each share, the smallest value that so many of them do not exceed."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    if not values:
        return dict.fromkeys(shares, math.nan)
    found = np.quantile(values, list(shares.values()), method="inverted_cdf")
    return dict(zip(shares, map(float, found), strict=True))
