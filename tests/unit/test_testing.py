"""What `cgexec.testing` takes, refuses, and does in one process."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import ray
from conftest import eventually
from ray.exceptions import ActorDiedError

from cgexec import (
    GraphConfig,
    GraphExecutor,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
    chain,
)
from cgexec.testing import (
    Chaos,
    Fault,
    FaultPlan,
    LocalActor,
    Message,
    Recorder,
    kill,
    kill_process,
    misbehave,
    pid_of,
    resume,
    stop,
)

LOCAL = GraphConfig(engine="in_process", teardown_timeout_s=1.0)


class Waiter:
    """Has a method that returns when it is told to."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def wait(self) -> str:
        """Wait for it."""
        self.entered.set()
        self.go_on.wait(30)
        return "done"


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "1"},
        {"host": -1},
        {"host": True},
        {"execution": -1},
        {"execution": 0.5},
        {"times": 0},
        {"times": 1.5},
        {"times": "3"},
        {"kind": "raise", "error": "boom"},
        {"kind": "raise", "error": ValueError},
        {"kind": "raise"},
        {"error": ValueError()},
        {"kind": "explode"},
        {"phase": "later"},
        {"phase": "build", "execution": 1},
        {"kind": "stick", "phase": "teardown"},
    ],
    ids=str,
)
def test_a_fault_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Fault"):
        Fault(**{"kind": "die", "host": 0, **fields})


def test_a_plan_is_made_of_faults() -> None:
    with pytest.raises(TypeError, match="made of Faults"):
        FaultPlan([Fault("die", host=0)])  # type: ignore[arg-type]


@pytest.mark.parametrize("worker", ["Stage", Waiter(), None])
def test_a_local_actor_is_made_of_a_class(worker: Any) -> None:
    with pytest.raises(TypeError, match="made of a class"):
        LocalActor(worker)


@pytest.mark.parametrize("faults", [[], Fault("die", host=0)])
def test_a_local_actor_takes_a_plan(faults: Any) -> None:
    with pytest.raises(TypeError, match="faults is to be a FaultPlan"):
        LocalActor(Waiter, faults=faults)


def test_a_local_actor_has_no_process() -> None:
    with pytest.raises(TypeError, match="no process of its own"):
        pid_of(LocalActor(Waiter))


@pytest.mark.parametrize("name", ["nope", None, 5, [], "sleep:", "sleep:long", "sleep:-1", "sleep:nan", "sleep:inf"])
def test_an_unknown_misbehaviour_is_named_with_those_that_are_known(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(repr(name))}.*never-return"):
        misbehave(name)


@pytest.mark.parametrize("call", [kill, kill_process, pid_of, stop, resume])
@pytest.mark.parametrize("actor", ["x", None, Recorder])
def test_what_is_no_actor_is_refused(call: Any, actor: Any) -> None:
    with pytest.raises(TypeError, match="is no actor"):
        call(actor)


class Handle:
    """Looks like one of Ray's."""

    __ray_call__ = None


@pytest.mark.parametrize("call", [kill, kill_process, pid_of, stop, resume])
def test_nothing_is_done_without_ray(call: Any) -> None:
    with pytest.raises(RuntimeError, match="Ray is not running"):
        call(Handle())
    assert not ray.is_initialized()


def test_chaos_starts_no_ray_of_its_own() -> None:
    with pytest.raises(RuntimeError, match="Ray is not running"):
        Chaos(1, 1).run()
    assert not ray.is_initialized()


def test_chaos_calls_what_can_be_called() -> None:
    with pytest.raises(TypeError, match="on_fault"):
        Chaos(1, 1, on_fault=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_faults", "config"),
    [(-1, GraphConfig()), ("5", GraphConfig()), (1.5, GraphConfig()), (0, GraphConfig()), (1, None), (1, LOCAL)],
    ids=str,
)
def test_chaos_that_cannot_be_is_refused(num_faults: Any, config: Any) -> None:
    with pytest.raises(ValueError, match=r"num_faults|config"):
        Chaos(num_faults, 1, config)


# -- local actors ------------------------------------------------------------------------------------------------------


def test_ordinary_calls_settle_when_their_actor_dies() -> None:
    actor = LocalActor(Waiter)
    actor.wait.remote()
    assert actor._process.instance.entered.wait(10)
    queued = actor.wait.remote()
    kill(actor)
    with pytest.raises(ActorDiedError):
        queued.result(10)
    with pytest.raises(ActorDiedError):
        actor.wait.remote().result(10)
    actor._process.instance.go_on.set()


# -- fault plans -------------------------------------------------------------------------------------------------------


def test_executions_are_counted_for_each_plan_whoever_else_is_in_the_graph() -> None:
    plan = FaultPlan(Fault("die", host=1, execution=4))
    actors = [LocalActor(Recorder, 0), LocalActor(Recorder, 1, faults=plan)]
    with GraphExecutor(actors, chain("work"), config=LOCAL) as graph:
        statuses = []
        for number in range(5):
            if number == 2:
                graph.rebuild()
            statuses.append(type(graph.execute(Message(number))))
    assert statuses == [JobSucceeded] * 4 + [JobPreempted]
    assert [execution for _, execution in plan.happened] == [4]


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize(
    ("error", "status", "generation"),
    [
        (ValueError("of the plan"), JobFailed, 0),
        (SystemExit(1), JobPreempted, 1),
        (KeyboardInterrupt(), JobError, 1),
    ],
    ids=["exception", "exit", "interrupt"],
)
def test_what_is_raised_before_or_after_a_method_is_what_the_method_raised(
    phase: Any, error: BaseException, status: type, generation: int
) -> None:
    plan = FaultPlan(Fault("raise", host=0, phase=phase, error=error))
    actors = [LocalActor(Recorder, label, faults=plan) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL) as graph:
        assert isinstance(graph.execute(Message(1)), status)
        assert eventually(lambda: graph.generation == generation)
        assert isinstance(graph.execute(Message(2)), JobSucceeded)


def test_an_error_of_a_plan_names_the_class_of_the_host() -> None:
    plan = FaultPlan(Fault("raise", host=0, error=ValueError("of the plan")))
    with GraphExecutor([LocalActor(Recorder, 0, faults=plan)], chain("work"), config=LOCAL) as graph:
        status = graph.execute(Message(1))
        assert isinstance(status, JobFailed)
        assert "Recorder" in str(status.error)
        assert "aising" not in str(status.error).partition("Traceback")[0]


@pytest.mark.parametrize("inline", [False, True])
def test_a_host_that_is_stopped_before_its_method_runs_it_once_it_is_resumed(inline: bool) -> None:
    plan = FaultPlan(Fault("stop", host=0, execution=1))
    actor = LocalActor(Recorder, 0, faults=plan, inline=inline)
    given = actor._process.instance.given
    with GraphExecutor([actor], chain("work"), config=LOCAL) as graph:
        assert isinstance(graph.execute(Message(1)), JobSucceeded)
        execution = graph.submit(Message(2))
        assert eventually(lambda: execution.done() or plan.happened)
        assert execution.status(0.05).info.state == "pending"
        assert given == [("work", 1)]
        resume(actor)
        assert execution.result().number == 2
        assert given == [("work", 1), ("work", 2)]
        assert len(plan.happened) == 1
        assert isinstance(graph.execute(Message(3)), JobSucceeded)
        assert graph.generation == 0


def test_a_host_that_dies_while_it_is_stopped_before_its_method_never_runs_it() -> None:
    plan = FaultPlan(Fault("stop", host=1))
    actors = [LocalActor(Recorder, 0), LocalActor(Recorder, 1, faults=plan)]
    with GraphExecutor(actors, chain("work"), config=LOCAL) as graph:
        execution = graph.submit(Message(1))
        assert eventually(lambda: plan.happened)
        kill(actors[1])
        assert isinstance(execution.status(30), JobPreempted)
        assert actors[1]._process.instance.given == []
        assert isinstance(graph.execute(Message(2)), JobSucceeded)


def test_a_host_may_die_as_it_is_asked_for_a_sign_of_life() -> None:
    plan = FaultPlan(Fault("die", host=1, phase="probe"))
    actors = [LocalActor(Recorder, label, faults=plan) for label in range(2)]
    with GraphExecutor(actors, chain("work"), config=LOCAL, policy=RebuildPolicy(probe_timeout_s=30)) as graph:
        stop(actors[0])
        execution = graph.submit(Message(1))
        assert execution.status(0.01).info.state == "pending"
        assert eventually(lambda: plan.happened)
        assert isinstance(execution.status(30), JobPreempted)
