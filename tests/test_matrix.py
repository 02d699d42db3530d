"""The crash matrix on a real cluster: a covering subset by default, the whole product with ``-m campaign``.

The subset takes every fault in each of its phases, on every shape, every phase on every shape, and each of the three
ways to run a graph on every shape; see ``matrix.covering``.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import CLEAN_UP_S, eventually, is_running, live_actors, our_threads
from matrix import CELLS, Cell, covering, ids, run

from cgexec import GraphConfig
from cgexec.testing import SHAPES, Recorder, pid_of

WAYS = {
    "socket": GraphConfig(max_inflight=4, teardown_timeout_s=2.0),
    "ray": GraphConfig(max_inflight=4, teardown_timeout_s=2.0, transport="ray", buffer_size_bytes=10_000),
    "calls": GraphConfig(max_inflight=4, teardown_timeout_s=2.0, engine="actor_calls"),
}
MOST_SPARE = 3


class Pool:
    """Workers that have survived one cell serve in the next: starting one takes longer than most cells."""

    def __init__(self) -> None:
        self.actors: dict[Any, int] = {}  # and their process ids
        self.starting: list[Any] = []

    def start(self, label: int = 0) -> Any:
        actor = ray.remote(Recorder).options(num_cpus=0).remote(label)
        self.starting.append(actor)
        return actor

    def take(self, num: int) -> list[Any]:
        """Return ``num`` workers labelled 0, 1, 2, ..., as good as new."""
        while len(self.actors) + len(self.starting) < num + MOST_SPARE:
            self.start()
        while len(self.actors) < num:
            actor = self.starting.pop(0)
            self.actors[actor] = pid_of(actor)
        chosen = list(self.actors)[:num]
        ray.get([actor.start_over.remote(label) for label, actor in enumerate(chosen)])
        return chosen

    def sort_out(self) -> None:
        """Let go of the workers that are not usable any more."""
        for actor in self.starting[:]:
            if actor._actor_id.hex() not in live_actors():
                self.starting.remove(actor)
        for actor, pid in list(self.actors.items()):
            try:
                ray.get(actor.start_over.remote(0), timeout=5)
            except Exception:
                del self.actors[actor]
                ray.kill(actor)
                assert eventually(lambda pid=pid: not is_running(pid), CLEAN_UP_S), "the process of a lost host goes on"


@pytest.fixture(scope="module")
def pool(local_ray: None) -> Pool:
    return Pool()


@pytest.fixture
def way(pool: Pool, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name the way to run the graph; afterwards nothing of it is left: threads, actors, descriptors."""
    yield request.param
    pool.sort_out()
    assert eventually(lambda: not our_threads(), CLEAN_UP_S), f"threads were left: {our_threads()}"
    ours = {actor._actor_id.hex() for actor in [*pool.actors, *pool.starting]}
    assert eventually(lambda: live_actors().keys() <= ours, CLEAN_UP_S), f"actors were left: {live_actors()}"


def left_open(pids: Iterable[int]) -> list[str]:
    """Return what processes hold of graphs: sockets (those accepted have their listener's name) and shared memory."""
    named = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if "@cgexec-" in line}
    held = []
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:
                continue
            if target.removeprefix("socket:[").rstrip("]") in named or target.startswith("/memfd:cgexec"):
                held.append(f"{pid}: {target}")
    return held


def try_out(cell: Cell, config: GraphConfig, pool: Pool) -> None:
    actors = pool.take(SHAPES[cell.shape].num_hosts)
    run(
        cell,
        config,
        actors,
        [pool.actors[actor] for actor in actors],
        pool.start,
        lambda actor: ray.get(actor.what_was_given.remote()),
    )
    pids = [os.getpid(), *(pool.actors[actor] for actor in actors if is_running(pool.actors[actor]))]
    assert eventually(lambda: not left_open(pids), CLEAN_UP_S), f"descriptors were left: {left_open(pids)}"


SUBSET = covering(CELLS)
TURNS = [
    pytest.param(way, cell, id=f"{way}-{cell}")
    for way, cell in zip(itertools.cycle(WAYS), sorted(SUBSET, key=lambda cell: cell.shape), strict=False)
]


@pytest.mark.parametrize(("way", "cell"), TURNS, indirect=["way"])
def test_the_crash_matrix_in_part(pool: Pool, way: str, cell: Cell) -> None:
    try_out(cell, WAYS[way], pool)


@pytest.mark.campaign
@pytest.mark.parametrize("cell", ids(CELLS))
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_the_crash_matrix_in_full(pool: Pool, way: str, cell: Cell) -> None:
    try_out(cell, WAYS[way], pool)
