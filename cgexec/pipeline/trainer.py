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

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from ray.exceptions import RayActorError

from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.deadline import Deadline
from cgexec.engine.values import kept_inputs
from cgexec.errors import CgexecError, GraphClosedError, GraphSpecError
from cgexec.executor import GraphExecutor, close_timeout_s
from cgexec.hosts import HostGroup
from cgexec.lifecycle import GraphState
from cgexec.pipeline.hooks import weakly
from cgexec.pipeline.keeping import Session
from cgexec.pipeline.progress import Progress
from cgexec.pipeline.schedules import Schedule
from cgexec.pipeline.snapshot_format import SnapshotError
from cgexec.pipeline.snapshots import LET_GO_S, Archive, PipelineSnapshots, session_to_resume, written
from cgexec.pipeline.standing import Place, Standing
from cgexec.pipeline.training import StageMethods, TrainingStep
from cgexec.settings import FROM_CALL, FROM_CONFIG, check_kind, check_limit, check_wait
from cgexec.status import JobFailed, JobStatus
from cgexec.topology import HostInfo

_FROM = "PipelineTrainer"


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
            before it does anything; behind that ``policy.on_rebuild`` runs. ``policy.hook_timeout_s`` is for that; what
            bringing the stages back may take, three times ``snapshots.timeout_s``, is added to it.

    Raises:
        ValueError, GraphSpecError: as ``GraphExecutor``; ``retry_preempted`` is refused, since steps change the stages;
            the stages have no methods to get and set their state.
        SnapshotError: there is nothing to resume from, or something in the way; a stage died before there was a
            snapshot of all, from which a new one could have had what this one had been given.
        Exception: whatever a stage's ``get_state`` or ``set_state`` raised; a stage died, and was not replaced.
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
        check_kind("snapshots", snapshots, _FROM, PipelineSnapshots)
        check_kind("config", config, _FROM, GraphConfig)
        check_kind("policy", policy, _FROM, RebuildPolicy)
        if config.retry_preempted:
            raise ValueError(
                f"retry_preempted={config.retry_preempted} (from {FROM_CONFIG}) is not usable here: a step changes the "
                "stages; the trainer itself runs again what was lost, from a snapshot"
            )
        if resume and snapshots.directory is None:
            raise ValueError("resume=True is not usable without PipelineSnapshots(directory=...)")
        check_limit("max_losses", max_losses, _FROM)
        self._build = TrainingStep(schedule, len(stages), num_microbatches, methods)
        self._snapshots = snapshots
        self._then = policy.on_rebuild
        self._standing = standing = Standing(snapshots.num_kept, may_begin_anew=resume)
        # A step that has failed is over when every host has done with it: an update that comes after the stages were
        # brought back would change them once more.
        config = replace(config, fail_fast=False)
        hook_timeout_s = policy.hook_timeout_s + 3 * snapshots.timeout_s  # what is late, bringing back, keeping again
        policy = replace(policy, on_rebuild=weakly(self._rebuilt), hook_timeout_s=hook_timeout_s)
        self.graph = GraphExecutor(stages, self._build, name=name, kind="training", config=config, policy=policy)
        self._progress = Progress(self.graph, self._build, snapshots, standing, name, max_losses)
        try:
            if resume:
                self._progress.steps_done = self._progress.survive(self._resume, Deadline.after(-1))
            else:
                self._begin()
        except BaseException:
            self.graph.close()
            raise

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        actors, (num_hosts, num_stages) = self._stages()
        session = Session(uuid.uuid4().hex, time.time_ns())
        try:
            if written(self._snapshots, actors):
                raise SnapshotError(
                    f"{self._snapshots.directory} has snapshots of a training: go on with that by resume=True, or take "
                    "another directory"
                )
            self._standing.begin(Archive(self._snapshots, session, num_hosts, num_stages), actors)
        except RayActorError as error:
            raise SnapshotError(
                f"a stage was lost before there was a snapshot of all, and what it had been given with it ({error}): "
                "make the stages anew"
            ) from error

    def _resume(self) -> int:
        actors, (num_hosts, num_stages) = self._stages()
        found, directory = written(self._snapshots, actors), str(self._snapshots.directory)
        session = session_to_resume(directory, found, num_hosts, num_stages)
        return self._standing.resume(Archive(self._snapshots, session, num_hosts, num_stages), actors, found)

    def _stages(self) -> tuple[Sequence[Any], tuple[int, int]]:
        """Return the actors, and how many hosts and stages there are. Raises GraphSpecError if they lack a method."""
        actors = self.graph.actors
        for host, actor in enumerate(actors):
            for name in (self._snapshots.get_state, self._snapshots.set_state):
                if getattr(actor, name, None) is None:
                    raise GraphSpecError(f"host {host} ({actor!r}) has no method {name!r}, to keep its state with")
        return actors, (len(actors), len(actors) * self._build.schedule.stages_per_host)

    @property
    def steps_done(self) -> int:
        """How many steps have been done, those before a resumption included; ``settle`` says where the stages stand."""
        return self._progress.steps_done

    @property
    def snapshot_error(self) -> Exception | None:
        """Why the last snapshot could not be taken; None if it could. Inputs are kept from the last good one on."""
        return self._standing.snapshot_error

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self, microbatches: Sequence[Any], targets: Sequence[Any], timeout_s: float | None = None) -> JobStatus:
        """Run one step; the result of a JobSucceeded is a ``StepResult``.

        When a host is lost, every stage is brought back to the last snapshot, and what came after it is run again, this
        step included. When ``timeout_s`` has passed (None: the graph's get timeout; beyond it, as long as taking a
        snapshot or bringing the stages back takes, at most three times ``snapshots.timeout_s``) the answer is a
        JobError with ``info.state == "pending"``, and ``wait`` goes on. After any other answer but JobSucceeded the
        step has not been done, and the next one begins where this one did; until then, or until ``settle``, the stages
        may be anywhere.

        Raises:
            ValueError: there are not as many microbatches or targets as the graph is for.
            CgexecError: a step is under way, see ``wait``.
            GraphClosedError: the trainer, or its graph, was closed.
        """
        self._check_idle()
        deadline = self._deadline(timeout_s)
        arguments = self._build.arguments(microbatches, targets, self.steps_done)
        try:
            kept, _ = kept_inputs(arguments, {})
        except TypeError as error:
            return JobFailed(self._progress.unsent("failed"), error)
        return self._progress.begin(kept, deadline)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait on for a step whose answer was pending, or that Ctrl-C broke off; answers as ``step``.

        Raises:
            CgexecError: no step is under way.
            GraphClosedError: the trainer, or its graph, was closed.
        """
        self._check_open()
        if self._progress.asked_for is None:
            raise CgexecError("no step is under way")
        return self._progress.answer(self._progress.asked_for, self._deadline(timeout_s))

    def settle(self, timeout_s: float | None = None) -> bool:
        """Bring the stages to where ``steps_done`` says; returns whether they stand there, False if time has run out.

        They do not stand there after a loss or a step that failed.

        Raises:
            CgexecError: a step is under way, see ``wait``; or the graph has failed, or a step that is run again does.
        """
        self._check_idle()
        return self._progress.settle(self._deadline(timeout_s)) is not None

    def states(self, timeout_s: float | None = None) -> list[Any]:
        """Return what ``get_state`` of each stage returns where ``steps_done`` says, in host order.

        Raises:
            CgexecError: as ``settle``, and if that ran out of time.
            Exception: whatever kept a stage from answering.
        """
        deadline = self._deadline(timeout_s)

        def ask() -> list[Any]:
            place = self._settled_by(deadline)
            return self._standing.states(self._snapshots.get_state, place.epoch, deadline)

        return self._progress.survive(ask, deadline)

    def snapshot(self, timeout_s: float | None = None) -> None:
        """Take a snapshot where ``steps_done`` says.

        Raises:
            CgexecError: as ``states``.
            Exception: whatever kept a stage from it.
        """
        deadline = self._deadline(timeout_s)

        def take() -> None:
            place = self._settled_by(deadline)
            self._progress.take(self.steps_done, place.epoch)
            if self.snapshot_error is not None:
                raise self.snapshot_error

        self._progress.survive(take, deadline)

    def _check_open(self) -> None:
        if self.graph.state is GraphState.CLOSED:
            raise GraphClosedError(f"{self!r} is closed")

    def _check_idle(self) -> None:
        self._check_open()
        if self._progress.asked_for is not None:
            raise CgexecError(f"step {self._progress.asked_for} is under way: wait() for it")

    def _settled_by(self, deadline: Deadline) -> Place:
        self._check_idle()
        place = self._progress.settle(deadline)
        if place is None:
            raise CgexecError(f"the stages do not stand at step {self.steps_done} yet")
        return place

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is None:
            return Deadline.after(self.graph.timeouts.get_timeout_s.value)
        return Deadline.after(check_wait("timeout_s", timeout_s, FROM_CALL))

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
            self._standing.forget(LET_GO_S)

    def __enter__(self) -> PipelineTrainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; without patience if Ctrl-C or the like ends the block."""
        self.close(close_timeout_s(error))

    def __repr__(self) -> str:
        return f"<PipelineTrainer of {self.graph!r}, {self.steps_done} steps done>"
