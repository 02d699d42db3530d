"""The crash matrix without Ray: every fault that can be had in one process, as ``test_matrix`` has it on a cluster.

In the suite the covering subset, with ``-m campaign`` the whole product.
"""

from __future__ import annotations

from typing import Any

import pytest
from matrix import CELLS, Cell, covering, ids, run

from cgexec import GraphConfig
from cgexec.testing import MISBEHAVIOURS, SHAPES, LocalActor, Recorder

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.clause("C4")]

# What the engine cannot show: it would end the process that the tests run in.
NOT_HERE = {name for name, each in MISBEHAVIOURS.items() if each.ends_process}
HERE = [cell for cell in CELLS if cell.fault not in NOT_HERE]
CONFIG = GraphConfig(engine="in_process", teardown_timeout_s=0.2)


def try_out(cell: Cell) -> None:
    def spawn_one(label: int) -> Any:
        return LocalActor(Recorder, label)

    actors = [spawn_one(label) for label in range(SHAPES[cell.shape].num_hosts)]
    run(cell, CONFIG, actors, [None] * len(actors), spawn_one, lambda actor: actor.what_was_given.remote().result(10))


@pytest.mark.parametrize("cell", ids(covering(HERE, seed=2)))
def test_the_crash_matrix_in_part(cell: Cell) -> None:
    try_out(cell)


@pytest.mark.campaign
@pytest.mark.parametrize("cell", ids(HERE))
def test_the_crash_matrix_in_full(cell: Cell) -> None:
    try_out(cell)


def test_the_covering_subset_covers() -> None:
    chosen = covering(CELLS)
    for pair in (("fault", "phase"), ("fault", "shape"), ("phase", "shape")):
        assert {tuple(getattr(cell, each) for each in pair) for cell in chosen} == {
            tuple(getattr(cell, each) for each in pair) for cell in CELLS
        }
    assert len(chosen) < len(CELLS) / 2
