"""How many cores there are to be kept at work: by affinity, and by the quotas of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from cgexec.engine.cores import _GROUPS, _MOUNTED, cores, quota

NO_LIMIT = float("inf")


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, NO_LIMIT),
        ("0::/\n", {}, NO_LIMIT),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "25000 50000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "cpu.max": "300000 100000\n"}, 3.0),
        ("0::/seen/from/outside\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/../elsewhere\n", {"cpu.max": "100000 100000\n", "elsewhere/cpu.max": "1 100\n"}, 1.0),
        ("0::/a:b c\n", {"a:b c/cpu.max": "200000 100000\n"}, 2.0),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, NO_LIMIT),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n"}, NO_LIMIT),
        ("4:cpuset:/\n3:memory:/x\n", {"cpu/x/cpu.max": "1 100\n"}, NO_LIMIT),
        (
            "3:cpu:/x\n0::/\n",
            {"cpu/x/cpu.cfs_quota_us": "90000", "cpu/x/cpu.cfs_period_us": "30000", "cpu.max": "max 100000\n"},
            3.0,
        ),
        ("3:cpuacct,cpu:/\n", {"cpuacct,cpu/cpu.cfs_quota_us": "40", "cpuacct,cpu/cpu.cfs_period_us": "80"}, 0.5),
        ("1:name=systemd:/\n0::/a\n", {"unified/a/cpu.max": "100000 100000\n"}, 1.0),
        ("\nhello\n0:cpu\n0::/\r\u2028\n\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/a\x1cb:c\n", {"a\x1cb:c/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/\n", {"cpu.max": "9" * 400 + " 100000\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": "9" * 5000 + " 100000\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": "100 -5\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": "100000 0\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": "garbage\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": ""}, NO_LIMIT),
        ("", {}, NO_LIMIT),
    ],
)
def test_the_least_quota_counts(tmp_path: Path, groups: str, files: Mapping[str, str], expected: float) -> None:
    mounted = written(tmp_path / "mounted", files)
    (tmp_path / "groups").write_text(groups)
    assert quota(tmp_path / "groups", mounted) == expected


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path / "none", tmp_path) == NO_LIMIT


def test_a_name_in_no_encoding_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "groups").write_bytes(b"0::/\xff\n")
    written(tmp_path, {"cpu.max": "70000 100000"})
    assert quota(tmp_path / "groups", tmp_path) == 0.7


def told_by(script: str, group: Path | None = None) -> tuple[int, float]:
    """Return how many cores, and what quota, a process is told that runs ``script`` first, and in ``group``."""
    joining = "" if group is None else f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
    asking = "from cgexec.engine.cores import _GROUPS, _MOUNTED, cores, quota\n"
    asking += "print(cores(), quota(_GROUPS, _MOUNTED))"
    told = subprocess.run([sys.executable, "-c", joining + script + asking], check=True, capture_output=True)
    num_cores, limit = told.stdout.split()
    return int(num_cores), float(limit)


def test_no_more_than_this_process_may_run_on() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert told_by("import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n")[0] == 1


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own, with a quota of less than two cores."""
    made, has_quota = None, False
    with suppress(OSError):
        for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")):
            if (root / "cgroup.procs").exists():
                made = root / f"cgexec-{uuid.uuid4().hex}"
                made.mkdir()
                if (made / "cpu.max").exists():
                    (made / "cpu.max").write_text("150000 100000")
                else:
                    (made / "cpu.cfs_quota_us").write_text("150000")
                has_quota = True
                break
    try:
        if made is None or not has_quota:
            pytest.skip("this process may make no control group with a quota")
        yield made
    finally:
        if made is not None and made.exists():
            made.rmdir()


def test_a_quota_that_the_kernel_keeps_is_known(group: Path) -> None:
    assert told_by("", group) == (1, min(1.5, quota(_GROUPS, _MOUNTED)))
