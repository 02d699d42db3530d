"""What does each rebuild of a graph leave behind?

    python -m benchmarks.leak [--json FILE] [--calls N]

Named semaphores, files in shared memory, and shared memory in use, all of the machine's, which is to do nothing else
meanwhile; descriptors, threads and mappings of this process and of the actors. Per rebuild: the raw graph is torn down
and compiled again, cgexec's ``rebuild()`` is called, and an array of 100 kB is sent through it, which cgexec puts into
shared memory. Each turn has a Ray of its own, with an object store that holds all that leaks: compiling takes seconds
once it is full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks import harness
from benchmarks.contestants import Echo, Shape, compiled, executor

ROUNDS, CALLS, NUM_ACTORS = 3, 50, 4
MESSAGE = np.arange(12_500)
FAN = Shape("fan", NUM_ACTORS)
STORE_BYTES_EACH = 64 << 20  # a raw graph of this shape leaks some 50 MB with each compile
SHARED = Path("/dev/shm")
Contestant = Callable[[list[Any]], AbstractContextManager[Callable[[], object]]]


def counted(pids: list[int]) -> dict[str, float]:
    """Return what there is now."""
    files = [path for path in SHARED.iterdir() if path.is_file()]
    semaphores = [path for path in files if path.name.startswith("sem.")]
    processes = [Path(f"/proc/{pid}") for pid in (os.getpid(), *pids)]
    return {
        "semaphores": len(semaphores),
        "shared files": len(files) - len(semaphores),
        "shared MB": shared_kilobytes() / 1e3,  # whether a file has a name or not
        "descriptors": sum(len(os.listdir(each / "fd")) for each in processes),
        "threads": sum(len(os.listdir(each / "task")) for each in processes),
        "mappings": sum((each / "maps").read_text().count("\n") for each in processes),
    }


def shared_kilobytes() -> int:
    """Return how much shared memory the machine has in use."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


@contextmanager
def raw(actors: list[Any]) -> Iterator[Callable[[], object]]:
    """The raw graph, torn down and compiled again."""

    def rebuild() -> None:
        with compiled(FAN, actors) as graph:
            ray.get(graph.execute(MESSAGE))

    yield rebuild


@contextmanager
def ours(actors: list[Any], **config: Any) -> Iterator[Callable[[], object]]:
    """cgexec."""
    with executor(FAN, actors, **config) as graph:

        def rebuild() -> None:
            graph.rebuild()
            status = graph.execute(MESSAGE)
            if status.info.state != "succeeded":
                raise RuntimeError(f"the rebuilt graph does not answer: {status}")

        yield rebuild


CONTESTANTS: dict[str, Contestant] = {
    "raw": raw,
    "cgexec, socket": ours,
    "cgexec, ray": partial(ours, transport="ray"),
}


def left_behind(contestant: Contestant, num_rebuilds: int) -> dict[str, float]:
    """Return what each rebuild left behind."""
    with harness.a_ray((1 + num_rebuilds) * STORE_BYTES_EACH + (300 << 20)):
        actors = [Echo.remote() for _ in range(NUM_ACTORS)]
        pids = ray.get([actor.pid.remote() for actor in actors])
        with contestant(actors) as rebuild:
            rebuild()
            before = counted(pids)
            for _ in range(num_rebuilds):
                rebuild()
            return {what: (now - before[what]) / num_rebuilds for what, now in counted(pids).items()}


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    found: dict[str, dict[str, list[list[float]]]] = {}
    with harness.progress("leak", options.rounds * len(CONTESTANTS)) as step:
        for _ in range(options.rounds):
            for name, contestant in CONTESTANTS.items():
                for what, each in left_behind(contestant, options.calls).items():
                    found.setdefault(what, {}).setdefault(name, []).append([each])
                step()
    table = [row for what, turns in found.items() for row in harness.rows(what, "each", turns, base="")]
    harness.show("left behind by each rebuild", table, options.json, "python -m benchmarks.leak")


if __name__ == "__main__":
    main()
