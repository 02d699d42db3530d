"""What an order of operations comes to by a logical clock: whether it can be run at all, when, and how much is idle.

Each host does its operations one after the other, in its order, and starts one as soon as what it needs is there:

- a forward needs the forward of the stage before;
- a backward, ``B`` or ``I``, needs the stage's own forward and the gradient of the stage after, its ``B`` or ``I``;
- a ``W`` needs the stage's own ``I``.

What crosses from host to host takes no time, or ``transfer`` of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import NamedTuple, get_args

from cgexec.pipeline.operations import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Kind, Operation

# A backward takes twice as long as a forward, as a rule: one half for the input, one for the weights.
DURATIONS: Mapping[Kind, float] = {FORWARD: 1.0, FULL_BACKWARD: 2.0, BACKWARD_INPUT: 1.0, BACKWARD_WEIGHT: 1.0}

_Made = tuple[int, str, int]  # what an operation gives: a stage's "activation", "gradient" or "weights", by microbatch
_MADE = {FORWARD: "activation", FULL_BACKWARD: "gradient", BACKWARD_INPUT: "gradient", BACKWARD_WEIGHT: "weights"}


class Bar(NamedTuple):
    """An operation, and when it ran."""

    operation: Operation
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """When each host did what: ``hosts[h]`` are the bars of host h, in its order."""

    hosts: tuple[tuple[Bar, ...], ...]

    @cached_property
    def start(self) -> float:
        """When the first operation starts."""
        return min(bar.start for host in self.hosts for bar in host)

    @cached_property
    def span(self) -> float:
        """The time from the first start to the last end."""
        return max(bar.end for host in self.hosts for bar in host) - self.start

    def idle(self, host: int) -> float:
        """Return for how much of the span a host did nothing."""
        return self.span - sum(bar.end - bar.start for bar in self.hosts[host])

    @cached_property
    def bubble(self) -> float:
        """The part of all hosts' time in which they did nothing, 0 to 1."""
        return sum(map(self.idle, range(len(self.hosts)))) / (self.span * len(self.hosts))

    def in_time(self) -> list[tuple[int, Operation]]:
        """Return all operations with their hosts, none before one that it needs."""
        bars = [(bar.start, host, bar.operation) for host, done in enumerate(self.hosts) for bar in done]
        return [(host, operation) for _, host, operation in sorted(bars, key=lambda each: each[:2])]


def run(
    order: Sequence[Sequence[Operation]], durations: Mapping[Kind, float] = DURATIONS, transfer: float = 0.0
) -> Timeline:
    """Return when each operation runs, if each takes as long as its kind does.

    Raises:
        ValueError: the order cannot be run: see ``check``; or something is to take no time, or for ever.
    """
    host_of, last_stage = _complete(order)
    for kind in sorted({operation.kind for operations in order for operation in operations}):
        duration = durations.get(kind)
        if not isinstance(duration, Real) or not 0 < duration < math.inf:
            raise ValueError(f"an operation of kind {kind} is to take {duration!r}: expected a number, more than 0")
    if not isinstance(transfer, Real) or not 0 <= transfer < math.inf:
        raise ValueError(f"transfer={transfer!r} is not usable: expected a number, 0 or more")
    ended: dict[_Made, float] = {}
    bars: list[list[Bar]] = [[] for _ in order]
    left = [list(reversed(operations)) for operations in order]
    moved = True
    while moved:
        moved = False
        for host, operations in enumerate(left):
            while operations and all(made in ended for made in needs(operations[-1], last_stage)):
                operation = operations.pop()
                arrivals = [
                    ended[made] + (transfer if host_of[made[0]] != host else 0.0)
                    for made in needs(operation, last_stage)
                ]
                start = max([bars[host][-1].end if bars[host] else 0.0, *arrivals])
                end = start + durations[operation.kind]
                bars[host].append(Bar(operation, start, end))
                ended[_made_by(operation)] = end
                moved = True
    if any(left):
        raise ValueError(f"the order cannot be run to its end: {'; '.join(_stuck(left, ended, last_stage))}")
    return Timeline(tuple(map(tuple, bars)))


def check(order: Sequence[Sequence[Operation]]) -> None:
    """Prove that the order can be run, and does all there is to do.

    Raises:
        ValueError: an operation is missing, stands twice, stands before what it needs, or hosts wait for each other;
            a stage is on two hosts. Names the operations.
        TypeError: there is something else than operations in it.
    """
    run(order)


def peak_activations(order: Iterable[Sequence[Operation]]) -> list[int]:
    """Return of how many microbatches each host keeps activations at most, counted once for each of its stages.

    An activation lives from its forward until its backward, until that of the weights where it is split.
    """
    return [max(_alive(operations)) for operations in order]


def needs(operation: Operation, last_stage: int) -> list[tuple[int, str, int]]:
    """Return what must be there before an operation: stages' activations and gradients, by microbatch."""
    stage, kind, microbatch = operation
    if kind == FORWARD:
        return [(stage - 1, "activation", microbatch)] if stage else []
    if kind == BACKWARD_WEIGHT:
        return [(stage, "gradient", microbatch)]
    own = (stage, "activation", microbatch)
    return [own] if stage == last_stage else [own, (stage + 1, "gradient", microbatch)]


def _made_by(operation: Operation) -> _Made:
    return operation.stage, _MADE[operation.kind], operation.microbatch


def _alive(operations: Sequence[Operation]) -> list[int]:
    counts = [0]
    for operation in operations:
        step = {FORWARD: 1, BACKWARD_INPUT: 0}.get(operation.kind, -1)
        counts.append(counts[-1] + step)
    return counts


def _complete(order: Sequence[Sequence[Operation]]) -> tuple[dict[int, int], int]:
    """Return the host of each stage, and the last stage. Raises ValueError unless there is all there is to do, once."""
    for operation in (each for operations in order for each in operations):
        if not isinstance(operation, Operation):
            raise TypeError(f"{operation!r} is no Operation: parse_order() makes them of text")
    counted = Counter(operation for operations in order for operation in operations)
    if not counted:
        raise ValueError("an order without operations does nothing")
    kinds = get_args(Kind)
    for operation in counted:
        if operation.kind not in kinds or operation.stage < 0 or operation.microbatch < 0:
            raise ValueError(f"{operation!r} is no operation: kinds are {', '.join(kinds)}, and numbers 0 or more")
    if twice := [str(operation) for operation, count in counted.items() if count > 1]:
        raise ValueError(f"these stand more than once: {', '.join(twice)}")
    host_of: dict[int, int] = {}
    for host, operations in enumerate(order):
        for operation in operations:
            if host_of.setdefault(operation.stage, host) != host:
                raise ValueError(
                    f"{operation} is on host {host}, and stage {operation.stage} on host {host_of[operation.stage]}: "
                    "a stage has its weights on one host"
                )
    last_stage, num_microbatches = max(host_of), 1 + max(operation.microbatch for operation in counted)
    for stage in range(last_stage + 1):
        for microbatch in range(num_microbatches):
            _backward_of(stage, microbatch, counted)
    return host_of, last_stage


def _backward_of(stage: int, microbatch: int, there: Mapping[Operation, int]) -> None:
    """Raise ValueError unless the stage has this microbatch's forward and one backward, whole or in two parts."""
    forward, whole, *parts = (
        Operation(stage, kind, microbatch) for kind in (FORWARD, FULL_BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT)
    )
    if forward not in there:
        raise ValueError(f"{forward} is missing")
    found = [part for part in parts if part in there]
    if whole in there and found:
        raise ValueError(f"{whole} is the whole backward, and {found[0]} a part of it: one of them is too much")
    if whole not in there and len(found) < len(parts):
        missing = " and ".join(str(part) for part in parts if part not in there)
        raise ValueError(f"{whole} is missing, or {missing}")


def _stuck(left: list[list[Operation]], ended: Mapping[_Made, float], last_stage: int) -> Iterable[str]:
    for host, operations in enumerate(left):
        if operations:
            lacking = [made for made in needs(operations[-1], last_stage) if made not in ended]
            waits = " and ".join(f"stage {stage}'s {what} of microbatch {each}" for stage, what, each in lacking)
            yield f"host {host} stands before {operations[-1]}, which needs {waits}"
