"""Steps on stages that may be lost at any moment: run, and run again, until so many have been done.

The inputs of a step are kept until there is a snapshot behind it. Whatever is begun is noted before, and done with once
it has been seen to: Ctrl-C may come between any two lines, and ``wait`` then goes on from what is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from ray.exceptions import RayActorError, RayChannelTimeoutError

from cgexec.deadline import Deadline
from cgexec.errors import CgexecError, GraphFailedError
from cgexec.execution import Execution
from cgexec.executor import GraphExecutor
from cgexec.lifecycle import GraphState
from cgexec.log import logger
from cgexec.pipeline.snapshots import PipelineSnapshots
from cgexec.pipeline.standing import OvertakenError, Place, Standing
from cgexec.pipeline.training import TrainingStep
from cgexec.status import ExecutionInfo, JobError, JobPreempted, JobStatus, JobSucceeded

T = TypeVar("T")

_logger = logger(__name__)

_NOT_YET = (GraphState.BROKEN, GraphState.REBUILDING)
_ENDED = (GraphState.FAILED, GraphState.CLOSED)


class _Running(NamedTuple):
    """An execution, the step that it runs, and where the stages stood as it was sent."""

    execution: Execution
    step: int
    place: Place


class Progress:
    """How far a training has come, and what takes it further. For one thread at a time.

    ``inputs`` holds those of the steps since the oldest snapshot, and of the one that is under way, ``asked_for``.
    """

    def __init__(
        self,
        graph: GraphExecutor,
        build: TrainingStep,
        snapshots: PipelineSnapshots,
        standing: Standing,
        name: str,
        max_losses: int,
    ) -> None:
        self.steps_done = 0
        self.asked_for: int | None = None
        self.inputs: dict[int, Sequence[Any]] = {}
        self._graph = graph
        self._build = build
        self._snapshots = snapshots
        self._standing = standing
        self._name = name
        self._max_losses = max_losses
        self._running: _Running | None = None
        self._unsure = False  # whether an execution may be under way that is not known of: Ctrl-C came in between
        self._num_lost = 0  # since a step was asked for, or the stages were to be settled

    def survive(self, call: Callable[[], T], deadline: Deadline) -> T:
        """Return what ``call()`` does, called again if a host is lost in it and the graph is rebuilt in time."""
        num_lost = 0
        while True:
            generation = self._graph.generation
            try:
                return call()
            except (RayActorError, OvertakenError) as error:
                if num_lost == self._max_losses:
                    raise
                if not self._is_back(generation, deadline):
                    ended = self._graph.state in _ENDED
                    how = "has ended" if ended else "is being rebuilt still"
                    reason = (self._graph.failure if ended else None) or error
                    raise CgexecError(f"the stages cannot be asked: {self._graph!r} {how}: {reason}") from reason
                num_lost += 1

    def begin(self, inputs: Sequence[Any], deadline: Deadline) -> JobStatus:
        """Run the next step; as ``answer``."""
        self._num_lost = 0
        self.inputs[self.steps_done] = inputs
        self.asked_for = self.steps_done
        return self.answer(self.asked_for, deadline)

    def answer(self, asked_for: int, deadline: Deadline) -> JobStatus:
        """Return the status of the step that is under way, or one that is pending."""
        status = self._advance(asked_for + 1, deadline)
        if status is None or info_of(status).state == "pending":
            return status or self._pending()
        if isinstance(status, JobSucceeded):
            status = JobSucceeded(status.info, self._build.result(cast("Sequence[Any]", status.result)))
        else:
            self.inputs.pop(asked_for, None)
        self._running, self._unsure, self.asked_for = None, False, None
        return status

    def settle(self, deadline: Deadline) -> Place | None:
        """Bring the stages to where ``steps_done`` says; returns how they stand there, None if time has run out.

        Raises:
            CgexecError: the graph has failed, or a step that is run again does.
        """
        self._num_lost = 0
        while True:
            status = self._advance(self.steps_done, deadline)
            if status is not None and info_of(status).state == "pending":
                return None
            self._clear()
            if status is not None and not isinstance(status, JobSucceeded):
                raise CgexecError(f"the stages cannot be brought to step {self.steps_done}: {status}")
            place = self._standing.place
            if place.step == self.steps_done:
                return place

    def take(self, step: int, epoch: int) -> None:
        """Take a snapshot of so many steps; a failure is noted as ``snapshot_error``."""
        oldest = self._standing.take(step, epoch)
        for old in [each for each in self.inputs if each < oldest]:
            del self.inputs[old]

    def unsent(self, state: str) -> ExecutionInfo:
        """Return the info of a step of which nothing has been sent."""
        return ExecutionInfo(self._name, state, "training", generation=self._graph.generation)

    def _clear(self) -> None:
        """Have done with an execution. Until then whatever is known of it is still there, should Ctrl-C come."""
        self._running, self._unsure = None, False

    def _advance(self, target: int, deadline: Deadline) -> JobStatus | None:
        """Run what is left until ``target`` steps have been done; returns the last status, None if nothing is left.

        One that is pending has not come to an end; any other but JobSucceeded is what kept it from getting there.
        """
        while True:
            if self._running is None:
                if not self._is_ready(deadline):
                    return self._pending()
                step = self._first_to_run()
                if step == target:
                    return None
                if step is None and self._graph.state not in _ENDED:  # they are being brought back just now
                    if deadline.remaining_s() == 0:
                        return self._pending()
                    continue
                if step is None:
                    step = max(0, target - 1)  # which is answered with what the graph has failed of
                self._unsure = True
                self._running = _Running(self._graph.submit(*self._arguments(step)), step, self._standing.place)
            running = self._running
            status = running.execution.status(-1 if deadline.wait_s() is None else deadline.remaining_s())
            if info_of(status).state == "pending":
                return status
            if isinstance(status, JobSucceeded) and running.step == self.asked_for and target <= self.steps_done:
                return status  # this has been noted before: Ctrl-C came behind it
            epoch = self._epoch_of(running, status)
            if isinstance(status, JobSucceeded):
                if epoch is not None:
                    self._keep(running.step + 1, epoch)
                    if running.step + 1 == target:
                        return status
            elif self._was_lost(status):
                if self._num_lost == self._max_losses:
                    return status
                if not self._is_back(info_of(status).generation, deadline):
                    return status if self._graph.state in _ENDED else self._pending()
                self._num_lost += 1
            elif epoch is not None:
                return status
            self._clear()
            if deadline.remaining_s() == 0:
                return self._pending()

    def _first_to_run(self) -> int | None:
        """Return the step that the state of the stages asks for, when they have been brought back if need be.

        None if the graph has ended, or is rebuilt once more.
        """
        if self._graph.state in _ENDED:
            return None
        if self._unsure:
            with suppress(GraphFailedError):
                self._graph.rebuild()
            self._unsure = False
        elif self._standing.place.step is None:
            try:
                self._standing.bring_back()
            except Exception:
                _logger.warning("the stages could not be brought back; building the graph anew", exc_info=True)
                with suppress(GraphFailedError):
                    self._graph.rebuild()
        return self._standing.place.step

    def _arguments(self, step: int) -> Sequence[Any]:
        nothing = [None] * self._build.num_microbatches  # for a graph that has failed
        return self.inputs.get(step) or self._build.arguments(nothing, nothing)

    def _epoch_of(self, running: _Running, status: JobStatus) -> int | None:
        """Return when the stages ran what they were to run; None if that came in between of something."""
        if not info_of(status).attempts:
            return running.place.epoch  # nothing was sent
        well = isinstance(status, JobSucceeded)
        generation = info_of(status).generation
        return self._standing.ran(running.execution, running.place, generation, running.step, well)

    def _was_lost(self, status: JobStatus) -> bool:
        """Return whether a status says that the graph had, or has, to be rebuilt."""
        if isinstance(status, JobError):
            was_sent = info_of(status).attempts > 0
            return self._graph.state in _NOT_YET or (was_sent and self._graph.generation > info_of(status).generation)
        return isinstance(status, JobPreempted)

    def _is_ready(self, deadline: Deadline) -> bool:
        return self._standing.wait_while(lambda: self._graph.state in _NOT_YET, deadline)

    def _is_back(self, lost_generation: int, deadline: Deadline) -> bool:
        """Wait for the graph to have been rebuilt, and return whether it was."""

        def is_down() -> bool:
            return self._standing.place.generation <= lost_generation or self._graph.state in _NOT_YET

        return (
            self._standing.wait_while(lambda: is_down() and self._graph.state not in _ENDED, deadline) and not is_down()
        )

    def _pending(self) -> JobStatus:
        text = f"{self._graph!r} is being rebuilt; wait() goes on with step {self.asked_for}"
        return JobError(self.unsent("pending"), RayChannelTimeoutError(text))

    def _keep(self, step: int, epoch: int) -> None:
        """Note that so many steps have been done, and take a snapshot if it is time."""
        self.steps_done = max(self.steps_done, step)
        if step % self._snapshots.every == 0:
            self.take(step, epoch)


def info_of(status: JobStatus) -> ExecutionInfo:
    """Return the info of a status of a graph, which always has one."""
    return cast("ExecutionInfo", status.info)
