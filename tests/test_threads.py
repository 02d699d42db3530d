"""Any method of a graph from any thread, at the same time as any other: clauses C1 and C2 of the contract.

Raw compiled graphs abort the process when two threads call: that these tests end at all is part of what they prove.
"""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from conftest import eventually
from matrix import Trial, without_orders
from pool import WAYS, Pool, check_that_nothing_is_left, check_that_nothing_is_open

from cgexec import (
    GraphClosedError,
    GraphExecutor,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    RebuildPolicy,
)
from cgexec.testing import SHAPES, Message, kill_process

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.num_ways(2)]

NUM_THREADS = 8
NUM_EXECUTIONS = {"socket": 200, "ray": 200, "calls": 50}  # ordinary calls take so much longer


@pytest.fixture(params=WAYS)
def site(pool: Pool, request: pytest.FixtureRequest) -> Iterator[tuple[Trial, int]]:
    """A fan whose lost hosts are replaced, and how many executions are to come from each thread."""
    shape = SHAPES["fan"]
    actors = pool.take(shape.num_hosts)
    made = Trial(shape, actors, [pool.actors[actor] for actor in actors], replaces=True)
    policy = RebuildPolicy(replace=lambda info: pool.take_one(info.host_id), backoff_s=0.01)
    with GraphExecutor(actors, shape.build, config=WAYS[request.param], policy=policy) as made.graph:
        yield made, NUM_EXECUTIONS[request.param]
    check_that_nothing_is_left(pool)
    check_that_nothing_is_open(pool, [actor for actor in made.actors if actor in pool.actors])


class Callers:
    """Threads that call in every way there is, and hold each answer against its own question."""

    def __init__(self, trial: Trial, num_executions: int) -> None:
        self.trial = trial
        self.graph = trial.graph
        self.statuses: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self._numbers = itertools.count(1)
        self._template = trial.shape.answer(Message(0), range(len(trial.actors)))
        self._lock = threading.Lock()
        self._num_executions = num_executions
        self.threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(NUM_THREADS)]

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in self.threads), "a caller hangs"

    def _run(self, seed: int) -> None:
        lot = random.Random(seed)
        ways: list[Callable[[Message], JobStatus]] = [
            self._execute,
            self._submit,
            self._ask_again_and_again,
            self._ask_for_each_output,
            self._pipeline,
        ]
        try:
            for _ in range(self._num_executions):
                message = Message(next(self._numbers), {0: ["raise"]} if lot.random() < 0.1 else {})
                self._judge(message, lot.choice(ways)(message))
                self._look(lot)
        except GraphClosedError:
            with self._lock:
                self.statuses["closed"] += 1
        except BaseException as error:
            self.wrong.append(error)

    def _execute(self, message: Message) -> JobStatus:
        return self.graph.execute(message, timeout_s=120)

    def _submit(self, message: Message) -> JobStatus:
        return self.graph.submit(message).status(120)

    def _ask_again_and_again(self, message: Message) -> JobStatus:
        execution = self.graph.submit(message)
        while not execution.done():
            execution.status(0.001)
        return execution.status(0)

    def _ask_for_each_output(self, message: Message) -> JobStatus:
        execution = self.graph.submit(message)
        for place, output in enumerate(execution.outputs(120)):
            if isinstance(output, JobSucceeded):
                self._compare(message, output.result, self._template[place])
        return execution.status(0)

    def _pipeline(self, message: Message) -> JobStatus:
        others = [Message(next(self._numbers)) for _ in range(3)]
        first, *rest = list(self.graph.map([message, *others], timeout_s=120))
        for other, status in zip(others, rest, strict=True):
            self._judge(other, status)
        return first

    def _look(self, lot: random.Random) -> None:
        """Look at everything; whatever is seen may have changed by the time that it is."""
        self.graph.check_health(10) if lot.random() < 0.02 else None
        assert self.graph.generation >= 0
        assert len(self.graph.actors) == len(self.graph.hosts) or self.graph.state is not GraphState.READY
        assert list(map(str, self.graph.history)) != []
        repr(self.graph)

    def _judge(self, message: Message, status: JobStatus) -> None:
        with self._lock:
            self.statuses[type(status).__name__] += 1
        if status.info.state == "pending":
            self.wrong.append((message, status))
        elif isinstance(status, JobSucceeded):
            for result, right in zip(status.result, self._template, strict=True):
                self._compare(message, result, right)
        elif isinstance(status, JobFailed) and not message.orders:
            self.wrong.append((message, status))

    def _compare(self, message: Message, result: Any, right: Any) -> None:
        if (result.number, result.path) != (message.number, without_orders(right).path):
            self.wrong.append((message, result))


def test_every_thread_gets_its_own_answers(site):
    trial, num_executions = site
    with Callers(trial, num_executions) as callers:
        pass
    assert callers.wrong == []
    assert callers.statuses.keys() == {"JobSucceeded", "JobFailed"}
    assert callers.statuses.total() >= NUM_THREADS * num_executions
    assert trial.graph.generation == 0
    given = [number for _, number in ray.get(trial.graph.actors[0].what_was_given.remote())]
    assert len(given) == len(set(given)) == callers.statuses.total(), "something ran twice, or not at all"


def test_hosts_die_and_rebuilds_are_asked_for_under_many_threads(site, pool):
    trial, num_executions = site
    with Callers(trial, num_executions // 2) as callers:
        for round_ in range(3):
            victim = trial.graph.actors[round_]
            generation = trial.graph.generation
            kill_process(victim, pool.actors.pop(victim))
            assert eventually(lambda generation=generation: trial.graph.generation > generation)
            trial.graph.rebuild()
    assert callers.wrong == []
    assert callers.statuses["JobSucceeded"] > 0
    assert callers.statuses.total() >= NUM_THREADS * num_executions // 2
    assert sorted(lost.info.host_id for lost in trial.graph.lost_hosts) == [0, 1, 2]


def test_a_graph_that_is_closed_under_many_threads_answers_each_or_refuses(site):
    trial, _ = site
    with Callers(trial, 100_000) as callers:
        assert eventually(lambda: callers.statuses["JobSucceeded"] > 50)
        closing = [threading.Thread(target=trial.graph.close) for _ in range(3)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(60)
            assert not thread.is_alive()
    assert callers.wrong == []
    assert callers.statuses["closed"] == NUM_THREADS
    assert not callers.statuses.keys() - {
        "closed",
        *(each.__name__ for each in (JobSucceeded, JobFailed, JobPreempted, JobError)),
    }
