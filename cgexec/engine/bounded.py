"""Calls that may never return, under a bound.

Ray's compile and teardown, and the caller's hooks, have no timeout of their own. They run on a daemon thread; at the
bound the caller goes on and the thread is left to end by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar, cast

from cgexec.errors import CgexecError
from cgexec.isolation import apart
from cgexec.texts import class_name, text_of

T = TypeVar("T")


class BoundExceededError(Exception):
    """A bounded call was still running at its bound; it goes on by itself."""


class ExitedError(CgexecError):
    """The caller's code raised what is no Exception: SystemExit, KeyboardInterrupt."""


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


def call_theirs(call: Callable[[], T], timeout_s: float, name: str, what: str) -> T:
    """Return what code of the caller's does, on a thread called ``name``; raises what it raises.

    Raises:
        BoundExceededError: it was still running after ``timeout_s``.
        ExitedError: it raised what is no Exception.
    """
    result, raised = wait(start(lambda: apart(call), name), timeout_s, what)
    if raised is None:
        return cast("T", result)
    if isinstance(raised, Exception):
        raise raised
    name = class_name(raised).rpartition(".")[2]
    raise ExitedError(f"{what} raised {name}: {text_of(raised)}") from raised
