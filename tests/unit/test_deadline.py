"""Deadlines on a clock that stands still."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import pytest

from cgexec import deadline as module
from cgexec.deadline import Deadline

NOW = 1000.0


@pytest.fixture(autouse=True)
def _clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: NOW))


@pytest.mark.parametrize(
    ("seconds", "at"), [(2.5, NOW + 2.5), (3, NOW + 3), (0, NOW), (0.0, NOW), (-1, math.inf), (-1.0, math.inf)]
)
def test_a_deadline_lies_as_many_seconds_ahead_and_minus_one_for_ever(seconds: float, at: float) -> None:
    assert Deadline.after(seconds).at == at


@pytest.mark.parametrize(
    ("at", "remaining_s", "wait_s"),
    [
        (NOW + 2.5, 2.5, 2.5),
        (NOW, 0.0, 0.0),
        (NOW - 1.0, 0.0, 0.0),
        (math.inf, math.inf, None),
    ],
)
def test_what_remains_is_never_negative(at: float, remaining_s: float, wait_s: float | None) -> None:
    assert Deadline(at, 0).remaining_s() == remaining_s
    assert Deadline(at, 0).wait_s() == wait_s
    assert Deadline(at, 0).late_s() == max(0.0, NOW - at)


@pytest.mark.parametrize(
    ("seconds", "longest_s", "expected"), [(10.0, 0.1, 0.1), (0.05, 0.1, 0.05), (0.0, 0.1, 0.0), (-1, 0.1, 0.1)]
)
def test_a_slice_is_what_is_left_but_not_more_than_the_longest(
    seconds: float, longest_s: float, expected: float
) -> None:
    assert Deadline.after(seconds).slice_s(longest_s) == pytest.approx(expected)


@pytest.mark.parametrize("seconds", [0.0, 1.0, threading.TIMEOUT_MAX, 1e12, 1e300, -1])
def test_threading_takes_every_wait(seconds: float) -> None:
    lock = threading.Lock()
    wait_s = Deadline.after(seconds).wait_s()
    assert lock.acquire(timeout=-1 if wait_s is None else wait_s)  # free: it checks the number and does not wait


@pytest.mark.parametrize("seconds", [0.0, 1.0, threading.TIMEOUT_MAX, 1e12, 1e300, -1])
def test_threading_takes_every_slice_as_long_as_it_can_count(seconds: float) -> None:
    assert 0 <= Deadline.after(seconds).slice_s(threading.TIMEOUT_MAX) <= threading.TIMEOUT_MAX
