"""Where the stages of a training stand: how many steps their state has seen, and what brings them to another.

The stages are told apart from what is known of them: a host may be lost, and all be brought back to an earlier step, at
any moment, on another thread. So whatever is done is held against where they stood when it was begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cgexec.deadline import Deadline
from cgexec.engine.actor_functions import call, replies
from cgexec.errors import CgexecError
from cgexec.log import logger
from cgexec.pipeline.keeping import call_method
from cgexec.pipeline.snapshots import Archive, raise_first

_logger = logger(__name__)

_LOOK_S = 0.01  # while a graph is rebuilt, for it to be ready or to have failed


class Place(NamedTuple):
    """Where the stages stand: in which generation of the graph, and how many steps their state has seen.

    No number for a state that no number of steps comes to: some stages have done a part of a step, or one that was not
    due. ``epoch`` counts how often they were brought back.
    """

    generation: int
    step: int | None
    epoch: int


class Standing:
    """The place of the stages, and the snapshots to bring them back to. May be used from any thread.

    ``changed`` is told when the stages have been brought back.
    """

    def __init__(self, num_kept: int) -> None:
        self.changed = threading.Condition()
        self.place = Place(0, 0, 0)
        self.taken: list[int] = []  # the steps of which there is a snapshot of every stage
        self.actors: Sequence[Any] = ()
        self.snapshot_error: Exception | None = None
        self.archive: Archive | None = None
        self._num_kept = num_kept
        self._bringing_back = threading.Lock()

    def begin(self, archive: Archive, actors: Sequence[Any]) -> None:
        """Take the first snapshot."""
        archive.take(actors, self.place.epoch, 0, ())
        with self.changed:
            self.archive, self.taken, self.actors = archive, [0], actors

    def resume(self, archive: Archive, actors: Sequence[Any], steps: Sequence[int]) -> int:
        """Bring the stages to the last of ``steps`` that can be had, and return it."""
        with self.changed:
            self.archive, self.taken, self.actors = archive, list(steps), actors
            self.place = Place(self.place.generation, None, self.place.epoch)
        self.bring_back()
        with self.changed:
            self.taken = self.taken[-1:]  # there are no inputs for what came before
            return self.place.step or 0

    def ran(self, sent_from: Place, generation: int, step: int, well: bool) -> int | None:
        """Note where the stages stand behind an execution of ``step``; return their epoch, or None if it says nothing.

        A host may have been lost between the look at where the stages stood and the execution, which then ran on stages
        that had been brought back to an earlier step. Or right behind it: then it does not count. Done twice, it notes
        the same.
        """
        with self.changed:
            place = self.place
            if place.generation != generation:
                return None
            unchanged = place.epoch == sent_from.epoch or sent_from.generation != generation
            if not unchanged or place.step not in (step, step + 1):
                self.place = Place(generation, None, place.epoch)
                return None
            self.place = Place(generation, step + 1 if well else None, place.epoch)
            return place.epoch

    def take(self, step: int, epoch: int) -> int:
        """Take a snapshot of the stages where they stand, and return the oldest step that there is one of.

        What goes wrong is noted as ``snapshot_error``.
        """
        with self.changed:
            archive, actors, retained = self.archive, self.actors, self.taken
        try:
            if archive is not None:
                archive.take(actors, epoch, step, retained)
        except Exception as error:
            self.snapshot_error = error
            _logger.warning("no snapshot could be taken of step %d", step, exc_info=True)
        else:
            with self.changed:
                if self.place.epoch == epoch:
                    self.snapshot_error = None
                    self.taken = sorted({*self.taken, step})[-self._num_kept :]
        return min(self.taken, default=0)

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
                self.place, self.actors = Place(generation, step, epoch), actors
                self.changed.notify_all()

    def bring_back(self) -> None:
        """Bring the stages back in the midst of a generation, unless that has just been done."""
        with self._bringing_back:
            place, actors = self.place, self.actors
            if place.step is None:
                step, epoch = self._set_back(actors)
                with self.changed:
                    self.place = Place(place.generation, step, epoch)

    def _set_back(self, actors: Sequence[Any]) -> tuple[int, int]:
        """Return the step that the stages have been brought back to, and their epoch."""
        with self.changed:
            # At once, so that nothing which ends only now is taken for a step of theirs.
            self.place = Place(self.place.generation, None, self.place.epoch + 1)
            epoch, archive, steps = self.place.epoch, self.archive, self.taken
        if archive is None:
            return 0, epoch  # the first snapshot has not been taken: nothing has run, and all hosts are as they began
        step, error = archive.bring_back(actors, epoch, steps)
        with self.changed:
            self.taken = [each for each in steps if each <= step]
            self.snapshot_error = error
        return step, epoch

    def states(self, method: str, deadline: Deadline) -> list[Any]:
        """Return what a method of each stage returns. Raises whatever kept one from answering."""
        found = replies([call(actor, call_method, method) for actor in self.actors], deadline)
        raise_first(found)
        return found

    def forget(self, timeout_s: float) -> None:
        """Let the stages let go of their snapshots in memory."""
        archive, self.archive = self.archive, None
        if archive is not None:
            archive.forget(self.actors, timeout_s)
