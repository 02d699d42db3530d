"""Snapshots of all stages: taken every few steps, kept by other hosts and on disk, and what brings the stages back.

A host's snapshot is in its own memory, in that of the host after it, and in a directory, as ``PipelineSnapshots`` says.
The stages are brought back together, to the last step of which every one of them has a snapshot that is whole: a
corrupt or half-written one is refused, and with it the step, if there is no other copy. None is removed before there
are newer ones of every stage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cgexec.deadline import Deadline
from cgexec.engine.actor_functions import call, replies
from cgexec.log import logger
from cgexec.pipeline.keeping import Places, forget, give, in_memory, keep, on_disk, set_back, take
from cgexec.pipeline.snapshot_format import Label, SnapshotError
from cgexec.settings import check_count, check_duration
from cgexec.texts import told

_logger = logger(__name__)
_FROM = "PipelineSnapshots"


@dataclass(frozen=True, kw_only=True)
class PipelineSnapshots:
    """How the state of the stages is kept.

    Attributes:
        every: after how many steps a snapshot is taken; one is taken before the first step.
        directory: where snapshots are written, by the process of each stage: an absolute path, on a disk that the
            process which replaces a lost one can read. A directory is for one training. None: nowhere. The files hold
            pickles: whoever can write there can run code.
        in_memory: whether each host keeps its own snapshots and those of the host before it. That outlives the loss of
            one host, or of several that are no neighbours; with one host alone, of none.
        num_kept: of how many steps; with 1 there is none before a corrupt one. While one is taken there is one more.
        get_state, set_state: methods of the stages: the first returns all that a stage has to know to go on from
            between two steps, the second is given that, in the same or in a new process.
        timeout_s: how long taking one may take, or bringing the stages back.

    Raises:
        ValueError: a setting is not usable; names it.
    """

    every: int = 1
    directory: str | None = None
    in_memory: bool = True
    num_kept: int = 2
    get_state: str = "get_state"
    set_state: str = "set_state"
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        check_count("every", self.every, _FROM)
        check_count("num_kept", self.num_kept, _FROM)
        check_duration("timeout_s", self.timeout_s, _FROM)
        if self.directory is None and not self.in_memory:
            raise ValueError(f"in_memory=False (from {_FROM}) is not usable without a directory: nothing would be kept")
        if self.directory is not None and not os.path.isabs(self.directory):
            raise ValueError(
                f"directory={self.directory!r} (from {_FROM}) is not usable: expected an absolute path, since the "
                "processes of the stages have working directories of their own"
            )


class Archive:
    """The snapshots of one training. ``run`` tells it from others."""

    def __init__(self, config: PipelineSnapshots, run: str, num_hosts: int, num_stages: int) -> None:
        self._config = config
        self._run = run
        self._labels = [Label(run, host, num_hosts, num_stages, 0) for host in range(num_hosts)]

    def take(self, actors: Sequence[Any], epoch: int, step: int, retained: Collection[int]) -> None:
        """Keep the state of every stage after ``step`` steps, beside the ``retained`` ones. No step is under way.

        Raises:
            Exception: whatever kept one of them from it, GetTimeoutError if it took too long. Those that had been
                taken before are still there.
        """
        self._take(actors, epoch, step, retained, Deadline.after(self._config.timeout_s))

    def _take(
        self, actors: Sequence[Any], epoch: int, step: int, retained: Collection[int], deadline: Deadline
    ) -> None:
        config, places = self._config, self._places(retained)
        labels = [label.at(step) for label in self._labels]
        taken = [
            call(actor, take, epoch, label, config.get_state, places)
            for actor, label in zip(actors, labels, strict=True)
        ]
        copied = []
        if config.in_memory and len(actors) > 1:
            behind = [*actors[1:], actors[0]]  # the host that keeps a copy of each
            copied = [
                call(actor, keep, epoch, label, snapshot, places)
                for actor, label, snapshot in zip(behind, labels, taken, strict=True)
            ]
        raise_first(replies(copied or taken, deadline))

    def _places(self, retained: Collection[int]) -> Places:
        return Places(self._config.directory, self._config.in_memory, tuple(retained))

    def bring_back(self, actors: Sequence[Any], epoch: int, steps: Iterable[int]) -> tuple[int, Exception | None]:
        """Bring every stage back to the last of ``steps`` that can be had for all of them.

        Returns that step; and, what was lost with a host being kept twice again, why it could not be, if so.

        Raises:
            SnapshotError: there is none; names what is missing. Some stages may have been brought back to some step.
            Exception: an actor died, or did not answer.
        """
        deadline = Deadline.after(self._config.timeout_s)
        steps = sorted(steps, reverse=True)
        sources, refused = self._sources(actors, deadline), []
        for place, step in enumerate(steps):
            lacking = self._bring_back_to(actors, epoch, step, steps[place + 1 :], sources, deadline)
            if lacking:
                _logger.warning("the stages cannot be brought back to step %d: %s", step, lacking)
                refused.append(lacking)
                continue
            try:
                self._take(actors, epoch, step, steps[place + 1 :], deadline)
            except Exception as error:  # noqa: BLE001 - they are back all the same
                return step, error
            return step, None
        raise SnapshotError(f"the stages cannot be brought back to any step: {'; '.join(refused) or 'none was kept'}")

    def _sources(self, actors: Sequence[Any], deadline: Deadline) -> dict[Label, list[int]]:
        """Return which hosts keep each snapshot in memory, the one whose it is first."""
        found: dict[Label, list[int]] = {}
        if self._config.in_memory:
            answers = replies([call(actor, in_memory, self._run) for actor in actors], deadline)
            raise_first(answers)
            for keeper, labels in enumerate(answers):
                for label in labels:
                    keepers = found.setdefault(label, [])
                    keepers.insert(0 if keeper == label.host else len(keepers), keeper)
        return found

    def _bring_back_to(
        self,
        actors: Sequence[Any],
        epoch: int,
        step: int,
        retained: Collection[int],
        sources: dict[Label, list[int]],
        deadline: Deadline,
    ) -> str:
        """Bring all stages back to one step; returns what is lacking, nothing if they are there."""
        labels = [label.at(step) for label in self._labels]
        on_disk_too = [None] if self._config.directory is not None else []
        left_to_try = {label: [*sources.get(label, ()), *on_disk_too] for label in labels}
        reasons = {label: f"there is no snapshot of {label}" for label in labels}
        left = labels
        while left:
            for label in left:
                if not left_to_try[label]:
                    return reasons[label]
            under_way = [self._from(actors, epoch, label, left_to_try[label].pop(0), retained) for label in left]
            answers = dict(zip(left, replies(under_way, deadline), strict=True))
            raise_first(answer for answer in answers.values() if not isinstance(answer, SnapshotError))
            left = [label for label, answer in answers.items() if isinstance(answer, SnapshotError)]
            reasons |= {label: told(answers[label]) for label in left}
        return ""

    def _from(
        self, actors: Sequence[Any], epoch: int, label: Label, keeper: int | None, retained: Collection[int]
    ) -> Any:
        """Begin to give a host the state that another one keeps, or that is on disk."""
        snapshot = None if keeper is None else call(actors[keeper], give, label)
        return call(
            actors[label.host], set_back, epoch, label, self._config.set_state, self._places(retained), snapshot
        )

    def forget(self, actors: Sequence[Any], timeout_s: float) -> None:
        """Let the stages let go of what they keep in memory, as far as they do in time."""
        replies([call(actor, forget, self._run) for actor in actors], Deadline.after(timeout_s))


def raise_first(found: Iterable[Any]) -> None:
    """Raise the first of them that is an exception."""
    for each in found:
        if isinstance(each, Exception):
            raise each


def written(config: PipelineSnapshots, actors: Sequence[Any]) -> set[Label]:
    """Return of what the directory has snapshots, as the stages see it. Raises whatever kept one from looking."""
    if config.directory is None:
        return set()
    found = replies([call(actor, on_disk, config.directory) for actor in actors], Deadline.after(config.timeout_s))
    raise_first(found)
    return set().union(*found)


def run_to_resume(found: Collection[Label], num_hosts: int, num_stages: int) -> tuple[str, list[int]]:
    """Return which run a directory holds, and the steps of which it has every stage.

    Raises:
        SnapshotError: there is none, there are several, or it is of another pipeline; or no step is complete.
    """
    runs = {label.run for label in found}
    if len(runs) != 1:
        raise SnapshotError(f"there are snapshots of {len(runs)} trainings: expected those of one to resume from")
    shapes = {(label.num_hosts, label.num_stages) for label in found}
    if shapes != {(num_hosts, num_stages)}:
        had = " and ".join(f"{stages} stages on {hosts} hosts" for hosts, stages in sorted(shapes))
        raise SnapshotError(f"the snapshots are of {had}, not of {num_stages} stages on {num_hosts} hosts")
    by_host = [{label.step for label in found if label.host == host} for host in range(num_hosts)]
    steps = set.intersection(*by_host)
    if not steps:
        raise SnapshotError("there is no step of which every stage has a snapshot")
    return runs.pop(), sorted(steps)
