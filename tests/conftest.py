"""A real Ray on this machine, and actors whose tests are failed if they leave anything behind."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported

import faulthandler
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
from workers import Stage, Worker, is_in_a_graph, start_over

from cgexec import GraphConfig
from cgexec.config import Transport
from cgexec.testing.leftovers import is_running

TRANSPORTS = get_args(Transport)
WAY_NAMES = (*TRANSPORTS, "calls")  # the ways to run a graph on a real cluster
CLEAN_UP_S = 20.0
OUR_THREADS = ("cgexec-", "CompiledGraphMonitorThread")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clause", help="run only what proves this clause of the contract: C1 to C8")


@pytest.fixture(autouse=True)
def is_not_dumped_while_it_goes_on(request: pytest.FixtureRequest) -> None:
    """Have no stacks dumped of a test whose own timeout is longer: to look at running threads can crash Python.

    See python/cpython#116008. pytest-timeout, which runs in one of them, prints the stacks of one that hangs.
    """
    if request.node.get_closest_marker("timeout") is not None:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)  # before ``-m`` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    take_ways_in_turn(items)
    clause = config.getoption("--clause")
    if clause is not None:
        others = [item for item in items if clause not in {mark.args[0] for mark in item.iter_markers("clause")}]
        items[:] = [item for item in items if item not in set(others)]
        config.hook.pytest_deselected(items=others)


def take_ways_in_turn(items: list[pytest.Item]) -> None:
    """Leave to a campaign all but so many ways of a test as its mark ``num_ways`` says; each test begins one way on."""
    tests: dict[tuple[Any, ...], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.get_closest_marker("num_ways"):
            others = [(name, repr(value)) for name, value in item.callspec.params.items() if value not in WAY_NAMES]
            if len(others) < len(item.callspec.params):
                tests.setdefault((item.path, item.originalname, *others), []).append(item)
    turns: dict[Any, Iterator[int]] = defaultdict(itertools.count)
    for (module, name, *_), ways in tests.items():
        (num_ways,) = ways[0].get_closest_marker("num_ways").args  # type: ignore[union-attr] # or it would not be here
        # One way further from parameter to parameter, and from test to test: else three ways of six shapes would give
        # each shape the same way in every test.
        if name not in turns:
            turns[name] = itertools.count(next(turns[module]))
        turn = next(turns[name])
        for place, item in enumerate(ways):
            if (place - turn) % len(ways) >= num_ways:
                item.add_marker("campaign")


def eventually(check: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Return what ``check()`` returns as soon as it is true; at the timeout, whatever it returns then."""
    end = time.monotonic() + timeout_s
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


def live_actors() -> dict[str, int]:
    """Return the process id of every actor that is not dead, Ray's own included, by actor id."""
    actors = ray._private.state.actors()
    return {actor_id: actor["Pid"] for actor_id, actor in actors.items() if actor["State"] != "DEAD"}


def our_threads() -> list[str]:
    """Return the names of the threads that belong to a graph."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(OUR_THREADS)]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray on this machine, for the tests of one module."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=300_000_000,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(local_ray: None) -> Any:
    """Workers that serve one test of the module after another."""
    from pool import Pool  # which takes its helpers from here

    return Pool()


@pytest.fixture(params=TRANSPORTS)
def small(request: pytest.FixtureRequest) -> GraphConfig:
    """A configuration for each transport: what takes it runs on both.

    On Ray's channels every compile leaves its buffers in shared memory until Ray ends: small ones let many graphs share
    one Ray.
    """
    return GraphConfig(buffer_size_bytes=10_000, max_inflight=4, transport=request.param)


REUSED = (Worker, Stage)  # starting an actor takes longer than most tests
MOST_SPARE = 8


class Spawner:
    """Starts actors for one test and remembers them. Those of ``spares`` have survived earlier tests."""

    def __init__(self, spares: dict[Any, list[Any]]) -> None:
        self.actors: list[Any] = []
        self._spares = spares
        self._kinds: dict[Any, Any] = {}

    def __call__(self, num: int, worker: Any = Worker, **options: Any) -> list[Any]:
        """Start ``num`` workers labelled 0, 1, 2, ..., and return when they run."""
        actors = []
        for label in range(num):
            spares = [] if options else self._spares.get(worker, [])
            if spares:
                actors.append(spares.pop())
                ray.get(actors[-1].__ray_call__.remote(start_over, label))
            else:
                actors.append(ray.remote(worker).options(num_cpus=0, **options).remote(label))
            if worker in REUSED and not options:
                self._kinds[actors[-1]] = worker
        self.actors += actors
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        return actors

    def give_back(self) -> None:
        """Keep the actors that can serve in another test."""
        for actor, kind in self._kinds.items():
            spares = self._spares.setdefault(kind, [])
            if len(spares) < MOST_SPARE and is_idle(actor):
                spares.append(actor)
                self.actors.remove(actor)


def is_idle(actor: Any) -> bool:
    """Return whether an actor is alive, does nothing, and is in no graph."""
    try:
        return not is_in_a_graph(actor)
    except ray.exceptions.RayError:
        return False


@pytest.fixture(scope="module")
def spares(local_ray: None) -> dict[Any, list[Any]]:
    """The actors that go from one test to the next."""
    return {}


@pytest.fixture
def spawn(spares: dict[Any, list[Any]]) -> Iterator[Spawner]:
    """Start actors; fails the test if, when it ends, threads or actors of a graph are left, or processes at last."""
    before = live_actors()
    spawner = Spawner(spares)
    yield spawner
    own = {actor._actor_id.hex() for actor in spawner.actors}
    assert eventually(lambda: not our_threads(), CLEAN_UP_S), f"threads were left: {our_threads()}"
    assert eventually(lambda: live_actors().keys() <= before.keys() | own, CLEAN_UP_S), (
        f"actors were left: {live_actors().keys() - before.keys() - own}"
    )
    spawner.give_back()
    own = {actor._actor_id.hex() for actor in spawner.actors}
    processes = [pid for actor_id, pid in live_actors().items() if actor_id in own]
    for actor in spawner.actors:
        ray.kill(actor)
    assert eventually(lambda: not own & live_actors().keys(), CLEAN_UP_S), "actors outlived ray.kill"
    assert eventually(lambda: not any(map(is_running, processes)), CLEAN_UP_S), "processes of dead actors were left"
