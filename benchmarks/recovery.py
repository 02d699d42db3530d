"""How long from the death of a host to the first good answer of the survivors?

    python -m benchmarks.recovery [--json FILE]

Four actors, of which one is killed while the graph is called again and again. Against cgexec stands the loop that a
user of the raw graph writes by hand after Ray's documentation: catch the error, ask every actor for a sign of life,
compile a new graph of those that answer. Where cgexec's time goes is read from ``graph.history``: until the break was
known ("detected"), until the next generation was there ("rebuilt"), and from there to the answer ("answered").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from benchmarks import harness
from benchmarks.contestants import Echo, Shape, compiled, executor
from cgexec import JobSucceeded

ROUNDS, NUM_ACTORS, WARM_UP = 7, 4, 20
Steps = dict[str, float]


def fan(num_actors: int) -> Shape:
    return Shape("fan", num_actors)


def by_hand(actors: list[Any]) -> Steps:
    """The loop on the raw graph."""
    left = list(actors)
    with compiled(fan(len(left)), left) as graph:
        for _ in range(WARM_UP):
            ray.get(graph.execute(1))
        started = time.perf_counter()
        ray.kill(left[0])
        try:
            while True:
                ray.get(graph.execute(1))
        except RayError:
            detected = time.perf_counter()
    left = [actor for actor in left if answers(actor)]
    with compiled(fan(len(left)), left) as graph:
        rebuilt = time.perf_counter()
        ray.get(graph.execute(1))
        ended = time.perf_counter()
    return steps(started, detected, rebuilt, ended)


def answers(actor: Any) -> bool:
    """Return whether an actor gives a sign of life."""
    try:
        ray.get(actor.echo.remote("ping"))
    except RayActorError:
        return False
    return True


def ours(**config: Any) -> Callable[[list[Any]], Steps]:
    """cgexec does it by itself; the caller goes on calling."""

    def recover(actors: list[Any]) -> Steps:
        with executor(fan(len(actors)), actors, **config) as graph:
            for _ in range(WARM_UP):
                graph.execute(1)
            before = len(graph.history)
            started, started_mono = time.perf_counter(), time.monotonic()
            ray.kill(graph.actors[0])
            while not (isinstance(status := graph.execute(1), JobSucceeded) and status.info.generation == 1):
                pass
            ended = time.perf_counter()
            times = [entry.at_s - started_mono + started for entry in graph.history[before:]]
            return steps(started, times[0], times[-1], ended)

    return recover


def steps(started: float, detected: float, rebuilt: float, ended: float) -> Steps:
    """Return the milliseconds of each step, and of all."""
    marks = {"detected": detected - started, "rebuilt": rebuilt - detected, "answered": ended - rebuilt}
    return {name: took_s * 1e3 for name, took_s in {**marks, "in all": ended - started}.items()}


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=1)
    contestants = {"by hand": by_hand, "cgexec, socket": ours(), "cgexec, ray": ours(transport="ray")}
    found: dict[str, dict[str, list[list[float]]]] = {}
    with harness.a_ray(), harness.progress("recovery", options.rounds * len(contestants)) as step:
        for _ in range(options.rounds):
            for name, recover in contestants.items():
                actors = [Echo.remote() for _ in range(NUM_ACTORS)]
                ray.get([actor.echo.remote(0) for actor in actors])
                for what, took_ms in recover(actors).items():
                    found.setdefault(what, {}).setdefault(name, []).append([took_ms])
                for actor in actors:
                    ray.kill(actor)
                step()
    table = [row for what, turns in found.items() for row in harness.rows(what, "ms", turns, base="by hand")]
    harness.show("from a death to the first good answer", table, options.json, "python -m benchmarks.recovery")


if __name__ == "__main__":
    main()
