"""Training steps on real Ray: exact gradients, in the order of the schedule, with the activations it promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
from conftest import Spawner
from pool import WAYS
from stages import Noting, Rank, StageHost, data, in_one_process

from cgexec import GraphExecutor, HostInfo, JobSucceeded, RebuildPolicy, after
from cgexec.pipeline import (
    InferencePipeline,
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    TrainingStep,
    peak_activations,
)
from cgexec.testing import kill_process

pytestmark = pytest.mark.num_ways(1)

EVERY_WAY = pytest.mark.parametrize("way", WAYS)
NUM_STEPS = 3
SCHEDULES = [
    (ScheduleGPipe(), 3, 5),
    (Schedule1F1B(), 4, 8),
    (Schedule1F1B(), 1, 2),
    (ScheduleInterleaved1F1B(2), 2, 4),
    (ScheduleZeroBubbleH1(), 3, 6),
]
EVERY_SCHEDULE = pytest.mark.parametrize(
    ("schedule", "num_hosts", "num_microbatches"),
    SCHEDULES,
    ids=[f"{schedule.name}-{num_hosts}-{num_microbatches}" for schedule, num_hosts, num_microbatches in SCHEDULES],
)


def hosting(schedule: Schedule, num_hosts: int) -> type:
    """Return the class of a host that knows its stages by its label."""
    num_stages = num_hosts * schedule.stages_per_host

    class Host(StageHost):
        def __init__(self, label: int) -> None:
            super().__init__(list(range(label, num_stages, num_hosts)), num_stages)

    return Host


@EVERY_WAY
@EVERY_SCHEDULE
def test_a_step_computes_what_one_process_does_in_the_order_of_its_schedule(
    spawn: Spawner, way: str, schedule: Schedule, num_hosts: int, num_microbatches: int
) -> None:
    actors = spawn(num_hosts, hosting(schedule, num_hosts))
    build = TrainingStep(schedule, num_hosts, num_microbatches)
    expected, weights = in_one_process(num_hosts * schedule.stages_per_host, num_microbatches, NUM_STEPS)
    with GraphExecutor(actors, build, config=WAYS[way]) as graph:
        for step in range(NUM_STEPS):
            status = graph.execute(*build.arguments(*data(step, num_microbatches), step))
            losses, updates = build.result(status.result)
            np.testing.assert_allclose(losses, expected[step], rtol=0, atol=1e-12)
            assert [number for number, _ in updates] == [step] * num_hosts

    found: dict[int, Any] = {}
    order = schedule.order(num_hosts, num_microbatches)
    for actor, operations, peak in zip(actors, order, peak_activations(order), strict=True):
        found |= ray.get(actor.weights.remote())
        once = [str(operation) for operation in operations]
        everything = [each for step in range(NUM_STEPS) for each in [*once, f"update {step}"]]
        assert ray.get(actor.what_was_done.remote()) == (everything, peak)
    for stage, (matrix, bias) in weights.items():
        np.testing.assert_allclose(found[stage][0], matrix, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[stage][1], bias, rtol=0, atol=1e-12)


@EVERY_WAY
def test_what_is_waited_for_is_not_given_and_its_failure_is_handed_on(spawn: Spawner, way: str) -> None:
    actors = spawn(2, Noting)

    def build(inp, actors):
        first = actors[0].note.bind(inp)
        there = after(actors[1].note.bind(), first)
        return [after(actors[0].note.bind("back"), there), actors[0].note.bind(inp, "beside")]

    with GraphExecutor(actors, build, config=WAYS[way]) as graph:
        assert graph.execute(1).result == [0, 0]
        outputs = graph.submit("raise").outputs()
        assert [type(output).__name__ for output in outputs] == ["JobFailed", "JobSucceeded"]
        assert graph.execute(2).result == [0, 0]
        assert graph.generation == 0
    assert ray.get(actors[0].what_was_given.remote()) == [
        *((1,), ("back",), (1, "beside")),
        *(("raise",), ("raise", "beside")),
        *((2,), ("back",), (2, "beside")),
    ]
    assert ray.get(actors[1].what_was_given.remote()) == [(), ()]


@EVERY_WAY
def test_batches_go_through_stages_of_several_ranks_in_microbatches(spawn: Spawner, way: str) -> None:
    actors = spawn(4, Rank)
    batches = [np.arange(size, dtype=float).reshape(-1, 1) + 1000 * size for size in (5, 1, 12, 3)]
    with InferencePipeline(actors, "step", num_ranks=2, config=WAYS[way]) as pipeline:
        for batch, status in zip(batches, pipeline.map(batches, num_microbatches=3), strict=True):
            assert isinstance(status, JobSucceeded)
            np.testing.assert_array_equal(status.result[:, 0], batch[:, 0])
            np.testing.assert_array_equal(status.result[:, 1:], np.tile([0.0, 2.0], (len(batch), 1)))
    everything = [number for batch in batches for number in batch[:, 0]]
    assert ray.get([actor.what_was_given.remote() for actor in actors]) == [everything] * 4


@EVERY_WAY
def test_a_rank_that_is_lost_is_replaced_and_every_batch_is_answered(spawn: Spawner, way: str) -> None:
    actors = spawn(4, Rank)
    config = replace(WAYS[way], retry_preempted=2)

    def new(info: HostInfo) -> Any:
        (actor,) = spawn(1, Rank)
        ray.get(actor.__ray_call__.remote(lambda instance, label: setattr(instance, "label", label), info.host_id))
        return actor

    batches = [np.arange(4.0).reshape(-1, 1) + 10 * number for number in range(60)]
    with InferencePipeline(actors, "step", num_ranks=2, config=config, policy=RebuildPolicy(replace=new)) as pipeline:
        for number, status in enumerate(pipeline.map(iter(batches), num_microbatches=2)):
            if number == 20:
                kill_process(actors[2])
            assert isinstance(status, JobSucceeded), status
            np.testing.assert_array_equal(status.result[:, 0], batches[number][:, 0])
            np.testing.assert_array_equal(status.result[:, 1:], np.tile([0.0, 2.0], (4, 1)))
        assert pipeline.graph.generation == 1
