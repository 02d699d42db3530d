"""How long does one execution take, next to a raw Compiled Graph and to ordinary actor calls?

    python -m benchmarks.latency [--json FILE]

Every contestant runs the same method over actors of its own on the same machine. They take turns, a block of calls
each, so that a machine that slows down slows all of them alike; the ratios to the raw graph are what counts.
"""

import statistics
import time

import ray
from ray.dag import InputNode, MultiOutputNode

from benchmarks import report
from benchmarks.report import Echo
from cgexec import GraphConfig, GraphExecutor, chain, fan_out

ROUNDS, CALLS, WARM_UP = 5, 200, 100
SHAPES = {"1 actor": (chain, 1), "fan of 4": (fan_out, 4), "chain of 4": (chain, 4)}


def classic(shape, actors):
    """Return a call of ordinary actor tasks."""
    if shape is fan_out:
        return lambda message: ray.get([actor.echo.remote(message) for actor in actors])

    def call(message):
        for actor in actors:
            message = actor.echo.remote(message)
        return ray.get(message)

    return call


def raw(shape, actors):
    """Return a call of a raw Compiled Graph, and what ends it."""
    with InputNode() as inp:
        built = shape("echo")(inp, actors, [info(k) for k in range(len(actors))])
    compiled = (MultiOutputNode(built) if isinstance(built, list) else built).experimental_compile()
    return lambda message: ray.get(compiled.execute(message)), compiled.teardown


def info(host_id):
    """Return the HostInfo a builder expects."""
    from cgexec import HostInfo

    return HostInfo(host_id, "benchmark", None, healthy=True, failed=False)


def microseconds(call, count):
    """Return how long each of ``count`` calls took."""
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call(b"x")
        taken.append((time.perf_counter_ns() - started) / 1e3)
    return taken


def measure(shape, num_actors):
    """Return the microseconds of every contestant on one shape. Only one graph spins at a time."""
    taken = {"classic": [], "raw": [], "cgexec, socket": [], "cgexec, ray": []}
    actors = [Echo.remote() for _ in range(num_actors)]
    for _ in range(ROUNDS):
        call = classic(shape, actors)
        microseconds(call, WARM_UP // 2)
        taken["classic"] += microseconds(call, CALLS // 2)
        call, end = raw(shape, actors)
        microseconds(call, WARM_UP)
        taken["raw"] += microseconds(call, CALLS)
        end()
        for transport in ("socket", "ray"):
            with GraphExecutor(actors, shape("echo"), config=GraphConfig(transport=transport)) as graph:
                microseconds(graph.execute, WARM_UP)
                taken[f"cgexec, {transport}"] += microseconds(graph.execute, CALLS)
    for actor in actors:
        ray.kill(actor)
    return taken


def summary(taken):
    """Return median, p90 and p99 of each contestant, and the ratio of its median to the raw graph's."""
    base = statistics.median(taken["raw"])
    rows = {}
    for name, values in taken.items():
        cuts = statistics.quantiles(values, n=100)
        median = statistics.median(values)
        rows[name] = {"median_us": median, "p90_us": cuts[89], "p99_us": cuts[98], "ratio_to_raw": median / base}
    return rows


def main():
    options = report.options(__doc__)
    report.start_ray()
    results = {}
    for name, (shape, num_actors) in SHAPES.items():
        results[name] = summary(measure(shape, num_actors))
        for contestant, row in results[name].items():
            figures = f"{row['median_us']:9.0f} {row['p90_us']:9.0f} {row['p99_us']:9.0f}"
            print(f"{name:12s} {contestant:8s} {figures} us   ratio {row['ratio_to_raw']:.2f}")
    ray.shutdown()
    report.write(options.json, results)


if __name__ == "__main__":
    main()
