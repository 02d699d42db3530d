"""The command line, run as a user runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import eventually

from cgexec import cli

SCRIPT = Path(sys.executable).with_name("cgexec")


def run(*command, **environment):
    """Run a command in a session of its own; return its exit code, its output, and the session's id."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env = {**inherited, "RAY_USAGE_STATS_ENABLED": "0", **environment}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=80)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err, process.pid


def processes_of_session(session):
    """Return the command lines of the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat.with_name("cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_the_demo_shows_a_lost_host_and_ends_well():
    code, out, err, session = run(str(SCRIPT), "demo")
    assert code == 0, out + err
    assert err == ""
    lines = out.splitlines()
    assert lines[-1] == "everything happened as promised"
    assert sum("JobSucceeded" in line for line in lines) >= 4
    assert sum("JobFailed" in line for line in lines) == 1
    (preempted,) = [line for line in lines if "JobPreempted" in line]
    assert "lost host 3" in preempted
    last = [line for line in lines if "JobSucceeded" in line][-1]
    assert re.search(r"generation 1 .*hosts now 0,1,2 .*ms", last)
    assert "Traceback" not in out
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)


@pytest.mark.campaign  # another demo, for the sake of what it prints
def test_the_module_shows_tracebacks_when_asked():
    code, out, err, _ = run(sys.executable, "-m", "cgexec", "demo", "--hosts", "2", "--verbose")
    assert code == 0, out + err
    assert "in root" in out
    assert "has no real root" in out
    assert "cgexec.supervisor: graph 'demo': generation 1 on host 0" in err


@pytest.mark.parametrize(("arguments", "words"), [(["demo", "--hosts", "1"], "2 hosts or more"), ([], "COMMAND")])
def test_bad_arguments_are_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
