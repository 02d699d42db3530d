"""How many cores this process may keep at work: what it may run on, and how much of that time it may have.

A container has its limit in a control group, as a quota: of each period of 100 ms, say, so many ms on all cores taken
together. Who has used it up stands still until the next period. (Where it is written: the kernel's documentation of
``cpu.max``, control groups version 2, and of ``cpu.cfs_quota_us``, version 1.)
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return how many cores this process may keep at work, whole ones, and at least one."""
    return max(1, int(min(len(os.sched_getaffinity(0)), quota(_GROUPS, _MOUNTED))))


def quota(groups: Path, mounted: Path) -> float:
    """Return how many cores' time the control groups named in ``groups`` leave; infinity without a limit."""
    least = float("inf")
    with suppress(OSError):  # no such thing on this system
        for line in os.fsdecode(groups.read_bytes()).splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                least = min(least, _least_of(mounted, group))
            elif "cpu" in controllers.split(","):
                least = min(least, _least_of(mounted / "cpu", group))
    return least


def _least_of(root: Path, group: str) -> float:
    """Return the quota of ``group`` and of those that it is in.

    In a container some of them cannot be seen: what is its own is then at the root, whatever the group is called.
    """
    within = Path(group.lstrip("/"))
    above = () if ".." in within.parts else (within, *within.parents)
    return min(_quota_of(root / each) for each in (Path(), *above))


def _quota_of(group: Path) -> float:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):  # not there; or "max", or -1: no limit
            time_us, period_us = map(int, " ".join((group / file).read_text() for file in files).split())
            if time_us > 0:
                return time_us / period_us
    return float("inf")
