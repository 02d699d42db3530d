"""Schedules: torch's orders, what is refused, what is proved of an order, and how much of the time is idle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgexec.pipeline import (
    Operation,
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    check,
    parse_order,
    peak_activations,
    run,
    schedule_named,
)

ORDERS: dict[str, list[str] | None] = json.loads(Path(__file__).with_name("torch_orders.json").read_text())
ONE_STAGE = (ScheduleGPipe(), Schedule1F1B(), ScheduleZeroBubbleH1())
EVERY = (*ONE_STAGE, *map(ScheduleInterleaved1F1B, (1, 2, 3)))
GRID = [
    (schedule, num_stages, num_microbatches)
    for schedule, num_stages, num_microbatches in product(EVERY, range(1, 7), range(1, 14))
    if isinstance(schedule, (ScheduleGPipe, ScheduleZeroBubbleH1)) or num_microbatches % num_stages == 0
]


def named(name: str) -> tuple[Schedule, int, int]:
    kind, num_stages, num_microbatches, *virtual = name.split()
    return schedule_named(kind, *map(int, virtual)), int(num_stages), int(num_microbatches)


@pytest.mark.parametrize("name", [name for name, order in ORDERS.items() if order])
def test_the_order_is_the_one_that_torch_runs(name: str) -> None:
    schedule, num_stages, num_microbatches = named(name)
    assert schedule.order(num_stages, num_microbatches) == parse_order(ORDERS[name] or [])


def test_what_torch_refuses_is_refused_with_a_reason_unless_it_needs_no_groups() -> None:
    refused = [named(name) for name, order in ORDERS.items() if order is None]
    assert {schedule.name for schedule, _, _ in refused} == {"1f1b", "interleaved", "zero-bubble-h1"}
    for schedule, num_stages, num_microbatches in refused:
        if isinstance(schedule, ScheduleZeroBubbleH1):
            check(schedule.order(num_stages, num_microbatches))
        else:
            with pytest.raises(ValueError, match=f"cannot be had with {num_microbatches} microbatches on {num_stages}"):
                schedule.order(num_stages, num_microbatches)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4", None])
def test_numbers_are_whole_and_there_is_at_least_one(bad: int) -> None:
    for schedule in EVERY:
        with pytest.raises(ValueError, match=r"num_stages=.*expected a whole number, 1 or more"):
            schedule.order(bad, 4)
        with pytest.raises(ValueError, match=r"num_microbatches=.*expected a whole number, 1 or more"):
            schedule.order(4, bad)
    if bad is not None:
        with pytest.raises(ValueError, match=r"num_virtual_stages=.*expected a whole number, 1 or more"):
            ScheduleInterleaved1F1B(bad)


def test_schedules_are_values_and_have_names() -> None:
    assert schedule_named("1f1b") == Schedule1F1B()
    assert schedule_named("interleaved", 3) == ScheduleInterleaved1F1B(3) != ScheduleInterleaved1F1B(2)
    assert schedule_named("interleaved") == ScheduleInterleaved1F1B()
    assert schedule_named("gpipe", 1) == ScheduleGPipe()
    with pytest.raises(ValueError, match="no schedule is called '2f2b': there are gpipe, 1f1b, interleaved, zero-bub"):
        schedule_named("2f2b")
    with pytest.raises(ValueError, match="gpipe has one stage on each host, not 2: 'interleaved' has several"):
        schedule_named("gpipe", 2)


# -- what is proved of an order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "num_stages", "num_microbatches"), GRID)
def test_every_order_can_be_run(schedule: Schedule, num_stages: int, num_microbatches: int) -> None:
    check(schedule.order(num_stages, num_microbatches))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([""], "an order without operations does nothing"),
        (["0F0 0F0 0B0"], "these stand more than once: 0F0"),
        (["1F0 1B0"], "0F0 is missing"),
        (["0F0 0F1 0B1"], "0B0 is missing, or 0I0 and 0W0"),
        (["0F0 0I0"], "0B0 is missing, or 0W0"),
        (["0F0 0B0 0W0"], "0B0 is the whole backward, and 0W0 a part of it"),
        (["0F0 0B0 1F0", "1B0"], "1B0 is on host 1, and stage 1 on host 0"),
        (["0B0 0F0"], "host 0 stands before 0B0, which needs stage 0's activation of microbatch 0"),
        (["0F0 0W0 0I0"], "host 0 stands before 0W0, which needs stage 0's gradient of microbatch 0"),
        (
            ["0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"],
            "host 0 stands before 0B0, which needs stage 1's gradient of microbatch 0; "
            "host 1 stands before 1F1, which needs stage 0's activation of microbatch 1",
        ),
    ],
)
def test_an_order_that_cannot_be_run_is_refused(lines: Sequence[str], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check(parse_order(lines))


@pytest.mark.parametrize("bad", [Operation(0, "F", -1), Operation(-1, "F", 0), Operation(0, "X", 0)])  # type: ignore[arg-type]
def test_what_is_no_operation_has_no_place_in_an_order(bad: Operation) -> None:
    with pytest.raises(ValueError, match="is no operation: kinds are F, B, I, W, and numbers 0 or more"):
        check([[*parse_order(["0F0 0B0"])[0], bad]])


@pytest.mark.parametrize("lines", [["0F0 0B0"], [["0F0", "0B0"]], [[(0, "F", 0), (0, "B", 0)]]])
def test_an_order_is_made_of_operations(lines: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("is no Operation: parse_order() makes them of text")):
        check(lines)


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan, "1", None])
def test_everything_takes_some_time(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"an operation of kind B is to take .*: expected a number, more than 0"):
        run(parse_order(["0F0 0B0"]), {"F": 1, "B": bad} if bad is not None else {"F": 1})


@pytest.mark.parametrize("bad", [-1, math.inf, math.nan, "1"])
def test_a_transfer_takes_no_less_than_no_time(bad: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"transfer={bad!r} is not usable: expected a number, 0 or more")):
        run(parse_order(["0F0 0B0"]), transfer=bad)


def test_numbers_of_numpys_are_numbers() -> None:
    assert ScheduleGPipe().order(np.int64(2), np.int32(3)) == ScheduleGPipe().order(2, 3)  # type: ignore[arg-type]


def test_a_stage_may_split_its_backward_and_its_neighbour_not() -> None:
    check(parse_order(["0F0 0F1 0I0 0I1 0W1 0W0", "1F0 1B0 1F1 1B1", "2F0 2I0 2W0 2F1 2I1 2W1"]))


def test_no_operation_starts_before_what_it_needs_has_ended() -> None:
    timeline = run(ScheduleInterleaved1F1B(2).order(4, 8), transfer=0.25)
    bars = {bar.operation: bar for host in timeline.hosts for bar in host}
    for bar in bars.values():
        stage, kind, microbatch = bar.operation
        if kind == "F" and stage:
            assert bar.start >= bars[Operation(stage - 1, "F", microbatch)].end + 0.25
        if kind == "B":
            assert bar.start >= bars[Operation(stage, "F", microbatch)].end
        if kind == "B" and stage < 7:
            assert bar.start >= bars[Operation(stage + 1, "B", microbatch)].end + 0.25
    in_time = [bars[operation].start for _, operation in timeline.in_time()]
    assert in_time == sorted(in_time)


@pytest.mark.parametrize("text", ["", "F0", "0F", "0X1", "0F1 ", "-1F0", "1f0", "0F0B"])
def test_what_is_no_operation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no operation: expected a stage"):
        Operation.parse(text)


# -- how much is idle, and how much is kept ----------------------------------------------------------------------------


def bubble(num_hosts: int, num_microbatches: int, virtual: int = 1) -> Fraction:
    """The formula: S - 1 of M + S - 1 turns; with v stages on a host the idle turns are a v-th as long."""
    idle = Fraction(num_hosts - 1, virtual)
    return idle / (num_microbatches + idle)


@pytest.mark.parametrize(("schedule", "num_hosts", "num_microbatches"), GRID)
def test_the_bubble_is_what_the_formula_says(schedule: Schedule, num_hosts: int, num_microbatches: int) -> None:
    found = run(schedule.order(num_hosts, num_microbatches)).bubble
    expected = bubble(num_hosts, num_microbatches, schedule.stages_per_host)
    if not isinstance(schedule, ScheduleZeroBubbleH1):
        assert found == pytest.approx(float(expected))
    elif num_hosts == 1:
        assert found == 0
    else:
        assert found < float(expected)


@pytest.mark.parametrize(("num_hosts", "num_microbatches"), [(2, 2), (2, 8), (4, 4), (4, 8), (8, 24)])
def test_zero_bubble_h1_leaves_a_third(num_hosts: int, num_microbatches: int) -> None:
    """Where forward, gradient of the input and of the weights take as long as each other: S - 1 of them are idle."""
    timeline = run(ScheduleZeroBubbleH1().order(num_hosts, num_microbatches))
    assert [timeline.idle(host) for host in range(num_hosts)] == [num_hosts - 1] * num_hosts
    one = run(Schedule1F1B().order(num_hosts, num_microbatches))
    assert [one.idle(host) for host in range(num_hosts)] == [3 * (num_hosts - 1)] * num_hosts


@pytest.mark.parametrize(("schedule", "num_hosts", "num_microbatches"), GRID)
def test_no_more_activations_are_kept_than_the_schedule_promises(
    schedule: Schedule, num_hosts: int, num_microbatches: int
) -> None:
    found = peak_activations(schedule.order(num_hosts, num_microbatches))
    match schedule:
        case ScheduleGPipe():
            assert found == [num_microbatches] * num_hosts
        case Schedule1F1B():
            assert found == [num_hosts - host for host in range(num_hosts)]
        case ScheduleZeroBubbleH1():
            assert max(found) <= num_hosts
        case ScheduleInterleaved1F1B(virtual):
            group = num_microbatches // max(1, num_microbatches // num_hosts)
            most = [(virtual - 1) * group + 2 * (num_hosts - 1 - host) + 1 for host in range(num_hosts)]
            assert found == [min(each, virtual * num_microbatches) for each in most]
