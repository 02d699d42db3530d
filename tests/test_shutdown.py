"""Ray goes away under a graph that was not closed: at the end of the program, or by ray.shutdown()."""

import json
import sys
import time
from pathlib import Path

import pytest
import ray
from conftest import TRANSPORTS, eventually
from pool import WAYS
from test_cli import processes_of_session, run

from cgexec.engine.protocol import SessionOverError

pytestmark = pytest.mark.clause("C5")

PROLOGUE = """
import ray, threading
from cgexec import GraphConfig, GraphExecutor, fan_out

def start():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=200_000_000)

class Echo:
    def echo(self, message):
        return message

start()
actors = [ray.remote(num_cpus=0)(Echo).remote() for _ in range(2)]
graph = GraphExecutor(
    actors, fan_out("echo"), config=GraphConfig(buffer_size_bytes=10_000, max_inflight=4, transport="TRANSPORT")
)
print(graph.execute(1).result)
"""
SHOW = """
status = graph.execute(2)
print(type(status).__name__, status.error, graph.state.value, ray.is_initialized())
graph.close()
print([thread.name for thread in threading.enumerate() if "cgexec" in thread.name])
"""
ENDINGS = {
    "the program ends": ("", []),
    "shutdown, and the program ends": ("ray.shutdown()", []),
    "shutdown, and the graph is used and closed": (
        "ray.shutdown()" + SHOW,
        ["JobError Ray was shut down under the graph failed False", "[]"],
    ),
    "shutdown, and Ray is started again": (
        "ray.shutdown()\nstart()" + SHOW + "ray.shutdown()",
        ["JobError Ray was shut down under the graph failed True", "[]"],
    ),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("block", ["", "with graph: "], ids=["not closed", "in a with block"])
def test_ctrl_c_in_a_blocked_execute_ends_the_program(tmp_path, block, transport):
    script = tmp_path / "script.py"
    slow = PROLOGUE.replace("return message", "time.sleep(message); return message").replace("TRANSPORT", transport)
    body = "import os, signal, threading, time\n" + slow
    # A background job inherits that the signal is ignored, and Python then leaves it so.
    body += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    interrupt = "threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()\n"
    script.write_text(
        body.replace("execute(1)", "execute(0)") + interrupt + block + "graph.execute(600, timeout_s=-1)\n"
    )
    started = time.monotonic()
    code, out, err, session = run(sys.executable, str(script))
    assert code in (130, -2), out + err
    assert time.monotonic() - started < 25, "the exit waited for a method that never returns"
    assert out.splitlines() == ["[0, 0]"]
    assert "KeyboardInterrupt" in err
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_graph_that_was_not_closed_ends_with_ray(tmp_path, ending, transport):
    epilogue, shown = ENDINGS[ending]
    script = tmp_path / "script.py"
    script.write_text((PROLOGUE + epilogue).replace("TRANSPORT", transport))
    code, out, err, session = run(sys.executable, str(script))
    assert (code, err) == (0, "")
    assert out.splitlines() == ["[1, 1]", *shown]
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)


ENDED = "GraphFailedError: Ray was shut down under the graph"
REFUSED = f"GraphSpecError: the actors cannot be used: {SessionOverError()}"
IN_A_REBUILD = {"state": "failed", "raised": ENDED}
MEANWHILE = {
    "waits": {"state": "failed", "settled": "JobError"},
    "closes": {"state": "closed", "settled": "JobError"},
    "rebuilds": {"settled": "JobError", **IN_A_REBUILD},
    "has forgotten it": {"settled": "JobError"},
    "builds": {"raised": REFUSED},
    "asks in a hook": IN_A_REBUILD,
    "starts actors in a hook": {"state": "failed"},
    "probes": IN_A_REBUILD,
    "prepares": IN_A_REBUILD,
}
ON_COMPILED = {"compiles": IN_A_REBUILD, "settles in": IN_A_REBUILD}
ON_CALLS = {"hands out the plan": IN_A_REBUILD}
NOTHING_LEFT = {"stuck": False, "another Ray": False, "another Ray later": False, "threads": [], "raised": None}


@pytest.mark.parametrize("way", WAYS)
def test_ray_is_shut_down_while_somebody(local_ray, way):
    """Nobody is kept waiting, nobody starts another Ray, and nobody asks one that is ending, which ends the process."""
    address = ray.get_runtime_context().gcs_address
    code, out, err, session = run(sys.executable, str(Path(__file__).with_name("shutdowns.py")), address, way)
    assert (code, err) == (0, ""), out
    found = {outcome.pop("meanwhile"): outcome for outcome in map(json.loads, out.splitlines())}
    expected = MEANWHILE | (ON_CALLS if way == "calls" else ON_COMPILED)
    assert found == {meanwhile: NOTHING_LEFT | outcome for meanwhile, outcome in expected.items()}
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)
