"""Who is given up after a wait that ran out, and when it is looked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import eventually

from cgexec import GraphConfig, GraphExecutor, JobError, JobPreempted, JobSucceeded, RebuildPolicy, chain
from cgexec.engine.protocol import Break
from cgexec.engine.reports import Pulse
from cgexec.supervisor import _GivenUp
from cgexec.testing import Fault, FaultPlan, LocalActor, Message, Recorder, kill, resume, stop
from cgexec.watch import Watch, given_up, next_look_s

BUSY = Pulse("work", 12.5)
IDLE = Pulse()
LOCAL = GraphConfig(engine="in_process", teardown_timeout_s=60.0)


class Hosts:
    """An engine as far as a watch asks for one: its hosts' pulses are scripted, the last one again and again."""

    def __init__(self, *pulses: dict[int, Pulse | None] | Exception) -> None:
        self._script = list(pulses)
        self.asked_at: list[float] = []

    def pulses(self, timeout_s: float) -> dict[int, Pulse | None]:
        self.asked_at.append(time.monotonic())
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def unavailable(self, host_id: int, why: str) -> Exception:
        return RuntimeError(why)


def watch_over(engine: Any, **policy: Any) -> tuple[Watch, list[tuple[Any, Break]]]:
    told: list[tuple[Any, Break]] = []
    watch = Watch("graph", RebuildPolicy(**policy), lambda *found: told.append(found))
    watch.begin(engine)
    return watch, told


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "cgexec-watch-graph"]


# -- what is made of a look --------------------------------------------------------------------------------------------


def test_busy_and_idle_hosts_are_left_alone_and_silent_ones_are_not() -> None:
    found = given_up({0: BUSY, 1: None, 2: IDLE}, RebuildPolicy(probe_timeout_s=0.5))
    assert list(found) == [1]
    assert found[1] == "host 1 gave no sign of life within 0.5 s (probe_timeout_s)"


def test_a_host_that_is_too_long_in_one_method_is_given_up_if_the_policy_says_so() -> None:
    found = given_up({0: BUSY, 1: Pulse("work", 12.4), 2: IDLE}, RebuildPolicy(stuck_after_s=12.5))
    assert list(found) == [0]
    assert "host 0 has been in work() for 12.5 s" in found[0]
    assert "stuck_after_s" in found[0]


def test_the_next_look_is_when_the_longest_method_may_have_taken_too_long() -> None:
    policy = RebuildPolicy(stuck_after_s=20)
    assert next_look_s({0: BUSY, 1: IDLE, 2: None}, policy) == 7.5
    assert next_look_s({}, policy) == 20
    assert next_look_s({0: Pulse("work", 30)}, policy) == 0
    assert next_look_s({0: BUSY}, RebuildPolicy()) == float("inf")


# -- when it is looked -------------------------------------------------------------------------------------------------


def test_a_wait_that_ran_out_leads_to_one_look_and_then_to_peace() -> None:
    hosts = Hosts({0: BUSY})
    watch, told = watch_over(hosts)
    assert not threads()
    watch.wait_ran_out(hosts)  # type: ignore[arg-type]
    assert eventually(lambda: hosts.asked_at and not threads())
    assert (len(hosts.asked_at), told) == (1, [])


def test_waits_that_keep_running_out_do_not_keep_the_hosts_busy() -> None:
    hosts = Hosts({0: BUSY})
    watch, _ = watch_over(hosts)
    while len(hosts.asked_at) < 3:
        watch.wait_ran_out(hosts)  # type: ignore[arg-type]
        time.sleep(0.001)
    assert hosts.asked_at[2] - hosts.asked_at[0] >= 2.0
    watch.end()
    assert eventually(lambda: not threads())


def test_what_is_found_is_told_once() -> None:
    hosts = Hosts({0: None, 1: BUSY})
    watch, told = watch_over(hosts)
    for _ in range(2):
        watch.wait_ran_out(hosts)  # type: ignore[arg-type]
        assert eventually(lambda: told and not threads())
    ((engine, why),) = told
    assert engine is hosts
    assert [host_id for host_id, _ in why.errors] == [0]


def test_a_generation_that_has_ended_is_not_looked_after() -> None:
    first, second = Hosts({0: None}), Hosts({0: IDLE})
    watch, told = watch_over(first)
    watch.rest(second)  # type: ignore[arg-type]
    watch.rest(first)  # type: ignore[arg-type]
    watch.wait_ran_out(first)  # type: ignore[arg-type]
    watch.begin(second)  # type: ignore[arg-type]
    watch.wait_ran_out(first)  # type: ignore[arg-type]
    assert not threads()
    watch.end()
    watch.begin(first)  # type: ignore[arg-type]
    watch.wait_ran_out(first)  # type: ignore[arg-type]
    assert not threads()
    assert (first.asked_at, second.asked_at, told) == ([], [], [])


def test_a_look_that_fails_is_logged_and_the_next_one_is_taken(caplog: Any) -> None:
    hosts = Hosts(OSError("no descriptors"), {0: None})
    watch, told = watch_over(hosts)
    watch.wait_ran_out(hosts)  # type: ignore[arg-type]
    assert eventually(lambda: hosts.asked_at and not threads())
    assert "could not be looked after" in caplog.text
    watch.wait_ran_out(hosts)  # type: ignore[arg-type]
    assert eventually(lambda: told)


def test_stuck_hosts_are_found_with_nobody_waiting() -> None:
    hosts = Hosts({0: IDLE}, {0: Pulse("work", 0.05)}, {0: Pulse("work", 0.1)})
    watch, told = watch_over(hosts, stuck_after_s=0.1)
    assert eventually(lambda: told)
    assert len(hosts.asked_at) == 3
    watch.end()
    assert eventually(lambda: not threads())


# -- a whole graph -----------------------------------------------------------------------------------------------------


def ready(graph: GraphExecutor, generation: int) -> Callable[[], bool]:
    return lambda: (graph.generation, graph.state.value) == (generation, "ready")


def test_a_stopped_host_is_lost_once_a_wait_has_run_out() -> None:
    actors = [LocalActor(Recorder, label) for label in range(3)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(probe_timeout_s=0.1)) as graph:
        stop(actors[1])
        execution = graph.submit(Message(1))
        assert execution.status(0.01).info.state == "pending"
        status = execution.status(30)
        assert isinstance(status, JobPreempted)
        assert [lost.info.host_id for lost in status.info.lost_hosts] == [1]
        assert eventually(ready(graph, 1))
        assert "no sign of life" in str(graph.lost_hosts[0].cause)
        assert graph.execute(Message(2)).result.path == (2, (0, ()))


def test_a_host_that_was_stopped_for_a_moment_is_not() -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(probe_timeout_s=30)) as graph:
        stop(actors[1])
        execution = graph.submit(Message(1))
        assert execution.status(0.01).info.state == "pending"
        resume(actors[1])
        assert isinstance(execution.status(30), JobSucceeded)
        assert eventually(lambda: not threads())
        assert graph.generation == 0


def test_a_host_stuck_in_its_method_is_given_up_if_the_policy_says_so() -> None:
    plan = FaultPlan(Fault("stick", host=0, execution=1))
    actors = [LocalActor(Recorder, label, faults=plan) for label in range(2)]
    policy = RebuildPolicy(stuck_after_s=0.2)
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=policy) as graph:
        assert isinstance(graph.execute(Message(1)), JobSucceeded)
        status = graph.execute(Message(2), timeout_s=-1)
        assert isinstance(status, JobPreempted)
        assert ready(graph, 1)(), graph.history
        assert "has been in work()" in str(graph.lost_hosts[0].cause)
        assert graph.execute(Message(3)).result.path == (1, ())


def test_what_was_found_out_of_an_old_generation_does_not_end_the_watch_over_the_new_one() -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(stuck_after_s=0.3)) as graph:
        old = graph._core.current_engine()
        graph.rebuild()
        assert old is not None
        graph._supervisor._events.put(_GivenUp(old, Break(((0, RuntimeError("too late")),), RuntimeError())))
        assert isinstance(graph.execute(Message(1, {1: ["sleep:2"]}), timeout_s=-1), JobPreempted)
        assert ready(graph, 2)(), graph.history
        assert [lost.info.host_id for lost in graph.lost_hosts] == [1]


@pytest.mark.parametrize("dies", [False, True])
def test_a_graph_that_is_forgotten_settles_what_is_in_flight(dies: bool) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    execution = GraphExecutor(actors, chain("work"), config=LOCAL).submit(Message(1, {0: ["sleep:0.2"]}))
    if dies:
        kill(actors[1])
    status = execution.status(30)
    assert isinstance(status, JobPreempted if dies else JobSucceeded)
    assert eventually(lambda: not [thread for thread in threading.enumerate() if "cgexec-" in thread.name])


def test_a_graph_that_is_forgotten_names_the_host_that_was_stuck(caplog: pytest.LogCaptureFixture) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    config = replace(LOCAL, teardown_timeout_s=0.1)
    execution = GraphExecutor(actors, chain("work"), config=config).submit(Message(1, {0: ["sleep:5"]}))
    status = execution.status(30)
    assert isinstance(status, JobError)
    assert "was forgotten" in str(status.error)
    assert eventually(lambda: "host 0 was still in the graph" in caplog.text)
    assert "it is closed now" in caplog.text
