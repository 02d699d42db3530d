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

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, cast

from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.deadline import Deadline
from cgexec.engine.values import kept_inputs
from cgexec.errors import CgexecError, GraphFailedError
from cgexec.execution import Execution
from cgexec.executor import GraphExecutor
from cgexec.hosts import HostGroup
from cgexec.lifecycle import GraphState
from cgexec.log import logger
from cgexec.pipeline.schedules import Schedule
from cgexec.pipeline.snapshot_format import SnapshotError
from cgexec.pipeline.snapshots import PipelineSnapshots, bring_back, steps_kept, take_all
from cgexec.pipeline.training import StageMethods, TrainingStep
from cgexec.settings import FROM_CONFIG, check_count
from cgexec.status import ExecutionInfo, JobPreempted, JobStatus, JobSucceeded
from cgexec.topology import HostInfo

_logger = logger(__name__)

_LOOK_S = 0.01  # while a graph is rebuilt, for it to be ready or to have failed
_NOT_YET = (GraphState.BROKEN, GraphState.REBUILDING)
_ENDED = (GraphState.FAILED, GraphState.CLOSED)


class _Place(NamedTuple):
    """Where the stages stand: in which generation of the graph, and how many steps their state has seen.

    None for a state that no number of steps comes to: some stages have done a part of a step, or one that was not due.
    """

    generation: int
    step: int | None


class _Running(NamedTuple):
    """An execution, and the step that it runs."""

    execution: Execution
    step: int


class PipelineTrainer:
    """Runs training steps over stages, one after the other. For one thread at a time; also a context manager.

    Args:
        stages: a ``HostGroup`` or a list of actor handles, one for each host of the schedule.
        schedule, num_microbatches, methods: see ``TrainingStep``.
        snapshots: how the state of the stages is kept. One is taken before the first step.
        resume: whether to begin with the last step of which ``snapshots.directory`` has every stage.
        max_losses: how often hosts may be lost while one ``step`` is asked for, before it answers JobPreempted.
        config, policy, name: of the graph; ``fail_fast`` is False, whatever is said. ``policy.replace`` says where a
            new host comes from: without it the graph fails when one is lost. A new host has the state of a snapshot
            before it does anything; behind that ``policy.on_rebuild`` runs, and ``policy.hook_timeout_s`` bounds both.

    Raises:
        ValueError, GraphSpecError: as ``GraphExecutor``; ``retry_preempted`` is refused, since steps change the stages.
        SnapshotError: there is nothing to resume from.
        Exception: whatever a stage's ``get_state`` raised.
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
        self._max_losses = check_count("max_losses", max_losses, "PipelineTrainer")
        self._build = TrainingStep(schedule, len(stages), num_microbatches, methods)
        self._snapshots = snapshots
        self._then = policy.on_rebuild
        self._bringing_back = threading.Lock()  # by the graph's hook, or by us
        self._changed = threading.Condition()  # guards the next four, and is told when the stages were brought back
        self._place = _Place(0, 0)
        self._taken: list[int] = []  # the steps of which there is a snapshot
        self._epoch = 0  # counts how often the stages were brought back
        self._actors: Sequence[Any] = ()
        self._inputs: dict[int, Sequence[Any]] = {}  # of the steps since the oldest snapshot, and of the one under way
        self._steps_done = 0
        self._running: _Running | None = None
        self._snapshot_error: Exception | None = None
        # A step that has failed is over when every host has done with it: an update that comes after the stages were
        # brought back would change them once more.
        config, hook = replace(config, fail_fast=False), _weakly(self._rebuilt)
        self.graph = GraphExecutor(
            stages, self._build, name=name, kind="training", config=config, policy=replace(policy, on_rebuild=hook)
        )
        try:
            self._begin(resume)
        except BaseException:
            self.graph.close()
            raise

    def _begin(self, resume: bool) -> None:
        with self._changed:
            self._actors = self._actors or self.graph.actors  # unless a host was lost and replaced already
        if not resume:
            take_all(self._snapshots, self._actors, self._epoch, 0)
            self._taken = [0]
            return
        steps = steps_kept(self._snapshots, self._actors)
        if not steps:
            raise SnapshotError(f"{self._snapshots.directory} has no step of which every stage has a snapshot")
        with self._changed:
            self._taken, self._place = sorted(steps), _Place(self._place.generation, None)
        self._bring_back()
        self._steps_done = self._place.step or 0

    @property
    def steps_done(self) -> int:
        """How many steps have been done, those before a resumption included: the number of the next one."""
        return self._steps_done

    @property
    def snapshot_error(self) -> Exception | None:
        """Why the last snapshot could not be taken; None if it could. Inputs are kept from the last good one on."""
        return self._snapshot_error

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self, microbatches: Sequence[Any], targets: Sequence[Any], timeout_s: float | None = None) -> JobStatus:
        """Run one step; the result of a JobSucceeded is a ``StepResult``.

        When a host is lost, every stage is brought back to the last snapshot, and what came after it is run again, this
        step included. When ``timeout_s`` has passed (None: the graph's get timeout) the answer is a JobError with
        ``info.state == "pending"``, and ``wait`` goes on. After any other answer but JobSucceeded the step has not been
        done: the next one begins where this one did.

        Raises:
            ValueError: there are not as many microbatches or targets as the graph is for.
            CgexecError: a step is under way, see ``wait``.
        """
        if self._running is not None:
            raise CgexecError(f"step {self._steps_done} is under way: wait() for it")
        arguments = self._build.arguments(microbatches, targets, self._steps_done)
        try:
            self._inputs[self._steps_done], _ = kept_inputs(arguments, {})
        except TypeError:
            return self.graph.execute(*arguments)  # which says what is wrong with it, and sends nothing
        return self._go_on(timeout_s)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait on for a step whose answer was pending; answers as ``step``. Raises CgexecError if there is none."""
        if self._running is None:
            raise CgexecError("no step is under way")
        return self._go_on(timeout_s)

    def _go_on(self, timeout_s: float | None) -> JobStatus:
        deadline = Deadline.after(self.graph.timeouts.get_timeout_s.value if timeout_s is None else timeout_s)
        asked_for, num_lost = self._steps_done, 0
        while True:
            if self._running is None:
                step = self._next(deadline)
                self._running = _Running(self.graph.submit(*self._inputs[step]), step)
            execution, step = self._running
            status = execution.status(-1 if deadline.wait_s() is None else deadline.remaining_s())
            if _info(status).state == "pending":
                return status
            self._running = None
            stood_there = self._ran(_info(status), step, isinstance(status, JobSucceeded))
            if isinstance(status, JobSucceeded):
                if stood_there:
                    self._keep(step + 1)
                if self._steps_done > asked_for:
                    return JobSucceeded(status.info, self._build.result(cast("Sequence[Any]", status.result)))
            elif isinstance(status, JobPreempted) and num_lost < self._max_losses and self._is_back(status, deadline):
                num_lost += 1
            elif stood_there or isinstance(status, JobPreempted):
                del self._inputs[asked_for]
                return status

    def _next(self, deadline: Deadline) -> int:
        """Return the step that the state of the stages asks for: the one asked for, or one before it."""
        with self._changed:
            while self.graph.state in _NOT_YET and deadline.remaining_s() > 0:
                self._changed.wait(deadline.slice_s(_LOOK_S))
        if self._place.step is None:
            try:
                self._bring_back()
            except Exception:
                _logger.warning("the stages could not be brought back; building the graph anew", exc_info=True)
                with suppress(GraphFailedError):  # which the step will answer with
                    self.graph.rebuild()
        step = self._place.step
        return self._steps_done if step is None else step

    def _ran(self, info: ExecutionInfo, step: int, well: bool) -> bool:
        """Note where the stages stand behind an execution; returns whether that was the step which was due.

        A host may have been lost between the look at where the stages stand and the execution, which then ran on stages
        that had been brought back to an earlier step: it says nothing. Or right behind it: then it does not count.
        """
        if not info.attempts:
            return True  # nothing was sent
        with self._changed:
            if self._place.generation != info.generation:
                return False
            stood_there = self._place.step == step
            self._place = _Place(info.generation, step + 1 if stood_there and well else None)
            return stood_there

    def _is_back(self, lost: JobStatus, deadline: Deadline) -> bool:
        """Wait for the graph to be rebuilt, and return whether it was."""
        with self._changed:
            while self._place.generation <= _info(lost).generation:
                if self.graph.state in _ENDED or deadline.remaining_s() == 0:
                    return False
                self._changed.wait(deadline.slice_s(_LOOK_S))
        return True

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _keep(self, step: int) -> None:
        """Note that so many steps have been done, and take a snapshot if it is time."""
        self._steps_done = max(self._steps_done, step)
        if step % self._snapshots.every:
            return
        with self._changed:
            epoch, actors = self._epoch, self._actors
        try:
            take_all(self._snapshots, actors, epoch, step)
        except Exception as error:
            self._snapshot_error = error
            _logger.warning("no snapshot could be taken of step %d", step, exc_info=True)
            return
        self._snapshot_error = None
        with self._changed:
            if epoch == self._epoch:
                self._taken = sorted({*self._taken, step})[-self._snapshots.num_kept :]
            for old in [each for each in self._inputs if each < self._taken[0]]:
                del self._inputs[old]

    def _rebuilt(self, generation: int, infos: Sequence[HostInfo], actors: Sequence[Any]) -> None:
        """Bring the stages back, before anything is run on a new generation. On the graph's thread for hooks."""
        with self._bringing_back:
            step = self._set_back(actors)
            with self._changed:
                self._place, self._actors = _Place(generation, step), actors
                self._changed.notify_all()
        if self._then is not None:
            self._then(generation, infos, actors)

    def _bring_back(self) -> None:
        """Bring the stages back in the midst of a generation, unless the hook has just done so."""
        with self._bringing_back:
            place, actors = self._place, self._actors
            if place.step is None:
                step = self._set_back(actors)
                with self._changed:
                    self._place = _Place(place.generation, step)

    def _set_back(self, actors: Sequence[Any]) -> int:
        with self._changed:
            self._epoch += 1
            epoch, steps = self._epoch, self._taken
        if not steps:
            return 0  # the first snapshot has not been taken: nothing has run, and a new host is as good as an old one
        step = bring_back(self._snapshots, actors, epoch, steps)
        with self._changed:
            self._taken = [each for each in steps if each <= step]
        return step

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self, timeout_s: float | None = None) -> None:
        """Close the graph; see ``GraphExecutor.close``. The stages stay as they are."""
        self.graph.close(timeout_s)

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


def _weakly(method: Callable[..., object]) -> Callable[[int, Sequence[HostInfo], Sequence[Any]], None]:
    """Return a hook that does not keep its object alive: a trainer that is forgotten is closed, with its graph."""
    weak = weakref.WeakMethod(method)

    def hook(generation: int, infos: Sequence[HostInfo], actors: Sequence[Any]) -> None:
        strong = weak()
        if strong is not None:
            strong(generation, infos, actors)

    return hook
