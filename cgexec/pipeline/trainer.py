"""Training that survives the loss of a stage: the stages are brought back to the last snapshot, and go on from there.

::

    step 6 ── snapshot ── step 7 ── step 8 ✗ a host is lost
                 │                         │ the graph is rebuilt, with a new host in its place
                 └── all brought back ─────┘
                     step 7 again ── step 8 again ── step 9

What is run again is given the same inputs, which are kept for it; so a stage whose methods depend on nothing but its
state and what they are given comes to the same weights, to the last bit.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast

from ray.exceptions import RayActorError, RayChannelTimeoutError

from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.deadline import Deadline
from cgexec.engine.values import kept_inputs
from cgexec.errors import CgexecError, GraphFailedError, GraphSpecError
from cgexec.execution import Execution
from cgexec.executor import GraphExecutor
from cgexec.hosts import HostGroup
from cgexec.lifecycle import GraphState
from cgexec.log import logger
from cgexec.pipeline.hooks import weakly
from cgexec.pipeline.schedules import Schedule
from cgexec.pipeline.snapshot_format import SnapshotError
from cgexec.pipeline.snapshots import Archive, PipelineSnapshots, run_to_resume, written
from cgexec.pipeline.standing import Place, Standing
from cgexec.pipeline.training import StageMethods, TrainingStep
from cgexec.settings import FROM_CALL, FROM_CONFIG, check_limit, check_wait
from cgexec.status import ExecutionInfo, JobError, JobFailed, JobPreempted, JobStatus, JobSucceeded
from cgexec.topology import HostInfo

T = TypeVar("T")

_logger = logger(__name__)

_FORGET_S = 1.0  # for the stages to let go of snapshots, at the end
_NOT_YET = (GraphState.BROKEN, GraphState.REBUILDING)
_ENDED = (GraphState.FAILED, GraphState.CLOSED)


class _Running(NamedTuple):
    """An execution, the step that it runs, and where the stages stood as it was sent."""

    execution: Execution
    step: int
    place: Place


class PipelineTrainer:
    """Runs training steps over stages, one after the other. For one thread at a time; also a context manager.

    Args:
        stages: a ``HostGroup`` or a list of actor handles, one for each host of the schedule.
        schedule, num_microbatches, methods: see ``TrainingStep``.
        snapshots: how the state of the stages is kept. One is taken before the first step.
        resume: whether to go on with the training whose snapshots are in ``snapshots.directory``, from the last step of
            which there is one of every stage. Without it the directory has to be without snapshots.
        max_losses: how often the graph may be rebuilt while one ``step`` is asked for, before that answers with the
            status of the execution that was lost.
        config, policy, name: of the graph; ``fail_fast`` is False, whatever is said. ``policy.replace`` says where a
            new host comes from: without it the graph fails when one is lost. A new host has the state of a snapshot
            before it does anything; behind that ``policy.on_rebuild`` runs. ``policy.hook_timeout_s`` bounds both, and
            should be more than ``snapshots.timeout_s``.

    Raises:
        ValueError, GraphSpecError: as ``GraphExecutor``; ``retry_preempted`` is refused, since steps change the stages;
            the stages have no methods to get and set their state.
        SnapshotError: there is nothing to resume from, or something in the way.
        Exception: whatever a stage's ``get_state`` raised; a stage died, and was not replaced.
    """

    def __init__(
        self,
        stages: HostGroup | Sequence[Any],
        schedule: Schedule,
        num_microbatches: int,
        *,
        snapshots: PipelineSnapshots,
        methods: StageMethods | None = None,
        resume: bool = False,
        max_losses: int = 3,
        config: GraphConfig | None = None,
        policy: RebuildPolicy | None = None,
        name: str = "training",
    ) -> None:
        config, policy = config or GraphConfig(), policy or RebuildPolicy()
        if config.retry_preempted:
            raise ValueError(
                f"retry_preempted={config.retry_preempted} (from {FROM_CONFIG}) is not usable here: a step changes the "
                "stages; the trainer itself runs again what was lost, from a snapshot"
            )
        if resume and snapshots.directory is None:
            raise ValueError("resume=True is not usable without PipelineSnapshots(directory=...)")
        self._max_losses = check_limit("max_losses", max_losses, "PipelineTrainer")
        self._build = TrainingStep(schedule, len(stages), num_microbatches, methods)
        self._name = name
        self._snapshots = snapshots
        self._run = uuid.uuid4().hex  # of those that are kept of this training, unless it goes on with another
        self._then = policy.on_rebuild
        self._standing = Standing(snapshots.num_kept)
        self._inputs: dict[int, Sequence[Any]] = {}  # of the steps since the oldest snapshot, and of the one under way
        self._steps_done = 0
        self._asked_for: int | None = None  # the step that is under way
        self._running: _Running | None = None
        self._unsure = False  # whether an execution may be under way that is not known of: Ctrl-C came in between
        # A step that has failed is over when every host has done with it: an update that comes after the stages were
        # brought back would change them once more.
        config, hook = replace(config, fail_fast=False), weakly(self._rebuilt)
        self.graph = GraphExecutor(
            stages, self._build, name=name, kind="training", config=config, policy=replace(policy, on_rebuild=hook)
        )
        try:
            self._survive(lambda: self._begin(resume))
        except BaseException:
            self.graph.close()
            raise

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _begin(self, resume: bool) -> None:
        actors = self.graph.actors
        num_hosts, num_stages = len(actors), len(actors) * self._build.schedule.stages_per_host
        for host, actor in enumerate(actors):
            for name in (self._snapshots.get_state, self._snapshots.set_state):
                if getattr(actor, name, None) is None:
                    raise GraphSpecError(f"host {host} ({actor!r}) has no method {name!r}, to keep its state with")
        found = {label for label in written(self._snapshots, actors) if resume or label.run != self._run}
        if found and not resume:
            raise SnapshotError(
                f"{self._snapshots.directory} has snapshots of a training: go on with that by resume=True, or take "
                "another directory"
            )
        if not resume:
            self._standing.begin(Archive(self._snapshots, self._run, num_hosts, num_stages), actors)
            return
        self._run, steps = run_to_resume(found, num_hosts, num_stages)
        archive = Archive(self._snapshots, self._run, num_hosts, num_stages)
        self._steps_done = self._standing.resume(archive, actors, steps)

    def _survive(self, call: Callable[[], T]) -> T:
        """Return what ``call()`` does, called again if a host is lost in it and the graph is rebuilt."""
        num_lost = 0
        while True:
            generation = self.graph.generation
            try:
                return call()
            except RayActorError:
                deadline = Deadline.after(self._snapshots.timeout_s)
                if num_lost == self._max_losses or not self._is_back(generation, deadline):
                    raise
                num_lost += 1

    @property
    def steps_done(self) -> int:
        """How many steps have been done, those before a resumption included; ``settle`` says where the stages stand."""
        return self._steps_done

    @property
    def snapshot_error(self) -> Exception | None:
        """Why the last snapshot could not be taken; None if it could. Inputs are kept from the last good one on."""
        return self._standing.snapshot_error

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self, microbatches: Sequence[Any], targets: Sequence[Any], timeout_s: float | None = None) -> JobStatus:
        """Run one step; the result of a JobSucceeded is a ``StepResult``.

        When a host is lost, every stage is brought back to the last snapshot, and what came after it is run again, this
        step included. When ``timeout_s`` has passed (None: the graph's get timeout; beyond it, as long as taking a
        snapshot or bringing the stages back takes, which ``snapshots.timeout_s`` bounds) the answer is a JobError with
        ``info.state == "pending"``, and ``wait`` goes on. After any other answer but JobSucceeded the step has not been
        done, and the next one begins where this one did; until then, or until ``settle``, the stages may be anywhere.

        Raises:
            ValueError: there are not as many microbatches or targets as the graph is for.
            CgexecError: a step is under way, see ``wait``.
            GraphClosedError: the trainer, or its graph, was closed.
        """
        self._check_idle()
        deadline = self._deadline(timeout_s)
        arguments = self._build.arguments(microbatches, targets, self._steps_done)
        try:
            kept, _ = kept_inputs(arguments, {})
        except TypeError as error:
            return JobFailed(self._unsent("failed"), error)
        self._inputs[self._steps_done] = kept
        self._asked_for = self._steps_done
        return self._answer(self._asked_for, deadline)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait on for a step whose answer was pending, or that Ctrl-C broke off; answers as ``step``.

        Raises:
            CgexecError: no step is under way.
        """
        if self._asked_for is None:
            raise CgexecError("no step is under way")
        return self._answer(self._asked_for, self._deadline(timeout_s))

    def settle(self, timeout_s: float | None = None) -> bool:
        """Bring the stages to where ``steps_done`` says; returns whether they stand there, False if time has run out.

        They do not stand there after a loss or a step that failed.

        Raises:
            CgexecError: a step is under way, see ``wait``; or the graph has failed, or a step that is run again does.
        """
        return self._settled(self._deadline(timeout_s))

    def _settled(self, deadline: Deadline) -> bool:
        self._check_idle()
        status = self._advance(self._steps_done, deadline)
        if status is not None and _info(status).state == "pending":
            return False
        self._clear()
        if status is None or isinstance(status, JobSucceeded):
            return True
        raise CgexecError(f"the stages cannot be brought to step {self._steps_done}: {status}")

    def states(self, timeout_s: float | None = None) -> list[Any]:
        """Return what ``get_state`` of each stage returns where ``steps_done`` says, in host order.

        Raises:
            CgexecError: as ``settle``, and if that ran out of time.
            Exception: whatever kept a stage from answering.
        """
        deadline = self._deadline(timeout_s)

        def ask() -> list[Any]:
            self._settle_by(deadline)
            return self._standing.states(self._snapshots.get_state, deadline)

        return self._survive(ask)

    def snapshot(self, timeout_s: float | None = None) -> None:
        """Take a snapshot where ``steps_done`` says.

        Raises:
            CgexecError: as ``states``.
            Exception: whatever kept a stage from it.
        """
        deadline = self._deadline(timeout_s)

        def take() -> None:
            self._settle_by(deadline)
            self._take(self._steps_done, self._standing.place.epoch)
            if self.snapshot_error is not None:
                raise self.snapshot_error

        self._survive(take)

    def _check_idle(self) -> None:
        if self._asked_for is not None:
            raise CgexecError(f"step {self._asked_for} is under way: wait() for it")

    def _settle_by(self, deadline: Deadline) -> None:
        if not self._settled(deadline):
            raise CgexecError(f"the stages do not stand at step {self._steps_done} yet")

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is None:
            return Deadline.after(self.graph.timeouts.get_timeout_s.value)
        return Deadline.after(check_wait("timeout_s", timeout_s, FROM_CALL))

    def _answer(self, asked_for: int, deadline: Deadline) -> JobStatus:
        status = self._advance(asked_for + 1, deadline)
        if status is None or _info(status).state == "pending":
            return status or self._pending()
        if isinstance(status, JobSucceeded):
            status = JobSucceeded(status.info, self._build.result(cast("Sequence[Any]", status.result)))
        else:
            self._inputs.pop(asked_for, None)
        self._running, self._unsure, self._asked_for = None, False, None
        return status

    def _clear(self) -> None:
        """Have done with an execution. Until then whatever is known of it is still there, should Ctrl-C come."""
        self._running, self._unsure = None, False

    def _advance(self, target: int, deadline: Deadline) -> JobStatus | None:
        """Run what is left until ``target`` steps have been done; returns the last status, None if nothing is left.

        One that is pending has not come to an end; any other but JobSucceeded is what kept it from getting there.
        """
        num_lost = 0
        while True:
            if self._running is None:
                if not self._is_ready(deadline):
                    return self._pending()
                step = self._first_to_run(target)
                if step == target:
                    return None
                self._unsure = True
                self._running = _Running(self.graph.submit(*self._arguments(step)), step, self._standing.place)
            running = self._running
            status = running.execution.status(-1 if deadline.wait_s() is None else deadline.remaining_s())
            if _info(status).state == "pending":
                return status
            epoch = self._epoch_of(running, status)
            if isinstance(status, JobSucceeded):
                if epoch is not None:
                    self._keep(running.step + 1, epoch)
                    if running.step + 1 == target:
                        return status
            elif self._was_lost(status):
                if num_lost == self._max_losses or not self._is_back(_info(status).generation, deadline):
                    return status
                num_lost += 1
            elif epoch is not None:
                return status
            self._clear()

    def _first_to_run(self, target: int) -> int:
        """Return the step that the state of the stages asks for, when they have been brought back if need be."""
        if self._unsure:
            with suppress(GraphFailedError):  # which the step will answer with
                self.graph.rebuild()
            self._unsure = False
        elif self._standing.place.step is None:
            try:
                self._standing.bring_back()
            except Exception:
                _logger.warning("the stages could not be brought back; building the graph anew", exc_info=True)
                with suppress(GraphFailedError):
                    self.graph.rebuild()
        step = self._standing.place.step
        return max(0, target - 1) if step is None else step

    def _arguments(self, step: int) -> Sequence[Any]:
        nothing = [None] * self._build.num_microbatches  # for a graph that has failed
        return self._inputs.get(step) or self._build.arguments(nothing, nothing)

    def _epoch_of(self, running: _Running, status: JobStatus) -> int | None:
        """Return when the stages ran what they were to run; None if that came in between of something."""
        if not _info(status).attempts:
            return running.place.epoch  # nothing was sent
        well = isinstance(status, JobSucceeded)
        return self._standing.ran(running.place, _info(status).generation, running.step, well)

    def _was_lost(self, status: JobStatus) -> bool:
        """Return whether a status says that the graph had, or has, to be rebuilt."""
        rebuilt = self.graph.state in _NOT_YET or self.graph.generation > _info(status).generation
        return isinstance(status, JobPreempted) or (isinstance(status, JobError) and rebuilt)

    def _is_ready(self, deadline: Deadline) -> bool:
        return self._standing.wait_while(lambda: self.graph.state in _NOT_YET, deadline)

    def _is_back(self, lost_generation: int, deadline: Deadline) -> bool:
        """Wait for the graph to have been rebuilt, and return whether it was."""

        def is_down() -> bool:
            return self._standing.place.generation <= lost_generation or self.graph.state in _NOT_YET

        return (
            self._standing.wait_while(lambda: is_down() and self.graph.state not in _ENDED, deadline) and not is_down()
        )

    def _pending(self) -> JobStatus:
        text = f"{self.graph!r} is being rebuilt; wait() goes on with step {self._asked_for}"
        return JobError(self._unsent("pending"), RayChannelTimeoutError(text))

    def _unsent(self, state: str) -> ExecutionInfo:
        return ExecutionInfo(self._name, state, "training", generation=self.graph.generation)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _keep(self, step: int, epoch: int) -> None:
        """Note that so many steps have been done, and take a snapshot if it is time."""
        self._steps_done = max(self._steps_done, step)
        if step % self._snapshots.every == 0:
            self._take(step, epoch)

    def _take(self, step: int, epoch: int) -> None:
        oldest = self._standing.take(step, epoch)
        for old in [each for each in self._inputs if each < oldest]:
            del self._inputs[old]

    def _rebuilt(self, generation: int, infos: Sequence[HostInfo], actors: Sequence[Any]) -> None:
        """Bring the stages back. Called on the graph's thread for hooks."""
        self._standing.rebuilt(generation, actors)
        if self._then is not None:
            self._then(generation, infos, actors)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self, timeout_s: float | None = None) -> None:
        """Close the graph; see ``GraphExecutor.close``. The stages stay as they are, less their snapshots in memory."""
        self.graph.close(timeout_s)
        with suppress(Exception):  # they may have died, or Ray have ended
            self._standing.forget(_FORGET_S)

    def __enter__(self) -> PipelineTrainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PipelineTrainer of {self.graph!r}, {self._steps_done} steps done>"


def _info(status: JobStatus) -> ExecutionInfo:
    return cast("ExecutionInfo", status.info)
