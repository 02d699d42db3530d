"""Ctrl-C at a step of one's choice.

Python delivers it on the main thread as a function of Python's begins, and as one of C returns. A profiler is called at
just those places, and what it raises comes out there.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cgexec

PACKAGE = str(Path(cgexec.__file__).parent)
FINALISERS = {"_run_each", "__del__"}  # of a generator, and of a handle: what is raised there, Python only prints


def is_ours(frame: Any) -> bool:
    return bool(frame.f_code.co_filename.startswith(PACKAGE))


def is_in_a_finaliser(frame: Any) -> bool:
    while frame is not None and is_ours(frame):
        if frame.f_code.co_name in FINALISERS:
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupted_at(place: int, seen: list[str]) -> Iterator[None]:
    """Have KeyboardInterrupt raised at the ``place``-th step in code of cgexec; ``seen``: the function it was in."""
    steps = 0

    def step(frame: Any, event: str, _what: Any) -> None:
        nonlocal steps
        if event in ("call", "c_return") and is_ours(frame) and not is_in_a_finaliser(frame):
            steps += 1
            if steps == place:
                sys.setprofile(None)
                seen.append(frame.f_code.co_name)
                raise KeyboardInterrupt

    before = sys.getprofile()
    gc.disable()  # which runs finalisers wherever it likes, those of graphs among them
    sys.setprofile(step)
    try:
        yield
    finally:
        sys.setprofile(before)
        gc.enable()
