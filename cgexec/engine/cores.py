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
_NO_LIMIT = float("inf")


def cores() -> int:
    """Return how many cores this process may keep at work, whole ones, and at least one."""
    return max(1, int(min(len(os.sched_getaffinity(0)), quota(_GROUPS, _MOUNTED))))


def quota(groups: Path, mounted: Path) -> float:
    """Return how many cores' time the control groups named in ``groups`` leave; infinity without a limit."""
    found = [_NO_LIMIT]
    with suppress(OSError):  # no such thing on this system
        for line in os.fsdecode(groups.read_bytes()).split("\n"):  # any other byte may be in a name
            number, _, rest = line.partition(":")
            controllers, colon, group = rest.partition(":")
            if number and colon:
                found += [_least_of(root, group) for root in _roots(mounted, controllers)]
    return min(found)


def _roots(mounted: Path, controllers: str) -> tuple[Path, ...]:
    """Return where a hierarchy with these controllers may be, if it has to do with cores."""
    if not controllers:  # version 2, by itself or beside version 1
        return mounted, mounted / "unified"
    return (mounted / "cpu", mounted / controllers) if "cpu" in controllers.split(",") else ()


def _least_of(root: Path, group: str) -> float:
    """Return the quota of ``group`` and of those that it is in.

    In a container some of them cannot be seen: what is its own is then at the root, whatever the group is called. (Of
    groups inside of it, named as they are from outside, none is found.)
    """
    within = Path(group.lstrip("/"))
    above = () if ".." in within.parts else (within, *within.parents)
    return min(_quota_of(root / each) for each in (Path(), *above))


def _quota_of(group: Path) -> float:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ArithmeticError):  # not there; or "max": no limit
            time_us, period_us = map(int, " ".join((group / file).read_text() for file in files).split())
            if time_us > 0 and period_us > 0:  # -1: no limit
                return time_us / period_us
    return _NO_LIMIT
