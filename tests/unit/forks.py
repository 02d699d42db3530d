"""Forked children that run one function."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable


def fork(function: Callable[[], object]) -> int:
    """Run ``function`` in a forked child, and return the child's process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: what is tested here
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended_well(pid: int) -> bool:
    """Wait for a child, and return whether its function returned."""
    return os.waitpid(pid, 0)[1] == 0
