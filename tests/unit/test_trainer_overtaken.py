"""What comes in between while the stages of a training are looked at, kept or resumed: no state under a wrong name."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from stages import Mortal, StageHost, data
from test_trainer_in_process import EACH_STEP, IN_PROCESS, NUM_MICROBATCHES, Held, Training, corrupt, expected, same

from cgexec import CgexecError, GraphClosedError, JobError, JobPreempted, JobSucceeded, RebuildPolicy
from cgexec.changed import Changed
from cgexec.pipeline import (
    Operation,
    PipelineSnapshots,
    PipelineTrainer,
    Schedule1F1B,
    ScheduleGPipe,
    SnapshotError,
    StageMethods,
    TrainingStep,
    keeping,
    snapshot_format,
)
from cgexec.pipeline.progress import Progress
from cgexec.pipeline.snapshot_format import labels_in
from cgexec.pipeline.standing import Standing
from cgexec.testing import LocalActor, kill


def kept_in(actor: Any) -> int:
    """Return how many snapshots an actor keeps in memory."""

    def count(instance: Any) -> int:
        return sum(len(shelf.snapshots) for shelf in keeping._shelves.get(id(instance), {}).values() if shelf)

    found: int = actor.__ray_call__.remote(count).result(10)
    return found


# -- calls that are late -----------------------------------------------------------------------------------------------


class SlowToSay(Mortal):
    """Does not say its state before it may; and does ordinary calls beside the graph, as actors of Ray's do."""

    may_say = threading.Event()

    def get_state(self):
        if 1 in self.layers:
            assert self.may_say.wait(30)
        return super().get_state()


class Unasking(StageHost):
    """A stage that does not look whether a step is the one that is due; is brought back when it may be."""

    may_set = threading.Event()

    def __init__(self, stages, num_stages, _doom, _end):
        super().__init__(stages, num_stages)

    def set_state(self, state):
        assert self.may_set.wait(30)
        super().set_state(state)


class BesideTheGraph(LocalActor):
    """An actor whose ordinary calls do not wait for the graph's, as with Ray: one that is late may come at any time."""

    @property
    def __ray_call__(self) -> Any:
        return SimpleNamespace(
            remote=partial(self.__dict__.setdefault("_pool", ThreadPoolExecutor(1)).submit, self._run)
        )

    def _run(self, function: Any, *arguments: Any) -> Any:
        return function(self._process.instance, *arguments)


class TrainingBesideCalls(Training):
    def spawn(self, host: int, doom: Any) -> Any:
        return BesideTheGraph(self.kind, [host], self.num_stages, doom, self.end)


def test_a_snapshot_that_is_late_is_waited_for_or_not_taken_of_what_comes_behind() -> None:
    losses, weights = expected(Schedule1F1B())
    SlowToSay.may_say.set()
    snapshots = PipelineSnapshots(every=10, timeout_s=0.3)  # in memory: a disk may be late by itself
    training = TrainingBesideCalls(kind=SlowToSay, snapshots=snapshots)
    with training.trainer as trainer:
        found = training.run(2)
        trainer.snapshot()
        SlowToSay.may_say.clear()
        threading.Timer(0.5, SlowToSay.may_say.set).start()  # behind the timeout
        with pytest.raises(GetTimeoutError):
            trainer.snapshot()
        assert SlowToSay.may_say.is_set(), "whatever had been sent has ended"
        assert trainer._standing.place.step == 2
        assert trainer._standing.place.epoch == 1
        found += training.run(3)
        kill(training.actors[0])
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


def test_where_a_late_snapshot_is_not_known_to_have_ended_the_stages_are_brought_back_first() -> None:
    losses, weights = expected(Schedule1F1B())
    SlowToSay.may_say.set()
    snapshots = PipelineSnapshots(every=10, timeout_s=0.2)  # in memory: a disk may be late by itself
    training = TrainingBesideCalls(kind=SlowToSay, snapshots=snapshots)
    with training.trainer as trainer:
        found = training.run(2)
        SlowToSay.may_say.clear()
        with pytest.raises(GetTimeoutError):
            trainer.snapshot()
        assert trainer._standing.place.step is None
        SlowToSay.may_say.set()
        found += training.run()
        done = [each for each in training.actors[0].what_was_done.remote().result(10)[0] if "update" in each]
        assert done == [f"update {step}" for step in (0, 1, 0, 1, 2, 3)]
        assert found == losses
        assert same(training.weights(), weights)


# -- rebuilds in between -----------------------------------------------------------------------------------------------


@pytest.fixture
def rebuilt_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what has a graph rebuilt, once, before a method of its Standing is run."""

    def before(name: str, graph: Any) -> None:
        original = getattr(Standing, name)
        left = [1]

        def first(self: Standing, *args: Any) -> Any:
            if left:
                left.pop()
                graph.rebuild()
            return original(self, *args)

        monkeypatch.setattr(Standing, name, first)

    return before


@pytest.mark.parametrize("what", ["take", "states"])
def test_a_rebuild_behind_the_look_at_where_the_stages_stand_is_noticed(what: str, rebuilt_before: Any) -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(snapshots=PipelineSnapshots(every=2))
    with training.trainer as trainer:
        found = training.run(3)
        rebuilt_before(what, trainer.graph)
        if what == "take":
            trainer.snapshot()
            assert trainer._standing.taken == [2, 3]
            kill(training.actors[1])
        assert [step for step, _ in trainer.states()] == [3, 3, 3]
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


def test_a_snapshot_that_a_rebuild_overtakes_is_taken_again(tmp_path: Path) -> None:
    training = Training(snapshots=PipelineSnapshots(every=2, directory=str(tmp_path)))
    with training.trainer as trainer:
        training.run(3)
        archive = trainer._standing.archive
        take = archive.take  # type: ignore[union-attr]

        def overtaken(*arguments: Any) -> None:
            take(*arguments)
            archive.take = take  # type: ignore[union-attr, method-assign]
            trainer.graph.rebuild()

        archive.take = overtaken  # type: ignore[union-attr, method-assign]
        trainer.snapshot()
        assert trainer.snapshot_error is None
        assert trainer._standing.taken == [2, 3]


def test_a_rebuild_behind_the_look_at_what_is_to_be_run_has_nothing_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, weights = expected(Schedule1F1B())
    Unasking.may_set.clear()
    training = Training(kind=Unasking)
    with training.trainer as trainer:
        found = training.run(3)
        first_to_run = Progress._first_to_run

        def rebuilding(self: Progress) -> int | None:
            monkeypatch.undo()
            assert first_to_run(self) == 3
            threading.Thread(target=trainer.graph.rebuild).start()
            while trainer._standing.place.step is not None:
                pass
            Unasking.may_set.set()
            return None

        monkeypatch.setattr(Progress, "_first_to_run", rebuilding)
        states: dict[int, Any] = {}
        for state in trainer.states():
            states |= state
        assert same(states, expected(Schedule1F1B(), 3)[1])
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


def test_a_snapshot_that_is_overtaken_before_it_is_asked_for_is_taken_again() -> None:
    training = Training(snapshots=PipelineSnapshots(every=10))
    with training.trainer as trainer:
        training.run(2)
        archive = trainer._standing.archive
        take = archive.take  # type: ignore[union-attr]

        def late(*arguments: Any) -> None:
            archive.take = take  # type: ignore[union-attr, method-assign]
            trainer.graph.rebuild()
            take(*arguments)

        archive.take = late  # type: ignore[union-attr, method-assign]
        trainer.snapshot()
        assert trainer._standing.taken == [0, 2]
        assert [step for step, _ in trainer.states()] == [2, 2, 2]


def test_a_process_that_was_started_again_keeps_nothing_before_it_has_a_state() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training(snapshots=PipelineSnapshots(every=10))
    with training.trainer as trainer:
        found = training.run(2)
        training.actors[1]._process.instance = Mortal([1], 3)  # as Ray does it where an actor has max_restarts
        with pytest.raises(SnapshotError, match="it is over, or the process is new"):
            trainer.snapshot()
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


# -- another timeline --------------------------------------------------------------------------------------------------


def test_what_two_resumptions_wrote_is_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path), in_memory=False)
    first = Training(snapshots=snapshots)
    with first.trainer:
        first.run(4)
    corrupt(next(tmp_path.glob("*-host-0001-*-000000000004.snapshot")), "cut off")
    second = Training(snapshots=snapshots, resume=True)
    with second.trainer as trainer:
        assert trainer.steps_done == 3
        write, refused = snapshot_format.write, []

        def full(directory: str, label: Any, *rest: Any) -> None:
            if label.host == 0:
                refused.append(label)
                raise OSError(28, "No space left on device")
            write(directory, label, *rest)

        monkeypatch.setattr(keeping, "write", full)
        assert isinstance(trainer.step(*data(1003, NUM_MICROBATCHES)), JobSucceeded)  # other data than before
        assert isinstance(trainer.snapshot_error, OSError)
        assert refused
        monkeypatch.setattr(keeping, "write", write)
    there = {path.name.partition("-host-")[2][:4] for path in tmp_path.glob("*-000000000004.snapshot")}
    assert there == {"0000", "0001", "0002"}, "of step 4 each host has one: of two timelines"
    third = Training(snapshots=snapshots, resume=True)
    with third.trainer as trainer:
        assert trainer.steps_done == 3
        assert third.run() == expected(Schedule1F1B())[0][3:]
        assert same(third.weights(), expected(Schedule1F1B())[1])
    (begun,) = {path.name.split("-")[2] for path in tmp_path.iterdir()}
    assert int(begun) > 0, "what came before is gone"


def test_a_resumption_that_cannot_be_written_down_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path))
    first = Training(snapshots=snapshots)
    with first.trainer:
        first.run(2)
    before = {path.name for path in tmp_path.iterdir()}

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(keeping, "write", full)
        with pytest.raises(OSError, match="No space left"):
            Training(snapshots=snapshots, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == before
    again = Training(snapshots=snapshots, resume=True)
    with again.trainer:
        assert again.run() == expected(Schedule1F1B())[0][2:]


@pytest.mark.parametrize("num_left", [1, 3])
def test_stages_that_outlived_a_trainer_are_resumed_from_the_directory(tmp_path: Path, num_left: int) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path))
    first = Training(snapshots=snapshots)
    first.run(1)
    for host in (1, 2, 1):  # so that the stages were brought back, and have been told so, several times
        kill(first.trainer.graph.actors[host])
        first.run(first.trainer.steps_done + 1)
    outlived = first.trainer.graph.actors
    first.trainer.graph.close()  # as if its process had died: nobody told the stages to forget
    assert all(kept_in(actor) for actor in outlived)
    second = Training(snapshots=snapshots, resume=True)
    with second.trainer as trainer:
        assert trainer.steps_done == 4
        assert isinstance(trainer.step(*data(1004, NUM_MICROBATCHES)), JobSucceeded)
        weights = second.weights()
    stages = [*outlived[:num_left], *(LocalActor(Mortal, [host], 3) for host in range(num_left, 3))]
    with PipelineTrainer(stages, Schedule1F1B(), 3, snapshots=snapshots, resume=True, config=IN_PROCESS) as trainer:
        assert trainer.steps_done == 5
        second.trainer = trainer
        assert same(second.weights(), weights)
        assert {kept_in(actor) for actor in stages} == {2}, "its own and a neighbour's: none of the other trainer"


def test_what_was_resumed_from_is_the_oldest_that_is_left(tmp_path: Path) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path), every=10)
    with Training(snapshots=snapshots).trainer:
        pass
    for _ in range(4):
        training = Training(snapshots=snapshots, resume=True)
        with training.trainer:
            training.run(2)
        assert len(list(tmp_path.iterdir())) == 2 * 3, "one of each host, and what that was resumed from"


@pytest.mark.parametrize("resume", [False, True])
def test_a_training_that_cannot_begin_leaves_nothing(
    tmp_path: Path, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = PipelineSnapshots(directory=str(tmp_path))
    if resume:
        with Training(snapshots=snapshots).trainer:
            pass
    before = {path.name for path in tmp_path.iterdir()}
    write = snapshot_format.write

    def full(directory: str, label: Any, *rest: Any) -> None:
        if label.host == 2:
            raise OSError(28, "No space left on device")
        write(directory, label, *rest)

    actors = [LocalActor(Mortal, [host], 3) for host in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(keeping, "write", full)
        with pytest.raises(OSError, match="No space left"):
            PipelineTrainer(actors, Schedule1F1B(), 3, snapshots=snapshots, config=IN_PROCESS, resume=resume)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert [kept_in(actor) for actor in actors] == [0, 0, 0]
    with PipelineTrainer(actors, Schedule1F1B(), 3, snapshots=snapshots, config=IN_PROCESS, resume=resume):
        pass


def test_what_comes_behind_the_end_is_kept_by_nobody() -> None:
    training = Training()
    training.run(1)
    trainer, archive = training.trainer, training.trainer._standing.archive
    trainer.close()
    assert archive is not None
    with pytest.raises(SnapshotError, match="it is over"):
        archive.take(training.actors, 9, 1, ())
    assert [kept_in(actor) for actor in training.actors] == [0, 0, 0]


def test_a_stage_that_is_brought_back_as_it_all_ends_keeps_nothing() -> None:
    class Training(TrainingBesideCalls):
        def spawn(self, host: int, doom: Any) -> Any:
            spawned.append(super().spawn(host, doom))
            return spawned[-1]

    spawned: list[Any] = []
    Held.begun.clear()
    Held.may_set.clear()
    training = Training(kind=Held)
    training.run(1)
    kill(training.actors[1])
    assert Held.begun.wait(10)
    training.trainer.close(0)
    Held.may_set.set()
    alive = [actor for actor in spawned if actor is not training.actors[1]]
    assert [kept_in(actor) for actor in alive] == [0, 0, 0]


def test_what_stages_had_been_given_before_is_not_lost_unnoticed() -> None:
    victims: list[Any] = []

    class DiesAsItIsKept(Mortal):
        def get_state(self):
            if 1 in self.layers and victims:
                kill(victims.pop())
                raise RuntimeError
            return super().get_state()

    actors = [LocalActor(DiesAsItIsKept, [host], 3) for host in range(3)]
    given = (0, {1: (np.full((5, 5), 0.1), np.full(5, 0.5))})
    actors[1].set_state.remote(given).result(10)
    victims.append(actors[1])
    policy = RebuildPolicy(replace=lambda info: LocalActor(DiesAsItIsKept, [info.host_id], 3), backoff_s=0.01)
    with pytest.raises(SnapshotError, match="a stage was lost before there was a snapshot of all"):
        PipelineTrainer(actors, Schedule1F1B(), 3, snapshots=EACH_STEP, config=IN_PROCESS, policy=policy)


# -- waiting, and the end ----------------------------------------------------------------------------------------------


def test_a_step_that_was_noted_before_ctrl_c_is_answered_though_the_graph_was_rebuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training()
    with training.trainer as trainer:
        found = training.run(1)
        take = Standing.take

        def interrupted(*arguments: Any) -> int:
            take(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Standing, "take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trainer.step(*data(1, NUM_MICROBATCHES))
        kill(training.actors[1])
        while trainer.graph.generation == 0:
            pass
        status = trainer.wait()
        assert isinstance(status, JobSucceeded)
        found.append(status.result.losses)  # type: ignore[attr-defined] # a StepResult
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


def test_a_wait_that_runs_out_while_the_graph_is_rebuilt_is_pending() -> None:
    losses, weights = expected(Schedule1F1B())
    may_replace = threading.Event()

    def slowly(info: Any) -> Any:
        assert may_replace.wait(30)
        return training.replace(info)

    training = Training(dooms={1: (1, "1B1")}, policy=RebuildPolicy(replace=slowly, backoff_s=0.01))
    with training.trainer as trainer:
        found = training.run(1)
        status = trainer.step(*data(1, NUM_MICROBATCHES), timeout_s=0.2)
        for _ in range(3):
            assert isinstance(status, JobError)
            assert status.info.state == "pending"  # type: ignore[union-attr]
            status = trainer.wait(0.1)
        may_replace.set()
        status = trainer.wait()
        assert isinstance(status, JobSucceeded)
        found.append(status.result.losses)  # type: ignore[attr-defined] # a StepResult
        found += training.run()
        assert found == losses
        assert same(training.weights(), weights)


def test_losses_are_counted_for_as_long_as_a_step_is_waited_for() -> None:
    training = Training(dooms={1: (1, "1B1")}, lasting=True, max_losses=2)
    with training.trainer as trainer:
        training.run(1)
        status = trainer.step(*data(1, NUM_MICROBATCHES), timeout_s=0.003)
        while status.info.state == "pending":  # type: ignore[union-attr]
            status = trainer.wait(0.003)
        assert isinstance(status, JobPreempted)
        assert trainer.graph.generation <= 3


def test_ctrl_c_leaves_no_lock_of_the_trainers_held() -> None:
    training = Training()
    with training.trainer as trainer:
        assert isinstance(trainer._standing.changed, Changed)  # see there, and its own tests


def test_a_graph_that_has_failed_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(dooms={1: (1, "1B1")}, lasting=True, max_losses=1)
    with training.trainer as trainer:
        training.run(1)
        assert not isinstance(trainer.step(*data(1, NUM_MICROBATCHES)), JobSucceeded)
        assert trainer.graph.generation >= 1
        monkeypatch.setattr(Standing, "rebuilt", lambda *_: 1 / 0)
        kill(trainer.graph.actors[0])
        while trainer.graph.state.value != "failed":
            trainer.step(*data(1, NUM_MICROBATCHES))
        looked: list[str] = []
        for name in "bring_back", "wait_while":
            original = getattr(Standing, name)
            monkeypatch.setattr(Standing, name, lambda *args, of=original, by=name: looked.append(by) or of(*args))
        status = trainer.step(*data(1, NUM_MICROBATCHES))
        assert isinstance(status, JobError)
        assert "the graph cannot be rebuilt: ZeroDivisionError" in str(status.error)
        assert looked == ["wait_while"], "nothing was tried once more"


def test_a_graph_that_fails_before_the_first_step_is_no_place_to_settle() -> None:
    training = Training(policy=RebuildPolicy(replace=lambda _: 1 / 0, backoff_s=0.01))
    with training.trainer as trainer:
        kill(training.actors[1])
        while trainer.graph.state.value != "failed":
            pass
        for call in trainer.settle, trainer.snapshot, trainer.states:
            with pytest.raises(CgexecError, match=r"the stages cannot be brought to step 0: .*ZeroDivisionError"):
                call()


def test_stages_that_cannot_be_brought_back_are_why_they_cannot_be_asked(tmp_path: Path) -> None:
    class DiesAsItSays(Mortal):
        def get_state(self):
            if 1 in self.layers and victims:
                for path in tmp_path.iterdir():
                    corrupt(path, "cut off")
                kill(victims.pop())
                raise ActorDiedError  # as who asks is told, with Ray
            return super().get_state()

    victims: list[Any] = []
    snapshots = PipelineSnapshots(every=10, directory=str(tmp_path), in_memory=False)
    training = Training(kind=DiesAsItSays, snapshots=snapshots)
    with training.trainer as trainer:
        training.run(2)
        victims.append(training.actors[1])
        with pytest.raises(CgexecError, match=r"cannot be asked: .* has ended: .*cannot be brought back to any step"):
            trainer.states()


def test_states_are_what_they_were_whatever_the_stages_do_next() -> None:
    losses, weights = expected(Schedule1F1B())
    training = Training()
    with training.trainer as trainer:
        found = training.run(2)
        for _, layers in trainer.states():
            for arrays in layers.values():
                for array in arrays:
                    array += 1.0
        assert found + training.run() == losses
        assert same(training.weights(), weights)


@pytest.mark.parametrize("num_kept", [1, 2])
def test_one_snapshot_more_is_there_than_can_be_gone_back_to(tmp_path: Path, num_kept: int) -> None:
    training = Training(snapshots=PipelineSnapshots(directory=str(tmp_path), num_kept=num_kept))
    with training.trainer as trainer:
        training.run(4)
        steps = sorted({label.step for label in labels_in(str(tmp_path))})
        assert steps == list(range(4 - num_kept, 5))
        assert trainer._standing.taken == steps[1:]
        assert [kept_in(actor) for actor in training.actors] == [2 * len(steps)] * 3


def test_ctrl_c_as_an_actor_begins_to_serve_leaves_it_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    start, interrupted = threading.Thread.start, []

    def start_or_ctrl_c(thread: threading.Thread) -> None:
        if thread.name == "local-actor" and threading.current_thread() is threading.main_thread() and not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        start(thread)

    training = Training()
    with training.trainer as trainer:
        training.run(1)
        for actor in training.actors:
            actor.what_was_done.remote().result(10)
        while any(actor._process._serving for actor in training.actors):
            pass
        monkeypatch.setattr(threading.Thread, "start", start_or_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            trainer.states()
        assert len(trainer.states(10)) == 3
        training.run()


def test_a_closed_trainer_says_so(tmp_path: Path) -> None:
    training = Training(snapshots=PipelineSnapshots(directory=str(tmp_path), every=10))
    training.run(2)
    trainer = training.trainer
    trainer.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):
        for call in (
            trainer.snapshot,
            trainer.settle,
            trainer.wait,
            trainer.states,
            lambda: trainer.step(*data(2, NUM_MICROBATCHES)),
        ):
            with pytest.raises(GraphClosedError, match="is closed"):
                call()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    trainer.close()


# -- what cannot be used -----------------------------------------------------------------------------------------------


class OneMore(ScheduleGPipe):
    """Orders a microbatch more than it was asked for."""

    def order(self, num_stages: int, num_microbatches: int) -> list[list[Operation]]:
        return super().order(num_stages, num_microbatches + 1)


class Nothing(ScheduleGPipe):
    """Has nobody do anything."""

    def order(self, num_stages: int, num_microbatches: int) -> list[list[Operation]]:
        return [[] for _ in range(num_stages)]


def test_a_method_has_a_name() -> None:
    with pytest.raises(ValueError, match=r"forward=3 .from StageMethods. is not usable: expected str"):
        StageMethods(forward=3)  # type: ignore[arg-type]


def test_a_directory_that_cannot_be_made_is_named_with_the_setting() -> None:
    with pytest.raises(SnapshotError, match=r"host 0 cannot make the directory of PipelineSnapshots: .*/proc/nothing"):
        Training(snapshots=PipelineSnapshots(directory="/proc/nothing"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"schedule": "1f1b"}, "schedule='1f1b' .* expected Schedule"),
        ({"methods": {}}, "methods={} .* expected StageMethods or None"),
        ({"snapshots": None}, "snapshots=None .* expected PipelineSnapshots"),
        ({"config": 5}, "config=5 .* expected GraphConfig"),
        ({"policy": 5}, "policy=5 .* expected RebuildPolicy"),
        ({"schedule": OneMore()}, "an order of 3 hosts and 4 microbatches, where 3 and 3 were asked for"),
        ({"schedule": Nothing()}, "an order without operations does nothing"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    actors = [LocalActor(Mortal, [host], 3) for host in range(3)]
    usable = {"schedule": Schedule1F1B(), "num_microbatches": 3, "snapshots": EACH_STEP, "config": IN_PROCESS}
    with pytest.raises(ValueError, match=told):
        PipelineTrainer(actors, **{**usable, **options})


@pytest.mark.parametrize("values", [iter([1, 2, 3]), None, {0: 1, 1: 2, 2: 3}])
def test_microbatches_are_a_sequence(values: Any) -> None:
    step = TrainingStep(Schedule1F1B(), 3, 3)
    with pytest.raises(ValueError, match="microbatches are to be a list or another sequence"):
        step.arguments(values, [0] * 3)
