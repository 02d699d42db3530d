"""What does each rebuild of a graph leave behind?

    python -m benchmarks.leak [--json FILE] [--calls N]

Shared-memory files and their bytes, named semaphores, descriptors and threads, of this process and of the actors,
per rebuild: the raw graph is torn down and compiled again, cgexec's ``rebuild()`` is called.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from benchmarks import harness
from benchmarks.contestants import Echo, Shape, compiled, executor

ROUNDS, CALLS, NUM_ACTORS = 3, 50, 4
FAN = Shape("fan", NUM_ACTORS)
SHARED = Path("/dev/shm")


def counted(pids: list[int]) -> dict[str, float]:
    """Return what there is now."""
    files = [path for path in SHARED.iterdir() if path.is_file()]
    semaphores = [path for path in files if path.name.startswith("sem.")]
    sizes = [path.stat().st_blocks * 512 for path in files if path not in semaphores and path.exists()]
    return {
        "semaphores": len(semaphores),
        "shared files": len(files) - len(semaphores),
        "shared kB": (sum(sizes) + store_bytes()) / 1e3,
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in [os.getpid(), *pids]),
        "threads": threading.active_count() + sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
    }


def store_bytes() -> float:
    """Return how much of the object store is in use."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return float(total.get("object_store_memory", 0) - free.get("object_store_memory", 0))


@contextmanager
def raw(actors: list[Any]) -> Iterator[Callable[[], object]]:
    """The raw graph, torn down and compiled again."""

    def rebuild() -> None:
        with compiled(FAN, actors) as graph:
            ray.get(graph.execute(b"x"))

    yield rebuild


@contextmanager
def ours(actors: list[Any], **config: Any) -> Iterator[Callable[[], object]]:
    """cgexec."""
    with executor(FAN, actors, **config) as graph:

        def rebuild() -> None:
            graph.rebuild()
            graph.execute(b"x")

        yield rebuild


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    found: dict[str, dict[str, list[list[float]]]] = {}
    with harness.a_ray(3 << 30), harness.progress("leak", options.rounds * 3) as step:
        actors = [Echo.remote() for _ in range(NUM_ACTORS)]
        pids = ray.get([actor.pid.remote() for actor in actors])
        taking_part = {
            "raw": partial(raw, actors),
            "cgexec, socket": partial(ours, actors),
            "cgexec, ray": partial(ours, actors, transport="ray"),
        }
        for _ in range(options.rounds):
            for name, contestant in taking_part.items():
                with contestant() as rebuild:
                    rebuild()
                    before = counted(pids)
                    for _ in range(options.calls):
                        rebuild()
                    for what, now in counted(pids).items():
                        each = (now - before[what]) / options.calls
                        found.setdefault(what, {}).setdefault(name, []).append([each])
                step()
    table = [row for what, turns in found.items() for row in harness.rows(what, "each", turns, base="")]
    harness.show("left behind by each rebuild", table, options.json, "python -m benchmarks.leak")


if __name__ == "__main__":
    main()
