"""Looking again before going to sleep: bounded, and only while it has paid."""

from __future__ import annotations

from typing import Any

import pytest

from cgexec import trials
from cgexec.engine import spinning
from cgexec.engine.spinning import SPIN_S, Spin
from cgexec.trials import FIRST_PAUSE_S, LONGEST_PAUSE_S

READY = [(7, 1)]


class Clock:
    """A poller, and the time, which passes while it is asked. There is something from ``ready_at`` on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready_at = 0.0
        self.num_asked = 0

    def monotonic(self) -> float:
        return self.now

    def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
        assert timeout_ms == 0
        self.num_asked += 1
        self.now += SPIN_S / 10
        return READY if self.now >= self.ready_at else []

    def look(self, spin: Spin, ready_in_s: float) -> int:
        """Look with ``spin`` for what comes so much later; return how often the poller was asked."""
        self.ready_at, self.num_asked = self.now + ready_in_s, 0
        poller: Any = self
        assert (spin.look(poller) == READY) is (self.num_asked > 0 and self.now >= self.ready_at)
        return self.num_asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(spinning, "time", found)
    monkeypatch.setattr(trials, "time", found)
    return found


def test_what_comes_soon_is_found(clock: Clock) -> None:
    spin = Spin(True)
    for _ in range(100):
        started = clock.now
        assert clock.look(spin, SPIN_S / 2) in (5, 6)
        assert clock.now - started < SPIN_S


def test_a_spin_for_nothing_is_bounded_and_the_next_is_longer_in_coming(clock: Clock) -> None:
    spin, pause_s = Spin(True), FIRST_PAUSE_S
    for _ in range(4):
        started = clock.now
        assert clock.look(spin, 1.0) > 5
        assert clock.now - started < 1.5 * SPIN_S
        clock.now += 0.9 * pause_s
        assert clock.look(spin, SPIN_S / 2) == 0
        clock.now += 0.2 * pause_s
        pause_s *= 2
    assert clock.look(spin, SPIN_S / 2) > 0
    clock.look(spin, 1.0)
    clock.now += 1.1 * FIRST_PAUSE_S
    assert clock.look(spin, 1.0) > 0, "it has paid meanwhile"


def test_little_time_is_spent_on_what_never_pays(clock: Clock) -> None:
    spin, spent_s = Spin(True), 0.0
    while clock.now < 100 * LONGEST_PAUSE_S:
        started = clock.now
        clock.look(spin, 1.0)
        spent_s += clock.now - started
        clock.now += SPIN_S
    assert 0 < spent_s < 0.01 * clock.now


def test_a_look_that_took_too_long_to_come_about_is_a_look(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has been given the core meanwhile may have kept it for as long as the spin was to last."""
    monkeypatch.setattr(spinning.os, "sched_yield", lambda: vars(clock).update(now=clock.now + 2 * SPIN_S))
    spin = Spin(True)
    assert clock.look(spin, SPIN_S) == 2
    assert clock.look(spin, SPIN_S) == 2, "it has paid"


def test_nobody_spins_where_it_cannot_pay(clock: Clock) -> None:
    spin = Spin(False)
    assert [clock.look(spin, SPIN_S / 2) for _ in range(3)] == [0] * 3
