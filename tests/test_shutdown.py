"""Ray goes away under a graph that was not closed: at the end of the program, by Ctrl-C, or by ray.shutdown()."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import ray
from conftest import eventually
from pool import WAYS
from test_cli import processes_of_session, run

from cgexec.engine.protocol import SessionOverError

pytestmark = pytest.mark.clause("C5")

PROLOGUE = """
import os, ray, signal, threading, time
from cgexec import GraphConfig, GraphExecutor, fan_out

class Echo:
    def echo(self, message):
        time.sleep(message)
        return message

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=200_000_000)
actors = [ray.remote(num_cpus=0)(Echo).remote() for _ in range(2)]
graph = GraphExecutor(
    actors, fan_out("echo"), config=GraphConfig(buffer_size_bytes=10_000, max_inflight=4, transport="TRANSPORT")
)
print(graph.execute(0).result)
"""
# A background job inherits that the signal is ignored, and Python then leaves it so.
INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
"""


@pytest.mark.parametrize(("block", "transport"), [("", "socket"), ("with graph: ", "ray")])
def test_ctrl_c_in_a_blocked_execute_ends_the_program(tmp_path, block, transport):
    script = tmp_path / "script.py"
    script.write_text(
        PROLOGUE.replace("TRANSPORT", transport) + INTERRUPT + block + "graph.execute(600, timeout_s=-1)\n"
    )
    started = time.monotonic()
    code, out, err, session = run(sys.executable, str(script))
    assert code in (130, -2), out + err
    assert time.monotonic() - started < 25, "the exit waited for a method that never returns"
    assert out.splitlines() == ["[0, 0]"]
    assert "KeyboardInterrupt" in err
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)


@pytest.mark.parametrize(("ending", "transport"), [("", "socket"), ("", "ray"), ("ray.shutdown()", "socket")])
def test_a_graph_that_was_not_closed_ends_with_ray(tmp_path, ending, transport):
    script = tmp_path / "script.py"
    script.write_text(PROLOGUE.replace("TRANSPORT", transport) + ending)
    code, out, err, session = run(sys.executable, str(script))
    assert (code, out, err) == (0, "[0, 0]\n", "")
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)


ENDED = "GraphFailedError: Ray was shut down under the graph"
REFUSED = f"GraphSpecError: the actors cannot be used: {SessionOverError()}"
USED = "JobError: Ray was shut down under the graph"
FAILED = {"state": "failed", "used": USED}
IN_A_REBUILD = {"raised": ENDED, **FAILED}
MEANWHILE = {
    "is idle": FAILED,
    "is idle, and starts Ray again": {"another Ray": True, "another Ray later": True, **FAILED},
    "waits": {"settled": "JobError", **FAILED},
    "closes": {"settled": "JobError", "state": "closed", "used": "GraphClosedError"},
    "rebuilds": {"settled": "JobError", **IN_A_REBUILD},
    "has forgotten it": {"settled": "JobError"},
    "builds": {"raised": REFUSED},
    "asks in a hook": IN_A_REBUILD,
    "starts actors in a hook": FAILED,
    "probes": IN_A_REBUILD,
    "prepares": IN_A_REBUILD,
}
ON_COMPILED = {"compiles": IN_A_REBUILD, "settles in": IN_A_REBUILD}
ON_CALLS = {"hands out the plan": IN_A_REBUILD}
# What Ray itself says if it is shut down just as a hook of the user's has asked it for an actor.
OF_A_HOOKS_ACTOR = re.compile(
    r"^.* core_worker\.cc:\d+: Failed to register actor\..*Actor creation cancelled.*\n", re.M
)
NOTHING_LEFT = {"stuck": False, "another Ray": False, "another Ray later": False, "threads": [], "raised": None}


@pytest.mark.num_ways(1)
@pytest.mark.parametrize("way", WAYS)
def test_ray_is_shut_down_while_somebody(local_ray, way):
    """Nobody is kept waiting, nobody starts another Ray, and nobody asks one that is ending, which ends the process."""
    address = ray.get_runtime_context().gcs_address
    code, out, err, session = run(sys.executable, str(Path(__file__).with_name("shutdowns.py")), address, way)
    assert (code, OF_A_HOOKS_ACTOR.sub("", err)) == (0, ""), out
    found = {outcome.pop("meanwhile"): outcome for outcome in map(json.loads, out.splitlines())}
    expected = MEANWHILE | (ON_CALLS if way == "calls" else ON_COMPILED)
    expected = {meanwhile: NOTHING_LEFT | outcome for meanwhile, outcome in expected.items()}
    if found["asks in a hook"]["raised"] is None:  # the hook had asked for the last time, and the graph was open again
        expected["asks in a hook"]["raised"] = None
    assert found == expected
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)
