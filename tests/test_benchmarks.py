"""Every benchmark runs, in its smallest form, and writes what it has measured; how fast anything is, is no question."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONTESTANTS = {"raw", "cgexec, socket", "cgexec, ray"}
SMALLEST = {
    "latency": ["--only", "1 actor", "--calls", "5"],
    "throughput": ["--only", "1 actor, 4", "--calls", "8"],
    "payload": ["--only", "numpy, 1 MB", "--calls", "3"],
    "idle": [],
    "recovery": [],
    "scale": ["--only", "2"],
    "leak": [],
    "event_loop": [],
    "pipeline": ["--only", "1f1b", "--calls", "2"],
    "hot_path": [],
}
IN_A_CAMPAIGN = set(SMALLEST) - {"latency"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.campaign if name in IN_A_CAMPAIGN else ()) for name in SMALLEST]
)
@pytest.mark.timeout(300)
def test_a_benchmark_runs_and_writes_what_it_found(name, tmp_path):
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--rounds", "1", "--json", str(found), *SMALLEST[name]],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(found.read_text())
    assert written["rows"]
    assert all(row["median"] >= 0 for row in written["rows"])
    if name == "latency":
        assert {row["contestant"] for row in written["rows"]} >= CONTESTANTS
        assert {row["case"] for row in written["rows"]} >= {"1 actor, 1 byte", "1 actor, asyncio"}


def test_there_is_a_smallest_form_of_every_benchmark():
    files = {path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")}
    assert files - {"__init__", "harness", "contestants", "compare", "report"} == set(SMALLEST)
