"""Training that loses stages, on real Ray: SIGKILL at any operation, and the weights are the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from conftest import Spawner
from pool import WAYS
from stages import Mortal, SlowToUpdate, data, in_one_process

from cgexec import JobFailed, JobSucceeded, RebuildPolicy
from cgexec.pipeline import (
    PipelineSnapshots,
    PipelineTrainer,
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
)
from cgexec.testing import kill_process

NUM_HOSTS, NUM_MICROBATCHES, NUM_STEPS = 3, 3, 4
LONG_S = 60.0
SCHEDULES = (ScheduleGPipe(), Schedule1F1B(), ScheduleInterleaved1F1B(2), ScheduleZeroBubbleH1())


class Training:
    """Stages in processes of their own, and a trainer that replaces what is lost."""

    def __init__(
        self,
        spawn: Spawner,
        way: str,
        schedule: Schedule,
        snapshots: PipelineSnapshots,
        doom: Any = None,
        kind: type = Mortal,
        end: str = "kill",
        **options: Any,
    ) -> None:
        self._spawn, self._schedule, self._kind, self._end = spawn, schedule, kind, end
        self._num_stages = NUM_HOSTS * schedule.stages_per_host
        host, *where = doom or (-1,)
        self.actors = [self.start(each, tuple(where) if each == host else None) for each in range(NUM_HOSTS)]
        self.trainer = PipelineTrainer(
            self.actors,
            schedule,
            NUM_MICROBATCHES,
            snapshots=snapshots,
            config=replace(WAYS[way], get_timeout_s=LONG_S),
            policy=RebuildPolicy(replace=lambda info: self.start(info.host_id, None), backoff_s=0.01),
            **options,
        )

    def start(self, host: int, doom: Any) -> Any:
        stages = list(range(host, self._num_stages, NUM_HOSTS))
        actor = ray.remote(self._kind).options(num_cpus=0).remote(stages, self._num_stages, doom, self._end)
        self._spawn.actors.append(actor)
        return actor

    def run(self, num_steps: int = NUM_STEPS) -> list[list[float]]:
        losses = []
        while self.trainer.steps_done < num_steps:
            status = self.trainer.step(*data(self.trainer.steps_done, NUM_MICROBATCHES))
            assert isinstance(status, JobSucceeded), status
            losses.append(status.result.losses)
        return losses

    def check_weights(self) -> None:
        _, expected = in_one_process(self._num_stages, NUM_MICROBATCHES, NUM_STEPS)
        found: dict[int, Any] = {}
        for weights in ray.get([actor.weights.remote() for actor in self.trainer.graph.actors]):
            found |= weights
        assert found.keys() == expected.keys()
        for stage, (matrix, bias) in expected.items():
            np.testing.assert_array_equal(found[stage][0], matrix)
            np.testing.assert_array_equal(found[stage][1], bias)


def places() -> Iterator[tuple[Schedule, int, str]]:
    """Yield everything that a host does in a step, with any schedule."""
    for schedule in SCHEDULES:
        for host, operations in enumerate(schedule.order(NUM_HOSTS, NUM_MICROBATCHES)):
            yield from ((schedule, host, str(operation)) for operation in operations)
            yield schedule, host, "update"


def try_out(spawn: Spawner, way: str, schedule: Schedule, host: int, operation: str) -> None:
    training = Training(spawn, way, schedule, PipelineSnapshots(every=2), (host, 2, operation))
    losses, _ = in_one_process(NUM_HOSTS * schedule.stages_per_host, NUM_MICROBATCHES, NUM_STEPS)
    with training.trainer as trainer:
        assert training.run() == losses
        training.check_weights()
        assert trainer.graph.generation == 1
        assert [lost.info.host_id for lost in trainer.graph.lost_hosts] == [host]


@pytest.mark.parametrize(
    ("way", "schedule", "host", "operation"),
    [  # each way, schedule, host, and kind of operation
        ("socket", ScheduleGPipe(), 2, "2F1"),
        ("ray", Schedule1F1B(), 0, "update"),
        ("calls", ScheduleInterleaved1F1B(2), 1, "4B0"),
        ("socket", ScheduleZeroBubbleH1(), 1, "1W2"),
        ("ray", ScheduleZeroBubbleH1(), 0, "0I1"),
    ],
)
def test_the_weights_are_the_same_to_the_last_bit_where_a_host_is_killed(
    spawn: Spawner, way: str, schedule: Schedule, host: int, operation: str
) -> None:
    try_out(spawn, way, schedule, host, operation)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("schedule", "host", "operation"), list(places()), ids=lambda each: getattr(each, "name", each)
)
def test_the_weights_are_the_same_to_the_last_bit_wherever_a_host_is_killed(
    spawn: Spawner, schedule: Schedule, host: int, operation: str
) -> None:
    try_out(spawn, "socket", schedule, host, operation)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.num_ways(1)
def test_the_stages_are_not_brought_back_before_all_have_done_with_a_step_that_failed(spawn: Spawner, way: str) -> None:
    """An update that came behind that would change them once more."""
    training = Training(spawn, way, Schedule1F1B(), PipelineSnapshots(), (0, 1, "0B0"), kind=SlowToUpdate, end="raise")
    losses, _ = in_one_process(NUM_HOSTS, NUM_MICROBATCHES, NUM_STEPS)
    with training.trainer as trainer:
        assert training.run(1) == losses[:1]
        assert isinstance(trainer.step(*data(1, NUM_MICROBATCHES)), JobFailed)
        assert training.run() == losses[1:]
        training.check_weights()
        assert trainer.graph.generation == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.num_ways(1)
def test_hosts_that_are_lost_between_steps_come_back_from_disk_past_a_corrupt_snapshot(
    spawn: Spawner, way: str, tmp_path: Path
) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path), in_memory=False)
    training = Training(spawn, way, Schedule1F1B(), snapshots)
    losses, _ = in_one_process(NUM_HOSTS, NUM_MICROBATCHES, NUM_STEPS)
    with training.trainer as trainer:
        found = training.run(2)
        (newest,) = tmp_path.glob("*-host-0001-*-step-000000000002.snapshot")
        newest.write_bytes(newest.read_bytes()[:-1])
        for actor in training.actors[:2]:
            kill_process(actor)
        found += training.run()
        assert found == losses
        training.check_weights()
        assert {lost.info.host_id for lost in trainer.graph.lost_hosts} == {0, 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.num_ways(1)
def test_a_new_trainer_over_new_hosts_goes_on_where_the_last_one_was(spawn: Spawner, way: str, tmp_path: Path) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path), every=2)
    losses, _ = in_one_process(NUM_HOSTS, NUM_MICROBATCHES, NUM_STEPS)
    first = Training(spawn, way, Schedule1F1B(), snapshots)
    with first.trainer:
        assert first.run(3) == losses[:3]
    second = Training(spawn, way, Schedule1F1B(), snapshots, resume=True)
    with second.trainer as trainer:
        assert trainer.steps_done == 2
        assert second.run() == losses[2:]
        second.check_weights()
