"""Snapshots of all stages: taken every few steps, kept by other hosts and on disk, and what brings the stages back.

A host's snapshot is in its own memory, in that of the host after it, and in a directory, as ``PipelineSnapshots`` says.
The stages are brought back together, to the last step of which every one of them has a snapshot that is whole: a
corrupt or half-written one is refused, and with it the step, if there is no other copy. None is removed before there
are newer ones of every stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any

from ray.exceptions import GetTimeoutError

from cgexec.deadline import Deadline
from cgexec.engine.actor_functions import call, replies
from cgexec.log import logger
from cgexec.pipeline.keeping import (
    Places,
    Session,
    bar,
    begin,
    discard,
    discard_older,
    forget,
    give,
    in_memory,
    keep,
    on_disk,
    set_back,
    take,
)
from cgexec.pipeline.snapshot_format import Label, SnapshotError
from cgexec.settings import check_count, check_duration, check_flag, check_kind
from cgexec.texts import told

_logger = logger(__name__)
_FROM = "PipelineSnapshots"
LET_GO_S = 1.0  # for the stages to let go of snapshots, in the end


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
        num_kept: of how many steps there are snapshots to go back to; with 1 there is none before a corrupt one. The
            one before those is removed as the next one is taken: there is room needed for ``num_kept + 1``.
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
        check_flag("in_memory", self.in_memory, _FROM)
        check_kind("directory", self.directory, _FROM, str, NoneType)
        check_kind("get_state", self.get_state, _FROM, str)
        check_kind("set_state", self.set_state, _FROM, str)
        if self.directory is None and not self.in_memory:
            raise ValueError(f"in_memory=False (from {_FROM}) is not usable without a directory: nothing would be kept")
        if self.directory is not None and not os.path.isabs(self.directory):
            raise ValueError(
                f"directory={self.directory!r} (from {_FROM}) is not usable: expected an absolute path, since the "
                "processes of the stages have working directories of their own"
            )


class Archive:
    """The snapshots of one session of a training, on ``num_hosts`` hosts with ``num_stages`` stages in all."""

    def __init__(self, config: PipelineSnapshots, session: Session, num_hosts: int, num_stages: int) -> None:
        self._config = config
        self._session = session
        self._labels = [Label(*session, host, num_hosts, num_stages, 0) for host in range(num_hosts)]

    def begin(self, actors: Sequence[Any], epoch: int) -> None:
        """Keep the state of every stage as the first one of all. Raises as ``take``; nothing is left behind then."""
        with self._nothing_left(actors):
            deadline = self._deadline()
            self._each(actors, [call(actor, begin, self._session) for actor in actors], deadline)
            self._take(actors, epoch, 0, (), deadline)

    def resume(self, actors: Sequence[Any], epoch: int, found: Collection[Label]) -> int:
        """Bring every stage to the last step of ``found`` that can be had from the directory; return that.

        The state is then kept as the first one of this session. Raises as ``take`` and ``bring_back``: what was in the
        directory still is then, and no more.
        """
        sets = whole_sets(found)
        with self._nothing_left(actors):
            deadline = self._deadline()
            self._each(actors, [call(actor, begin, self._session) for actor in actors], deadline)
            used = self._bring_back_to_one_of(actors, epoch, sets, {}, deadline)
            self._take(actors, epoch, used[0].step, (), deadline)
            older = [
                call(actor, discard_older, self._config.directory, label)
                for actor, label in zip(actors, used, strict=True)
            ]
            self._each(actors, older, deadline)
        return used[0].step

    @contextmanager
    def _nothing_left(self, actors: Sequence[Any]) -> Iterator[None]:
        """Let a session that is not begun after all leave nothing in memory and in the directory, as far as can be."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.forget(actors, LET_GO_S)
                directory = self._config.directory
                if directory is not None:
                    labels = zip(actors, self._labels, strict=True)
                    left = [call(actor, discard, directory, label) for actor, label in labels]
                    replies(left, Deadline.after(LET_GO_S))
            raise

    def take(self, actors: Sequence[Any], epoch: int, step: int, retained: Collection[int]) -> None:
        """Keep the state of every stage after ``step`` steps, beside the ``retained`` ones. No step is under way.

        Raises:
            Exception: whatever kept one of them from it, GetTimeoutError if it took too long. Those that had been
                taken before are still there; what is still under way ends before ``bar`` does.
        """
        self._take(actors, epoch, step, retained, self._deadline())

    def bar(self, actors: Sequence[Any], epoch: int) -> None:
        """Let every stage refuse what was sent before this epoch; raises whatever kept one from it."""
        self._each(actors, [call(actor, bar, self._session, epoch) for actor in actors], self._deadline())

    def _each(self, actors: Sequence[Any], calls: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return what calls return, one of each actor. Raises what one of them raised; names those that are late."""
        found = replies(calls, deadline)
        late = [host for host, each in enumerate(found) if isinstance(each, GetTimeoutError)]
        raise_first(each for each in found if not isinstance(each, GetTimeoutError))
        if late:
            hosts = f"host{'s' if len(late) > 1 else ''} {', '.join(map(str, late))}"
            raise GetTimeoutError(
                f"{hosts} of {len(actors)} had not done with a snapshot after timeout_s={self._config.timeout_s:g} "
                f"(from {_FROM})"
            )
        return found

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
        self._each(actors, copied or taken, deadline)

    def _places(self, retained: Collection[int]) -> Places:
        return Places(self._config.directory, self._config.in_memory, tuple(retained))

    def _deadline(self) -> Deadline:
        return Deadline.after(self._config.timeout_s)

    def bring_back(self, actors: Sequence[Any], epoch: int, steps: Collection[int]) -> tuple[int, Exception | None]:
        """Bring every stage back to the last of ``steps`` that can be had for all of them.

        Returns that step; and, what was lost with a host being kept twice again, why it could not be, if so: what is
        still under way of that ends before ``bar`` does.

        Raises:
            SnapshotError: there is none; names what is missing. Some stages may have been brought back to some step.
            Exception: an actor died, or did not answer.
        """
        deadline = self._deadline()
        sources = self._sources(actors, deadline)
        newest_first = [[label.at(step) for label in self._labels] for step in sorted(steps, reverse=True)]
        step = self._bring_back_to_one_of(actors, epoch, newest_first, sources, deadline)[0].step
        try:
            self._take(actors, epoch, step, [each for each in steps if each < step], deadline)
        except Exception as error:  # noqa: BLE001 - they are back all the same
            return step, error
        return step, None

    def _bring_back_to_one_of(
        self,
        actors: Sequence[Any],
        epoch: int,
        newest_first: Sequence[Sequence[Label]],
        sources: Mapping[Label, Sequence[int]],
        deadline: Deadline,
    ) -> Sequence[Label]:
        """Bring all stages back to the first that can be had of sets of one snapshot for each; return that."""
        refused = []
        for place, labels in enumerate(newest_first):
            step, older = labels[0].step, [each[0].step for each in newest_first[place + 1 :]]
            lacking = self._bring_back_to(actors, epoch, labels, self._places(older), sources, deadline)
            if not lacking:
                return labels
            _logger.warning("the stages cannot be brought back to step %d: %s", step, lacking)
            refused.append(lacking)
        raise SnapshotError(f"the stages cannot be brought back to any step: {'; '.join(refused) or 'none was kept'}")

    def _sources(self, actors: Sequence[Any], deadline: Deadline) -> dict[Label, list[int]]:
        """Return which hosts keep each snapshot in memory, the one whose it is first."""
        found: dict[Label, list[int]] = {}
        if self._config.in_memory:
            asked = [call(actor, in_memory, self._session) for actor in actors]
            for keeper, labels in enumerate(self._each(actors, asked, deadline)):
                for label in labels:
                    keepers = found.setdefault(label, [])
                    keepers.insert(0 if keeper == label.host else len(keepers), keeper)
        return found

    def _bring_back_to(
        self,
        actors: Sequence[Any],
        epoch: int,
        labels: Sequence[Label],
        places: Places,
        sources: Mapping[Label, Sequence[int]],
        deadline: Deadline,
    ) -> str:
        """Bring all stages back to one step; returns what is lacking, nothing if they are there."""
        on_disk_too = [None] if places.directory is not None else []
        left_to_try = {label: [*sources.get(label, ()), *on_disk_too] for label in labels}
        reasons = {label: f"there is no snapshot of {label}" for label in labels}
        left = list(labels)
        while left:
            for label in left:
                if not left_to_try[label]:
                    return reasons[label]
            under_way = [self._from(actors, epoch, label, left_to_try[label].pop(0), places) for label in left]
            answers = dict(zip(left, replies(under_way, deadline), strict=True))
            raise_first(answer for answer in answers.values() if not isinstance(answer, SnapshotError))
            left = [label for label, answer in answers.items() if isinstance(answer, SnapshotError)]
            reasons |= {label: told(answers[label]) for label in left}
        return ""

    def _from(self, actors: Sequence[Any], epoch: int, label: Label, keeper: int | None, places: Places) -> Any:
        """Begin to give a host the state that another one keeps, or that is on disk."""
        snapshot = None if keeper is None else call(actors[keeper], give, label)
        method = self._config.set_state
        return call(actors[label.host], set_back, self._session, epoch, label, method, places, snapshot)

    def forget(self, actors: Sequence[Any], timeout_s: float) -> None:
        """Let the stages let go of what they keep in memory, as far as they do in time."""
        replies([call(actor, forget, self._session) for actor in actors], Deadline.after(timeout_s))


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


def session_to_resume(directory: str, found: Collection[Label], num_hosts: int, num_stages: int) -> Session:
    """Return the session that goes on with the training whose snapshots were found in a directory.

    Raises:
        SnapshotError: there is none, there are several, or it is of another pipeline; or no step is whole.
    """
    runs = {label.run for label in found}
    if len(runs) != 1:
        raise SnapshotError(
            f"{directory} has snapshots of {len(runs)} trainings: expected those of one, to go on with by resume=True"
        )
    shapes = {(label.num_hosts, label.num_stages) for label in found}
    if shapes != {(num_hosts, num_stages)}:
        had = " and ".join(f"{stages} stages on {hosts} hosts" for hosts, stages in sorted(shapes))
        raise SnapshotError(
            f"the snapshots in {directory} are of {had}, not of {num_stages} stages on {num_hosts} hosts"
        )
    if not whole_sets(found):
        steps = {host: sorted({label.step for label in found if label.host == host}) for host in range(num_hosts)}
        raise SnapshotError(
            f"in {directory} there is no step of which every host has a snapshot; there are, by host: {steps}"
        )
    return Session(runs.pop(), max(time.time_ns(), 1 + max(label.begun_ns for label in found)))


def whole_sets(found: Iterable[Label]) -> list[list[Label]]:
    """Return of each step of which every host has a snapshot those, in host order, the newest first."""
    sets: dict[tuple[int, int], list[Label]] = {}
    for label in sorted(found):
        sets.setdefault((label.begun_ns, label.step), []).append(label)
    return [labels for _, labels in sorted(sets.items(), reverse=True) if len(labels) == labels[0].num_hosts]
