"""Where the stages of a training stand: how many steps their state has seen, and what brings them to another.

The stages are told apart from what is known of them: a host may be lost, and all be brought back to an earlier step, at
any moment, on another thread. So whatever is done is held against where they stood when it was begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pickle import loads
from typing import Any, NamedTuple

from cgexec.changed import Changed
from cgexec.deadline import Deadline
from cgexec.engine.actor_functions import call, replies
from cgexec.errors import CgexecError, GraphClosedError
from cgexec.log import logger
from cgexec.pipeline.keeping import state_of
from cgexec.pipeline.snapshot_format import Label, SnapshotError
from cgexec.pipeline.snapshots import Archive, raise_first

_logger = logger(__name__)

_LOOK_S = 0.01  # while a graph is rebuilt, for it to be ready or to have failed


class OvertakenError(SnapshotError):
    """The stages were brought back to another step while something was done with them where they had stood."""


class Place(NamedTuple):
    """Where the stages stand: in which generation of the graph, and how many steps their state has seen.

    No number for a state that no number of steps comes to: some stages have done a part of a step, or one that was not
    due. ``epoch`` counts how often they were brought back.
    """

    generation: int
    step: int | None
    epoch: int

    def at(self, step: int | None) -> Place:
        """Return the place with another step."""
        return Place(self.generation, step, self.epoch)

    def behind(self, epoch: int) -> Place:
        """Return the place in another epoch."""
        return Place(self.generation, self.step, epoch)


class Standing:
    """The place of the stages, and the snapshots to bring them back to. May be used from any thread.

    ``changed`` is told when the stages have been brought back. ``may_begin_anew`` says whether the state that they have
    before there is any snapshot is of no account, since they are given another one.
    """

    def __init__(self, num_kept: int, *, may_begin_anew: bool) -> None:
        self.changed = Changed()
        self.place = Place(0, 0, 0)
        self.taken: list[int] = []  # the steps of which there is a snapshot of every stage
        self.actors: Sequence[Any] = ()
        self.snapshot_error: Exception | None = None
        self.archive: Archive | None = None
        self._num_kept = num_kept
        self._may_begin_anew = may_begin_anew
        self._noted: object = None  # the execution that brought the stages to where they stand
        self._bringing_back = threading.Lock()
        self._ended = False

    def begin(self, archive: Archive, actors: Sequence[Any]) -> None:
        """Take the first snapshot."""
        with self._bringing_back:
            archive.begin(actors, self.place.epoch)
            with self.changed:
                self.archive, self.taken, self.actors = archive, [0], actors

    def resume(self, archive: Archive, actors: Sequence[Any], found: Collection[Label]) -> int:
        """Bring the stages to the last step that can be had of what was found in the directory, and return it."""
        with self._bringing_back:
            step = archive.resume(actors, self.place.epoch, found)
            with self.changed:
                self.archive, self.taken, self.actors = archive, [step], actors
                self.place = self.place.at(step)
        return step

    def ran(self, execution: object, sent_from: Place, generation: int, step: int, well: bool) -> int | None:
        """Note where the stages stand behind an execution of ``step``; return their epoch, or None if it says nothing.

        A host may have been lost between the look at where the stages stood and the execution, which then ran on stages
        that had been brought back to another step. Or right behind it: then it does not count. Done twice, it notes the
        same.
        """
        with self.changed:
            place = self.place
            if place.generation != generation:
                return None
            if execution is self._noted and place.step == step + 1:
                return place.epoch
            unchanged = place.epoch == sent_from.epoch or sent_from.generation != generation
            if not unchanged or place.step != step:
                self.place = Place(generation, None, place.epoch)
                return None
            self.place, self._noted = Place(generation, step + 1 if well else None, place.epoch), execution
            return place.epoch

    def take(self, step: int, epoch: int) -> int:
        """Take a snapshot of the stages where they stand, and return the oldest step that there is one of.

        What goes wrong is noted as ``snapshot_error``.
        """
        with self.changed:
            archive, actors, retained = self.archive, self.actors, self.taken
            unchanged = self.place.epoch == epoch
            if unchanged:
                self.place = self.place.at(None)  # until all that is sent to the stages has ended
        failed: Exception | None = None
        overtaken, settled = not unchanged, True
        if unchanged and archive is not None:
            try:
                archive.take(actors, epoch, step, retained)
            except Exception as error:
                failed = error
                _logger.warning("no snapshot could be taken of step %d", step, exc_info=True)
                overtaken, settled = self._bar(archive, actors, epoch)
                epoch += 1
        with self.changed:
            if overtaken or self.place.epoch != epoch:
                self.snapshot_error = OvertakenError(
                    f"the stages were brought back as a snapshot of step {step} was taken"
                )
                return min(self.taken, default=0)
            if settled:
                self.place = self.place.at(step)
            self.snapshot_error = failed
            if failed is None:
                self.taken = sorted({*self.taken, step})[-self._num_kept :]
            return min(self.taken, default=0)

    def _bar(self, archive: Archive, actors: Sequence[Any], epoch: int) -> tuple[bool, bool]:
        """Let nothing that was sent to the stages in this epoch be done from now on, and begin the next.

        Else a snapshot could be taken of a later step, and kept as one of this. Returns whether they have been brought
        back since, which does the same; and if not, whether all have answered: else they are to be brought back before
        anything else is done, which waits for those that have not, or ends.
        """
        with self._bringing_back:
            with self.changed:
                if self.place.epoch != epoch:
                    return True, False
                self.place = self.place.behind(epoch + 1)
            try:
                archive.bar(actors, epoch + 1)
            except Exception:
                _logger.warning("the stages are not known to have done with a snapshot", exc_info=True)
                return False, False
            return False, True

    def wait_while(self, waiting: Callable[[], bool], deadline: Deadline) -> bool:
        """Return whether that came to an end in time. Of a graph's state nobody tells, so it is looked at."""
        with self.changed:
            while waiting():
                if deadline.remaining_s() == 0:
                    return False
                self.changed.wait(deadline.slice_s(_LOOK_S))
        return True

    def rebuilt(self, generation: int, actors: Sequence[Any]) -> None:
        """Bring the stages back before anything is run on a new generation. Raises whatever keeps them from it."""
        with self._bringing_back:
            if generation < self.place.generation:
                raise CgexecError(f"the hook of generation {generation} was overtaken: it had taken too long")
            step, epoch = self._set_back(actors)
            with self.changed:
                self.place = Place(generation, step, epoch)
                self.changed.notify_all()

    def bring_back(self) -> None:
        """Bring the stages back in the midst of a generation, unless that has just been done."""
        with self._bringing_back:
            place, actors = self.place, self.actors
            if place.step is None:
                step, epoch = self._set_back(actors)
                with self.changed:
                    self.place = Place(place.generation, step, epoch)

    def _set_back(self, actors: Sequence[Any]) -> tuple[int | None, int]:
        """Return the step that the stages have been brought back to, and their epoch."""
        with self.changed:
            if self._ended:  # they would be given what nobody lets them let go of any more
                raise GraphClosedError("the training was closed as its stages were about to be brought back")
            # At once, so that nothing which ends only now is taken for a step of theirs.
            self.place, self.actors = Place(self.place.generation, None, self.place.epoch + 1), actors
            epoch, archive, steps = self.place.epoch, self.archive, self.taken
        if archive is None:
            if self._may_begin_anew:
                return None, epoch
            raise SnapshotError(
                "a host was lost before there was a snapshot of all, and what it had been given is lost with it: make "
                "the stages anew"
            )
        step, error = archive.bring_back(actors, epoch, steps)
        if error is not None:  # something may be on its way still
            with self.changed:
                epoch += 1
                self.place = self.place.behind(epoch)
            archive.bar(actors, epoch)
        with self.changed:
            self.taken = [each for each in steps if each <= step]
            self.snapshot_error = error
        return step, epoch

    def states(self, method: str, epoch: int, deadline: Deadline) -> list[Any]:
        """Return what a method of each stage returns where they stand. Raises whatever kept one from answering."""
        found = replies([call(actor, state_of, method) for actor in self.actors], deadline)
        raise_first(found)
        if self.place.epoch != epoch:
            raise OvertakenError("the stages were brought back as they were asked for their states")
        return [loads(state) for state in found]

    def forget(self, timeout_s: float) -> None:
        """Let the stages let go of their snapshots in memory, and keep no more; those too that are brought back now."""
        with self.changed:
            self._ended = True
            archive, self.archive = self.archive, None
        if archive is not None:
            archive.forget(self.actors, timeout_s)
