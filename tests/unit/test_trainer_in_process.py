"""Training that loses stages, without Ray: to the last bit what it would have been."""

from __future__ import annotations

import gc
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from stages import Mortal, data, in_one_process
from tracing import raised_at

from cgexec import (
    CgexecError,
    GraphConfig,
    GraphFailedError,
    GraphSpecError,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
)
from cgexec.pipeline import (
    PipelineSnapshots,
    PipelineTrainer,
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    SnapshotError,
)
from cgexec.pipeline import progress as progress_module
from cgexec.pipeline import standing as standing_module
from cgexec.pipeline import trainer as trainer_module
from cgexec.pipeline.keeping import in_memory
from cgexec.testing import LocalActor, kill, resume, stop

NUM_HOSTS, NUM_MICROBATCHES, NUM_STEPS = 3, 3, 4
EACH_STEP = PipelineSnapshots()
IN_PROCESS = GraphConfig(engine="in_process", get_timeout_s=30)
SCHEDULES = (ScheduleGPipe(), Schedule1F1B(), ScheduleInterleaved1F1B(2), ScheduleZeroBubbleH1())


class Training:
    """Stages, and a trainer over them that replaces what is lost."""

    def __init__(
        self,
        schedule: Schedule = SCHEDULES[1],
        dooms: dict[int, Any] | None = None,
        end: str = "exit",
        lasting: bool = False,
        kind: type = Mortal,
        snapshots: PipelineSnapshots = EACH_STEP,
        **options: Any,
    ) -> None:
        self.schedule, self.dooms, self.end, self.kind = schedule, dooms or {}, end, kind
        self.num_stages = NUM_HOSTS * schedule.stages_per_host
        self.replaced: list[int] = []
        self.lasting = lasting  # whether what takes the place of a lost host meets the same end
        policy = RebuildPolicy(replace=self.replace, backoff_s=0.01)
        self.actors = [self.spawn(host, self.dooms.get(host)) for host in range(NUM_HOSTS)]
        self.trainer = PipelineTrainer(
            self.actors,
            schedule,
            NUM_MICROBATCHES,
            snapshots=snapshots,
            **{"config": IN_PROCESS, "policy": policy, **options},
        )

    def spawn(self, host: int, doom: Any) -> Any:
        stages = list(range(host, self.num_stages, NUM_HOSTS))
        return LocalActor(self.kind, stages, self.num_stages, doom, self.end)

    def replace(self, info: Any) -> Any:
        self.replaced.append(info.host_id)
        return self.spawn(info.host_id, self.dooms.get(info.host_id) if self.lasting else None)

    def run(self, num_steps: int = NUM_STEPS) -> list[list[float]]:
        """Run the steps that are left; returns their losses."""
        losses = []
        while self.trainer.steps_done < num_steps:
            status = self.trainer.step(*data(self.trainer.steps_done, NUM_MICROBATCHES))
            assert isinstance(status, JobSucceeded), status
            losses.append(status.result.losses)  # type: ignore[attr-defined] # a StepResult
        return losses

    def weights(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for actor in self.trainer.graph.actors:
            found |= actor.weights.remote().result(10)
        return found


def same(one: dict[int, Any], other: dict[int, Any]) -> bool:
    """Return whether two sets of weights are the same to the last bit."""
    return one.keys() == other.keys() and all(
        np.array_equal(mine, yours) for stage in one for mine, yours in zip(one[stage], other[stage], strict=True)
    )


def expected(schedule: Schedule, num_steps: int = NUM_STEPS) -> tuple[list[list[float]], dict[int, Any]]:
    return in_one_process(NUM_HOSTS * schedule.stages_per_host, NUM_MICROBATCHES, num_steps)


def places(schedule: Schedule) -> Iterator[tuple[int, str]]:
    for host, operations in enumerate(schedule.order(NUM_HOSTS, NUM_MICROBATCHES)):
        yield from ((host, str(operation)) for operation in operations)
        yield host, "update"


@pytest.mark.parametrize(
    ("schedule", "host", "operation"),
    [
        pytest.param(schedule, host, operation, id=f"{schedule.name}-{host}-{operation}")
        for schedule in SCHEDULES
        for host, operation in places(schedule)
    ],
)
def test_the_weights_are_the_same_to_the_last_bit_wherever_a_host_is_lost(
    schedule: Schedule, host: int, operation: str
) -> None:
    losses, weights = expected(schedule)
    training = Training(schedule, {host: (2, operation)}, snapshots=PipelineSnapshots(every=2))
    with training.trainer:
        assert training.run() == losses
        assert same(training.weights(), weights)
        assert training.replaced == [host]
        assert training.trainer.graph.generation == 1


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_what_came_after_the_last_snapshot_is_run_again(every: int, step: int) -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(dooms={1: (step, "1B1")}, snapshots=PipelineSnapshots(every=every))
    with training.trainer:
        assert training.run() == losses
        assert same(training.weights(), weights)
        updates = [each for each in training.actors[0].what_was_done.remote().result(10)[0] if "update" in each]
        again = [f"update {each}" for each in range(step - step % every, NUM_STEPS)]
        assert updates[-len(again) :] == again
        assert step % every + NUM_STEPS <= len(updates) <= step % every + NUM_STEPS + 1, (
            "the lost step may have counted"
        )


def test_a_host_that_is_lost_between_two_steps_is_replaced_with_its_state() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(snapshots=PipelineSnapshots(every=3))
    with training.trainer as trainer:
        found = training.run(2)
        kill(training.actors[2])
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)
        assert trainer.graph.generation == 1


def test_two_hosts_that_are_lost_together_come_back_from_disk(tmp_path: Path) -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(snapshots=PipelineSnapshots(directory=str(tmp_path), in_memory=False))
    with training.trainer:
        found = training.run(2)
        for actor in training.actors[:2]:
            kill(actor)
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)
    assert sorted({path.name.rpartition("-")[2] for path in tmp_path.iterdir()}) == [
        f"{step:012d}.snapshot"
        for step in (2, 3, 4)  # two that are whole, and the one that was just taken
    ]


def test_two_neighbours_that_are_lost_together_are_too_many_for_memory_alone() -> None:
    training = Training()
    with training.trainer as trainer:
        training.run(1)
        for actor in training.actors[:2]:
            kill(actor)
        status = trainer.step(*data(1, NUM_MICROBATCHES))
        while not isinstance(status, JobError):
            status = trainer.step(*data(1, NUM_MICROBATCHES))
        assert isinstance(status.error, GraphFailedError)
        assert "there is no snapshot of step 1 of host 0 of 3" in str(trainer.graph.failure)


def corrupt(path: Path, how: str) -> None:
    whole = path.read_bytes()
    broken = {
        "cut off": whole[:-5],
        "empty": b"",
        "another": whole.replace(b"cgexec-snapshot1", b"something-else.."),
        "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "of another step": None,
    }[how]
    path.write_bytes(
        broken if broken is not None else next(path.parent.glob("*-host-0000-*-000000000001.*")).read_bytes()
    )


@pytest.mark.parametrize("how", ["cut off", "empty", "another", "changed", "of another step"])
def test_a_snapshot_that_is_not_whole_is_refused_and_the_one_before_it_used(tmp_path: Path, how: str) -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(snapshots=PipelineSnapshots(directory=str(tmp_path), in_memory=False))
    with training.trainer:
        found = training.run(2)
        corrupt(next(tmp_path.glob("*-host-0000-*-000000000002.snapshot")), how)
        kill(training.actors[1])
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)
        done = [each for each in training.actors[2].what_was_done.remote().result(10)[0] if "update" in each]
        assert done == [f"update {step}" for step in (0, 1, 1, 2, 3)]


def test_a_directory_that_is_left_is_resumed_from(tmp_path: Path) -> None:
    losses, weights = expected(Schedule1F1B())
    snapshots = PipelineSnapshots(directory=str(tmp_path), every=2)
    first = Training(snapshots=snapshots)
    with first.trainer:
        assert first.run(3) == losses[:3]
    second = Training(snapshots=snapshots, resume=True)
    with second.trainer as trainer:
        assert trainer.steps_done == 2
        assert second.run() == losses[2:]
        assert same(second.weights(), weights)


def test_where_there_is_nothing_to_resume_from_that_is_said(tmp_path: Path) -> None:
    for directory in tmp_path, tmp_path / "missing":
        with pytest.raises(SnapshotError, match=f"{directory} has snapshots of 0 trainings: expected those of one"):
            Training(snapshots=PipelineSnapshots(directory=str(directory)), resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SnapshotError, match=f"the snapshots in {tmp_path / 'file'} cannot be listed: .*Not a directory"
    ):
        Training(snapshots=PipelineSnapshots(directory=str(tmp_path / "file")), resume=True)
    with pytest.raises(ValueError, match="resume=True is not usable without"):
        Training(resume=True)


def test_an_error_of_a_stage_is_the_steps_and_the_stages_are_as_before_it() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(dooms={1: (2, "1B1")}, end="raise", snapshots=PipelineSnapshots(every=2))
    with training.trainer as trainer:
        assert training.run(2) == losses[:2]
        status = trainer.step(*data(2, NUM_MICROBATCHES))
        assert isinstance(status, JobFailed)
        assert str(status.error).endswith("in 1B1 of step 2")
        assert trainer.steps_done == 2
        assert training.run() == losses[2:]
        assert same(training.weights(), weights)
        assert trainer.graph.generation == 0, "nothing was built anew for it"


def test_a_step_that_loses_hosts_again_and_again_is_answered() -> None:
    training = Training(dooms={1: (1, "1F0")}, lasting=True, max_losses=2)
    with training.trainer as trainer:
        training.run(1)
        status = trainer.step(*data(1, NUM_MICROBATCHES))
        assert isinstance(status, JobPreempted)
        assert training.replaced in ([1] * 2, [1] * 3)
        assert trainer.steps_done == 1


def test_a_wait_that_runs_out_can_be_gone_on_with() -> None:
    losses, _ = expected(Schedule1F1B())
    go_on = threading.Event()

    class Slow(Mortal):
        def update(self, step):
            assert go_on.wait(30)
            return super().update(step)

    actors = [LocalActor(Slow, [host], NUM_HOSTS) for host in range(NUM_HOSTS)]
    trainer = PipelineTrainer(
        actors, Schedule1F1B(), NUM_MICROBATCHES, snapshots=PipelineSnapshots(), config=IN_PROCESS
    )
    with trainer:
        with pytest.raises(CgexecError, match="no step is under way"):
            trainer.wait()
        status = trainer.step(*data(0, NUM_MICROBATCHES), timeout_s=0.05)
        assert status.info.state == "pending"  # type: ignore[attr-defined] # an ExecutionInfo
        with pytest.raises(CgexecError, match="step 0 is under way: wait"):
            trainer.step(*data(0, NUM_MICROBATCHES))
        go_on.set()
        status = trainer.wait()
        assert isinstance(status, JobSucceeded)
        assert status.result.losses == losses[0]  # type: ignore[attr-defined] # a StepResult
        assert trainer.steps_done == 1


def test_inputs_may_be_written_over_once_a_step_is_done() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(dooms={0: (3, "0B0")}, snapshots=PipelineSnapshots(every=3))
    buffers = data(0, NUM_MICROBATCHES)
    with training.trainer as trainer:
        for step in range(NUM_STEPS):
            for there, new in zip(buffers, data(step, NUM_MICROBATCHES), strict=True):
                for one, other in zip(there, new, strict=True):
                    one[:] = other
            assert trainer.step(*buffers).result.losses == losses[step]  # type: ignore[attr-defined]
        assert same(training.weights(), weights)


def test_an_input_that_cannot_be_sent_is_a_failure_of_its_step_alone() -> None:
    training = Training()
    with training.trainer as trainer:
        status = trainer.step([threading.Lock()] * NUM_MICROBATCHES, data(0, NUM_MICROBATCHES)[1])
        assert isinstance(status, JobFailed)
        assert training.run(1) == expected(Schedule1F1B(), 1)[0]


class Forgetful(Mortal):
    """Cannot say its state after one step."""

    def get_state(self):
        if self.step == 1:
            raise OSError("no room")
        return super().get_state()


def test_a_snapshot_that_could_not_be_taken_is_said_and_the_one_before_it_serves() -> None:
    losses, weights = expected(Schedule1F1B())
    actors = [LocalActor(Forgetful, [host], NUM_HOSTS) for host in range(NUM_HOSTS)]
    policy = RebuildPolicy(replace=lambda info: LocalActor(Mortal, [info.host_id], NUM_HOSTS), backoff_s=0.01)
    trainer = PipelineTrainer(
        actors, Schedule1F1B(), NUM_MICROBATCHES, snapshots=PipelineSnapshots(), config=IN_PROCESS, policy=policy
    )
    with trainer:
        assert trainer.step(*data(0, NUM_MICROBATCHES)).result.losses == losses[0]  # type: ignore[attr-defined]
        assert isinstance(trainer.snapshot_error, OSError)
        kill(actors[1])
        found = [trainer.step(*data(step, NUM_MICROBATCHES)).result.losses for step in range(1, 4)]  # type: ignore[attr-defined]
        assert found == losses[1:]
        assert trainer.snapshot_error is None
        found_weights: dict[int, Any] = {}
        for actor in trainer.graph.actors:
            found_weights |= actor.weights.remote().result(10)
        assert same(found_weights, weights)


def test_what_is_kept_of_inputs_is_bounded() -> None:
    training = Training(snapshots=PipelineSnapshots(every=2))
    with training.trainer as trainer:
        training.run(11)
        assert sorted(trainer._progress.inputs) == [8, 9, 10]


def test_a_trainer_that_is_forgotten_is_closed() -> None:
    training = Training()
    training.run(1)
    graph, trainer = weakref.ref(training.trainer.graph), weakref.ref(training.trainer)
    del training.trainer
    gc.collect()
    assert (graph(), trainer()) == (None, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"config": GraphConfig(engine="in_process", retry_preempted=1)}, "retry_preempted=1 .* is not usable here"),
        ({"max_losses": -1}, "max_losses=-1"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Training(**options)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every": 0}, "every=0"),
        ({"num_kept": 0}, "num_kept=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"in_memory": False}, "in_memory=False .* is not usable without a directory"),
        ({"directory": "here"}, "directory='here' .* expected an absolute path"),
    ],
)
def test_snapshots_that_cannot_be_kept_are_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PipelineSnapshots(**settings)


# -- where the stages stand --------------------------------------------------------------------------------------------


def test_the_stages_can_be_brought_to_where_the_trainer_says() -> None:
    training = Training(snapshots=PipelineSnapshots(every=3))
    with training.trainer as trainer:
        training.run(4)
        kill(training.actors[2])
        while trainer.graph.generation == 0:
            pass
        assert trainer.settle()
        assert trainer.steps_done == 4
        assert same(training.weights(), expected(Schedule1F1B())[1])
        assert [step for step, _ in trainer.states()] == [4, 4, 4]
        trainer.snapshot()
        kill(training.actors[0])
        assert [step for step, _ in trainer.states()] == [4, 4, 4]
        done = [each for each in training.actors[1].what_was_done.remote().result(10)[0] if "update" in each]
        assert done == [f"update {step}" for step in (0, 1, 2, 3, 3)], "the snapshot was of step 4"


def test_behind_an_error_of_a_stage_they_can_be_brought_back_too() -> None:
    training = Training(dooms={0: (1, "0B1")}, end="raise")
    with training.trainer as trainer:
        training.run(1)
        assert isinstance(trainer.step(*data(1, NUM_MICROBATCHES)), JobFailed)
        assert trainer.settle()
        assert same(training.weights(), expected(Schedule1F1B(), 1)[1])


class Held(Mortal):
    """Sets its state when it may."""

    may_set, begun = threading.Event(), threading.Event()

    def set_state(self, state):
        self.begun.set()
        assert self.may_set.wait(30)
        super().set_state(state)


def test_a_step_that_ends_while_the_stages_are_brought_back_is_not_taken_for_where_they_stand() -> None:
    Held.may_set.clear()
    Held.begun.clear()
    losses, weights = expected(Schedule1F1B(), 8)
    training = Training(kind=Held, snapshots=PipelineSnapshots(every=3))
    with training.trainer as trainer:
        found = training.run(5)
        status = trainer.step(*data(5, NUM_MICROBATCHES), timeout_s=0)
        while trainer.graph.stats().succeeded < 6:  # it has run, and nobody knows of it
            trainer._progress._running.execution.done()  # type: ignore[union-attr]
        rebuilding = threading.Thread(target=trainer.graph.rebuild)
        rebuilding.start()
        assert Held.begun.wait(30)
        threading.Timer(0.2, Held.may_set.set).start()
        status = trainer.wait()
        rebuilding.join(30)
        assert isinstance(status, JobSucceeded)
        found.append(status.result.losses)  # type: ignore[attr-defined] # a StepResult
        kill(training.actors[1])
        found += training.run(8)
        assert found == losses
        assert same(training.weights(), weights)


def interrupted_at(place: int) -> bool:
    """Raise KeyboardInterrupt at the n-th line of ours in two steps, and go on; returns whether there are as many."""
    training = Training()
    ours = {module.__file__ for module in (trainer_module, progress_module, standing_module)}
    with training.trainer as trainer:
        training.run(1)
        with raised_at(place, "line", lambda code: code.co_filename in ours, KeyboardInterrupt()) as seen:
            try:
                training.run(3)
            except KeyboardInterrupt:
                sys.settrace(None)
                with suppress(CgexecError):  # no step is under way: it was never begun, or had been answered
                    assert isinstance(trainer.wait(), JobSucceeded)
        training.run(3)
        _, weights = expected(Schedule1F1B(), 3)
        assert trainer.settle()
        assert same(training.weights(), weights), place
    return seen[0] >= place


def test_ctrl_c_at_any_line_costs_no_step() -> None:
    place = 1
    while interrupted_at(place):
        place += 1
    assert place > 100


# -- snapshots that go wrong -------------------------------------------------------------------------------------------


class FullDisk(Mortal):
    """Cannot say its state at some steps."""

    full_at: tuple[int, ...] = (3, 4)

    def get_state(self):
        if self.step in self.full_at and 1 in self.layers:
            raise OSError("disk full")
        return super().get_state()


def test_a_snapshot_that_fails_on_one_host_takes_the_others_nothing_of_the_last_whole_one() -> None:
    losses, weights = expected(Schedule1F1B(), 6)
    training = Training(kind=FullDisk)
    with training.trainer as trainer:
        found = training.run(4)
        assert isinstance(trainer.snapshot_error, OSError)
        kill(training.actors[0])
        found += training.run(6)
        assert found == losses
        assert same(training.weights(), weights)


@pytest.mark.parametrize("step", [0, 2])
def test_a_host_that_is_lost_as_a_snapshot_is_taken_is_replaced_if_there_is_one_before(step: int) -> None:
    losses, weights = expected(Schedule1F1B())
    victims: list[Any] = []

    class DiesAsItIsKept(Mortal):
        def get_state(self):
            if self.step == step and 1 in self.layers and victims:
                kill(victims.pop())
                raise ActorDiedError
            return super().get_state()

    class WithAVictim(Training):
        def spawn(self, host: int, doom: Any) -> Any:
            actor = super().spawn(host, doom)
            if host == 1 and not self.replaced:
                victims.append(actor)
            return actor

    if step == 0:  # nobody knows what the lost host had been given
        with pytest.raises(SnapshotError, match="a stage was lost before there was a snapshot of all"):
            WithAVictim(kind=DiesAsItIsKept)
        return
    training = WithAVictim(kind=DiesAsItIsKept, snapshots=PipelineSnapshots(num_kept=1))
    with training.trainer:
        assert training.run() == losses
        assert same(training.weights(), weights)
        assert training.replaced == [1]


def test_a_neighbour_that_is_lost_while_the_other_is_brought_back_is_not_too_much() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training()
    neighbours = [training.actors[1]]

    class TakesTheOtherAlong(Mortal):
        def set_state(self, state):
            super().set_state(state)
            if neighbours:
                kill(neighbours.pop())

    training.kind = TakesTheOtherAlong
    with training.trainer:
        found = training.run(2)
        kill(training.actors[0])
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)
        assert sorted(training.replaced)[:2] == [0, 1]


def test_a_directory_that_cannot_be_written_any_more_costs_only_its_copies(tmp_path: Path) -> None:
    directory = tmp_path / "snapshots"
    losses, weights = expected(Schedule1F1B(), 6)
    training = Training(snapshots=PipelineSnapshots(directory=str(directory)))
    with training.trainer as trainer:
        found = training.run(3)
        shutil.rmtree(directory)
        directory.write_text("something else")
        found += training.run(4)
        assert isinstance(trainer.snapshot_error, SnapshotError)
        assert "cannot make the directory of PipelineSnapshots" in str(trainer.snapshot_error)
        kill(training.actors[1])
        found += training.run(6)
        assert found == losses
        assert same(training.weights(), weights)


def test_a_host_that_is_stopped_as_a_snapshot_is_taken_keeps_nobody_for_long() -> None:
    training = Training(snapshots=PipelineSnapshots(timeout_s=0.2))
    with training.trainer as trainer:
        training.run(1)

        def halt(instance: Any) -> None:
            stop(training.actors[1])

        training.actors[1].__ray_call__.remote(halt).result(10)
        threading.Timer(2.0, resume, [training.actors[1]]).start()
        started = time.monotonic()
        with pytest.raises(GetTimeoutError):
            trainer.snapshot()
        assert time.monotonic() - started < 1.5
        assert training.run(3) == expected(Schedule1F1B(), 3)[0][1:]


def test_a_directory_is_for_one_training(tmp_path: Path) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path))
    first = Training(snapshots=snapshots)
    with first.trainer:
        first.run(2)
    with pytest.raises(SnapshotError, match="has snapshots of a training: go on with that by resume=True"):
        Training(snapshots=snapshots)
    with pytest.raises(SnapshotError, match="are of 3 stages on 3 hosts, not of 6 stages on 3 hosts"):
        Training(ScheduleInterleaved1F1B(2), snapshots=snapshots, resume=True)


def test_what_is_resumed_from_is_the_directory_and_not_what_stages_remember(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    first = Training(snapshots=PipelineSnapshots(directory=str(here)))
    with first.trainer:
        first.run(2)
    second = Training(snapshots=PipelineSnapshots(directory=str(there)))
    with second.trainer:
        second.run(3)
    trainer = PipelineTrainer(
        second.actors,
        Schedule1F1B(),
        NUM_MICROBATCHES,
        snapshots=PipelineSnapshots(directory=str(here)),
        resume=True,
        config=IN_PROCESS,
    )
    with trainer:
        assert trainer.steps_done == 2
        second.trainer = trainer
        assert second.run() == expected(Schedule1F1B())[0][2:]


def test_several_trainers_may_have_the_same_stages_in_turn() -> None:
    first = Training()
    with first.trainer:
        first.run(2)
        kill(first.actors[0])
        first.run(3)
        actors = first.trainer.graph.actors
    fresh = {actor: Mortal([host], NUM_HOSTS).get_state() for host, actor in enumerate(actors)}
    for actor, state in fresh.items():
        actor.set_state.remote(state).result(10)
    policy = RebuildPolicy(replace=first.replace, backoff_s=0.01)
    first.trainer = PipelineTrainer(
        actors, Schedule1F1B(), NUM_MICROBATCHES, snapshots=EACH_STEP, config=IN_PROCESS, policy=policy
    )
    losses, weights = expected(Schedule1F1B())
    with first.trainer:
        found = first.run(2)
        kill(actors[2])
        found += first.run()
        assert found == losses
        assert same(first.weights(), weights)


def test_there_is_no_way_back_behind_where_a_training_was_resumed(tmp_path: Path) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path), every=2, in_memory=False)
    first = Training(snapshots=snapshots)
    with first.trainer:
        first.run(4)
    second = Training(snapshots=snapshots, resume=True)
    with second.trainer as trainer:
        assert trainer.steps_done == 4
        corrupt(max(tmp_path.glob("*-host-0000-*-000000000004.snapshot")), "cut off")  # not that of the first
        kill(second.actors[1])
        status = trainer.step(*data(4, NUM_MICROBATCHES))
        while not isinstance(status, JobError):
            status = trainer.step(*data(4, NUM_MICROBATCHES))
        assert "the snapshot of step 4 of host 0 of 3 is cut off" in str(trainer.graph.failure)


def test_files_that_are_none_of_ours_are_left_alone_and_unfinished_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "notes-step-copy.snapshot").write_text("mine")
    training = Training(snapshots=PipelineSnapshots(directory=str(tmp_path)))
    with training.trainer:
        training.run(1)
        (run,) = {path.name.partition("-")[0] for path in tmp_path.iterdir() if path.name[0] != "n"}
        left = tmp_path / f"{run}-begun-{1:020d}-host-0001-of-3-stages-3-step-000000000001.12345.unfinished"
        left.write_bytes(b"half")
        training.run(2)
        assert not left.exists()
    assert (tmp_path / "notes-step-copy.snapshot").read_text() == "mine"


class Flaky:
    """Refuses to be pickled once."""

    refuses = True

    def __reduce__(self) -> Any:
        if Flaky.refuses:
            Flaky.refuses = False
            raise RuntimeError("not just now")
        return int, (0,)


def test_an_input_that_could_be_sent_at_a_second_try_is_not_sent_behind_the_callers_back() -> None:
    Flaky.refuses = True
    training = Training()
    with training.trainer as trainer:
        status = trainer.step([Flaky()] * NUM_MICROBATCHES, data(0, NUM_MICROBATCHES)[1])
        assert isinstance(status, JobFailed)
        assert "not just now" in str(status.error)
        assert training.run() == expected(Schedule1F1B())[0]


def test_snapshots_in_memory_go_with_the_trainer() -> None:
    training = Training()
    with training.trainer as trainer:
        training.run(1)
        session = trainer._standing.archive._session  # type: ignore[union-attr]
        assert training.actors[0].__ray_call__.remote(in_memory, session).result(10)
    assert training.actors[0].__ray_call__.remote(in_memory, session).result(10) == set()


class WithoutState(Mortal):
    set_state = property()  # type: ignore[assignment]


@pytest.mark.parametrize("timeout_s", [-5, "x", True])
def test_arguments_are_checked(timeout_s: Any) -> None:
    with pytest.raises(GraphSpecError, match="has no method 'set_state', to keep its state with"):
        Training(kind=WithoutState)
    training = Training()
    with training.trainer as trainer:
        with pytest.raises(ValueError, match="timeout_s="):
            trainer.step(*data(0, NUM_MICROBATCHES), timeout_s=timeout_s)
        with pytest.raises(ValueError, match="timeout_s="):
            trainer.settle(timeout_s)
        assert training.run() == expected(Schedule1F1B())[0]
