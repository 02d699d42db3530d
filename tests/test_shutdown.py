"""Ray goes away under a graph that was not closed: at the end of the program, or by ray.shutdown()."""

import sys
import time

import pytest
from conftest import TRANSPORTS, eventually
from test_cli import processes_of_session, run

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


WAYS = {
    "socket": "GraphConfig(max_inflight=4)",
    "ray": 'GraphConfig(max_inflight=4, transport="ray", buffer_size_bytes=10_000)',
    "calls": 'GraphConfig(max_inflight=4, engine="actor_calls")',
}
IN_FLIGHT = """
import gc, logging, os, ray, threading, time
from cgexec import GraphConfig, GraphExecutor, fan_out
from cgexec.testing import Message, Recorder

logging.getLogger("cgexec").setLevel("ERROR")
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=200_000_000)
actors = [ray.remote(num_cpus=0)(Recorder).remote(label) for label in range(2)]
graph = GraphExecutor(actors, fan_out("work"), config=CONFIG)
print(len(graph.execute(Message(1)).result))
execution = graph.submit(Message(2, {0: ["never-return"]}))
def attempt(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__)
def in_a_thread(call):
    thread = threading.Thread(target=attempt, args=(call,))
    thread.start()
    return thread
def await_state(state):
    while graph.state.value != state:
        time.sleep(0.001)
"""
MEANWHILE = {
    "waits": ("thread = in_a_thread(lambda: execution.status(-1))", []),
    "closes": ("thread = in_a_thread(graph.close); await_state('closed')", []),
    "rebuilds": ("thread = in_a_thread(graph.rebuild); await_state('rebuilding')", ["GraphFailedError"]),
    "has forgotten it": ("thread = threading.Thread(); thread.start(); del graph; gc.collect()", []),
}
AFTERWARDS = """
ray.shutdown()
thread.join(5)
print(thread.is_alive(), ray.is_initialized(), execution.status(5).info.state != "pending")
if "graph" in globals():
    graph.close()
def left():
    return [each.name for each in threading.enumerate() if "cgexec" in each.name]
end = time.monotonic() + 5
while left() and time.monotonic() < end:
    time.sleep(0.01)
print(left())
print(ray.is_initialized())
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_ray_is_shut_down_while_somebody(tmp_path, meanwhile, way):
    """Nobody is kept waiting, and nobody starts another Ray."""
    doing, shown = MEANWHILE[meanwhile]
    script = tmp_path / "script.py"
    script.write_text(IN_FLIGHT.replace("CONFIG)", WAYS[way] + ")") + doing + AFTERWARDS)
    code, out, err, session = run(sys.executable, str(script))
    assert (code, err) == (0, "")
    assert out.splitlines() == ["2", *shown, "False False True", "[]", "False"]
    assert eventually(lambda: not processes_of_session(session)), processes_of_session(session)
