"""Looking again before going to sleep: bounded, and only while it has paid."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cgexec import trials
from cgexec.engine import spinning
from cgexec.engine.spinning import SPIN_S, Spin, move_over
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
    assert clock.look(spin, SPIN_S) == 3 + 1
    assert clock.look(spin, SPIN_S) == 3 + 1, "it has paid"


def test_nobody_spins_where_it_cannot_pay(clock: Clock) -> None:
    spin = Spin(False)
    assert [clock.look(spin, SPIN_S / 2) for _ in range(3)] == [0] * 3


# -- sharing a core with what is waited for ----------------------------------------------------------------------------


class Moves:
    """Counts the moves that a spin makes; each yield lets somebody else run for ``others_run_s``."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        self.others_run_s = 0.0
        self.raises: Exception | None = None
        self._clock = clock
        monkeypatch.setattr(spinning, "move_over", self.move)
        monkeypatch.setattr(spinning.os, "sched_yield", self.sched_yield)

    def move(self) -> None:
        self.num += 1
        if self.raises is not None:
            raise self.raises

    def sched_yield(self) -> None:
        self._clock.now += self.others_run_s


@pytest.fixture
def moves(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Moves:
    monkeypatch.setattr(clock, "poll", lambda timeout_ms: READY if clock.now >= clock.ready_at else [])
    return Moves(clock, monkeypatch)


def shared(clock: Clock, moves: Moves, spin: Spin, number: int) -> int:
    """Look so often for what comes as somebody else has the core, and return how often the spin has moved."""
    before, moves.others_run_s = moves.num, 20e-6
    for _ in range(number):
        clock.ready_at = clock.now + 15e-6
        assert spin.look(clock) == READY  # type: ignore[arg-type]
    return moves.num - before


def apart(clock: Clock, moves: Moves, spin: Spin) -> None:
    """Look once for what comes while this thread has a core to itself."""
    moves.others_run_s = 1e-6
    clock.ready_at = clock.now + 15e-6
    assert spin.look(clock) == READY  # type: ignore[arg-type]


def test_who_shares_its_core_time_after_time_moves_and_then_not_for_a_while(clock: Clock, moves: Moves) -> None:
    spin = Spin(True, may_move=True)
    clock.now = 1.0
    assert shared(clock, moves, spin, 3) == 0
    assert shared(clock, moves, spin, 1) == 1
    assert shared(clock, moves, spin, 10) == 0, "within the same millisecond"
    clock.now += FIRST_PAUSE_S
    assert shared(clock, moves, spin, 10) == 1
    clock.now += FIRST_PAUSE_S
    assert shared(clock, moves, spin, 10) == 0, "it did not help twice"
    clock.now += 2 * FIRST_PAUSE_S
    assert shared(clock, moves, spin, 10) == 1
    clock.now += LONGEST_PAUSE_S
    apart(clock, moves, spin)
    assert shared(clock, moves, spin, 10) == 1
    clock.now += FIRST_PAUSE_S
    assert shared(clock, moves, spin, 10) == 1, "it had helped: the pauses begin anew"


def test_who_is_disturbed_now_and_then_stays(clock: Clock, moves: Moves) -> None:
    spin = Spin(True, may_move=True)
    for _ in range(100):
        assert shared(clock, moves, spin, 3) == 0
        apart(clock, moves, spin)


def test_a_move_that_helped_at_once_is_not_the_reason_for_a_longer_pause(clock: Clock, moves: Moves) -> None:
    spin = Spin(True, may_move=True)
    for _ in range(20):
        clock.now += 1.1 * FIRST_PAUSE_S
        assert shared(clock, moves, spin, 4) == 1
        apart(clock, moves, spin)


@pytest.mark.parametrize("num_in_vain", [1, 2])
def test_what_comes_from_one_look_to_the_next_has_come_apart(
    clock: Clock, moves: Moves, monkeypatch: pytest.MonkeyPatch, num_in_vain: int
) -> None:
    spin = Spin(True, may_move=True)
    for _ in range(10):
        assert shared(clock, moves, spin, 3) == 0
        polled = iter([*[[]] * num_in_vain, READY])
        with monkeypatch.context() as patch:
            patch.setattr(clock, "poll", lambda _timeout_ms, polled=polled: next(polled))
            assert spin.look(clock) == READY  # type: ignore[arg-type]


def test_only_one_of_two_that_look_for_each_other_moves(clock: Clock, moves: Moves) -> None:
    assert shared(clock, moves, Spin(True), 1000) == 0


@pytest.mark.parametrize("error", [PermissionError(1, "not allowed"), IndexError("no such field"), ValueError("none")])
def test_who_cannot_move_looks_where_it_is(clock: Clock, moves: Moves, error: Exception) -> None:
    moves.raises = error
    assert shared(clock, moves, Spin(True, may_move=True), 1000) > 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is nowhere to go")
def test_a_thread_goes_to_another_core_and_may_go_anywhere_afterwards() -> None:
    """Of the thread that calls alone. It is asked at once: nothing else moves it that soon, as a rule."""
    before = os.sched_getaffinity(0)
    left: list[int] = []
    came: list[int] = []
    may: list[set[int]] = []

    def move() -> None:
        for _ in range(100):
            left.append(_core())
            move_over()
            came.append(_core())
            may.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
    assert all(allowed == before for allowed in may)
    assert os.sched_getaffinity(0) == before
    assert sum(here != there for here, there in zip(left, came, strict=True)) > 50


def test_where_there_is_one_core_a_thread_stays_on_it() -> None:
    found: list[set[int]] = []

    def move() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        move_over()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
    assert [len(allowed) for allowed in found] == [1]


def test_an_interrupted_move_leaves_a_thread_free_to_go_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    before, set_affinity = os.sched_getaffinity(0), os.sched_setaffinity

    def interrupted(thread: int, allowed: set[int]) -> None:
        set_affinity(thread, allowed)
        if allowed != before:
            raise KeyboardInterrupt

    monkeypatch.setattr(spinning.os, "sched_setaffinity", interrupted)
    if len(before) > 1:
        with pytest.raises(KeyboardInterrupt):
            move_over()
    assert os.sched_getaffinity(0) == before


def _core() -> int:
    """Return the core that this thread is on."""
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])
