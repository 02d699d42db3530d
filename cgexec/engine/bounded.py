"""Calls that may never return, under a bound.

Ray's compile and teardown, and the caller's hooks, have no timeout of their own. They run on a daemon thread; at the
bound the caller goes on and the thread is left to end by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

T = TypeVar("T")


class BoundExceededError(Exception):
    """A bounded call was still running at its bound; it goes on by itself."""


def start(call: Callable[[], T], name: str) -> Future[T]:
    """Run ``call`` on a daemon thread called ``name`` and return its future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, SystemExit included
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def wait(future: Future[T], timeout_s: float, what: str) -> T:
    """Return the result of ``future``, or raise what it raised.

    Raises:
        BoundExceededError: it was still running after ``timeout_s``.
    """
    try:
        return future.result(timeout_s)
    except FutureTimeoutError:
        if future.done():  # just now, or the call itself raised a TimeoutError
            return future.result()
        raise BoundExceededError(f"{what} was still running after {timeout_s:g} s") from None


def call_bounded(call: Callable[[], T], timeout_s: float, name: str, what: str) -> T:
    """Run ``call`` on a thread called ``name`` and wait for it, as ``wait`` does."""
    return wait(start(call, name), timeout_s, what)
