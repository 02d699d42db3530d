"""A bounded run of faults drawn by lot, on a real cluster; ``python -m cgexec chaos --faults 200`` draws more."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import ray
from conftest import eventually
from ray.exceptions import RayActorError

from cgexec import GraphConfig
from cgexec.testing import Chaos, Recorder, kill_process, pid_of, stop
from cgexec.testing.leftovers import is_running

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.clause("C5"), pytest.mark.clause("C6")]

NUM_FAULTS = 6


@pytest.mark.parametrize(
    ("seed", "config"),
    [
        (1, GraphConfig()),
        (2, GraphConfig(transport="ray", buffer_size_bytes=10_000)),
        (3, GraphConfig(engine="actor_calls")),
    ],
    ids=["socket", "ray", "calls"],
)
def test_chaos(local_ray, seed, config):
    seen = []
    report = Chaos(NUM_FAULTS, seed, config, on_fault=seen.append).run()
    assert report.passed, report
    assert seen == list(range(NUM_FAULTS))
    assert report.faults.total() == len(report.recoveries_s) == NUM_FAULTS
    assert report.statuses["JobSucceeded"] >= NUM_FAULTS


def test_a_process_is_killed_that_ray_started_after_the_one_that_was_stopped(local_ray):
    actor = ray.remote(Recorder).options(num_cpus=0, max_restarts=1).remote(0)
    stopped = pid_of(actor)
    stop(actor)
    os.kill(stopped, signal.SIGKILL)

    def restarted():
        with suppress(RayActorError):
            return pid_of(actor)

    pid = eventually(restarted)
    assert pid not in (None, stopped)
    kill_process(actor)
    assert eventually(lambda: not is_running(pid))


def test_the_command_shows_a_table_and_ends_well():
    done = subprocess.run(
        [sys.executable, "-m", "cgexec", "chaos", "--faults", "2", "--seed", "5"],
        env={**os.environ, "COLUMNS": "100", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("wrong answers", "lost executions", "hangs", "leaked things"):
        (line,) = [line for line in done.stdout.splitlines() if name in line]
        assert line.split()[-2] == "0", line


def test_no_faults_are_refused(capsys):
    from cgexec.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["chaos", "--faults", "0"])
    assert caught.value.code == 2
    assert "1 fault or more" in capsys.readouterr().err
