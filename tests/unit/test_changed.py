"""A lock that is held exactly where it should be, whatever interrupts its holder between any two steps."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from cgexec.changed import Changed
from cgexec.errors import CgexecError


class AlarmError(Exception):
    """What the signal handler raises."""


@pytest.fixture
def alarms() -> Iterator[None]:
    """Interrupt the main thread again and again, at any step of it."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Others:
    """Threads that take the lock and note who is in there with them."""

    def __init__(self, changed: Changed) -> None:
        self.inside = 0
        self.together = 0
        self.done = False
        self._changed = changed
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def enter(self) -> None:
        self.inside += 1
        self.together += self.inside > 1

    def leave(self) -> None:
        self.inside -= 1

    def _run(self) -> None:
        while not self.done:
            with self._changed:
                self.enter()
                self._changed.notify_all()
                self.leave()
            time.sleep(0.0001)

    def end(self) -> None:
        self.done = True
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads), "the lock was never let go of"


def test_the_lock_is_held_where_it_should_be_whatever_interrupts(alarms: None) -> None:
    changed = Changed()
    others = Others(changed)
    lot = random.Random(7)
    met = {"an alarm": 0, "not held": 0, "held": 0}

    def without() -> None:
        met["held"] += changed._is_owned()

    def rounds() -> None:
        while True:
            with changed:
                try:
                    changed.outside(without)
                    changed.wait(0.0005)
                finally:
                    met["not held"] += not changed._is_owned()

    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, lot.uniform(0.00002, 0.0006))
                rounds()
            except AlarmError:
                met["an alarm"] += 1
            assert not changed._is_owned(), "the lock was left held"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        others.end()
    assert met == {"an alarm": 3000, "not held": 0, "held": 0}
    assert others.together == 0


def test_who_comes_twice_in_one_thread_is_told() -> None:
    changed = Changed()
    with changed, pytest.raises(CgexecError, match="let another thread do it"), changed:
        pass
    assert not changed._is_owned()


def test_a_wait_ends_at_its_timeout_or_as_soon_as_it_is_told() -> None:
    changed, seen = Changed(), []

    def waits() -> None:
        with changed:
            seen.append(changed.wait_for(lambda: "said" in seen, 30))

    thread = threading.Thread(target=waits)
    thread.start()
    with changed:
        assert changed.wait_for(lambda: False, 0.01) is False
        assert changed.wait(0.01) is False
        seen.append("said")
        changed.notify_all()
    thread.join(10)
    assert seen == ["said", True]
