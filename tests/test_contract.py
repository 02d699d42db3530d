"""The contract, clause by clause: on every engine and transport, and on every shape of graph.

What happens when hosts die is the crash matrix's; what is special to a transport has tests of its own.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from matrix import Trial, without_orders
from pool import LOCAL, WAYS, Pool, check_that_nothing_is_left, check_that_nothing_is_open

from cgexec import (
    GraphClosedError,
    GraphExecutor,
    JobError,
    JobFailed,
    JobPreempted,
    JobSucceeded,
    RebuildPolicy,
    TransferError,
)
from cgexec.testing import SHAPES, LocalActor, Message, Recorder, kill_process

EVERY_WAY = {**WAYS, "in-process": LOCAL, "in-process-inline": LOCAL}

# What cannot be shown, by (the clause's test, the way), and why.
CANNOT = {
    ("test_a_wait_that_runs_out_is_no_outcome", "in-process-inline"): "a method runs on the thread that waits for it",
    ("test_close_is_bounded", "in-process-inline"): "a method runs on the thread that waits for it",
}


pytestmark = [
    pytest.mark.clause("C8"),
    pytest.mark.num_ways(1),
    pytest.mark.parametrize(("way", "shape"), list(itertools.product(EVERY_WAY, SHAPES))),
]


@pytest.fixture
def trial(way: str, shape: str, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """A graph of a shape, run one way; ends by proving that it answers, and that nothing is left of it."""
    clause = request.node.originalname
    if (clause, way) in CANNOT:
        pytest.skip(CANNOT[clause, way])
    kind, real = SHAPES[shape], way in WAYS
    if real:
        workers: Pool = request.getfixturevalue("pool")
        actors = workers.take(kind.num_hosts)
        pids: list[Any] = [workers.actors[actor] for actor in actors]
    else:
        actors = [LocalActor(Recorder, label, inline=way.endswith("inline")) for label in range(kind.num_hosts)]
        pids = [None] * len(actors)
    made = Trial(kind, actors, pids, EVERY_WAY[way].engine)
    policy = RebuildPolicy(probe_timeout_s=2.0, backoff_s=0.01)
    with GraphExecutor(
        actors, kind.build, name="contract", kind="trial", config=EVERY_WAY[way], policy=policy
    ) as graph:
        made.graph = graph
        yield made
        if not isinstance(graph.failure, GraphClosedError) and graph.state.value != "closed":
            message = made.message()
            assert isinstance(made.settle(made.submit(message), message), JobSucceeded)
    if real:
        check_that_nothing_is_open(workers, actors)
        check_that_nothing_is_left(workers)


def given_to(actor: Any) -> list[tuple[str, int]]:
    """Return what a worker was given."""
    answer = actor.what_was_given.remote()
    return answer.result(10) if isinstance(actor, LocalActor) else ray.get(answer)


def places_behind(trial: Trial, label: int) -> list[bool]:
    """Return, for each output, whether what it answers has passed a worker."""
    answer = trial.shape.answer(Message(0), range(len(trial.actors)))
    outputs = answer if isinstance(answer, list) else [answer]

    def passed(path: Any) -> bool:
        return any(passed(each) if isinstance(each, tuple) else each == label for each in path)

    return [passed(output.path) for output in outputs]


# -- C1: one execution, one outcome ------------------------------------------------------------------------------------


@pytest.mark.clause("C1")
def test_an_outcome_stays_what_it_was(trial):
    for orders in ((), ("raise",)):
        message = trial.message(*orders)
        execution = trial.submit(message)
        first = trial.settle(execution, message)
        assert all(execution.status(0) is first for _ in range(3))
        assert execution.done()
        assert execution.info.state == first.info.state == ("failed" if orders else "succeeded")


# -- C2: its own answer ------------------------------------------------------------------------------------------------


@pytest.mark.clause("C2")
def test_answers_belong_to_their_questions_in_whatever_order_they_are_asked_for(trial):
    messages = [trial.message(*(("raise",) if place % 3 == 1 else ())) for place in range(4)]
    executions = [trial.submit(message) for message in messages]
    for place in (2, 0, 3, 1):
        status = trial.settle(executions[place], messages[place])
        assert isinstance(status, JobFailed if place == 1 else JobSucceeded)
    again = trial.message()
    assert isinstance(trial.settle(trial.submit(again), again), JobSucceeded)


@pytest.mark.clause("C2")
def test_every_method_was_given_what_is_its_own(trial):
    """Application errors in between, of one output or all: nothing stale arrives behind them."""
    messages = [trial.message(*(("raise",) if place % 2 else ())) for place in range(8)]
    for status, message in zip(
        trial.graph.starmap(trial.shape.arguments(message, len(trial.actors)) for message in messages),
        messages,
        strict=True,
    ):
        assert isinstance(status, JobFailed if message.orders else JobSucceeded)
        if isinstance(status, JobSucceeded):
            assert without_orders(status.result) == trial.shape.answer(message, range(len(trial.actors)))
    for actor in trial.actors:
        for method in ("work", "join"):
            numbers = [number for name, number in given_to(actor) if name == method]
            assert numbers == sorted(numbers)
            assert set(numbers) <= trial.submitted


# -- C3: an application error costs nothing ----------------------------------------------------------------------------


@pytest.mark.clause("C3")
def test_an_application_error_leaves_the_generation_and_the_other_outputs(trial):
    message = trial.message("raise")
    execution = trial.submit(message)
    status = trial.settle(execution, message)
    assert isinstance(status, JobFailed)
    behind = places_behind(trial, 0)
    outputs = execution.outputs(30)
    assert [isinstance(output, JobFailed) for output in outputs] == behind
    assert [isinstance(output, JobSucceeded) for output in outputs] == [not each for each in behind]
    assert trial.graph.generation == 0
    assert trial.graph.lost_hosts == []


@pytest.mark.clause("C3")
def test_what_cannot_be_sent_is_an_error_of_its_execution_alone(trial):
    message = trial.message("return-what-cannot-be-sent")
    status = trial.settle(trial.submit(message), message)
    assert isinstance(status, JobError)
    assert isinstance(status.error, TransferError)
    assert trial.graph.generation == 0


@pytest.mark.clause("C3")
def test_an_input_that_cannot_be_sent_is_refused_and_nothing_runs(trial):
    before = [given_to(actor) for actor in trial.actors]
    for place in range(trial.shape.num_hosts if trial.shape.scatters else 1):
        arguments: list[Any] = list(trial.shape.arguments(trial.message(), trial.shape.num_hosts))
        arguments[place] = lambda: (yield)
        arguments[place] = arguments[place]()  # a generator
        status = trial.graph.execute(*arguments)
        assert isinstance(status, JobFailed)
        assert status.info.attempts == 0
    status = trial.graph.execute(*trial.shape.arguments(trial.message(), trial.shape.num_hosts), Message(0))
    assert isinstance(status, JobFailed)
    assert "positional" in str(status.error)
    assert [given_to(actor) for actor in trial.actors] == before


# -- C4: a system error costs one generation ---------------------------------------------------------------------------


@pytest.mark.clause("C4")
def test_survivors_keep_their_state(trial):
    message = trial.message()
    trial.settle(trial.submit(message), message)
    before = [given_to(actor) for actor in trial.actors[1:]]
    kill_process(trial.actors[0], trial.pids[0])
    trial.rebuilt(1)
    assert trial.graph.actors == trial.actors[1:]
    assert [given_to(actor) for actor in trial.actors[1:]] == before
    assert [host.host_id for host in trial.graph.hosts] == list(range(1, len(trial.actors)))
    (lost,) = trial.graph.lost_hosts
    assert (lost.info.host_id, lost.generation, lost.info.failed) == (0, 0, True)


# -- C5: bounded time --------------------------------------------------------------------------------------------------


@pytest.mark.clause("C5")
def test_a_wait_that_runs_out_is_no_outcome(trial):
    message = trial.message("sleep:0.5")
    execution = trial.submit(message)
    for wait_s in (0, 0.05):
        started = time.monotonic()
        pending = execution.status(wait_s)
        assert time.monotonic() - started < wait_s + 5
        assert isinstance(pending, JobError)
        assert pending.info.state == "pending"
    assert isinstance(trial.settle(execution, message), JobSucceeded)


@pytest.mark.clause("C5")
def test_close_is_bounded(trial):
    execution = trial.submit(trial.message("sleep:3600"))
    started = time.monotonic()
    trial.graph.close(timeout_s=1.0)  # which the other hosts must not need
    assert time.monotonic() - started < 1.0 + 10
    assert isinstance(execution.status(0), (JobError, JobPreempted))
    assert [lost.info.host_id for lost in trial.graph.lost_hosts] == [0]
    with pytest.raises(GraphClosedError):
        trial.graph.execute(*trial.shape.arguments(trial.message(), len(trial.actors)))


# -- C7: nothing hidden ------------------------------------------------------------------------------------------------


@pytest.mark.clause("C7")
def test_a_status_says_where_what_and_in_which_generation(trial):
    message = trial.message("raise")
    status = trial.settle(trial.submit(message), message)
    info = status.info
    assert (info.name, info.kind, info.state, info.generation, info.attempts) == ("contract", "trial", "failed", 0, 1)
    assert (info.host.host_id, info.method in ("work", "join")) == (0, True)
    assert 0 < info.elapsed_s < 60
    assert "as it was told to" in str(status.error)
    assert "_pass_on" in str(status.error), "the remote traceback is not in it"
    assert {failure.host.host_id for failure in info.failures} == {0}
    assert info.method in {failure.method for failure in info.failures}
