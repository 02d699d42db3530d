"""How long does one execution take, next to a raw Compiled Graph, ordinary actor calls, and bare processes?

    python -m benchmarks.latency [--json FILE] [--only TEXT]

The shapes are those of Ray's own microbenchmark: one actor, scatter and gather, a chain, several arguments; with small
inputs of several types, and asyncio. Every contestant runs the same method over the same actors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import harness
from benchmarks.contestants import Call, Echo, Shape, classic, compiled, executor, floor, ours, raw

ROUNDS, CALLS, ASYNC_WARM_UP = 5, 200, 50
KILOBYTE = b"x" * 1000
CASES = {
    "1 actor, 1 byte": (Shape("chain", 1), b"x"),
    "1 actor, an int": (Shape("chain", 1), 1),
    "1 actor, a small dict": (Shape("chain", 1), {"key": 1, "other": "text"}),
    "fan of 4": (Shape("fan", 4), b"x"),
    "fan of 8": (Shape("fan", 8), b"x"),
    "fan of 32": (Shape("fan", 32), b"x"),
    "chain of 4": (Shape("chain", 4), b"x"),
    "chain of 8": (Shape("chain", 8), b"x"),
    "8 arguments to 8 actors, small": (Shape("arguments", 8), b"x"),
    "8 arguments to 8 actors, 10 kB": (Shape("arguments", 8), KILOBYTE * 10),
    "8 arguments to 8 actors, 1 MB": (Shape("arguments", 8), KILOBYTE * 1000),
}
ASYNC_CASE = "1 actor, asyncio"
ROOM_BYTES = 900_000  # in the channels of Ray as they are: 1 MB, less what goes with the value
OBJECT_STORE_BYTES = 4 << 30  # what Ray's channels take is not given back before Ray ends


Timed = Callable[[int], list[float]]  # how long each of so many awaits took


@contextmanager
def in_a_loop() -> Iterator[Callable[[Callable[[], Awaitable[Any]]], Timed]]:
    """Yield what makes a ``Timed`` of an asynchronous call, in an event loop that is the thread's for as long."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # which Ray asks for as it compiles

    def timed(call: Callable[[], Awaitable[Any]]) -> Timed:
        async def calls(count: int) -> list[float]:
            taken = []
            for _ in range(count):
                started = time.perf_counter_ns()
                await call()
                taken.append((time.perf_counter_ns() - started) / 1e3)
            return taken

        return lambda count: loop.run_until_complete(calls(count))

    try:
        yield timed
    finally:
        left = asyncio.all_tasks(loop)  # Ray's, which it cancels without waiting for them
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def classic_async(actor: Any) -> Iterator[Timed]:
    """Ordinary actor calls, awaited."""

    async def call() -> Any:
        return await actor.echo.remote(b"x")

    with in_a_loop() as timed:
        yield timed(call)


@contextmanager
def raw_async(actor: Any) -> Iterator[Timed]:
    """The raw graph through ``execute_async``."""
    with in_a_loop() as timed, compiled(Shape("chain", 1), [actor], enable_asyncio=True) as graph:

        async def call() -> Any:
            return await (await graph.execute_async(b"x"))

        yield timed(call)


@contextmanager
def ours_async(actor: Any, **config: Any) -> Iterator[Timed]:
    """cgexec through ``execute_async``."""
    with in_a_loop() as timed, executor(Shape("chain", 1), [actor], **config) as graph:
        yield timed(lambda: graph.execute_async(b"x"))


def contestants(shape: Shape, message: Any, actors: list[Any]) -> Mapping[str, harness.Contestant]:
    """Return who takes part in a case."""
    size = len(message) if isinstance(message, bytes) else 0
    wide = size > ROOM_BYTES  # too much for the channels that Ray makes unless it is told otherwise
    return {
        "floor": partial(floor, shape, message),
        "classic": partial(classic, shape, actors, message),
        "raw": partial(raw, shape, actors, message, **({"_buffer_size_bytes": 2 * size} if wide else {})),
        "cgexec, socket": partial(ours, shape, actors, message),
        "cgexec, ray": partial(
            ours, shape, actors, message, transport="ray", **({"buffer_size_bytes": 2 * size} if wide else {})
        ),
    }


def asynchronous(actors: list[Any]) -> Mapping[str, harness.Contestant]:
    """Return who takes part in the case of asyncio."""
    return {
        "classic": partial(classic_async, actors[0]),
        "raw": partial(raw_async, actors[0]),
        "cgexec, socket": partial(ours_async, actors[0]),
        "cgexec, ray": partial(ours_async, actors[0], transport="ray"),
    }


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    cases = {name: case for name, case in CASES.items() if options.only in name}

    def measure(call: Call) -> list[float]:
        harness.warm_up(call)
        return harness.microseconds(call, options.calls)

    def measure_async(timed: Timed) -> list[float]:
        harness.warm_up(lambda: timed(ASYNC_WARM_UP))
        return timed(options.calls)

    with (
        harness.a_ray(OBJECT_STORE_BYTES),
        harness.results("one execution", options.json, "python -m benchmarks.latency") as add,
    ):
        actors = [Echo.remote() for _ in range(max((shape.num_actors for shape, _ in cases.values()), default=1))]
        rounds = {
            name: (contestants(shape, it, actors[: shape.num_actors]), measure) for name, (shape, it) in cases.items()
        }
        if options.only in ASYNC_CASE:
            rounds[ASYNC_CASE] = asynchronous(actors), measure_async
        total = options.rounds * sum(len(taking_part) for taking_part, _ in rounds.values())
        with harness.progress("latency", total) as step:
            for name, (taking_part, take_time) in rounds.items():
                add(harness.rows(name, "us", harness.in_turns(taking_part, take_time, options.rounds, step)))


if __name__ == "__main__":
    main()
