"""How long does a value take to an actor and back, by its size?

    python -m benchmarks.payload [--json FILE] [--only TEXT]

1 kB to 100 MB, as a numpy array and as bytes. The floor is a child process that passes bytes on through pipes; what a
machine can do at best is two copies, which is measured as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.contestants import Call, Echo, Shape, classic, floor, ours, raw

ROUNDS, CALLS = 5, 100
SIZES = {
    "1 kB": 1_000,
    "10 kB": 10_000,
    "100 kB": 100_000,
    "1 MB": 1_000_000,
    "10 MB": 10_000_000,
    "100 MB": 100_000_000,
}
LARGEST_FOR_PIPES = 10_000_000
ONE = Shape("chain", 1)


@contextmanager
def two_copies(size: int) -> Iterator[Call]:
    """What no transport can beat: the bytes are copied to the actor, and back."""
    there, here = np.ones(size, np.uint8), np.empty(size, np.uint8)

    def call() -> None:
        here[:] = there
        there[:] = here

    yield call


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    kinds = {"numpy": lambda size: np.ones(size, np.uint8), "bytes": lambda size: b"x" * size}
    cases = {f"{kind}, {size}": (make, SIZES[size]) for kind, make in kinds.items() for size in SIZES}
    cases = {name: case for name, case in cases.items() if options.only in name}
    with (
        harness.a_ray(2 << 30),
        harness.results("a value there and back", options.json, "python -m benchmarks.payload") as add,
        harness.progress("payload", options.rounds * 6 * len(cases)) as step,
    ):
        actors = [Echo.remote()]
        for name, (make, size) in cases.items():
            value: Any = make(size)
            room = size + 10_000
            calls = max(5, min(options.calls, 200_000_000 // size))

            def measure(call: Call, calls: int = calls) -> list[float]:
                harness.warm_up(call)
                return harness.microseconds(call, calls)

            taking_part: dict[str, harness.Contestant] = {
                "two copies": partial(two_copies, size),
                "classic": partial(classic, ONE, actors, value),
                "raw": partial(raw, ONE, actors, value, _buffer_size_bytes=room),
                "cgexec, socket": partial(ours, ONE, actors, value),
                "cgexec, ray": partial(ours, ONE, actors, value, transport="ray", buffer_size_bytes=room),
            }
            if size <= LARGEST_FOR_PIPES:
                taking_part["floor"] = partial(floor, ONE, bytes(value))
            add(harness.rows(name, "us", harness.in_turns(taking_part, measure, options.rounds, step)))


if __name__ == "__main__":
    main()
