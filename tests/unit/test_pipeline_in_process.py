"""Training steps without Ray: gradients, the order in which hosts do things, and what they keep meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stages import Mortal, StageHost, data, in_one_process

from cgexec import GraphConfig, GraphExecutor, GraphSpecError, GraphState, JobFailed, JobSucceeded
from cgexec.pipeline import (
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    StageMethods,
    TrainingStep,
    peak_activations,
)
from cgexec.testing import LocalActor, kill

IN_PROCESS = GraphConfig(engine="in_process")
SCHEDULES = (ScheduleGPipe(), Schedule1F1B(), ScheduleInterleaved1F1B(2), ScheduleZeroBubbleH1())
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
NUM_STEPS = 3


def hosts(schedule: Schedule, num_hosts: int, worker: type = StageHost) -> list[Any]:
    num_stages = num_hosts * schedule.stages_per_host
    return [LocalActor(worker, list(range(host, num_stages, num_hosts)), num_stages) for host in range(num_hosts)]


@EVERY_SCHEDULE
@pytest.mark.parametrize(("num_hosts", "num_microbatches"), [(1, 1), (1, 3), (2, 4), (3, 6), (4, 8)])
def test_every_schedule_computes_what_one_process_does(
    schedule: Schedule, num_hosts: int, num_microbatches: int
) -> None:
    actors = hosts(schedule, num_hosts)
    expected, weights = in_one_process(num_hosts * schedule.stages_per_host, num_microbatches, NUM_STEPS)
    build = TrainingStep(schedule, num_hosts, num_microbatches)
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        for number in range(NUM_STEPS):
            losses, updates = build.result(
                graph.execute(*build.arguments(*data(number, num_microbatches), number)).result
            )
            np.testing.assert_allclose(losses, expected[number], rtol=0, atol=1e-12)
            assert updates == [(number, list(range(host, len(weights), num_hosts))) for host in range(num_hosts)]
    for actor in actors:
        for stage, found in actor.weights.remote().result(10).items():
            for one, other in zip(found, weights[stage], strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@EVERY_SCHEDULE
def test_hosts_do_what_the_schedule_says_in_its_order_and_keep_what_it_promises(schedule: Schedule) -> None:
    actors, build = hosts(schedule, 4), TrainingStep(schedule, 4, 8)
    order = schedule.order(4, 8)
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        for number in range(2):
            graph.execute(*build.arguments(*data(number, 8), number))
    for actor, operations, peak in zip(actors, order, peak_activations(order), strict=True):
        once = [str(operation) for operation in operations]
        assert actor.what_was_done.remote().result(10) == ([*once, "update 0", *once, "update 1"], peak)


class Renamed(StageHost):
    fwd, bwd, apply = StageHost.forward, StageHost.backward, StageHost.update
    forward = backward = update = property()  # no methods any more


def test_the_methods_may_be_called_otherwise() -> None:
    actors = hosts(Schedule1F1B(), 2, Renamed)
    build = TrainingStep(Schedule1F1B(), 2, 2, StageMethods(forward="fwd", backward="bwd", update="apply"))
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        losses, _ = build.result(graph.execute(*build.arguments(*data(0, 2))).result)
    np.testing.assert_allclose(losses, in_one_process(2, 2, 1)[0][0], rtol=0, atol=1e-12)


class WithoutWeights(StageHost):
    backward_weight = property()


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match="1F1B cannot be had with 2 microbatches on 3 hosts"):
        TrainingStep(Schedule1F1B(), 3, 2)
    schedule = ScheduleZeroBubbleH1()
    with pytest.raises(GraphSpecError, match="has no method 'backward_weight', which stage 0 needs for 0W0"):
        GraphExecutor(hosts(schedule, 2, WithoutWeights), TrainingStep(schedule, 2, 2), config=IN_PROCESS)
    with pytest.raises(GraphSpecError, match="the pipeline is for 3 hosts, and has 2"):
        GraphExecutor(hosts(schedule, 2), TrainingStep(schedule, 3, 3), config=IN_PROCESS)


@pytest.mark.parametrize("num_microbatches", [0, -1, 1.0, True, "2"])
def test_a_number_of_microbatches_is_a_whole_number(num_microbatches: Any) -> None:
    with pytest.raises(ValueError, match=r"num_microbatches=.*expected a whole number"):
        TrainingStep(ScheduleGPipe(), 2, num_microbatches)


def test_microbatches_and_targets_are_counted() -> None:
    build = TrainingStep(ScheduleGPipe(), 2, 2)
    with pytest.raises(ValueError, match="3 microbatches were given, and the graph is for 2"):
        build.arguments([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="1 targets were given, and the graph is for 2"):
        build.arguments([1, 2], [1])


@pytest.mark.parametrize("host", range(3))
def test_a_lost_stage_that_is_not_replaced_fails_the_graph(host: int) -> None:
    actors, build = hosts(Schedule1F1B(), 3), TrainingStep(Schedule1F1B(), 3, 3)
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        graph.execute(*build.arguments(*data(0, 3)))
        kill(actors[host])
        while graph.state is not GraphState.FAILED:
            graph.execute(*build.arguments(*data(1, 3)))
        assert "RebuildPolicy(replace=...) says where a host comes from" in str(graph.failure)


@pytest.mark.parametrize(
    ("schedule", "host", "operation"),
    [
        (schedule, host, str([each for each in operations if each.kind == kind][1]))
        for schedule in SCHEDULES
        for host, operations in enumerate(schedule.order(3, 3))
        for kind in sorted({each.kind for each in operations})
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_host_that_could_not_do_all_is_not_updated(schedule: Schedule, host: int, operation: str) -> None:
    """Nor is one that needs what it could not do; others are."""
    actors, build = hosts(schedule, 3, Mortal), TrainingStep(schedule, 3, 3)
    stages = list(range(host, 3 * schedule.stages_per_host, 3))
    actors[host] = LocalActor(Mortal, stages, 3 * schedule.stages_per_host, (0, operation), "raise")
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        execution = graph.submit(*build.arguments(*data(0, 3)))
        assert isinstance(execution.status(), JobFailed)
        losses, updates = build.result(execution.outputs())
    assert isinstance(updates[host], JobFailed)
    assert f"in {operation} of step 0" in str(updates[host].error)
    if "F" not in operation:
        (expected,), _ = in_one_process(3 * schedule.stages_per_host, 3, 1)
        assert [status.result for status in losses] == expected
    for actor, update in zip(actors, updates, strict=True):
        assert ("update 0" in actor.what_was_done.remote().result(10)[0]) == isinstance(update, JobSucceeded)
