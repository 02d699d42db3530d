"""What a test of channels leaves behind."""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import eventually, our_threads

CLEAN_UP_S = 3.0


@functools.cache
def _set_aside() -> None:
    """Make collecting garbage quick: what is there by now, all of pytest's tests, is not walked again."""
    gc.collect()
    gc.freeze()


def num_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def _descriptors() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:  # that of the listing itself
            continue
    return sorted(found)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if there are more descriptors or threads of a graph when the block ends than there were before."""
    _set_aside()
    gc.collect()
    descriptors, threads = _descriptors(), threading.active_count()

    def is_clean() -> bool:
        if num_descriptors() <= len(descriptors) + 1 and threading.active_count() <= threads:
            return True
        gc.collect()
        return False

    yield
    assert eventually(is_clean, CLEAN_UP_S), f"left: {our_threads()}, {_descriptors()}; there were {descriptors}"
