"""An exception out of nowhere, at a place of one's choice: as from a signal handler, or somebody else's thread."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, Literal


def _line_of(frame: Any) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


@contextmanager
def raised_at(
    place: int, event: Literal["line", "opcode"], is_here: Callable[[CodeType], bool], error: BaseException
) -> Iterator[list[int]]:
    """Raise ``error`` at the n-th line, or instruction, of code that ``is_here``; yields how many there were.

    Not at a line with a ``with``: CPython looks for signals neither as it enters one nor, to which it comes back, as it
    leaves it, and a lock that is written in C is let go of for certain.
    """
    seen = [0]

    def tracer(frame: Any, what: str, _argument: Any) -> Any:
        if not is_here(frame.f_code):
            return None
        frame.f_trace_opcodes = event == "opcode"
        if what == event and not (what == "line" and _line_of(frame).startswith("with ")):
            seen[0] += 1
            if seen[0] == place:
                raise error
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield seen
    finally:
        sys.settrace(before)
