"""Executions of a graph that nobody kills: answers, application errors, waits that run out, bad input, many threads."""

import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
from ray.dag import InputNode, MultiOutputNode
from ray.exceptions import RayCgraphCapacityExceeded, RayChannelTimeoutError, RayTaskError, UnserializableException
from workers import HoldsALockError, NeedsArgumentsError, request

from cgexec import (
    ExecutionInfo,
    GraphClosedError,
    GraphExecutor,
    GraphState,
    JobError,
    JobFailed,
    JobSucceeded,
    chain,
    fan_out,
    scatter,
)
from cgexec.lifecycle import GraphEvent

pytestmark = pytest.mark.num_ways(1)


def fan_answer(number, actions, labels):
    return [(number, actions, (label,)) for label in labels]


@pytest.mark.clause("C7")
def test_every_status_says_what_when_and_where(small, spawn):
    actors = spawn(2)
    with GraphExecutor(actors, fan_out("work"), name="two", kind="test", config=small) as graph:
        for number in range(5):
            status = graph.execute(request(number))
            assert isinstance(status, JobSucceeded)
            assert status.result == fan_answer(number, {}, (0, 1))
            info = status.info
            assert isinstance(info, ExecutionInfo)
            assert (info.name, info.kind, info.state) == ("two", "test", "succeeded")
            assert (info.execution, info.generation, info.attempts) == (number, 0, 1)
            assert info.elapsed_s > 0
        assert [host.host_id for host in graph.hosts] == [0, 1]
        assert {host.node_id for host in graph.hosts} == {ray.get_runtime_context().get_node_id()}
        assert repr(graph) == "<GraphExecutor 'two', ready, generation 0, 2 of 2 hosts>"
    assert graph.state is GraphState.CLOSED


@pytest.mark.clause("C3")
def test_a_thousand_executions_alternating_good_and_raising_cost_no_generation(small, spawn):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        answers = {"good": 0, "raised": 0}
        for number in range(1000):
            if number % 2:
                status = graph.execute(request(number, {number // 2 % 2: ("raise", number)}))
                assert isinstance(status, JobFailed)
                assert isinstance(status.error, ValueError)
                assert isinstance(status.error, RayTaskError)
                assert status.error.cause.args == (number,)
                assert status.info.host.host_id == number // 2 % 2
                assert status.info.method == "work"
                answers["raised"] += 1
            else:
                assert graph.execute(request(number)).result == (number, {}, (0, 1))
                answers["good"] += 1
        assert answers == {"good": 500, "raised": 500}
        assert graph.generation == 0
        assert graph.state is GraphState.READY
        errors = [entry for entry in graph.history if entry.event is GraphEvent.APPLICATION_ERROR]
        assert [entry.count for entry in errors] == [500]


@pytest.mark.clause("C3")
def test_every_host_that_raised_is_reported_and_the_other_outputs_are_available(small, spawn):
    with GraphExecutor(spawn(3), fan_out("work"), config=small) as graph:
        execution = graph.submit(request(1, {0: ("raise", "zero"), 2: ("raise", "two")}))
        status = execution.status()
        assert isinstance(status, JobFailed)
        assert [(failure.host.host_id, failure.error.cause.args) for failure in status.info.failures] == [
            (0, ("zero",)),
            (2, ("two",)),
        ]
        outputs = execution.outputs()
        assert [type(output) for output in outputs] == [JobFailed, JobSucceeded, JobFailed]
        assert outputs[1].result[0] == 1
        assert [output.info.host.host_id for output in outputs] == [0, 1, 2]
        assert graph.execute(request(2)).result[0][0] == 2


def test_the_first_error_answers_while_a_sibling_is_busy_and_costs_no_alignment(small, spawn):
    with GraphExecutor(spawn(2), fan_out("work"), config=small) as graph:
        actions = {0: ("raise", "at once"), 1: ("sleep", 1.5)}
        execution = graph.submit(request(1, actions))
        assert isinstance(execution.status(1.0), JobFailed), "the error did not answer before the sibling did"
        outputs = execution.outputs(0)
        assert [output.info.state for output in outputs] == ["failed", "pending"]
        for number in range(2, 12):
            assert graph.execute(request(number)).result == fan_answer(number, {}, (0, 1))
        assert [type(output) for output in execution.outputs()] == [JobFailed, JobSucceeded]
        assert execution.outputs()[1].result == (1, actions, (1,))


def test_without_fail_fast_an_error_waits_for_the_other_outputs(small, spawn):
    config = replace(small, fail_fast=False)
    with GraphExecutor(spawn(2), fan_out("work"), config=config) as graph:
        execution = graph.submit(request(1, {0: ("raise", "at once"), 1: ("raise-later", 0.3, "later")}))
        status = execution.status()
        assert [failure.error.cause.args for failure in status.info.failures] == [("at once",), ("later",)]


def test_raw_compiled_graphs_return_another_executions_answer_after_a_timeout(spawn):
    """Why cgexec reads the channels itself: Ray drops the outputs it had read when a get times out."""
    actors = spawn(2)
    with InputNode() as inp:
        compiled = MultiOutputNode([actor.work.bind(inp) for actor in actors]).experimental_compile(
            _max_inflight_executions=4
        )
    slow = {1: ("sleep", 1.0)}
    references = {number: compiled.execute(request(number, slow if number == 1 else None)) for number in (1, 2, 3, 4)}
    with pytest.raises(RayChannelTimeoutError):
        ray.get(references[1], timeout=0.3)
    wrong = 0
    for number in (2, 3):
        answer = ray.get(references[number], timeout=5.0)
        wrong += [output[0] for output in answer] != [number, number]
    compiled.teardown()
    assert wrong == 2, "Ray has mended this: cgexec.engine.compiled and the README may say so"


@pytest.mark.clause("C2")
def test_no_answer_is_mixed_after_a_wait_that_ran_out(small, spawn):
    with GraphExecutor(spawn(2), fan_out("work"), config=replace(small, get_timeout_s=0.3)) as graph:
        slow = {1: ("sleep", 1.0)}
        executions = {1: graph.submit(request(1, slow))}
        executions |= {number: graph.submit(request(number)) for number in (2, 3, 4)}
        status = executions[1].status()
        assert isinstance(status, JobError)
        assert status.info.state == "pending"
        assert isinstance(status.error, RayChannelTimeoutError)
        assert "work() of host 1" in str(status.error)
        for number in range(5, 105):
            answer = graph.execute(request(number), timeout_s=10)
            assert answer.result == fan_answer(number, {}, (0, 1))
        for number, execution in executions.items():
            assert execution.result(0) == fan_answer(number, slow if number == 1 else {}, (0, 1))
        assert graph.generation == 0


@pytest.mark.parametrize("build", [fan_out("work"), chain("work")], ids=["fan", "chain"])
def test_waits_of_zero_seconds_look_once_and_lose_nothing(small, spawn, build):
    with GraphExecutor(spawn(3), build, config=small) as graph:
        for number in range(30):
            execution = graph.submit(request(number))
            looks = 0
            while execution.status(0).info.state == "pending":
                looks += 1
            result = execution.result()
            outputs = result if isinstance(result, list) else [result]
            assert [output[0] for output in outputs] == [number] * len(outputs)


def test_statuses_may_be_asked_in_any_order_and_any_number_of_times(small, spawn):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        executions = [graph.submit(request(number)) for number in range(4)]
        for number in (3, 0, 2, 1, 0, 3):
            assert executions[number].result() == (number, {}, (0, 1))
            assert executions[number].done()
            assert executions[number].info.state == "succeeded"
            assert executions[number].status() is executions[number].status()


def test_done_notices_an_answer_that_nobody_waited_for(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        execution = graph.submit(request(1))
        end = time.monotonic() + 30
        while not execution.done() and time.monotonic() < end:
            pass
        assert execution.info.state == "succeeded"


def test_submit_waits_for_a_slot_and_helps_to_settle(small, spawn):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        executions = [graph.submit(request(number)) for number in range(50)]
        assert [execution.result()[0] for execution in executions] == list(range(50))


def test_a_full_graph_answers_with_capacity_exceeded_and_recovers(small, spawn):
    config = replace(small, max_inflight=1, submit_timeout_s=0.2)
    with GraphExecutor(spawn(1), chain("work"), config=config) as graph:
        slow = graph.submit(request(1, {0: ("sleep", 1.0)}))
        refused = graph.submit(request(2))
        assert refused.done()
        status = refused.status()
        assert isinstance(status, JobError)
        assert isinstance(status.error, RayCgraphCapacityExceeded)
        assert (status.info.state, status.info.attempts) == ("error", 0)
        assert slow.result()[0] == 1
        assert graph.execute(request(3)).result[0] == 3
        assert ray.get(graph.actors[0].what_was_seen.remote()) == [1, 3]


def test_map_answers_in_order_and_keeps_the_graph_full(small, spawn):
    with GraphExecutor(spawn(3), chain("work"), config=small) as graph:
        taken = []

        def requests():
            for number in range(40):
                taken.append(number)
                yield request(number, {1: ("raise", "odd")} if number % 7 == 3 else None)

        statuses = graph.map(requests())
        assert taken == [], "map took an input before it was asked for a status"
        for number, status in enumerate(statuses):
            if number % 7 == 3:
                assert isinstance(status, JobFailed)
            else:
                assert status.result == (number, {}, (0, 1, 2))
            assert len(taken) <= number + 1 + 4
        assert len(taken) == 40


def test_starmap_unpacks_its_inputs(small, spawn):
    with GraphExecutor(spawn(2), scatter("work"), config=small) as graph:
        pairs = [(request(2 * n), request(2 * n + 1)) for n in range(10)]
        results = [status.result for status in graph.starmap(pairs)]
        assert results == [[(2 * n, {}, (0,)), (2 * n + 1, {}, (1,))] for n in range(10)]


def test_results_kept_alive_stall_nothing_and_own_their_memory(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        statuses = list(graph.map(request(n, {0: ("return-an-array", 500, n)}) for n in range(40)))
    for number, status in enumerate(statuses):
        assert np.array_equal(status.result, np.full(500, number))


def test_buffers_grow_with_the_values(small, spawn):
    with GraphExecutor(spawn(2), chain("work"), config=small) as graph:
        for number, size in enumerate((10, 100_000, 10, 300_000, 10)):
            big = b"x" * size
            assert graph.execute((number, {}, (big,))).result == (number, {}, (big, 0, 1))
        graph.rebuild()  # Ray alone would wait for the actors for ever: their channels have moved
        assert graph.execute(request(9)).result == (9, {}, (0, 1))
        graph.execute((10, {}, (b"x" * 100_000,)))
    assert graph.lost_hosts == []
    assert graph.generation == 1


def diamond(inp, actors):
    left = actors[1].work.bind(inp)
    right = actors[2].work.bind(inp)
    return actors[0].join.bind(left, right)


def two_outputs(inp, actors):
    left, right = actors[0].two.options(num_returns=2).bind(inp)
    return [actors[1].work.bind(left), actors[2].work.bind(right), left]


def same_twice(inp, actors):
    node = actors[0].work.bind(inp)
    return [node, actors[1].work.bind(node), node]


def to_itself(inp, actors):
    first = actors[0].work.bind(inp)
    return [actors[0].work.bind(first), actors[1].work.bind(first)]


@pytest.mark.parametrize(
    ("build", "paths"),
    [
        (diamond, ((1,), (2,), 0)),
        (two_outputs, [(0, "left", 1), (0, "right", 2), (0, "left")]),
        (same_twice, [(0,), (0, 1), (0,)]),
        (to_itself, [(0, 0), (0, 1)]),
    ],
    ids=["diamond", "two outputs of one method", "a node listed twice", "an actor that reads its own output"],
)
def test_other_shapes_answer_with_their_own_inputs(small, spawn, build, paths):
    with GraphExecutor(spawn(3), build, config=small) as graph:
        for number in range(20):
            result = graph.execute(request(number)).result
            outputs = result if isinstance(paths, list) else [result]
            expected = paths if isinstance(paths, list) else [paths]
            assert [output[0] for output in outputs] == [number] * len(expected)
            assert [output[2] for output in outputs] == expected


def test_inputs_by_position_and_by_name(small, spawn):
    def build(inp, actors):
        return [actors[0].work.bind(inp[0]), actors[1].work.bind(inp.extra), actors[0].work.bind(inp[1])]

    with GraphExecutor(spawn(2), build, config=small) as graph:
        for n in range(10):
            result = graph.execute(request(n), request(n + 100), extra=request(n + 1000)).result
            assert [output[0] for output in result] == [n, n + 1000, n + 100]
        for args, kwargs, words in [
            ((1,), {"extra": 1}, "1 positional arguments were given"),
            ((1, 2), {}, "missing: extra"),
            ((1, 2), {"extra": 1, "other": 2}, "unknown: other"),
        ]:
            status = graph.execute(*args, **kwargs)
            assert isinstance(status, JobFailed)
            assert isinstance(status.error, TypeError)
            assert words in str(status.error)
            assert status.info.attempts == 0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_input_that_cannot_be_sent_is_a_failure_and_misaligns_nothing(small, spawn, position):
    with GraphExecutor(spawn(3), scatter("work"), config=small) as graph:
        for number in range(10):
            args = [request(3 * number + k) for k in range(3)]
            if number % 2:
                args[position] = threading.Lock()
                status = graph.execute(*args)
                assert isinstance(status, JobFailed)
                assert isinstance(status.error, TypeError)
                assert f"input {position}" in str(status.error)
                assert status.info.attempts == 0
            else:
                result = graph.execute(*args).result
                assert [output[0] for output in result] == [3 * number, 3 * number + 1, 3 * number + 2]
        seen = [ray.get(actor.what_was_seen.remote()) for actor in graph.actors]
        assert seen == [[3 * number + k for number in range(0, 10, 2)] for k in range(3)]
        assert graph.generation == 0


@pytest.mark.clause("C7")
def test_an_exception_that_cannot_be_loaded_is_a_failure_and_never_a_value(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        status = graph.execute(request(1, {0: ("raise-needs-arguments",)}))
        assert isinstance(status, JobFailed)
        assert (status.info.host.host_id, status.info.method) == (0, "work")
        assert isinstance(status.error, (UnserializableException, NeedsArgumentsError, RayTaskError))
        assert "this and that" in str(status.error)
        status = graph.execute(request(2, {0: ("raise-holding-a-lock",)}))
        assert isinstance(status, JobFailed)
        assert HoldsALockError.__name__ in str(status.error)
        assert graph.execute(request(3)).result[0] == 3
        assert graph.generation == 0


@pytest.mark.clause("C2")
def test_a_result_that_cannot_be_loaded_is_an_error_and_never_a_value(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        status = graph.execute(request(1, {0: ("return-what-cannot-be-loaded",)}))
        assert isinstance(status, JobError)
        assert status.info.state == "error"
        assert graph.execute(request(2)).result[0] == 2
        assert graph.generation == 0


def test_result_returns_the_value_or_raises_the_error(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        assert graph.submit(request(1)).result()[0] == 1
        with pytest.raises(ValueError, match="no good"):
            graph.submit(request(2, {0: ("raise", "no good")})).result()
        slow = graph.submit(request(3, {0: ("sleep", 0.5)}))
        with pytest.raises(RayChannelTimeoutError):
            slow.result(0.01)
        assert slow.result(-1)[0] == 3


@pytest.mark.parametrize("timeout_s", [-2, -0.5, "1", float("nan"), True])
def test_a_bad_timeout_is_refused_by_name_and_runs_nothing(small, spawn, timeout_s):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        with pytest.raises(ValueError, match=r"timeout_s=.*argument of the call.*-1"):
            graph.execute(request(1), timeout_s=timeout_s)
        execution = graph.submit(request(2))
        with pytest.raises(ValueError, match="timeout_s="):
            execution.status(timeout_s)
        assert execution.result()[0] == 2
        assert ray.get(graph.actors[0].what_was_seen.remote()) == [2]


def test_settings_take_the_argument_then_dagcontext_then_the_environment(small, spawn, monkeypatch):
    from ray.dag import DAGContext

    monkeypatch.setenv("RAY_CGRAPH_submit_timeout", "7")  # set after Ray was imported, and it counts
    monkeypatch.setattr(DAGContext.get_current(), "get_timeout", 0.25)
    config = replace(small, max_inflight=2)
    with GraphExecutor(spawn(1), chain("work"), config=config) as graph:
        timeouts = graph.timeouts
        assert (timeouts.max_inflight.value, timeouts.max_inflight.source) == (2, "GraphConfig")
        assert (timeouts.get_timeout_s.value, timeouts.get_timeout_s.source) == (0.25, "DAGContext")
        assert (timeouts.submit_timeout_s.value, timeouts.submit_timeout_s.source) == (7, "environment")
        assert timeouts.teardown_timeout_s.source == "Ray's default"
        status = graph.execute(request(1, {0: ("sleep", 0.6)}))
        assert status.info.state == "pending"
        assert status.info.elapsed_s >= 0.25


def test_a_fraction_in_the_environment_is_refused_with_the_way_out(small, spawn, monkeypatch):
    monkeypatch.setenv("RAY_CGRAPH_get_timeout", "0.5")
    with pytest.raises(ValueError, match=r"RAY_CGRAPH_get_timeout='0\.5'.*GraphConfig\(get_timeout_s="):
        GraphExecutor(spawn(1), chain("work"), config=small)


def test_a_thread_may_wait_while_another_submits(small, spawn):
    with GraphExecutor(spawn(1), chain("work"), config=small) as graph:
        slow = graph.submit(request(0, {0: ("sleep", 0.5)}))
        waited = []
        waiter = threading.Thread(target=lambda: waited.append(slow.status()))
        waiter.start()
        executions = [graph.submit(request(number)) for number in range(1, 4)]
        waiter.join()
        assert waited[0].result[0] == 0
        assert [execution.result()[0] for execution in executions] == [1, 2, 3]


def test_a_closed_graph_refuses_and_its_actors_stay_usable(small, spawn):
    actors = spawn(2)
    graph = GraphExecutor(actors, fan_out("work"), name="gone", config=small)
    assert graph.execute(request(1)).result[0][0] == 1
    graph.close()
    graph.close()
    assert graph.state is GraphState.CLOSED
    for call in (lambda: graph.execute(request(2)), lambda: graph.submit(request(2)), graph.rebuild):
        with pytest.raises(GraphClosedError, match="'gone' is closed"):
            call()
    with pytest.raises(GraphClosedError):
        list(graph.map([request(2)]))
    assert ray.get([actor.what_was_seen.remote() for actor in actors]) == [[1], [1]]
    with GraphExecutor(actors, chain("work"), config=small) as again:
        assert again.execute(request(3)).result == (3, {}, (0, 1))


def test_close_settles_what_is_in_flight(small, spawn):
    graph = GraphExecutor(spawn(1), chain("work"), config=small)
    executions = [graph.submit(request(number, {0: ("sleep", 0.1)})) for number in range(4)]
    graph.close()
    assert [execution.result(0)[0] for execution in executions] == [0, 1, 2, 3]


@pytest.mark.clause("C5")
def test_close_is_bounded_and_names_the_actor_that_was_stuck(small, spawn):
    actors = spawn(2)
    graph = GraphExecutor(actors, fan_out("work"), config=small)
    execution = graph.submit(request(1, {1: ("sleep", 600.0)}))
    started = time.monotonic()
    graph.close(timeout_s=0.5)
    took_s = time.monotonic() - started
    assert took_s < 0.5 + 10, "close waited for a method that never returns"
    status = execution.status(0)
    assert isinstance(status, JobError)
    assert isinstance(status.error, GraphClosedError)
    assert status.info.state == "error"
    assert [lost.info.host_id for lost in graph.lost_hosts] == [1]
    with GraphExecutor(actors[:1], chain("work"), config=small) as again:
        assert again.execute(request(2)).result[0] == 2


def test_ctrl_c_in_close_only_takes_away_the_time_to_wait(small, spawn):
    graph = GraphExecutor(spawn(2), fan_out("work"), config=small)
    execution = graph.submit(request(1, {1: ("sleep", 600.0)}))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    interrupt = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            graph.close(timeout_s=300)
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt.join()
    graph.close()
    assert isinstance(execution.status(0), JobError)
    assert [lost.info.host_id for lost in graph.lost_hosts] == [1]


def test_a_close_does_not_wait_for_a_longer_one_of_another_thread(small, spawn):
    graph = GraphExecutor(spawn(1), chain("work"), config=small)
    graph.submit(request(1, {0: ("sleep", 600.0)}))
    patient = threading.Thread(target=graph.close, args=(5.0,))
    patient.start()
    while graph.state is not GraphState.CLOSED:
        pass
    graph.close(timeout_s=0.1)
    assert patient.is_alive(), "the short close waited for the long one"
    patient.join()
    assert [lost.info.host_id for lost in graph.lost_hosts] == [0]


def test_check_health_names_every_planned_host(small, spawn):
    with GraphExecutor(spawn(3), fan_out("work"), config=small) as graph:
        assert [(h.host_id, h.healthy, h.failed) for h in graph.check_health()] == [
            (0, True, False),
            (1, True, False),
            (2, True, False),
        ]
        with pytest.raises(ValueError, match="timeout_s"):
            graph.check_health(-1)
        assert graph.execute(request(1)).result[0][0] == 1
