"""How do build, latency, recovery and memory grow with the number of actors?

    python -m benchmarks.scale [--json FILE] [--only TEXT]

A fan of 2 to 64 actors: seconds until a graph has answered for the first time, microseconds of an execution, seconds
from the death of an actor to the first answer of the others, and how much the driver's memory has grown meanwhile.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from benchmarks import harness
from benchmarks.contestants import Echo, Shape, ours, raw
from benchmarks.recovery import by_hand
from benchmarks.recovery import ours as recover

ROUNDS, CALLS = 3, 100
SIZES = (2, 4, 8, 16, 32, 64)


def resident_mb() -> float:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    sizes = [size for size in SIZES if f"{size} actors".startswith(options.only)]  # "4 actors" are not 64
    found: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    builders: dict[str, Any] = {"raw": raw, "cgexec, socket": ours}
    recoveries = {"raw": by_hand, "cgexec, socket": recover()}

    def note(what: str, unit: str, name: str, figures: list[float]) -> None:
        found.setdefault((what, unit), {}).setdefault(name, []).append(figures)

    with harness.a_ray(2 << 30), harness.progress("scale", options.rounds * 2 * len(sizes)) as step:
        for size in sizes:
            for _ in range(options.rounds):
                for name, build in builders.items():
                    actors = [Echo.remote() for _ in range(size)]
                    ray.get([actor.echo.remote(0) for actor in actors])
                    memory, started = resident_mb(), time.perf_counter()
                    with ExitStack() as stack:
                        call = stack.enter_context(build(Shape("fan", size), actors, b"x"))
                        call()
                        note(f"{size} actors, build", "s", name, [time.perf_counter() - started])
                        harness.warm_up(call)
                        note(f"{size} actors, latency", "us", name, harness.microseconds(call, options.calls))
                        note(f"{size} actors, memory", "MB", name, [resident_mb() - memory])
                    took_ms = recoveries[name](actors)["in all"]
                    note(f"{size} actors, recovery", "s", name, [took_ms / 1e3])
                    for actor in actors:
                        ray.kill(actor)
                    step()
    table = [row for (what, unit), turns in found.items() for row in harness.rows(what, unit, turns)]
    harness.show("by the number of actors", table, options.json, "python -m benchmarks.scale")


if __name__ == "__main__":
    main()
