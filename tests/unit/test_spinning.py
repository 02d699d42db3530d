"""Looking again before going to sleep: bounded, and only while it has paid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cgexec.engine import spinning
from cgexec.engine.spinning import SPIN_S, Spin
from cgexec.trials import MOST_SKIPPED

READY = [(7, 1)]


class Clock:
    """A poller, and the time that passes while it is asked: ``look_s`` for each look, a wait until ``ready_at``."""

    def __init__(self, ready_at: float) -> None:
        self.now = 0.0
        self.ready_at = ready_at
        self.asked: list[int | None] = []

    def monotonic(self) -> float:
        return self.now

    def poll(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        self.asked.append(timeout_ms)
        if timeout_ms == 0:
            self.now += SPIN_S / 10
        else:
            self.now = max(self.now, self.ready_at)
        return READY if self.now >= self.ready_at else []


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int | None]]:
    """Return a function that waits for so many seconds, and returns with which timeouts the poller was asked."""

    def waited(spin: Spin, seconds: float, timeout_ms: int = 1000) -> list[int | None]:
        clock: Any = Clock(seconds)
        monkeypatch.setattr(spinning, "time", clock)
        assert (spin.poll(clock, timeout_ms) == READY) is (timeout_ms != 0)
        return list(clock.asked)

    return waited


def test_what_comes_soon_is_not_slept_for(wait: Callable[..., list[int | None]]) -> None:
    spin = Spin(True)
    assert set(wait(spin, SPIN_S / 2)) == {0}


def test_a_spin_for_nothing_is_bounded_and_more_and_more_waits_sleep_at_once(
    wait: Callable[..., list[int | None]],
) -> None:
    spin = Spin(True)
    for skipped in (2, 4, 8):
        asked = wait(spin, 1.0)
        assert asked[-1] == 1000
        assert set(asked[:-1]) == {0}
        assert 5 < len(asked) < 15
        assert [wait(spin, SPIN_S / 2) for _ in range(skipped)] == [[1000]] * skipped
    assert set(wait(spin, SPIN_S / 2)) == {0}
    wait(spin, 1.0)
    assert [len(wait(spin, 1.0)) > 1 for _ in range(3)] == [False, False, True], "it has paid meanwhile"


def test_so_many_waits_sleep_at_most(wait: Callable[..., list[int | None]]) -> None:
    spin, spins = Spin(True), 0
    for _ in range(3 * MOST_SKIPPED + 1):
        spins += len(wait(spin, 1.0)) > 1
    assert spins == 11


def test_nobody_spins_where_it_cannot_pay(wait: Callable[..., list[int | None]]) -> None:
    spin = Spin(False)
    assert [wait(spin, SPIN_S / 2) for _ in range(3)] == [[1000]] * 3


def test_a_look_looks_once(wait: Callable[..., list[int | None]]) -> None:
    spin = Spin(True)
    assert wait(spin, 1.0, 0) == [0]
    assert set(wait(spin, SPIN_S / 2)) == {0}, "and says nothing of how long waits are"
