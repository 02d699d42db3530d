"""The crash matrix on a real cluster: a covering subset by default, the whole product with ``-m campaign``.

The subset takes every fault in each of its phases, on every shape, every phase on every shape, and each of the three
ways to run a graph on every shape; see ``matrix.covering``.
"""

import itertools
from collections.abc import Iterator

import pytest
import ray
from matrix import CELLS, Cell, covering, ids, run
from pool import WAYS, Pool, check_that_nothing_is_left, check_that_nothing_is_open

from cgexec import GraphConfig
from cgexec.testing import SHAPES, resume

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.clause("C4")]


@pytest.fixture
def way(pool: Pool, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name the way to run the graph; afterwards nothing of it is left: threads, actors, descriptors."""
    yield request.param
    check_that_nothing_is_left(pool)


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
    for actor in actors:  # one that was lost while it was stopped lets go of the graph when it goes on
        resume(actor, pool.actors[actor])
    check_that_nothing_is_open(pool, actors)


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
