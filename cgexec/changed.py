"""The lock of what several threads share, with who sleeps until something has changed, whatever interrupts them.

Ctrl-C, and what a signal handler raises, come on the main thread between any two steps of Python code: also between
those of ``threading.Condition.__enter__``, which then leaves the lock held for ever, and of ``wait``, which then may
return without it. CPython looks for signals as a Python function begins and after each call, not while it enters or
leaves a ``with`` or a ``try``. So here the lock is let go of by a method written in C, and what is called to acquire it
stands in a ``try``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cgexec.errors import CgexecError

T = TypeVar("T")

# Written in C, and knows who holds it. Private: ``_is_owned``, on which threading.Condition stands as well.
_Lock: Any = type(threading.RLock())


class Changed(_Lock):  # type: ignore[misc] # typing does not know that the type of an RLock can be derived from
    """A lock and its condition. A thread may hold it once only.

    Whoever comes twice has interrupted itself: in a signal handler, or in a finaliser that the garbage collector ran.
    What it then would look at is half done, and if it were to wait, it would wait for itself.
    """

    def __init__(self) -> None:
        self._waiting: set[Any] = set()  # a lock for each that waits, until whoever wakes it releases it

    def __enter__(self) -> bool:
        """Acquire the lock.

        Raises:
            CgexecError: this thread holds it.
        """
        if self._is_owned():
            raise CgexecError(
                "a signal handler or a finaliser used a graph while it had interrupted, in this very thread, a call "
                "that changes the same graph; let another thread do it, or loop.add_signal_handler"
            )
        try:
            self.acquire()
        except BaseException:
            if self._is_owned():
                self.release()
            raise
        return True

    def within(self, timeout_s: float, call: Callable[[], object]) -> None:
        """Call ``call()`` with the lock held, if it can be had in time and this thread does not hold it already."""
        if self._is_owned():
            return
        try:
            if self.acquire(timeout=timeout_s):
                call()
        finally:
            if self._is_owned():
                self.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as a Condition does; the lock is held afterwards, whatever ended the wait."""
        asleep = threading.Lock()
        asleep.acquire()
        try:
            self._waiting.add(asleep)
            return self.outside(asleep.acquire, True, -1 if timeout is None else max(0.0, timeout))
        finally:
            self._waiting.discard(asleep)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until ``predicate()`` is true, or the timeout; return what it returned last."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (found := predicate()):
            left_s = None if end is None else end - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            self.wait(left_s)
        return found

    def notify_all(self) -> None:
        """Wake all who wait. Costs next to nothing while nobody does, as beside a lone caller."""
        for asleep in self._waiting:
            if asleep.locked():  # else somebody has, and it has not come to take the lock yet
                asleep.release()

    def outside(self, call: Callable[..., T], *args: Any) -> T:
        """Return what ``call(*args)`` returns, called without the lock, which is held again whatever ends the call."""
        interruption: BaseException | None = None
        try:
            self.release()
            return call(*args)
        finally:
            while True:  # here, and not in a function of its own: as one begins, an interruption may come
                try:
                    if self._is_owned() or self.acquire():
                        break
                except BaseException as error:  # noqa: BLE001 - raised below
                    interruption = error
            if interruption is not None:
                raise interruption
