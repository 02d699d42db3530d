"""After a system error: what is rebuilt, from whom, with what; and when the graph gives up."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import ray
from conftest import eventually, is_running
from ray.exceptions import ActorDiedError
from workers import Slow, Unborn, Worker, request

from cgexec import (
    GraphClosedError,
    GraphExecutor,
    GraphFailedError,
    GraphSpecError,
    GraphState,
    HostGroup,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    NotEnoughHostsError,
    RebuildPolicy,
    chain,
    fan_out,
)
from cgexec.engine import build, compilation, preparation
from cgexec.engine.compilation import compile_graph
from cgexec.engine.preparation import probe
from cgexec.engine.protocol import Member
from cgexec.engine.reports import HostReport
from cgexec.engine.session import Session
from cgexec.lifecycle import GraphEvent

pytestmark = pytest.mark.num_ways(1)

DOWN = (GraphState.BROKEN, GraphState.REBUILDING)


def rebuilt(graph, generation):
    """Wait until the graph serves in ``generation``."""
    return eventually(lambda: graph.generation == generation and graph.state is GraphState.READY)


def settled(graph):
    """Wait until the graph is neither broken nor being rebuilt."""
    return eventually(lambda: graph.state not in DOWN)


def labels_in(result):
    return [output[2] for output in result]


@pytest.mark.parametrize("action", [("exit", 3), ("kill-self",)], ids=["os._exit", "SIGKILL"])
def test_an_actor_that_ends_in_its_method_is_a_preemption_naming_it(small, spawn, action):
    with GraphExecutor(spawn(3), fan_out("work"), config=small) as graph:
        others = [graph.submit(request(1))]
        status = graph.execute(request(2, {1: action}), timeout_s=60)
        assert isinstance(status, JobPreempted)
        assert isinstance(status.error, ActorDiedError)
        assert status.info.host.host_id == 1
        assert (status.info.state, status.info.attempts, status.info.generation) == ("preempted", 1, 0)
        assert graph.state is GraphState.READY, "execute answered before the graph was rebuilt"
        assert others[0].status().info.state in ("succeeded", "preempted")
        assert labels_in(graph.execute(request(3)).result) == [(0,), (2,)]
        assert graph.generation == 1
        assert graph.failure is None


def test_everything_in_flight_at_the_loss_settles_and_nothing_is_answered_twice(small, spawn):
    with GraphExecutor(spawn(3), chain("work"), config=small) as graph:
        stuck = graph.submit(request(0, {1: ("sleep", 600.0)}))
        behind = [graph.submit(request(number)) for number in range(1, 4)]
        ray.kill(graph.actors[1])
        statuses = [execution.status(60) for execution in [stuck, *behind]]
        assert [type(status) for status in statuses] == [JobPreempted] * 4
        assert rebuilt(graph, 1)
        assert graph.execute(request(9)).result == (9, {}, (0, 2))
        assert [execution.status(0) for execution in [stuck, *behind]] == statuses


def test_an_actor_whose_loop_has_not_started_at_the_loss_is_no_loss_itself(small, spawn, monkeypatch):
    actors = spawn(4)
    late = []

    def compile_late(*args):
        """Before the loop of one host, on its thread, something that lasts; and another host dies meanwhile."""
        late.append(actors[2].__ray_call__.options(concurrency_group="_ray_system").remote(lambda _: time.sleep(1.5)))
        compiled = compile_graph(*args)
        monkeypatch.undo()
        ray.kill(actors[3])
        return compiled

    config = replace(small, teardown_timeout_s=20)
    with GraphExecutor(actors, chain("work"), config=config) as graph:
        monkeypatch.setattr(build, "compile_graph", compile_late)
        ray.kill(actors[1])
        assert eventually(lambda: [lost.info.host_id for lost in graph.lost_hosts] == [1, 3])
        assert settled(graph)
        assert graph.execute(request(1)).result == (1, {}, (0, 2))
    ray.get(late)


@pytest.mark.clause("C4")
def test_a_host_that_dies_in_the_last_steps_of_a_compile_is_a_loss_like_any_other(small, spawn, monkeypatch):
    """Ray would begin to tear down then what is not there yet, on a thread of its own: there is none."""
    actors = spawn(3)
    (pid,) = ray.get([actors[2].pid.remote()])

    def die_now(_compiled):
        monkeypatch.undo()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not is_running(pid))

    with GraphExecutor(actors, chain("work"), config=small) as graph:
        monkeypatch.setattr(compilation, "_unwatched", die_now)
        graph.rebuild()
        assert [lost.info.host_id for lost in graph.lost_hosts] == [2]
        assert graph.execute(request(1)).result == (1, {}, (0, 1))
        assert "CompiledGraphMonitorThread" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.clause("C4")
def test_an_idle_death_is_noticed_and_the_next_execution_just_works(small, spawn):
    with GraphExecutor(spawn(3), fan_out("work"), config=small) as graph:
        ray.kill(graph.actors[0])
        assert rebuilt(graph, 1), "nobody called, and the death went unnoticed"
        status = graph.execute(request(1))
        assert isinstance(status, JobSucceeded)
        assert labels_in(status.result) == [(1,), (2,)]
        events = [entry.event for entry in graph.history]
        assert events == [GraphEvent.BUILT, GraphEvent.SYSTEM_ERROR, GraphEvent.REBUILD, GraphEvent.BUILT]


def test_two_hosts_that_die_together_cost_no_more_than_two_generations(small, spawn):
    with GraphExecutor(spawn(4), fan_out("work"), config=small) as graph:
        for actor in graph.actors[1:3]:
            ray.kill(actor)
        assert eventually(lambda: {lost.info.host_id for lost in graph.lost_hosts} == {1, 2})
        assert settled(graph)
        assert graph.generation in (1, 2)
        assert labels_in(graph.execute(request(1)).result) == [(0,), (3,)]


@pytest.mark.clause("C4")
def test_survivors_keep_their_process_and_their_state(small, spawn):
    actors = spawn(3)
    pids = ray.get([actor.pid.remote() for actor in actors])
    with GraphExecutor(actors, fan_out("work"), config=small) as graph:
        for number in range(5):
            graph.execute(request(number))
        ray.kill(actors[1])
        assert rebuilt(graph, 1)
        graph.execute(request(5))
        assert ray.get([actor.pid.remote() for actor in graph.actors]) == [pids[0], pids[2]]
        assert ray.get([actor.what_was_seen.remote() for actor in graph.actors]) == [list(range(6))] * 2


def test_a_loop_that_ends_with_its_actor_alive_is_an_error_and_the_same_hosts_go_on(small, spawn):
    with GraphExecutor(spawn(2), fan_out("work"), config=small) as graph:
        status = graph.execute(request(1, {1: ("raise-keyboard-interrupt",)}), timeout_s=60)
        assert isinstance(status, JobError)
        assert status.info.state == "error"
        assert status.info.host.host_id == 1
        assert "KeyboardInterrupt" in str(status.error)
        assert rebuilt(graph, 1)
        assert graph.lost_hosts == []
        assert labels_in(graph.execute(request(2)).result) == [(0,), (1,)]


def test_too_few_hosts_fail_the_graph_with_the_first_reason(small, spawn):
    policy = RebuildPolicy(min_hosts=2)
    with GraphExecutor(spawn(2), fan_out("work"), config=small, policy=policy) as graph:
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        for _ in range(2):
            status = graph.execute(request(1))
            assert isinstance(status, JobError)
            assert isinstance(status.error, NotEnoughHostsError)
            assert isinstance(status.error.reason, ActorDiedError)
            assert status.info.attempts == 0
        assert (type(graph.failure), str(graph.failure)) == (type(status.error), str(status.error))
        assert [host.host_id for host in graph.hosts] == [1]
        assert [lost.info.host_id for lost in graph.lost_hosts] == [0]
        assert [(h.healthy, h.failed) for h in graph.check_health()] == [(False, True), (True, False)]
        with pytest.raises(NotEnoughHostsError):
            graph.rebuild()


def test_the_budget_of_rebuilds_is_kept(small, spawn):
    with GraphExecutor(spawn(3), fan_out("work"), config=small, policy=RebuildPolicy(max_rebuilds=1)) as graph:
        ray.kill(graph.actors[0])
        assert rebuilt(graph, 1)
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert isinstance(graph.failure, GraphFailedError)
        assert "allows 1 rebuild" in str(graph.failure)


def test_all_hosts_dead_fails_the_graph(small, spawn):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        for actor in graph.actors:
            ray.kill(actor)
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert isinstance(graph.failure, NotEnoughHostsError)
        assert {lost.info.host_id for lost in graph.lost_hosts} == {0, 1}
        assert graph.actors == []


def test_replace_fills_the_position_and_on_rebuild_restores_its_state_before_anything_runs(small, spawn):
    spawner = spawn
    calls = []

    def replace(host):
        calls.append(("replace", host.host_id, host.failed))
        (actor,) = [ray.remote(Worker).options(num_cpus=0).remote(host.host_id)]
        spawner.actors.append(actor)
        return actor

    def on_rebuild(generation, infos, actors):
        calls.append(("on_rebuild", generation, [info.host_id for info in infos]))
        seen = ray.get(actors[0].what_was_seen.remote())
        ray.get(actors[1].restore.remote(seen))

    policy = RebuildPolicy(replace=replace, on_rebuild=on_rebuild)
    actors = spawn(3)
    with GraphExecutor(actors, chain("work"), config=small, policy=policy) as graph:
        for number in range(3):
            assert graph.execute(request(number)).result == (number, {}, (0, 1, 2))
        assert calls == [], "a hook ran for the first build"
        ray.kill(actors[1])
        assert rebuilt(graph, 1)
        assert graph.execute(request(3)).result == (3, {}, (0, 1, 2))
        assert calls == [("replace", 1, True), ("on_rebuild", 1, [0, 1, 2])]
        assert graph.actors[0] == actors[0]
        assert graph.actors[2] == actors[2]
        assert graph.actors[1] != actors[1]
        assert [host.host_id for host in graph.hosts] == [0, 1, 2]
        assert ray.get(graph.actors[1].what_was_seen.remote()) == [0, 1, 2, 3]
        assert [lost.info.host_id for lost in graph.lost_hosts] == [1]


def test_a_host_that_dies_while_a_replacement_comes_up_is_replaced_too(small, spawn):
    def replace(host):
        actor = ray.remote(Slow).options(num_cpus=0).remote(host.host_id, 1.0)
        spawn.actors.append(actor)
        return actor

    actors = spawn(3)
    pids = ray.get([actor.pid.remote() for actor in actors])
    with GraphExecutor(actors, fan_out("work"), config=small, policy=RebuildPolicy(replace=replace)) as graph:
        assert graph.execute(request(1)).result == [(1, {}, (label,)) for label in range(3)]
        os.kill(pids[2], signal.SIGKILL)
        assert eventually(lambda: len(spawn.actors) == 4), "no replacement was asked for"
        time.sleep(0.3)  # into the build, which waits for the replacement
        os.kill(pids[0], signal.SIGKILL)
        assert eventually(lambda: graph.state not in DOWN, 60), "it takes two processes, one after the other"
        assert graph.execute(request(2)).result == [(2, {}, (label,)) for label in range(3)]
        assert [lost.info.host_id for lost in graph.lost_hosts] == [2, 0]


def test_a_host_that_dies_during_the_first_build_is_named_though_another_is_late(small, spawn):
    actors = spawn(2)
    (pid,) = ray.get([actors[0].pid.remote()])
    late = actors[1].work.remote(request(1, {1: ("sleep", 1.0)}))
    killing = threading.Timer(0.4, os.kill, (pid, signal.SIGKILL))
    killing.start()
    with pytest.raises(GraphSpecError, match=r"host 0 .* cannot be used"):
        GraphExecutor(actors, fan_out("work"), config=small)
    killing.join()
    ray.get(late)
    with GraphExecutor(actors[1:], fan_out("work"), config=small) as graph:
        assert graph.execute(request(2)).result == [(2, {}, (1,))]


def test_a_replacement_whose_constructor_raises_fails_the_graph_and_is_not_tried_again(small, spawn):
    tried = []

    def replace(host):
        tried.append(host.host_id)
        actor = ray.remote(Unborn).options(num_cpus=0).remote(host.host_id)
        spawn.actors.append(actor)
        return actor

    with GraphExecutor(spawn(2), chain("work"), config=small, policy=RebuildPolicy(replace=replace)) as graph:
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert "constructor raised" in str(graph.failure)
        assert "no state for 0" in str(graph.failure)
        assert tried == [0]


@pytest.mark.parametrize("hook", ["replace", "on_rebuild"])
def test_a_hook_that_raises_fails_the_graph_with_its_error(small, spawn, hook):
    def fail(*args):
        raise LookupError(f"{hook} has nothing to offer")

    with GraphExecutor(spawn(2), chain("work"), config=small, policy=RebuildPolicy(**{hook: fail})) as graph:
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert isinstance(graph.failure.reason, LookupError)
        assert f"{hook} has nothing to offer" in str(graph.failure)


def test_a_hook_that_exits_fails_the_graph_and_nothing_else(small, spawn):
    class OwnError(BaseException):
        pass

    def own(*args):
        raise OwnError(3)

    for hook, words in ((sys.exit, "SystemExit"), (own, "OwnError")):
        policy = RebuildPolicy(on_rebuild=lambda *args, hook=hook: hook(3))
        actors = spawn(2)
        with GraphExecutor(actors, chain("work"), config=small, policy=policy) as graph:
            ray.kill(graph.actors[0])
            assert eventually(lambda graph=graph: graph.state is GraphState.FAILED)
            assert f"on_rebuild raised {words}: 3" in str(graph.failure)
        with GraphExecutor(actors[1:], chain("work"), config=small) as again:
            assert again.execute(request(1)).result == (1, {}, (1,))


def test_a_builder_that_exits_or_hangs_in_a_rebuild_fails_the_graph(small, spawn):
    never, ways = threading.Event(), [lambda: sys.exit(3), lambda: never.wait(60)]

    def build(inp, actors):
        if len(actors) < 2:
            ways[0]()
        return actors[0].work.bind(inp)

    config = replace(small, build_timeout_s=5)
    for words in ("SystemExit: 3", "the builder was still running after 5 s"):
        with GraphExecutor(spawn(2), build, config=config) as graph:
            ray.kill(graph.actors[0])
            assert eventually(lambda graph=graph: graph.state is GraphState.FAILED)
            assert words in str(graph.failure)
            assert isinstance(graph.execute(request(1)), JobError)
        ways.pop(0)
    never.set()


def test_a_hook_that_outlives_its_bound_fails_the_graph(small, spawn):
    never = threading.Event()
    policy = RebuildPolicy(on_rebuild=lambda *args: never.wait(60), hook_timeout_s=0.3)
    with GraphExecutor(spawn(2), chain("work"), config=small, policy=policy) as graph:
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert "on_rebuild" in str(graph.failure)
        assert "0.3 s" in str(graph.failure)
    never.set()


def test_a_replacement_that_is_no_actor_fails_the_graph(small, spawn):
    policy = RebuildPolicy(replace=lambda host: "not an actor")
    with GraphExecutor(spawn(2), chain("work"), config=small, policy=policy) as graph:
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert "not an actor" in str(graph.failure)


def test_a_host_that_dies_during_the_hook_starts_the_rebuild_over(small, spawn):
    killed = []

    def on_rebuild(generation, infos, actors):
        if not killed:
            killed.append(infos[0].host_id)
            ray.kill(actors[0])
            while True:  # until it raises ActorDiedError, which is not the hook's fault
                ray.get(actors[0].what_was_seen.remote())

    policy = RebuildPolicy(on_rebuild=on_rebuild, backoff_s=0.01)
    with GraphExecutor(spawn(3), fan_out("work"), config=small, policy=policy) as graph:
        ray.kill(graph.actors[2])
        assert rebuilt(graph, 1), graph.history
        assert killed == [0]
        assert labels_in(graph.execute(request(1)).result) == [(1,)]
        assert {lost.info.host_id for lost in graph.lost_hosts} == {0, 2}


def test_a_builder_that_cannot_go_on_fails_the_graph_with_its_reason(small, spawn):
    def build(inp, actors, infos):
        if len(infos) < 2:
            raise RuntimeError(f"no stage is left for host {infos[0].host_id}")
        return actors[1].work.bind(actors[0].work.bind(inp))

    with GraphExecutor(spawn(2), build, config=small) as graph:
        assert graph.execute(request(1)).result == (1, {}, (0, 1))
        ray.kill(graph.actors[0])
        assert eventually(lambda: graph.state is GraphState.FAILED)
        assert "no stage is left for host 1" in str(graph.failure)
        assert isinstance(graph.execute(request(2)), JobError)


@pytest.mark.parametrize("retries", [0, -1], ids=["", "and whose tasks it retries"])
def test_an_actor_that_ray_restarts_stays_in_its_position_and_is_reported_as_lost(small, spawn, retries):
    actors = spawn(2, max_restarts=1, max_task_retries=retries)
    policy = RebuildPolicy(probe_timeout_s=30)  # a process may take long to start
    with GraphExecutor(actors, fan_out("work"), config=small, policy=policy) as graph:
        assert labels_in(graph.execute(request(1)).result) == [(0,), (1,)]
        status = graph.execute(request(2, {1: ("exit", 1)}), timeout_s=60)
        assert isinstance(status, JobPreempted)
        assert settled(graph)
        assert graph.state is GraphState.READY, graph.history
        assert labels_in(graph.execute(request(3)).result) == [(0,), (1,)]
        assert [lost.info.host_id for lost in graph.lost_hosts] == [1]
        assert ray.get([actor.what_was_seen.remote() for actor in graph.actors]) == [[1, 2, 3], [3]]


def test_an_actor_is_asked_until_ray_knows_whether_it_starts_again(spawn):
    """Asked just after its process has died, Ray may say no more than that it is unavailable."""
    (actor,) = spawn(1, max_restarts=1)
    (info,) = HostGroup.from_actors([actor]).infos
    session, members = Session(), [Member(info, actor)]
    before = probe(session, members, 30)[0]
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    after = probe(session, members, 30)[0]
    assert isinstance(after, HostReport), after
    assert after.incarnation != before.incarnation
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    assert isinstance(probe(session, members, 30)[0], ActorDiedError), "it may be restarted once"


def test_rebuild_on_request_settles_what_is_in_flight_and_keeps_every_host(small, spawn):
    with GraphExecutor(spawn(2), fan_out("work"), config=small) as graph:
        execution = graph.submit(request(1, {0: ("sleep", 0.3)}))
        graph.rebuild()
        assert graph.generation == 1
        assert [output[0] for output in execution.result(0)] == [1, 1]
        for number in range(2, 6):
            assert labels_in(graph.execute(request(number)).result) == [(0,), (1,)]
        graph.rebuild()
        assert graph.generation == 2
        assert graph.lost_hosts == []


def test_a_host_that_dies_while_a_rebuild_waits_for_what_is_in_flight_is_a_preemption(small, spawn):
    with GraphExecutor(spawn(2), fan_out("work"), config=replace(small, teardown_timeout_s=60)) as graph:
        execution = graph.submit(request(1, {0: ("sleep", 600.0)}))
        rebuilding = threading.Thread(target=graph.rebuild)
        rebuilding.start()
        assert eventually(lambda: graph.state is GraphState.REBUILDING)
        ray.kill(graph.actors[0])
        rebuilding.join(30)
        assert not rebuilding.is_alive(), "it waits for what will not come"
        status = execution.status(0)
        assert isinstance(status, JobPreempted)
        assert [lost.info.host_id for lost in status.info.lost_hosts] == [0]
        assert [lost.info.host_id for lost in graph.lost_hosts] == [0]
        assert any(entry.event is GraphEvent.SYSTEM_ERROR for entry in graph.history)
        assert labels_in(graph.execute(request(2)).result) == [(1,)]


def test_rebuild_kills_and_names_an_actor_that_is_stuck_in_its_method(small, spawn):
    config = replace(small, teardown_timeout_s=0.5)
    with GraphExecutor(spawn(2), fan_out("work"), config=config) as graph:
        pid = ray.get(graph.actors[1].pid.remote())
        execution = graph.submit(request(1, {1: ("sleep", 600.0)}))
        graph.rebuild()
        status = execution.status(0)
        assert isinstance(status, JobError)
        assert "on request" in str(status.error)
        assert [lost.info.host_id for lost in graph.lost_hosts] == [1]
        assert "was killed" in str(graph.lost_hosts[0].cause)
        assert labels_in(graph.execute(request(2)).result) == [(0,)]
        assert eventually(lambda: not is_running(pid))


def test_an_execution_waits_for_the_rebuild_up_to_its_submit_timeout(small, spawn):
    entered, go_on = threading.Event(), threading.Event()

    def on_rebuild(generation, infos, actors):
        entered.set()
        go_on.wait(60)

    config = replace(small, submit_timeout_s=0.2)
    policy = RebuildPolicy(on_rebuild=on_rebuild)
    with GraphExecutor(spawn(2), fan_out("work"), config=config, policy=policy) as graph:
        ray.kill(graph.actors[0])
        assert entered.wait(60)
        assert graph.state is GraphState.REBUILDING
        assert isinstance(graph.failure, ActorDiedError)
        status = graph.execute(request(1))
        assert isinstance(status, JobError)
        assert (status.info.state, status.info.attempts) == ("error", 0)
        assert "rebuilding" in str(status.error)
        go_on.set()
        assert rebuilt(graph, 1)
        assert labels_in(graph.execute(request(2)).result) == [(1,)]
        assert ray.get(graph.actors[0].what_was_seen.remote()) == [2]


def test_requests_to_rebuild_a_graph_that_is_being_closed_are_answered(small, spawn):
    graph = GraphExecutor(spawn(1), chain("work"), config=small)
    started, ended = threading.Barrier(5), []

    def keep_rebuilding():
        started.wait()
        try:
            while True:
                graph.rebuild()
        except GraphClosedError as error:
            ended.append(error)

    threads = [threading.Thread(target=keep_rebuilding) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    eventually(lambda: graph.generation > 1)
    graph.close()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 4


def test_close_during_a_rebuild_ends_it(small, spawn):
    entered, go_on = threading.Event(), threading.Event()

    def on_rebuild(generation, infos, actors):
        entered.set()
        go_on.wait(60)

    graph = GraphExecutor(spawn(2), fan_out("work"), config=small, policy=RebuildPolicy(on_rebuild=on_rebuild))
    ray.kill(graph.actors[0])
    assert entered.wait(60)
    closing = threading.Thread(target=graph.close)
    closing.start()
    assert eventually(lambda: graph.state is GraphState.CLOSED)
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(GraphClosedError):
        graph.execute(request(1))


def test_an_application_error_is_no_reason_to_rebuild_even_one_of_a_dead_actor_elsewhere(small, spawn):
    actors = spawn(2)
    (bystander,) = spawn(1)
    ray.kill(bystander)

    class Caller(Worker):
        def ask(self, message):
            return ray.get(bystander.what_was_seen.remote())

    callers = spawn(1, Caller)
    with GraphExecutor([*callers, *actors], lambda inp, actors: actors[0].ask.bind(inp), config=small) as graph:
        status = graph.execute(request(1))
        assert isinstance(status, JobFailed)
        assert isinstance(status.error, ActorDiedError)
        assert graph.generation == 0


def test_a_spare_host_takes_over(small, spawn):
    def build(inp, actors, infos):
        return actors[0].work.bind(inp)

    with GraphExecutor(spawn(2), build, config=small) as graph:
        assert graph.execute(request(1)).result == (1, {}, (0,))
        ray.kill(graph.actors[0])
        assert rebuilt(graph, 1)
        assert graph.execute(request(2)).result == (2, {}, (1,))


def test_an_actor_that_is_asked_before_its_loop_has_reached_it_lets_the_loop_in(spawn, small, monkeypatch):
    """Ray may hand an actor its loop after the question whether the loop has settled in, and only one at a time."""
    compile_now, wait, asked = build._compile, ray.wait, []

    def ask_first(session, recipe, bound, members, reports, hub, *rest):
        num_tasks = {member.info.host_id: 1 for member in members}
        ask = lambda: asked.append(preparation.await_loops(session, members, hub.key, num_tasks, 30.0))  # noqa: E731
        has_asked = threading.Event()
        monkeypatch.setattr(ray, "wait", lambda *args, **kwargs: has_asked.set() or wait(*args, **kwargs))
        threading.Thread(target=ask).start()
        assert has_asked.wait(30)  # the question goes out before the loop
        return compile_now(session, recipe, bound, members, reports, hub, *rest)

    monkeypatch.setattr(build, "_compile", ask_first)
    with GraphExecutor(spawn(2), fan_out("work"), config=small) as graph:
        assert eventually(lambda: asked)
        assert asked == [{0: "", 1: ""}]
        assert graph.execute(request(1)).result == [(1, {}, (0,)), (1, {}, (1,))]
