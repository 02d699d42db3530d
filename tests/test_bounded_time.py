"""Clause C5 where hosts are stopped, stuck or slow: who is given up, when, and who is left alone."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from conftest import eventually
from matrix import Trial, lost_of
from pool import WAYS, Pool, check_that_nothing_is_left, check_that_nothing_is_open

from cgexec import GraphClosedError, GraphExecutor, JobError, JobPreempted, JobSucceeded, RebuildPolicy
from cgexec.testing import SHAPES, resume, stop
from cgexec.testing.leftovers import is_running

pytestmark = [pytest.mark.clause("C5"), pytest.mark.num_ways(1)]

NEVER_S = 3600.0


class Site:
    """Builds a graph on pooled workers; afterwards it must answer, and nothing of it be left."""

    def __init__(self, pool: Pool, way: str) -> None:
        self._pool = pool
        self._way = way
        self._trial: Trial | None = None

    def trial(self, shape: str, teardown_timeout_s: float = 60.0, **policy: Any) -> Trial:
        made = SHAPES[shape]
        actors = self._pool.take(made.num_hosts)
        self._trial = Trial(made, actors, [self._pool.actors[actor] for actor in actors])
        # Long, as a rule: whoever is given up is not waited for.
        config = replace(WAYS[self._way], max_inflight=4, submit_timeout_s=0.2, teardown_timeout_s=teardown_timeout_s)
        self._trial.graph = GraphExecutor(actors, made.build, config=config, policy=RebuildPolicy(**policy))
        return self._trial

    def end(self) -> None:
        trial = self._trial
        assert trial is not None
        message = trial.message()
        assert isinstance(trial.settle(trial.submit(message), message), JobSucceeded)
        trial.graph.close()
        check_that_nothing_is_open(self._pool, trial.actors)
        check_that_nothing_is_left(self._pool)


@pytest.fixture(params=WAYS)
def site(pool: Pool, request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(pool, request.param)
    yield made
    made.end()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stopped_host_is_lost_once_a_wait_has_run_out(site, shape):
    trial = site.trial(shape, probe_timeout_s=0.5)
    stop(trial.actors[0], trial.pids[0])
    messages = [trial.message() for _ in range(2)]
    executions = [trial.submit(message) for message in messages]
    assert executions[0].status(0.1).info.state == "pending"
    for execution, message in zip(executions, messages, strict=True):
        status = trial.settle(execution, message)
        assert isinstance(status, JobPreempted)
        assert [lost.info.host_id for lost in status.info.lost_hosts] == [0]
        assert "gave no sign of life within 0.5 s" in str(status.error)
    trial.rebuilt()
    assert lost_of(trial.graph) == (0,)
    assert trial.graph.generation == 1
    resume(trial.actors[0], trial.pids[0])  # it was killed, which takes Ray 5 s with a process that is stopped
    assert eventually(lambda: not is_running(trial.pids[0]))


def test_a_wait_for_room_is_a_wait_too(site):
    trial = site.trial("chain", probe_timeout_s=0.5)
    stop(trial.actors[0], trial.pids[0])
    message = trial.message()
    executions = [trial.submit(message) for _ in range(4)]
    refused = trial.submit(message).status(0)
    assert isinstance(refused, JobError)
    assert refused.info.attempts == 0
    assert {type(trial.settle(execution, message)) for execution in executions} == {JobPreempted}
    trial.rebuilt()
    resume(trial.actors[0], trial.pids[0])


def test_slow_hosts_are_never_taken_for_dead_ones(site):
    """Inside a method of the graph, and of an ordinary call, for longer than a probe may take."""
    trial = site.trial("fan", probe_timeout_s=0.2)
    message = trial.message("sleep:1.5")
    busy = trial.actors[1].__ray_call__.remote(lambda _: time.sleep(1.5))
    execution = trial.submit(message)
    while (status := execution.status(0.05)).info.state == "pending":
        assert trial.graph.generation == 0
    assert isinstance(status, JobSucceeded)
    ray.get(busy)
    assert (trial.graph.generation, trial.graph.lost_hosts) == (0, [])


def test_a_host_that_was_stopped_for_a_moment_costs_nothing(site):
    trial = site.trial("chain", probe_timeout_s=30.0)
    stop(trial.actors[1], trial.pids[1])
    message = trial.message()
    execution = trial.submit(message)
    assert execution.status(0.2).info.state == "pending"
    resume(trial.actors[1], trial.pids[1])
    assert isinstance(trial.settle(execution, message), JobSucceeded)
    assert trial.graph.generation == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_host_stuck_in_a_method_is_given_up_if_the_policy_says_so_though_nobodys_wait_runs_out(site, shape):
    trial = site.trial(shape, stuck_after_s=0.5)
    stuck = trial.message(f"sleep:{NEVER_S}")
    execution = trial.submit(stuck)
    waiting = threading.Thread(target=execution.status, args=(-1,))
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive()
    status = execution.status(0)
    assert isinstance(status, JobPreempted)
    assert "host 0 has been in work() for" in str(status.error)
    trial.rebuilt()
    assert lost_of(trial.graph) == (0,)
    assert eventually(lambda: not is_running(trial.pids[0]))


def test_many_short_methods_are_no_long_one(site):
    trial = site.trial("chain", stuck_after_s=1.0)
    ends = time.monotonic() + 2.5
    while time.monotonic() < ends:
        message = trial.message("sleep:0.05")
        assert isinstance(trial.settle(trial.submit(message), message), JobSucceeded)
    assert trial.graph.generation == 0


def test_one_dead_and_one_stopped_host_are_both_lost_within_the_bounds(site):
    """A rebuild takes at most the teardown, the probe and the build, each within its own bound."""
    trial = site.trial("fan", teardown_timeout_s=1.0, probe_timeout_s=0.5)
    stop(trial.actors[1], trial.pids[1])
    message = trial.message()
    execution = trial.submit(message)
    trial.befall("killed-process", 0)
    started = time.monotonic()
    assert isinstance(trial.settle(execution, message), JobPreempted)
    assert eventually(lambda: lost_of(trial.graph) == (0, 1))
    trial.rebuilt()
    resume(trial.actors[1], trial.pids[1])
    assert time.monotonic() - started < 1.0 + 0.5 + 20, "a build on live hosts takes less"
    assert trial.graph.generation == 1


class Ending(Site):
    """A site whose graph is closed by the test."""

    def end(self) -> None:
        assert self._trial is not None
        for actor, pid in zip(self._trial.actors, self._trial.pids, strict=True):
            resume(actor, pid)
        check_that_nothing_is_left(self._pool)
        check_that_nothing_is_open(self._pool, [actor for actor in self._trial.actors if actor in self._pool.actors])


@pytest.fixture(params=WAYS)
def ending(pool: Pool, request: pytest.FixtureRequest) -> Iterator[Ending]:
    made = Ending(pool, request.param)
    yield made
    made.end()


@pytest.mark.parametrize("what", ["sleeps", "stopped"])
def test_close_returns_in_time_and_names_who_was_stuck(ending, what):
    trial = ending.trial("chain")
    if what == "stopped":
        stop(trial.actors[0], trial.pids[0])
    execution = trial.submit(trial.message(*((f"sleep:{NEVER_S}",) if what == "sleeps" else ())))
    assert execution.status(0.05).info.state == "pending"
    started = time.monotonic()
    trial.graph.close(timeout_s=2)
    assert time.monotonic() - started < 2 + 5
    status = execution.status(0)
    assert isinstance(status, JobError)
    assert isinstance(status.error, GraphClosedError)
    assert lost_of(trial.graph) == (0,)


def test_close_does_not_wait_for_what_an_actor_does_beside_the_graph(ending):
    trial = ending.trial("chain")
    message = trial.message()
    assert isinstance(trial.settle(trial.submit(message), message), JobSucceeded)
    nap = trial.actors[0].__ray_call__.remote(lambda _: time.sleep(4))
    trial.graph.close(timeout_s=0.5)
    assert ray.wait([nap], timeout=0)[0] == []
    assert lost_of(trial.graph) == ()
    ray.get(nap)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_host_that_dies_while_the_graph_is_closed_keeps_nobody_waiting(ending, position):
    trial = ending.trial("chain")
    messages = [trial.message("sleep:0.05") for _ in range(4)]
    executions = [trial.submit(message) for message in messages]
    closing = threading.Thread(target=trial.graph.close, args=(30,))
    closing.start()
    trial.befall("killed-process", position)
    closing.join(60)
    assert not closing.is_alive()
    for execution, message in zip(executions, messages, strict=True):
        assert isinstance(trial.settle(execution, message), (JobSucceeded, JobPreempted))
