"""Exceptions that come from outside of what they interrupt: Ctrl-C, and whatever a signal handler of the caller raises.

They are the caller's, and are given back to the caller, whichever step of cgexec they happen to have interrupted.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any


def is_interruption(error: BaseException) -> bool:
    """Return whether ``error``, just caught, is none of what the interrupted code raised.

    That is so for Ctrl-C and for what was raised in a signal handler, both of which Python delivers to the main thread,
    between any two steps of it.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    return on_main_thread and (isinstance(error, KeyboardInterrupt) or was_raised_by_a_handler(error))


def was_raised_by_a_handler(error: BaseException) -> bool:
    """Return whether ``error``, just caught, was raised in a signal handler, which Python runs on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(code in handlers for code in _codes(error.__traceback__))


def _codes(tb: TracebackType | None) -> Iterator[CodeType]:
    while tb is not None:
        yield tb.tb_frame.f_code
        tb = tb.tb_next


def _code(handler: Any) -> CodeType | None:
    """Return the code that a signal handler runs, if it is written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    for function in (handler, getattr(type(handler), "__call__", None)):  # noqa: B004 - looked at, not asked whether
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None
