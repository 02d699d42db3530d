"""How long does one execution take, next to a raw Compiled Graph, ordinary actor calls, and bare processes?

    python -m benchmarks.latency [--json FILE] [--only TEXT]

The shapes are those of Ray's own microbenchmark: one actor, scatter and gather, a chain, several arguments; with small
inputs of several types, and asyncio. Every contestant runs the same method over the same actors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import harness
from benchmarks.contestants import Call, Echo, Shape, classic, compiled, executor, floor, ours, raw

ROUNDS, CALLS, WARM_UP = 7, 200, 100
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
ROOM_BYTES = 10_000  # in Ray's channels, beyond the input itself: what they take is not given back before Ray ends


@contextmanager
def classic_async(actor: Any) -> Iterator[Call]:
    """Ordinary actor calls, awaited."""
    loop = asyncio.new_event_loop()

    async def call() -> Any:
        return await actor.echo.remote(b"x")

    yield lambda: loop.run_until_complete(call())
    loop.close()


@contextmanager
def raw_async(actor: Any) -> Iterator[Call]:
    """The raw graph through ``execute_async``."""
    loop = asyncio.new_event_loop()
    with compiled(Shape("chain", 1), [actor], enable_asyncio=True) as graph:

        async def call() -> Any:
            return await (await graph.execute_async(b"x"))

        yield lambda: loop.run_until_complete(call())
    loop.close()


@contextmanager
def ours_async(actor: Any, **config: Any) -> Iterator[Call]:
    """cgexec through ``execute_async``."""
    loop = asyncio.new_event_loop()
    with executor(Shape("chain", 1), [actor], **config) as graph:
        yield lambda: loop.run_until_complete(graph.execute_async(b"x"))
    loop.close()


def contestants(shape: Shape, message: Any, actors: list[Any]) -> Mapping[str, harness.Contestant]:
    """Return who takes part in a case."""
    room = ROOM_BYTES + len(message) if isinstance(message, bytes) else ROOM_BYTES
    return {
        "floor": partial(floor, shape, message),
        "classic": partial(classic, shape, actors, message),
        "raw": partial(raw, shape, actors, message, _buffer_size_bytes=room),
        "cgexec, socket": partial(ours, shape, actors, message),
        "cgexec, ray": partial(ours, shape, actors, message, transport="ray", buffer_size_bytes=room),
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
    names = [name for name in (*CASES, ASYNC_CASE) if options.only in name]
    table: list[harness.Row] = []

    def measure(call: Call) -> list[float]:
        harness.microseconds(call, WARM_UP)
        return harness.microseconds(call, options.calls)

    with harness.a_ray(600 << 20):
        actors = [
            Echo.remote() for _ in range(max((CASES[name][0].num_actors for name in names if name in CASES), default=1))
        ]
        with harness.progress("latency", options.rounds * (5 * len(names) - (ASYNC_CASE in names))) as step:
            for name in names:
                if name == ASYNC_CASE:
                    taking_part = asynchronous(actors)
                else:
                    shape, message = CASES[name]
                    taking_part = contestants(shape, message, actors[: shape.num_actors])
                table += harness.rows(name, "us", harness.in_turns(taking_part, measure, options.rounds, step))
    harness.show("one execution", table, options.json, "python -m benchmarks.latency")


if __name__ == "__main__":
    main()
