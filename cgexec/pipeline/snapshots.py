"""Snapshots of all stages: taken every few steps, kept by other hosts and on disk, and what brings the stages back.

A host's snapshot is in its own memory, in that of the host after it, and in a directory, as ``PipelineSnapshots`` says.
The stages are brought back together, to the last step of which every one of them has a snapshot that is whole: a
corrupt or half-written one is refused, and with it the step, if there is no other copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cgexec.engine.actor_functions import call, replies
from cgexec.log import logger
from cgexec.pipeline.keeping import Places, give, keep, kept, set_back, take
from cgexec.pipeline.snapshot_format import Label, SnapshotError
from cgexec.settings import check_count, check_duration
from cgexec.texts import told

_logger = logger(__name__)
_FROM = "PipelineSnapshots"

_Source = Callable[[], Any]  # makes the call that brings a host back


@dataclass(frozen=True, kw_only=True)
class PipelineSnapshots:
    """How the state of the stages is kept.

    Attributes:
        every: after how many steps a snapshot is taken; one is taken before the first step.
        directory: where snapshots are written, by the process of each stage: on a disk that the process which replaces
            a lost one can read. None: nowhere. The files hold pickles: whoever can write there can run code.
        in_memory: whether each host keeps its own snapshots and those of the host before it. That outlives the loss of
            one host, or of several that are no neighbours.
        num_kept: of how many steps; with 1 there is none before a corrupt one.
        get_state, set_state: methods of the stages: the first returns all that a stage has to know to go on from
            between two steps, the second is given that, in the same or in a new process.
        timeout_s: how long taking one, or bringing the stages back, may take.

    Raises:
        ValueError: a setting is not usable; names it.
    """

    every: int = 1
    directory: str | None = None
    in_memory: bool = True
    num_kept: int = 2
    get_state: str = "get_state"
    set_state: str = "set_state"
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        check_count("every", self.every, _FROM)
        check_count("num_kept", self.num_kept, _FROM)
        check_duration("timeout_s", self.timeout_s, _FROM)
        if self.directory is None and not self.in_memory:
            raise ValueError(f"in_memory=False (from {_FROM}) is not usable without a directory: nothing would be kept")

    @property
    def places(self) -> Places:
        """Where they are kept."""
        return Places(self.directory, self.in_memory, self.num_kept)


def take_all(config: PipelineSnapshots, actors: Sequence[Any], epoch: int, step: int) -> None:
    """Keep the state of every stage after ``step`` steps. No step is under way meanwhile. ``epoch``: the generation.

    Raises:
        Exception: whatever kept one of them from it. Those taken before stay.
    """
    num_hosts = len(actors)
    labels = [Label(host, num_hosts, step) for host in range(num_hosts)]
    taken = [
        call(actor, take, epoch, label, config.get_state, config.places)
        for actor, label in zip(actors, labels, strict=True)
    ]
    if config.in_memory and num_hosts > 1:
        behind = [*actors[1:], actors[0]]  # the host that keeps a copy of each
        taken = [
            call(actor, keep, epoch, label, snapshot, config.places)
            for actor, label, snapshot in zip(behind, labels, taken, strict=True)
        ]
    _raise_first(replies(taken, config.timeout_s))


def _raise_first(found: Iterable[Any]) -> None:
    for each in found:
        if isinstance(each, Exception):
            raise each


def steps_kept(config: PipelineSnapshots, actors: Sequence[Any]) -> set[int]:
    """Return the steps of which every stage has a snapshot somewhere; whether they are whole is not looked at."""
    found = _inventory(config, actors)
    return set.intersection(*({label.step for label in found if label.host == host} for host in range(len(actors))))


def bring_back(config: PipelineSnapshots, actors: Sequence[Any], epoch: int, steps: Iterable[int]) -> int:
    """Bring every stage back to the last of ``steps`` that can be had for all of them, and return it.

    What lost copies with a host is kept twice again.

    Raises:
        SnapshotError: there is none; names what is missing. Some stages may have been brought back to some step.
        Exception: an actor died, or did not answer.
    """
    found = _inventory(config, actors)
    refused = []
    for step in sorted(steps, reverse=True):
        lacking = _bring_back_to(config, actors, epoch, step, found)
        if not lacking:
            take_all(config, actors, epoch, step)
            return step
        _logger.warning("the stages cannot be brought back to step %d: %s", step, lacking)
        refused.append(lacking)
    raise SnapshotError(f"the stages cannot be brought back to any step: {'; '.join(refused) or 'none was kept'}")


def _inventory(config: PipelineSnapshots, actors: Sequence[Any]) -> dict[Label, list[int | None]]:
    """Return which hosts keep each snapshot in memory, a host's own first; None stands for the disk."""
    num_hosts = len(actors)
    asked = [call(actor, kept, host, num_hosts, config.directory) for host, actor in enumerate(actors)]
    answers = replies(asked, config.timeout_s)
    _raise_first(answers)
    found: dict[Label, list[int | None]] = {}
    for keeper, (in_memory, on_disk) in enumerate(answers):
        for label in in_memory:
            found.setdefault(label, []).append(keeper)
        for label in on_disk:
            found.setdefault(label, []).append(None)
    for label, keepers in found.items():
        keepers.sort(key=lambda keeper: (keeper != label.host, keeper is None))
    return found


def _bring_back_to(
    config: PipelineSnapshots,
    actors: Sequence[Any],
    epoch: int,
    step: int,
    found: dict[Label, list[int | None]],
) -> str:
    """Bring all stages back to one step; returns what is lacking, nothing if they are there."""
    labels = [Label(host, len(actors), step) for host in range(len(actors))]
    sources = {label: list(found.get(label, ())) for label in labels}
    reasons = {label: f"there is no snapshot of {label}" for label in labels}
    left = labels
    while left:
        for label in left:
            if not sources[label]:
                return reasons[label]
        under_way = [(label, _from(config, actors, epoch, label, sources[label].pop(0))) for label in left]
        answers = replies([each for _, each in under_way], config.timeout_s)
        left = []
        for (label, _), answer in zip(under_way, answers, strict=True):
            if isinstance(answer, SnapshotError):
                reasons[label] = told(answer)
                left.append(label)
            elif isinstance(answer, Exception):
                raise answer
    return ""


def _from(config: PipelineSnapshots, actors: Sequence[Any], epoch: int, label: Label, keeper: int | None) -> Any:
    """Begin to give a host the state that another one keeps, or that is on disk."""
    snapshot = None if keeper is None else call(actors[keeper], give, label)
    return call(actors[label.host], set_back, epoch, label, config.set_state, config.directory, snapshot)
