"""Clause C6: over any number of rebuilds, whether asked for or forced by a death, nothing is left over.

Looked at are the driver and every host that stays: threads, descriptors by kind, live actors, Ray's helpers included,
processes, shared memory, and objects in Ray's store; the last two but where Ray's own channels leak them, which the
README says.
"""

import gc
import logging
import os
import re
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from conftest import eventually, live_actors
from pool import WAYS, Pool
from ray import cloudpickle
from ray._private.internal_api import memory_summary  # of which the command line prints the text
from workers import is_in_a_graph

from cgexec import GraphConfig, GraphExecutor, GraphState, JobSucceeded, RebuildPolicy, chain, fan_out
from cgexec.engine.hub import Hub
from cgexec.testing import Message, kill, kill_process, pid_of
from cgexec.testing.leftovers import is_running, open_files

pytestmark = [pytest.mark.clause("C6"), pytest.mark.num_ways(2)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers need not be able to import the tests

WARM_UP = 5
HOSTS = 3
VICTIM = 1
LARGE = np.ones(100_000)


def threads_of_graphs(_instance: Any = None) -> int:
    """Return how many threads of graphs run in this process."""
    return sum(thread.name.startswith("cgexec-") for thread in threading.enumerate())


def over_ip() -> set[str]:
    """Return the names of the sockets over IP: a graph on one node has none.

    Ray's processes connect to each other when they please: each to the agent that collects metrics, for one, as soon as
    that is up, some ten seconds after Ray is.
    """
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {f"socket:[{fields[9]}]" for fields in lines[1:]}


def descriptors(pid: int) -> Counter[str]:
    """Return how many descriptors of each kind a process has open."""
    rays_own = over_ip()
    kinds = Counter(name.split(":")[0].split("[")[0] for name in open_files(pid) if name not in rays_own)
    return Counter({kind: kinds[kind] for kind in ("socket", "anon_inode", "/memfd", "pipe")}) + Counter(
        all=kinds.total()
    )


def shared_memory() -> set[str]:
    """Return the names of what Ray has made in shared memory for this process: by a child of ours, the raylet."""
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
    return {entry.name for entry in Path("/dev/shm").iterdir() if any(f"{pid}-" in entry.name for pid in children)}


def num_mappings(pid: int) -> int:
    """Return how many mappings of segments a process has."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:cgexec")


def objects_in_store() -> int:
    """Return how many objects are in Ray's store, the buffers of its channels included.

    Of those ``ray.available_resources`` says nothing, and of others half a second late.
    """
    found = re.search(r"Plasma memory usage .* MiB, (\d+) objects", memory_summary(stats_only=True))
    assert found is not None
    return int(found[1])


class Trace:
    """What there is of a graph now, to be held against what there was: in the driver, and in ``actors``."""

    def __init__(self, pool: Pool, actors: list[Any], way: str) -> None:
        self.num_objects = objects_in_store() if way != "ray" else 0  # first: it may open what stays open
        self.pids = [os.getpid(), *(pool.actors[actor] for actor in actors)]
        self.descriptors = [descriptors(pid) for pid in self.pids]
        self.num_mappings = [num_mappings(pid) for pid in self.pids]
        self.threads = [threads_of_graphs(), *ray.get([a.__ray_call__.remote(threads_of_graphs) for a in actors])]
        self.num_actors = len(live_actors()) - len(pool.starting)
        self.files = shared_memory() if way != "ray" else set()

    def more_than(self, before: "Trace") -> list[str]:
        """Return what there is more of than before."""
        found = [f"shared memory {name}" for name in self.files - before.files]
        found += ["objects in Ray's store"] * max(0, self.num_objects - before.num_objects)
        found += ["actors"] * max(0, self.num_actors - before.num_actors)
        for pid, now, then in zip(self.pids, self.descriptors, before.descriptors, strict=True):
            found += [f"{count} descriptors of {kind!r} in process {pid}" for kind, count in (now - then).items()]
        for what in ("threads", "num_mappings"):
            for pid, now, then in zip(self.pids, getattr(self, what), getattr(before, what), strict=True):
                found += [f"{now - then} {what} in process {pid}"] if now > then else []
        return found


def check_that_there_is_no_more(before: Trace, *site: Any) -> None:
    """Fail if there is more than before for longer than it may take to go away."""
    assert eventually(lambda: not Trace(*site).more_than(before)), Trace(*site).more_than(before)


def check(graph: GraphExecutor, number: int) -> None:
    """Execute with a large value of this number, and check each answer against it."""
    status = graph.execute(Message(number, path=(LARGE * number,)), timeout_s=60)
    assert isinstance(status, JobSucceeded), status
    assert [(each.number, each.path[0]) for each in status.result] == [(number, label) for label in range(HOSTS)]
    assert all(each.path[1][0][0] == each.path[1][0][-1] == number for each in status.result)


@pytest.mark.parametrize("way", WAYS)
def test_fifty_rebuilds_leave_nothing(pool, way):
    actors = pool.take(HOSTS)
    with GraphExecutor(actors, fan_out("work"), config=WAYS[way]) as graph:

        def cycle() -> None:
            graph.rebuild()
            check(graph, graph.generation)

        for _ in range(WARM_UP):
            cycle()
        before = Trace(pool, actors, way)
        for _ in range(50):
            cycle()
        assert graph.generation == WARM_UP + 50
        check_that_there_is_no_more(before, pool, actors, way)
        if way == "socket":
            assert Trace(pool, actors, way).threads == [2, *[1] * HOSTS]  # the supervisor's and the hub's; the hubs'


@pytest.mark.parametrize("num_deaths", [10, pytest.param(50, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("way", WAYS)
def test_deaths_and_rebuilds_leave_nothing(pool, way, num_deaths):
    """The host in the middle dies and is replaced, again and again; the others see it all."""
    gone: list[int] = []

    def replacement(info: Any) -> Any:
        return pool.take_one(info.host_id)

    actors = pool.take(HOSTS)
    stay = [actor for place, actor in enumerate(actors) if place != VICTIM]
    with GraphExecutor(actors, fan_out("work"), config=WAYS[way], policy=RebuildPolicy(replace=replacement)) as graph:

        def cycle() -> None:
            victim, generation = graph.actors[VICTIM], graph.generation
            gone.append(pool.actors.pop(victim))
            kill_process(victim, gone[-1])
            assert eventually(lambda: (graph.generation, graph.state) == (generation + 1, GraphState.READY)), graph
            check(graph, graph.generation)

        for _ in range(WARM_UP):
            cycle()
        before = Trace(pool, stay, way)
        for _ in range(num_deaths):
            cycle()
        assert graph.generation == WARM_UP + num_deaths
        assert len(graph.lost_hosts) == WARM_UP + num_deaths
        check_that_there_is_no_more(before, pool, stay, way)
    assert not any(is_running(pid) for pid in gone)


@pytest.mark.parametrize("way", WAYS)
def test_one_graph_after_another_leaves_nothing_though_no_garbage_is_collected(pool, way):
    actors = pool.take(HOSTS)

    def cycle(number: int) -> None:
        with GraphExecutor(actors, fan_out("work"), config=WAYS[way]) as graph:
            check(graph, number)
            if number % 2 == 0:
                graph.rebuild()
                check(graph, number)

    for number in range(WARM_UP):
        cycle(number)
    gc.collect()
    before = Trace(pool, actors, way)
    gc.disable()
    try:
        for number in range(8):
            cycle(number)
        check_that_there_is_no_more(before, pool, actors, way)
    finally:
        gc.enable()


class Reports(logging.Handler):
    """What Ray reports of errors that nobody has fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def reports() -> Iterator[list[str]]:
    handler, logger = Reports(), logging.getLogger("ray._private.worker")
    logger.addHandler(handler)
    yield handler.texts
    logger.removeHandler(handler)


@pytest.mark.parametrize("way", WAYS)
def test_no_error_is_left_for_ray_to_report(pool, way, reports):
    lose_a_host_under_load(pool, way)
    gc.collect()
    assert not [text for text in reports if "Unhandled error" in text]


def lose_a_host_under_load(pool: Pool, way: str) -> None:
    actors = pool.take(HOSTS)
    with GraphExecutor(actors, chain("work"), config=WAYS[way]) as graph:
        assert isinstance(graph.execute(Message(1)), JobSucceeded)
        executions = [graph.submit(Message(number, {2: ("sleep:0.1",)})) for number in range(2, 6)]
        kill_process(actors[VICTIM], pool.actors.pop(actors[VICTIM]))
        assert all(execution.status(30).info.state != "pending" for execution in executions)
        assert eventually(lambda: graph.generation == 1 and graph.state is GraphState.READY)


def test_an_error_that_nobody_fetches_is_reported(local_ray, reports):
    """Or the test above would see nothing."""

    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise ValueError

    fail.remote()
    assert eventually(lambda: [text for text in reports if "Unhandled error" in text])


ENDINGS = ["a host dies", "on_rebuild raises", "replace raises", "the builder raises"]


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Hub]]:
    """The hubs that are made in this process, one for each generation of a graph: they hold all that it has open."""
    made: list[weakref.ref[Hub]] = []
    initialise = Hub.__init__

    def note(self: Hub, *args: Any, **kwargs: Any) -> None:
        made.append(weakref.ref(self))
        initialise(self, *args, **kwargs)

    monkeypatch.setattr(Hub, "__init__", note)
    return made


@pytest.mark.num_ways(1)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("way", WAYS)
def test_no_generation_outlives_its_graph_though_no_garbage_is_collected(pool, hubs, way, ending):
    """Neither what the graph ended with, nor a hook that refers to the graph, keeps anything open."""
    graphs: list[GraphExecutor] = []

    def raises(*_args: Any) -> None:
        if graphs:
            raise ValueError("of the caller's")

    def build(inp: Any, actors: list[Any]) -> list[Any]:
        if ending == "the builder raises":
            raises()
        return [actor.work.bind(inp) for actor in actors]

    hook = {"on_rebuild raises": {"on_rebuild": raises}, "replace raises": {"replace": raises}}.get(ending, {})
    actors = pool.take(HOSTS)
    gc.disable()
    try:
        with GraphExecutor(actors, build, config=WAYS[way], policy=RebuildPolicy(**hook)) as graph:
            graphs.append(graph)
            check(graph, 1)
            kill_process(actors[VICTIM], pool.actors.pop(actors[VICTIM]))
            assert eventually(lambda: graph.generation == 1 or graph.state is GraphState.FAILED)
            if ending == "a host dies":
                assert isinstance(graph.execute(Message(2)), JobSucceeded)
            else:
                assert "of the caller's" in str(graph.failure)
        assert len(hubs) >= 1
        assert eventually(lambda: not [each for each in hubs if each() is not None])
    finally:
        gc.enable()


def test_what_is_looked_for_can_be_seen(pool):
    num_objects = objects_in_store()
    kept = [ray.put(LARGE) for _ in range(20)]
    assert objects_in_store() > num_objects + 10  # some that nobody needs any more may go meanwhile
    kept.clear()
    assert eventually(lambda: objects_in_store() <= num_objects)
    files, num_objects = shared_memory(), objects_in_store()
    with GraphExecutor(pool.take(HOSTS), fan_out("work"), config=WAYS["ray"]):
        assert shared_memory() - files
        assert objects_in_store() > num_objects
    num_mapped = num_mappings(os.getpid())
    with GraphExecutor(pool.take(HOSTS), fan_out("work"), config=WAYS["socket"]) as graph:
        check(graph, 1)
        assert num_mappings(os.getpid()) > num_mapped


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_forgotten_is_closed(pool, way):
    actors = pool.take(HOSTS)
    graph = GraphExecutor(actors, fan_out("work"), config=WAYS[way])
    assert isinstance(graph.execute(Message(1)), JobSucceeded)
    executor = weakref.ref(graph)
    del graph
    gc.collect()
    assert executor() is None
    assert eventually(lambda: threads_of_graphs() == 0, 5.0), [thread.name for thread in threading.enumerate()]
    with GraphExecutor(actors, fan_out("work"), config=WAYS[way]) as another:  # the actors are free
        assert isinstance(another.execute(Message(2)), JobSucceeded)


class Keeper:
    """Drives a graph from inside an actor, and does not close it."""

    def __init__(self) -> None:
        self.graph: GraphExecutor | None = None

    def open(self, actors: list[Any], config: GraphConfig) -> Any:
        """Build the graph; return what it answers."""
        self.graph = GraphExecutor(actors, fan_out("work"), config=config)
        return self.graph.execute(Message(1)).result


@pytest.mark.parametrize("end", [kill, kill_process])
@pytest.mark.parametrize("way", WAYS)
def test_a_driver_actor_that_is_killed_leaves_no_host_looping_or_leased(pool, way, end):
    actors = pool.take(HOSTS)
    keeper = ray.remote(Keeper).options(num_cpus=0).remote()
    assert [each.number for each in ray.get(keeper.open.remote(actors, WAYS[way]))] == [1] * HOSTS
    pid = pid_of(keeper)
    end(keeper)
    assert eventually(lambda: not is_running(pid))
    with GraphExecutor(actors, fan_out("work"), config=WAYS[way]) as graph:
        assert [each.number for each in graph.execute(Message(2)).result] == [2] * HOSTS
    assert not any(map(is_in_a_graph, actors))
