"""How much CPU do an idle graph and a driver that waits use?

    python -m benchmarks.idle [--json FILE]

Cores used by each actor of a graph of four that nobody calls, and by a driver that waits two seconds for an answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from benchmarks import harness
from benchmarks.contestants import Shape, compiled, executor

ROUNDS, SECONDS, NUM_ACTORS = 5, 2.0, 4
FAN = Shape("fan", NUM_ACTORS)


@ray.remote(num_cpus=0)
class Sleeper:
    """Answers after a while."""

    def echo(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def pid(self) -> int:
        return os.getpid()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cores(pids: Sequence[int], during: Callable[[], object]) -> float:
    """Return how many cores each of the processes uses during a call."""
    before, started = sum(map(cpu_seconds, pids)), time.monotonic()
    during()
    return (sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - started) / len(pids)


@contextmanager
def raw(actors: list[Any]) -> Iterator[Any]:
    """The raw graph."""
    with compiled(FAN, actors) as graph:
        yield lambda seconds: ray.get(graph.execute(seconds))


@contextmanager
def ours(actors: list[Any], **config: Any) -> Iterator[Any]:
    """cgexec."""
    with executor(FAN, actors, **config) as graph:
        yield graph.execute


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=1)
    with harness.a_ray(), harness.progress("idle", options.rounds * 6) as step:
        actors = [Sleeper.remote() for _ in range(NUM_ACTORS)]
        pids = ray.get([actor.pid.remote() for actor in actors])
        taking_part: dict[str, harness.Contestant] = {
            "raw": partial(raw, actors),
            "cgexec, socket": partial(ours, actors),
            "cgexec, ray": partial(ours, actors, transport="ray"),
        }

        def idle(call: Any) -> list[float]:
            call(0.0)
            return [cores(pids, lambda: time.sleep(SECONDS))]

        def waiting(call: Any) -> list[float]:
            call(0.0)
            return [cores([os.getpid()], lambda: call(SECONDS))]

        table = harness.rows("an idle actor", "cores", harness.in_turns(taking_part, idle, options.rounds, step))
        table += harness.rows(
            "a driver that waits", "cores", harness.in_turns(taking_part, waiting, options.rounds, step)
        )
    harness.show("cores while nothing happens", table, options.json, "python -m benchmarks.idle")


if __name__ == "__main__":
    main()
