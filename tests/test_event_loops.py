"""Event loops that send and read for their coroutines, on a real Ray: each gets its own answer, whatever comes between.

What a loop does itself is what is short and plain; the orders here are of every other kind as well, so that reading
passes from the loop to the graph's threads and back all the time.
"""

import asyncio
import itertools
import random
import sys
import threading
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import ray
import uvloop
from conftest import our_threads
from ray import cloudpickle

from cgexec import (
    GraphConfig,
    GraphExecutor,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
    chain,
    fan_out,
)

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers need not be able to import the tests

LONG_S = 60.0
SHAPES = {"chain": chain("tag"), "fan": fan_out("tag")}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ORDERS = ("plain", "plain", "plain", "long", "array", "object", "raise", "slow")


class Tagger:
    """Adds itself, and what it is ordered to, to what it is given."""

    def __init__(self, label):
        self.label = label

    def tag(self, item):
        number, order, *_ = item
        if order == "raise":
            raise ValueError(f"{number}")
        if order == "slow":
            time.sleep(0.005)
        extra = {
            "long": lambda: (f"{number}" * 20_000,),
            "array": lambda: (np.full(50_000, number),),
            "object": lambda: (Fraction(number, 7),),
        }.get(order, tuple)
        return (*item, self.label, *extra())


def expected(shape, item, num_hosts):
    """Return what a graph answers, worked out here."""
    if shape == "fan":
        return [Tagger(label).tag(item) for label in range(num_hosts)]
    for label in range(num_hosts):
        item = Tagger(label).tag(item)
    return item


def same(found, wanted):
    """Return whether two answers are equal, arrays and all."""
    if isinstance(wanted, (list, tuple)):
        return type(found) is type(wanted) and len(found) == len(wanted) and all(map(same, found, wanted))
    return np.array_equal(found, wanted) if isinstance(wanted, np.ndarray) else found == wanted


def check(shape, item, status, *otherwise):
    """Hold an answer against its own question; ``otherwise`` are the statuses that may stand in its place."""
    if isinstance(status, otherwise):
        return
    if item[1] == "raise":
        assert isinstance(status, JobFailed), status
        assert str(item[0]) in str(status.error)
    else:
        assert isinstance(status, JobSucceeded), status
        assert same(status.result, expected(shape, item, 2)), (item, str(status.result)[:200])


def run(main, loop):
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(asyncio.wait_for(main(), LONG_S))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_short_and_plain_takes_no_thread_but_the_loops(spawn, shape, loop):
    async def ask(graph, first):
        for number in range(first, first + 100):
            item = (number, "plain")
            check(shape, item, await graph.execute_async(item))

    async def main():
        with GraphExecutor(spawn(2, Tagger), SHAPES[shape], config=GraphConfig(transport="socket")) as graph:
            await asyncio.gather(*(ask(graph, 1000 * place) for place in range(4)))
            threads = [name for name in our_threads() if "sender" in name or "reader" in name]
            assert threads == [], "a thread was started"
            statuses = [status async for status in graph.map_async((number, "plain") for number in range(100))]
            for number, status in enumerate(statuses):
                check(shape, (number, "plain"), status)

    run(main, loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_answer_reaches_its_own_coroutine(spawn, small, shape, loop):
    async def ask(graph, seed):
        lot = random.Random(seed)
        for number in range(seed, seed + 60):
            item = (number, lot.choice(ORDERS))
            if small.transport == "ray" and item[1] in ("long", "array"):
                item = (number, "object")  # more than the buffers have room for
            check(shape, item, await graph.execute_async(item))

    async def main():
        with GraphExecutor(spawn(2, Tagger), SHAPES[shape], config=small) as graph:
            await asyncio.gather(*(ask(graph, 1000 * place) for place in range(6)))

    run(main, loop)


class Storm:
    """Coroutines of two event loops, some of which are cancelled, and a thread, on a graph that keeps losing hosts."""

    def __init__(self, graph, shape, orders, seed):
        self.graph, self.shape, self.orders, self.seed = graph, shape, orders, seed
        self.numbers = itertools.count(1)
        self.statuses = Counter()
        self.problems = []
        self.over = threading.Event()
        self._lock = threading.Lock()

    def judge(self, item, status):
        try:
            check(self.shape, item, status, JobPreempted)
        except AssertionError as error:
            self.problems.append(f"{item}: {error}")
        with self._lock:
            self.statuses[type(status).__name__] += 1

    def item(self, lot):
        return next(self.numbers), lot.choice(self.orders)

    def in_a_thread(self):
        lot = random.Random(f"thread {self.seed}")
        while not self.over.is_set():
            item = self.item(lot)
            self.judge(item, self.graph.execute(item, timeout_s=LONG_S))

    async def in_a_coroutine(self, name):
        lot = random.Random(f"{name} {self.seed}")
        while not self.over.is_set():
            item = self.item(lot)
            task = asyncio.ensure_future(self.graph.execute_async(item, timeout_s=LONG_S))
            if lot.random() < 0.1:
                await asyncio.sleep(lot.choice([0, 0.001]))
                task.cancel()
            try:
                self.judge(item, await task)
            except asyncio.CancelledError:
                continue

    def in_a_loop(self, loop):
        async def main():
            await asyncio.gather(*(self.in_a_coroutine(f"{loop} {number}") for number in range(3)))

        try:
            run(main, loop)
        except BaseException as error:  # a thread has nobody to tell
            self.problems.append(f"{loop}: {error!r}")
            raise

    def blow(self, kill, num_kills):
        callers = [threading.Thread(target=self.in_a_thread)]
        callers += [threading.Thread(target=self.in_a_loop, args=(loop,)) for loop in LOOPS]
        for caller in callers:
            caller.start()
        for generation in range(num_kills):
            time.sleep(0.3)  # of work between the deaths
            kill()
            while self.graph.generation <= generation:
                time.sleep(0.005)
        time.sleep(0.3)
        self.over.set()
        for caller in callers:
            caller.join(LONG_S)
        assert not any(caller.is_alive() for caller in callers), "a caller hangs"


@pytest.mark.clause("C4")
@pytest.mark.parametrize("retry_preempted", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_loops_and_a_thread_get_their_own_answers_while_hosts_are_lost(spawn, small, shape, retry_preempted):
    actors = spawn(2, Tagger)
    seed = random.randrange(1 << 30)

    def another(info):
        actor = ray.remote(Tagger).options(num_cpus=0).remote(info.host_id)
        spawn.actors.append(actor)
        actors[info.host_id] = actor
        return actor

    orders = ORDERS if small.transport == "socket" else [each for each in ORDERS if each not in ("long", "array")]
    config = GraphConfig(**{**vars(small), "retry_preempted": retry_preempted})
    with GraphExecutor(
        actors, SHAPES[shape], config=config, policy=RebuildPolicy(replace=another, backoff_s=0.01)
    ) as graph:
        storm = Storm(graph, shape, orders, seed)
        lot = random.Random(seed)
        storm.blow(lambda: ray.kill(actors[lot.randrange(2)]), num_kills=3)
        assert storm.problems == [], f"seed {seed}"
        assert storm.statuses["JobSucceeded"] > 0
        assert storm.statuses[JobError.__name__] == 0, "whatever is lost is preempted, or sent again"
        check(shape, (0, "plain"), graph.execute((0, "plain")))
        stats = graph.stats()
        assert (stats.in_line, stats.in_flight) == (0, 0)
