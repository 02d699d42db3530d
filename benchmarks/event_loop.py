"""For how long is the event loop kept from its other work, by callers of a graph and by a rebuild?

    python -m benchmarks.event_loop [--json FILE] [--rounds N]

A heartbeat sleeps for a millisecond again and again; the longest time between two beats is what counts. Contestants
take turns: nothing at all, a raw Compiled Graph with ``execute_async``, and cgexec, which loses a host in the end.
"""

import asyncio
import time

import ray
from ray.dag import InputNode

from benchmarks import harness
from benchmarks.contestants import Echo
from cgexec import GraphExecutor, GraphState, chain, fan_out

ROUNDS, SECONDS, CALLERS, BEAT_S = 5, 2.0, 8, 0.001


async def heartbeat(gaps):
    """Note the seconds from each beat to the next, until it is cancelled."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(BEAT_S)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def beside(work):
    """Return the gaps of a heartbeat, in milliseconds, while ``work()`` runs, and what that returns."""
    gaps = []
    beating = asyncio.ensure_future(heartbeat(gaps))
    found = await work()
    beating.cancel()
    return [gap * 1e3 for gap in gaps], found


async def callers(call):
    """Call again and again from several coroutines; return how often that was done."""
    until, done = time.monotonic() + SECONDS, 0

    async def one():
        nonlocal done
        while time.monotonic() < until:
            await call(b"x")
            done += 1

    await asyncio.gather(*(one() for _ in range(CALLERS)))
    return done


async def nothing(_actors):
    """Call nothing."""
    return await beside(lambda: asyncio.sleep(SECONDS, 0))


async def raw(actors):
    """Call a raw Compiled Graph."""
    with InputNode() as inp:
        compiled = actors[0].echo.bind(inp).experimental_compile(enable_asyncio=True)

    async def call(message):
        return await (await compiled.execute_async(message))

    found = await beside(lambda: callers(call))
    await asyncio.to_thread(compiled.teardown)
    return found


async def cgexec(actors):
    """Call a graph of cgexec."""
    graph = await asyncio.to_thread(GraphExecutor, actors[:1], chain("echo"))
    async with graph:
        return await beside(lambda: callers(graph.execute_async))


async def cgexec_loses_a_host(actors):
    """Call a graph of cgexec that loses a host."""
    graph = await asyncio.to_thread(GraphExecutor, actors, fan_out("echo"))

    async def lose_one():
        calling = asyncio.ensure_future(callers(graph.execute_async))
        await asyncio.sleep(SECONDS / 4)
        ray.kill(graph.actors[0])
        done = await calling
        while graph.generation == 0 or graph.state is not GraphState.READY:
            await asyncio.sleep(BEAT_S)
        return done

    async with graph:
        return await beside(lose_one)


CONTESTANTS = {"nothing": nothing, "raw": raw, "cgexec": cgexec, "cgexec, a host dies": cgexec_loses_a_host}


async def measure(rounds, step):
    """Return the longest gap and the calls per second of each round, and every gap, by contestant."""
    longest, every, calls = {}, {}, {}
    for _ in range(rounds):
        actors = [Echo.remote() for _ in range(4)]
        await asyncio.to_thread(ray.get, [actor.echo.remote(0) for actor in actors])
        for name, contestant in CONTESTANTS.items():
            gaps, done = await contestant(actors)
            longest.setdefault(name, []).append([max(gaps)])
            every.setdefault(name, []).append(gaps)
            if done:
                calls.setdefault(name, []).append([done / SECONDS])
            step()
        for actor in actors:
            ray.kill(actor)
    return longest, every, calls


def main():
    options = harness.options(__doc__, rounds=ROUNDS, calls=1)
    with harness.a_ray(), harness.progress("event loop", options.rounds * len(CONTESTANTS)) as step:
        longest, every, calls = asyncio.run(measure(options.rounds, step))
    table = harness.rows("longest gap", "ms", longest)
    table += harness.rows("every gap", "ms", every)
    table += harness.rows("calls", "per s", calls)
    harness.show("the event loop beside a graph", table, options.json, "python -m benchmarks.event_loop")


if __name__ == "__main__":
    main()
