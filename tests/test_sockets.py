"""What the socket transport was built for: large values, many of them held, strangers, forks, and nothing left.

What is marked ``small`` holds for both transports; what Ray's channels cannot do is in the table of the README.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import cpu_seconds, eventually
from ray import cloudpickle
from workers import Stage, Worker, is_in_a_graph, request

from cgexec import GraphConfig, GraphExecutor, JobSucceeded, chain, fan_out
from cgexec.engine.reception import MOST_APPLICANTS
from cgexec.testing.leftovers import is_running, open_files

pytestmark = pytest.mark.num_ways(1)

SOCKETS = GraphConfig(max_inflight=4)
STREAM_ONLY = replace(SOCKETS, pool_bytes=0)
NUM_BYTES_EXCHANGED = 50_000_000


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers need not be able to import the tests


class Exchanger(Stage):
    """Makes large values, which it hands to its partner, and compares what it was given."""

    def make(self, message):
        """Return 50 MB that nobody else sends."""
        return np.full(NUM_BYTES_EXCHANGED, (message[0] + 7 * self.label) % 251, np.uint8)

    def compare(self, message, mine, theirs):
        """Return the number if both arrays are of this execution."""
        number = message[0]
        for label, array in ((self.label, mine), (1 - self.label, theirs)):
            expected = (number + 7 * label) % 251
            assert array.shape == (NUM_BYTES_EXCHANGED,)
            assert array[0] == array[-1] == expected
            assert int(array.sum()) == expected * NUM_BYTES_EXCHANGED
        return number, self.label


def exchange(inp, actors):
    """Bind two stages that each write to the other before they read from it."""
    made = [actor.make.bind(inp) for actor in actors]
    return [actors[k].compare.bind(inp, made[k], made[1 - k]) for k in range(2)]


@pytest.mark.parametrize("config", [SOCKETS, STREAM_ONLY], ids=["pool", "stream"])
def test_stages_that_exchange_large_values_do_not_wait_for_each_other(spawn, config):
    with GraphExecutor(spawn(2, Exchanger), exchange, config=config) as graph:
        for number, status in enumerate(graph.map((n, {}, ()) for n in range(6))):
            assert isinstance(status, JobSucceeded), status
            assert status.result == [(number, 0), (number, 1)]
        assert graph.generation == 0


class Reuser(Worker):
    """Writes every result over the last one, as training loops do."""

    def __init__(self, label: int) -> None:
        super().__init__(label)
        self.buffer = np.zeros(300_000, np.int64)

    def fill(self, number):
        """Return the same array with other contents."""
        self.buffer[:] = number
        return self.buffer


@pytest.mark.parametrize("pool_bytes", [1 << 30, 4_000_000, 0])
def test_a_method_may_write_over_what_it_returned(spawn, pool_bytes):
    config = replace(SOCKETS, max_inflight=8, pool_bytes=pool_bytes)
    with GraphExecutor(spawn(2, Reuser), fan_out("fill"), config=config) as graph:
        waiting = [graph.submit(number) for number in range(8)]
        for number, execution in enumerate(waiting):
            for array in execution.status().result:
                assert not array.flags.writeable
                assert array.flags.aligned
                assert (array == number).all()


@pytest.mark.parametrize("num_bytes", [0, 1, 1_000, 49_151, 49_152, 70_000, 131_072, 5_000_000])
def test_values_of_every_size_arrive_as_they_were(small, spawn, num_bytes):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        for number in range(4):
            content = np.random.default_rng(number).integers(0, 256, num_bytes, np.uint8)
            value = {"array": content, "bytes": content.tobytes(), "text": "x" * num_bytes, "number": number}
            echoed = graph.execute((number, {}, (value,))).result[2][0]
            assert (echoed["array"] == content).all()
            assert echoed["array"].shape == content.shape
            assert echoed["bytes"] == value["bytes"]
            assert echoed["text"] == value["text"]
            assert echoed["number"] == number


class Echo:
    """Returns what it is given."""

    def __init__(self, label: int) -> None:
        self.label = label

    def echo(self, value):
        """Return the value."""
        return value


@pytest.mark.parametrize("value", [b"", b"x", bytes(range(256)) * 4_000, "text", 0, None, True, 1.5, {"a": [1, (2,)]}])
def test_a_whole_input_of_any_plain_type_comes_back(small, spawn, value):
    with GraphExecutor(spawn(2, Echo), chain("echo"), config=small) as graph:
        for _ in range(3):
            result = graph.execute(value).result
            assert (type(result), result) == (type(value), value)


class Checker:
    """Looks at every number of what it is given before it answers."""

    def __init__(self, label: int) -> None:
        self.label = label

    def next(self, array):
        """Return an array of the next number, if this one is of one number."""
        assert (array == array[0]).all()
        return array + 1


@pytest.mark.parametrize("pool_bytes", [1 << 30, 9_000_000, 0])
def test_a_lone_host_which_is_told_of_arrays_first_is_given_them_whole(spawn, pool_bytes):
    sizes = [1, 3_000, 13_000, 130_000, 500_000, 700_000]
    config = replace(SOCKETS, pool_bytes=pool_bytes)

    def array_of(number):
        return np.full(sizes[number % len(sizes)], number, np.int64)

    def check(number, array):
        assert array.shape == (sizes[number % len(sizes)],)
        assert (array == number + 1).all()

    async def some(graph, numbers):
        for number in numbers:
            check(number, (await graph.execute_async(array_of(number))).result)

    with GraphExecutor(spawn(1, Checker), chain("next"), config=config) as graph:
        kept = []
        for number in range(120):
            waiting = graph.submit(array_of(number))
            if number % 7 == 0:
                waiting.status(0)  # it may come in between
            check(number, waiting.result())
            if number % 17 == 0:
                kept.append((number, waiting.result()))
        for number, status in enumerate(graph.map(map(array_of, range(120)))):
            check(number, status.result)
        asyncio.run(some(graph, range(60)))
        for number, array in kept:
            check(number, array)
        assert graph.generation == 0


HELD = """
import numpy as np, ray, sys
from cgexec import GraphConfig, GraphExecutor, chain
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=200_000_000)

class Maker:
    def make(self, number):
        return np.full(131_072, number, np.int64)

actors = [ray.remote(num_cpus=0)(Maker).remote()]
config = GraphConfig(transport=sys.argv[1], max_inflight=4, buffer_size_bytes=1_100_000)
with GraphExecutor(actors, chain("make"), config=config) as graph:
    held = [status.result for status in graph.map(range(500))]
    assert [graph.execute(n).result[0] for n in range(500, 510)] == list(range(500, 510))
    assert graph.generation == 0
ray.shutdown()
assert all(array.shape == (131_072,) and (array == number).all() for number, array in enumerate(held))
print("all", len(held), "are as they were")
"""


@pytest.mark.parametrize("transport", ["socket", "ray"])
def test_held_results_stall_nothing_and_outlive_ray(tmp_path, transport):
    script = tmp_path / "held.py"
    script.write_text(HELD)
    done = subprocess.run([sys.executable, str(script), transport], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout) == (0, "all 500 are as they were\n"), done.stderr


# -- a death -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1])
def test_what_had_arrived_when_a_host_died_is_not_lost(small, spawn, victim):
    actors = spawn(2)
    with GraphExecutor(actors, chain("work"), config=small) as graph:
        executions = [graph.submit(request(number)) for number in range(4)]
        # Having seen the fourth, the last stage has sent the first three.
        assert eventually(lambda: ray.get(actors[1].what_was_seen.remote()) == [0, 1, 2, 3])
        ray.kill(actors[victim])
        assert eventually(lambda: graph.generation == 1)
        for number in range(3):
            assert executions[number].status().result == (number, {}, (0, 1))
        assert executions[3].status().info.state in ("succeeded", "preempted")
        assert graph.execute(request(9)).result == (9, {}, (1 - victim,))


DRIVER = """
import ray, sys, time
from cgexec import GraphConfig, GraphExecutor, fan_out
ray.init(address=sys.argv[1], namespace="orphans", log_to_driver=False, logging_level="ERROR")
actors = [ray.get_actor(f"orphan-{k}") for k in range(2)]
graph = GraphExecutor(actors, fan_out("work"), config=GraphConfig(transport=sys.argv[2], buffer_size_bytes=10_000))
print(graph.execute((1, {}, ())).result, flush=True)
time.sleep(600)
"""


@pytest.mark.clause("C6")
def test_a_driver_that_is_killed_leaves_no_host_looping_or_leased(small, spawn, tmp_path):
    spawn(0)
    actors = [
        ray.remote(Worker)
        .options(num_cpus=0, name=f"orphan-{label}", namespace="orphans", lifetime="detached")
        .remote(label)
        for label in range(2)
    ]
    try:
        pids = ray.get([actor.pid.remote() for actor in actors])
        script = tmp_path / "driver.py"
        script.write_text(DRIVER)
        address = ray.get_runtime_context().gcs_address
        with subprocess.Popen(
            [sys.executable, str(script), address, small.transport], stdout=subprocess.PIPE, text=True
        ) as driver:
            try:
                assert driver.stdout.readline() == "[(1, {}, (0,)), (1, {}, (1,))]\n"
            finally:
                driver.kill()
        with GraphExecutor(actors, fan_out("work"), config=small) as graph:  # at once: nobody has to wait and try again
            assert graph.execute(request(2)).result == [(2, {}, (0,)), (2, {}, (1,))]
            assert ray.get([actor.pid.remote() for actor in graph.actors]) == pids
        assert not any(map(is_in_a_graph, actors))
    finally:
        for actor in actors:
            ray.kill(actor)
    assert eventually(lambda: not any(map(is_running, pids)))


class Parent(Worker):
    """Forks a child that outlives it."""

    def fork(self, seconds):
        """Return the pid of a child that sleeps."""
        child = os.fork()
        if child == 0:
            time.sleep(seconds)
            os._exit(0)
        return child


def test_a_forked_child_that_holds_the_sockets_hides_no_death(small, spawn):
    actors = spawn(2, Parent)
    with GraphExecutor(actors, fan_out("work"), config=small) as graph:
        assert graph.execute(request(1)).result == [(1, {}, (0,)), (1, {}, (1,))]
        child = ray.get(actors[0].fork.remote(60))
        try:
            pid = ray.get(actors[0].pid.remote())
            os.kill(pid, 9)
            assert eventually(lambda: graph.generation == 1)
            assert graph.execute(request(2)).result == [(2, {}, (1,))]
        finally:
            if is_running(child):  # Ray may have ended it with the worker's process group
                os.kill(child, 9)


# -- nothing idle, nothing left ----------------------------------------------------------------------------------------


def test_an_idle_graph_and_a_driver_that_waits_use_next_to_no_cpu(spawn):
    actors = spawn(3)
    pids = [os.getpid(), *ray.get([actor.pid.remote() for actor in actors])]
    with GraphExecutor(actors, fan_out("work"), config=SOCKETS) as graph:
        assert graph.execute(request(1)).info.state == "succeeded"
        before = [cpu_seconds(pid) for pid in pids]
        assert graph.execute(request(2, {0: ("sleep", 3)})).info.state == "succeeded"
        used = [cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
        assert all(each < 1.0 for each in used), used  # spinning would be 3 seconds each


# -- strangers ---------------------------------------------------------------------------------------------------------

STRANGERS = """
import socket, sys, time
names = [b"\\0" + name[1:].encode() for name in sys.argv[1:]]
kept, dropped = [], 0
def connect(name):
    s = socket.socket(socket.AF_UNIX); s.settimeout(5)
    try:
        s.connect(name)
    except OSError:
        return None
    kept.append(s)
    return s
messages = [b"", b"x", b"GET / HTTP/1.1\\r\\n\\r\\n", b"\\x01" * 113, b"\\xff" * 4096,
            (1 << 30).to_bytes(8, "little") * 14,
            b"\\x80\\x05cos\\nsystem\\n(S'touch stranger'\\ntR." * 3]
for name in names:
    for message in messages:
        s = connect(name)
        if s is not None:
            try:
                s.sendall(message)
            except OSError:
                pass
for k in range(1000):
    connect(names[k % len(names)])
print(len(names), flush=True)
sys.stdin.readline()
"""


def test_strangers_are_dropped_and_harm_no_execution(spawn, tmp_path, caplog):
    """The listeners are open only while a graph is being built: one that waits for a busy actor is attacked."""
    actors = spawn(3)
    script = tmp_path / "strangers.py"
    script.write_text(STRANGERS)
    pids = [os.getpid(), *ray.get([actor.pid.remote() for actor in actors])]
    nap = actors[2].work.remote(request(0, {2: ("sleep", 4)}))
    descriptors = len(os.listdir("/proc/self/fd"))
    built = []
    building = threading.Thread(
        target=lambda: built.append(GraphExecutor(actors, fan_out("work"), config=SOCKETS)), name="building"
    )
    building.start()
    assert eventually(lambda: len(listening(pids)) == 3)  # the driver, and the two actors that are not busy
    with subprocess.Popen(
        [sys.executable, str(script), *listening(pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as strangers:
        try:
            assert int(strangers.stdout.readline()) == 3
            # Beside what a graph opens for itself there are no more than it hears out.
            assert len(os.listdir("/proc/self/fd")) < descriptors + MOST_APPLICANTS + 20
            building.join(60)
            assert not building.is_alive()
            (graph,) = built
            assert eventually(lambda: not listening(pids))
            for number in range(1, 50):
                assert graph.execute(request(number)).result == [(number, {}, (label,)) for label in range(3)]
            assert graph.generation == 0
        finally:
            strangers.kill()
            building.join(60)
            for graph in built:
                graph.close()
    ray.get(nap)
    assert not (tmp_path / "stranger").exists()
    warnings = [record for record in caplog.records if "a connection to a graph was dropped" in record.getMessage()]
    assert len(warnings) == 1


def listening(pids):
    """Return the names under which processes listen for their graph."""
    found = set()
    sockets = {name for pid in pids for name in open_files(pid)}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[-1].startswith("@cgexec-") and fields[3] == "00010000" and f"socket:[{fields[6]}]" in sockets:
            found.add(fields[-1])
    return found
