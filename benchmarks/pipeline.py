"""How much of a pipeline's time is idle, and what does each operation cost beside its own work?

    python -m benchmarks.pipeline [--json FILE] [--only TEXT] [--plot FILE]

Four hosts and eight microbatches; a stage sleeps for 4 ms in a forward, and in each half of a backward. So the clock
says how long a step takes at best, and what it takes beyond that, divided by the number of a host's operations, is
what an operation costs. The raw graph is compiled of the same nodes, in the same order. ``--plot`` draws a step as it
was measured, one bar for each operation, as SVG or PNG.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from benchmarks import harness
from benchmarks.contestants import compiled_of
from cgexec import GraphConfig, GraphExecutor
from cgexec.hosts import adopted_info
from cgexec.pipeline import (
    Bar,
    Operation,
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    Timeline,
    TrainingStep,
    draw,
    run,
)
from cgexec.pipeline.operations import Kind

ROUNDS, STEPS = 5, 5
NUM_HOSTS, NUM_MICROBATCHES = 4, 8
UNIT_S = 0.004
MESSAGE, ROOM_BYTES = b"x" * 1000, 10_000  # there are some hundred channels, with room for ten messages each
DURATIONS_S: dict[Kind, float] = {"F": UNIT_S, "B": 2 * UNIT_S, "I": UNIT_S, "W": UNIT_S}
SCHEDULES = (ScheduleGPipe(), Schedule1F1B(), ScheduleInterleaved1F1B(2), ScheduleZeroBubbleH1())


@ray.remote(num_cpus=0)
class Sleeper:
    """A stage whose work is to sleep. The raw graph gives its methods what they are only to wait for: ``_awaited``."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, float, float]] = []

    def _work(self, stage: int, kind: Kind, microbatch: int) -> None:
        started = time.monotonic()  # one clock for all processes of a machine
        time.sleep(DURATIONS_S[kind])
        self.bars.append((f"{stage}{kind}{microbatch}", started, time.monotonic()))

    def forward(self, stage: int, microbatch: int, inputs: Any, *_target: Any) -> Any:
        self._work(stage, "F", microbatch)
        return inputs

    def backward(self, stage: int, microbatch: int, gradient: Any, *_awaited: Any) -> Any:
        self._work(stage, "B", microbatch)
        return gradient

    def backward_input(self, stage: int, microbatch: int, gradient: Any, *_awaited: Any) -> Any:
        self._work(stage, "I", microbatch)
        return gradient

    def backward_weight(self, stage: int, microbatch: int, *_awaited: Any) -> None:
        self._work(stage, "W", microbatch)

    def update(self, _step: int, *_awaited: Any) -> list[tuple[str, float, float]]:
        bars, self.bars = self.bars, []
        return bars


@contextmanager
def raw(build: TrainingStep, actors: list[Any]) -> Iterator[Any]:
    """The raw graph, of the same nodes."""
    infos = [adopted_info(host) for host in range(len(actors))]
    with compiled_of(lambda inp: build(inp, actors, infos), _buffer_size_bytes=ROOM_BYTES) as graph:
        yield lambda arguments: ray.get(graph.execute(*arguments))


@contextmanager
def ours(build: TrainingStep, actors: list[Any], **config: Any) -> Iterator[Any]:
    """cgexec."""
    with GraphExecutor(actors, build, config=GraphConfig(**config)) as graph:
        yield lambda arguments: graph.execute(*arguments).result


def timeline(updates: list[list[tuple[str, float, float]]]) -> Timeline:
    """Return when each host did what, as it noted it."""
    hosts = [tuple(Bar(Operation.parse(name), start, end) for name, start, end in host) for host in updates]
    return Timeline(tuple(hosts))


def in_turns(schedule: Schedule, options: argparse.Namespace, step: Callable[[], object]) -> dict[str, list[list[Any]]]:
    """Return the timelines of each contestant's steps.

    Each schedule has a Ray of its own: every compile leaves some thousand semaphores, and the process that maps them
    all may have no more than 65,530 mappings by Linux's default.
    """
    build = TrainingStep(schedule, NUM_HOSTS, NUM_MICROBATCHES)
    arguments = build.arguments([MESSAGE] * NUM_MICROBATCHES, [0] * NUM_MICROBATCHES)

    def measure(call: Any) -> list[Any]:
        harness.warm_up(lambda: call(arguments))
        return [timeline(build.result(call(arguments)).updates) for _ in range(options.calls)]

    with harness.a_ray(2 << 30):
        actors = [Sleeper.remote() for _ in range(NUM_HOSTS)]
        taking_part: dict[str, harness.Contestant] = {
            "raw": partial(raw, build, actors),
            "cgexec, socket": partial(ours, build, actors),
            "cgexec, ray": partial(ours, build, actors, transport="ray", buffer_size_bytes=ROOM_BYTES),
        }
        found: dict[str, list[list[Any]]] = harness.in_turns(taking_part, measure, options.rounds, step)
    return found


def main() -> None:
    parser = harness.parser(__doc__ or "", rounds=ROUNDS, calls=STEPS)
    parser.add_argument("--plot", metavar="FILE", help="draw a step of cgexec's, of the first schedule: .svg or .png")
    options = parser.parse_args()
    schedules = [schedule for schedule in SCHEDULES if options.only in schedule.name]
    with (
        harness.results("pipelines of 4 hosts, 8 microbatches", options.json, "python -m benchmarks.pipeline") as add,
        harness.progress("pipeline", options.rounds * 3 * len(schedules)) as step,
    ):
        for schedule in schedules:
            order = schedule.order(NUM_HOSTS, NUM_MICROBATCHES)
            at_best, num_operations = run(order, DURATIONS_S), len(order[0])
            steps = in_turns(schedule, options, step)
            idle = {name: [[100 * each.bubble for each in turn] for turn in turns] for name, turns in steps.items()}
            by_clock = [[100 * at_best.bubble]] * options.rounds
            add(harness.rows(f"{schedule.name}, idle", "%", {"the clock": by_clock, **idle}))
            beyond = {
                name: [[(each.span - at_best.span) / num_operations * 1e6 for each in turn] for turn in turns]
                for name, turns in steps.items()
            }
            add(harness.rows(f"{schedule.name}, an operation", "us", beyond))
            if options.plot and schedule is schedules[0]:
                draw(steps["cgexec, socket"][-1][-1], options.plot, title=f"{schedule.name}, measured", unit="s")


if __name__ == "__main__":
    main()
