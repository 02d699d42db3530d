"""Counts and quantiles."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgexec import ExecutionInfo, JobError, JobFailed, JobPreempted, JobStatus, JobSucceeded
from cgexec.stats import MOST_LATENCIES, Tally, quantiles

SECONDS = st.floats(0, 1e6)


def test_nothing_has_no_quantiles() -> None:
    assert all(math.isnan(value) for value in quantiles([]).values())


@given(st.lists(SECONDS, min_size=1, max_size=200))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = quantiles(values)
    assert list(found) == ["p50", "p90", "p99", "max"]
    assert found["max"] == max(values)
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] in values
        assert 100 * sum(value <= found[name] for value in values) >= percent * len(values)
        assert 100 * sum(value < found[name] for value in values) < percent * len(values)


def status(kind: type[JobStatus], state: str, took_s: float = 2.0) -> JobStatus:
    return kind(ExecutionInfo("graph", state, "test", elapsed_s=took_s), None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "state"),
    [(JobSucceeded, "succeeded"), (JobFailed, "failed"), (JobPreempted, "preempted"), (JobError, "error")],
)
def test_every_outcome_is_counted_and_only_successes_are_timed(kind: type[JobStatus], state: str) -> None:
    tally = Tally()
    for _ in range(3):
        tally.note(status(kind, state))
    stats = tally.stats(in_line=1, in_flight=1, generation=4)
    counts = {name: getattr(stats, name) for name in ("succeeded", "failed", "preempted", "error")}
    assert counts.pop(state) == 3
    assert set(counts.values()) == {0}
    assert (stats.submitted, stats.in_line, stats.in_flight, stats.generation) == (5, 1, 1, 4)
    assert math.isnan(stats.latency_s["p50"]) is (state != "succeeded")


def test_the_latencies_are_of_the_last_successes() -> None:
    tally = Tally()
    for took_s in range(2 * MOST_LATENCIES):
        tally.note(status(JobSucceeded, "succeeded", float(took_s)))
    latency_s = tally.stats(in_line=0, in_flight=0, generation=0).latency_s
    assert latency_s["max"] == 2 * MOST_LATENCIES - 1
    assert latency_s["p50"] == 1.5 * MOST_LATENCIES - 1
