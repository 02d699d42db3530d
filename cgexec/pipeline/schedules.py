"""Schedules of pipeline-parallel training: in which order each host runs the stages and microbatches it has.

A schedule is a value. ``schedule.order(num_stages, num_microbatches)`` says what each of ``num_stages`` hosts does, as
``torch.distributed.pipelining`` has it (its classes of the same names), without the gaps that torch writes into it:

    >>> [" ".join(map(str, host)) for host in Schedule1F1B().order(2, 3)]
    ['0F0 0F1 0B0 0F2 0B1 0B2', '1F0 1B0 1F1 1B1 1F2 1B2']

An interleaved schedule has ``num_virtual_stages`` stages on each host: of S hosts, host h has the stages h, S + h, ...

Sources: GPipe, Huang et al. 2019 (arXiv:1811.06965). 1F1B, Narayanan et al. 2019 (PipeDream, arXiv:1806.03377), and
with flushes and interleaving 2021 (arXiv:2104.04473). Zero bubble H1, Qi et al. 2023 (arXiv:2401.10241).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Integral
from typing import ClassVar

from cgexec.pipeline.operations import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Kind,
    Operation,
    Order,
)

_Turn = tuple[int, int]  # a stage and a microbatch


@dataclass(frozen=True)
class Schedule(ABC):
    """What all schedules have in common. They are values: two of a kind with the same fields are equal."""

    name: ClassVar[str]
    stages_per_host: ClassVar[int] = 1
    splits_backward: ClassVar[bool] = False

    def order(self, num_stages: int, num_microbatches: int) -> Order:
        """Return what each of ``num_stages`` hosts does, first things first.

        Raises:
            ValueError: the schedule cannot be had with these numbers; says why.
        """
        _count("num_stages", num_stages)
        _count("num_microbatches", num_microbatches)
        self._check(num_stages, num_microbatches)
        return [self._host(host, num_stages, num_microbatches) for host in range(num_stages)]

    def _check(self, num_stages: int, num_microbatches: int) -> None:  # noqa: B027 - some can always be had
        """Raise ValueError if there is no such order."""

    @abstractmethod
    def _host(self, host: int, num_stages: int, num_microbatches: int) -> list[Operation]: ...


@dataclass(frozen=True)
class ScheduleGPipe(Schedule):
    """All forwards, then all backwards: simple, and every host keeps the activations of every microbatch."""

    name: ClassVar[str] = "gpipe"

    def _host(self, host: int, num_stages: int, num_microbatches: int) -> list[Operation]:  # noqa: ARG002
        return [Operation(host, kind, each) for kind in (FORWARD, FULL_BACKWARD) for each in range(num_microbatches)]


@dataclass(frozen=True)
class Schedule1F1B(Schedule):
    """A backward as soon as there is one: host h of S keeps the activations of S - h microbatches at most."""

    name: ClassVar[str] = "1f1b"

    def _check(self, num_stages: int, num_microbatches: int) -> None:
        if num_microbatches < num_stages:
            raise ValueError(
                f"1F1B cannot be had with {num_microbatches} microbatches on {num_stages} hosts: take as many "
                "microbatches as hosts, or more, or GPipe"
            )

    def _host(self, host: int, num_stages: int, num_microbatches: int) -> list[Operation]:
        turns = [(host, each) for each in range(num_microbatches)]
        return _one_each(turns, turns, num_stages - 1 - host, FULL_BACKWARD)


@dataclass(frozen=True)
class ScheduleInterleaved1F1B(Schedule):
    """1F1B with several stages on each host, which make the time that hosts idle as many times shorter.

    Microbatches go round in groups of one size, as near to the number of hosts as can be: each group runs through all
    stages of a host before the next one.
    """

    name: ClassVar[str] = "interleaved"
    num_virtual_stages: int = 2

    def __post_init__(self) -> None:
        _count("num_virtual_stages", self.num_virtual_stages)

    @property
    def stages_per_host(self) -> int:  # type: ignore[override]
        """How many stages each host has."""
        return self.num_virtual_stages

    def _check(self, num_stages: int, num_microbatches: int) -> None:
        num_groups = max(1, num_microbatches // num_stages)
        if num_microbatches % num_groups:
            raise ValueError(
                f"interleaved 1F1B cannot be had with {num_microbatches} microbatches on {num_stages} hosts: they do "
                f"not make {num_groups} groups of one size; take a multiple of {num_stages}"
            )

    def _host(self, host: int, num_stages: int, num_microbatches: int) -> list[Operation]:
        group = num_microbatches // max(1, num_microbatches // num_stages)
        stages = [chunk * num_stages + host for chunk in range(self.num_virtual_stages)]
        ahead = (len(stages) - 1) * group + 2 * (num_stages - 1 - host)
        forwards = _in_groups(stages, num_microbatches, group)
        return _one_each(forwards, _in_groups(stages[::-1], num_microbatches, group), ahead, FULL_BACKWARD)


@dataclass(frozen=True)
class ScheduleZeroBubbleH1(Schedule):
    """1F1B with a split backward: gradients of weights fill most of the bubble, in the memory of 1F1B's first host.

    Host h puts them off by h microbatches. torch has it as ``ScheduleInterleavedZeroBubble`` with a stage per host.
    """

    name: ClassVar[str] = "zero-bubble-h1"
    splits_backward: ClassVar[bool] = True

    def _host(self, host: int, num_stages: int, num_microbatches: int) -> list[Operation]:
        turns = [(host, each) for each in range(num_microbatches)]
        done = _one_each(turns, turns, num_stages - 1 - host, BACKWARD_INPUT)
        return _with_weights(done, put_off_by=host)


def _in_groups(stages: list[int], num_microbatches: int, group: int) -> list[_Turn]:
    firsts = range(0, num_microbatches, group)
    return [(stage, each) for first in firsts for stage in stages for each in range(first, first + group)]


def _one_each(forwards: list[_Turn], backwards: list[_Turn], num_ahead: int, backward: Kind) -> list[Operation]:
    """Return so many forwards, then a forward and a backward in turn, then the backwards that are left."""
    done = [Operation(stage, FORWARD, microbatch) for stage, microbatch in forwards[:num_ahead]]
    for ahead, behind in zip_longest(forwards[num_ahead:], backwards):
        done += [Operation(ahead[0], FORWARD, ahead[1])] if ahead else []
        done.append(Operation(behind[0], backward, behind[1]))
    return done


def _with_weights(operations: list[Operation], put_off_by: int) -> list[Operation]:
    """Add a gradient of the weights for each of the input, one after each from number ``put_off_by`` on."""
    waiting: deque[Operation] = deque()
    done = []
    for operation in operations:
        done.append(operation)
        if operation.kind == BACKWARD_INPUT:
            waiting.append(Operation(operation.stage, BACKWARD_WEIGHT, operation.microbatch))
            if len(waiting) > put_off_by:
                done.append(waiting.popleft())
    return [*done, *waiting]


def _count(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < 1:
        raise ValueError(f"{name}={number!r} is not usable: expected a whole number, 1 or more")


SCHEDULES: tuple[type[Schedule], ...] = (ScheduleGPipe, Schedule1F1B, ScheduleInterleaved1F1B, ScheduleZeroBubbleH1)


def schedule_named(name: str, num_virtual_stages: int | None = None) -> Schedule:
    """Return the schedule of that name: "gpipe", "1f1b", "interleaved" or "zero-bubble-h1".

    Raises:
        ValueError: there is none of that name, or it has one stage on each host and ``num_virtual_stages`` says more.
    """
    for schedule in SCHEDULES:
        if schedule.name == name:
            break
    else:
        raise ValueError(f"no schedule is called {name!r}: there are {', '.join(each.name for each in SCHEDULES)}")
    if schedule is ScheduleInterleaved1F1B and num_virtual_stages is not None:
        return ScheduleInterleaved1F1B(num_virtual_stages)
    if num_virtual_stages not in (None, 1):
        raise ValueError(f"{name} has one stage on each host, not {num_virtual_stages}: 'interleaved' has several")
    return schedule()
