"""How long does each execution take when several are in flight?

    python -m benchmarks.throughput [--json FILE] [--only TEXT]

A chain of four and one actor, 1 to 16 executions deep: submit until that many are in flight, then take the oldest and
submit the next. The figure is the time of a turn over the number of its executions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from benchmarks import harness
from benchmarks.contestants import Echo, Shape, compiled, executor

ROUNDS, CALLS, WARM_UP, SLICES = 5, 400, 50, 4
SHAPES = (Shape("chain", 1), Shape("chain", 4))
DEPTHS = (1, 2, 4, 8, 16)
OBJECT_STORE_BYTES = 6 << 30  # what Ray's channels take, as many as are in flight, is not given back before Ray ends


def pipelined(submit: Any, take: Any, depth: int, count: int) -> None:
    """Run ``count`` executions, ``depth`` deep."""
    flying: deque[Any] = deque()
    for _ in range(count):
        if len(flying) == depth:
            take(flying.popleft())
        flying.append(submit(b"x"))
    while flying:
        take(flying.popleft())


@contextmanager
def classic(actors: list[Any], depth: int) -> Iterator[Any]:
    """Ordinary actor calls."""

    def submit(message: Any) -> Any:
        for actor in actors:
            message = actor.echo.remote(message)
        return message

    yield partial(pipelined, submit, ray.get, depth)


@contextmanager
def raw(shape: Shape, actors: list[Any], depth: int) -> Iterator[Any]:
    """The raw graph."""
    with compiled(shape, actors, _max_inflight_executions=depth) as graph:
        yield partial(pipelined, graph.execute, ray.get, depth)


@contextmanager
def ours(shape: Shape, actors: list[Any], depth: int, **config: Any) -> Iterator[Any]:
    """cgexec."""
    with executor(shape, actors, max_inflight=depth, **config) as graph:
        yield partial(pipelined, graph.submit, lambda execution: execution.result(), depth)


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    cases = {f"{shape.name}, {depth} in flight": (shape, depth) for shape in SHAPES for depth in DEPTHS}
    cases = {name: case for name, case in cases.items() if options.only in name}

    def measure(run: Any) -> list[float]:
        harness.warm_up(lambda: run(WARM_UP))
        found, count = [], options.calls // SLICES
        for _ in range(SLICES):
            started = time.perf_counter_ns()
            run(count)
            found.append((time.perf_counter_ns() - started) / 1e3 / count)
        return found

    with (
        harness.a_ray(OBJECT_STORE_BYTES),
        harness.results("time per execution, pipelined", options.json, "python -m benchmarks.throughput") as add,
    ):
        actors = [Echo.remote() for _ in range(4)]
        with harness.progress("throughput", options.rounds * 4 * len(cases)) as step:
            for name, (shape, depth) in cases.items():
                used = actors[: shape.num_actors]
                taking_part: dict[str, harness.Contestant] = {
                    "classic": partial(classic, used, depth),
                    "raw": partial(raw, shape, used, depth),
                    "cgexec, socket": partial(ours, shape, used, depth),
                    "cgexec, ray": partial(ours, shape, used, depth, transport="ray"),
                }
                add(harness.rows(name, "us", harness.in_turns(taking_part, measure, options.rounds, step)))


if __name__ == "__main__":
    main()
