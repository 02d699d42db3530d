"""From outputs and breaks to statuses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    RayChannelError,
    RaySystemError,
    RayTaskError,
    UnserializableException,
)

from cgexec import (
    ExecutionInfo,
    HostFailure,
    HostInfo,
    JobError,
    JobFailed,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    LostHost,
)
from cgexec.classify import Verdict
from cgexec.engine.protocol import Break, GraphSpec, InputSpec, Output, OutputError, OutputValue
from cgexec.engine.reports import OutputPort
from cgexec.outcomes import (
    failed_status,
    failures_in,
    lost_at,
    pending_status,
    status_of_break,
    status_of_output,
    status_of_outputs,
)

INFO = ExecutionInfo("echo", "pending", "inference", execution=4, generation=2, attempts=1, elapsed_s=0.25)
HOSTS = {host_id: HostInfo(host_id, "slice-0", 1, healthy=True, failed=False) for host_id in (0, 2, 5)}
SPEC = GraphSpec(InputSpec(1, frozenset()), tuple(OutputPort(host_id, "step") for host_id in HOSTS), returns_list=True)
ONE = GraphSpec(InputSpec(1, frozenset()), (OutputPort(2, "step"),), returns_list=False)


def task_error(text: str = "x") -> RayTaskError:
    return RayTaskError("f", f"remote traceback: {text}", ValueError(text), proctitle="worker", pid=1, ip="127.0.0.1")


def failed_at(host_id: int | None, method: str | None = "step", error: Exception | None = None) -> OutputError:
    return OutputError(error or task_error(), host_id, method)


VALUE = OutputValue("value")

# -- all outputs together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "outputs", "result"),
    [
        (SPEC, [OutputValue(1), OutputValue(None), OutputValue([3])], [1, None, [3]]),
        (ONE, [OutputValue("only")], "only"),
        (ONE, [OutputValue(None)], None),
        (replace(ONE, returns_list=True), [OutputValue("only")], ["only"]),
    ],
)
def test_values_become_the_result_in_output_order(spec: GraphSpec, outputs: list[Output], result: object) -> None:
    status = status_of_outputs(partial(replace, INFO), spec, outputs, HOSTS)
    assert isinstance(status, JobSucceeded)
    assert status.info == replace(INFO, state="succeeded")
    assert status.result == result


def test_an_exception_that_was_returned_and_not_raised_is_a_value() -> None:
    error = ValueError("returned")
    assert status_of_outputs(partial(replace, INFO), ONE, [OutputValue(error)], HOSTS) == JobSucceeded(
        replace(INFO, state="succeeded"), error
    )


SYSTEM_ERROR = RaySystemError("it could not be loaded")
UNLOADABLE = UnserializableException("remote traceback")
MET_A_DEATH = RayTaskError("f", "tb", ActorDiedError(), proctitle="w", pid=1, ip="127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "cls", "state"),
    [
        (task_error(), JobFailed, "failed"),
        (task_error().as_instanceof_cause(), JobFailed, "failed"),
        (MET_A_DEATH, JobFailed, "failed"),
        (UNLOADABLE, JobFailed, "failed"),
        (SYSTEM_ERROR, JobError, "error"),
        (ActorDiedError(), JobError, "error"),
        (RuntimeError("unknown"), JobError, "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_in_the_place_of_an_output_decides(error: Exception, cls: type[JobStatus], state: str) -> None:
    status = status_of_outputs(partial(replace, INFO), SPEC, [VALUE, failed_at(2, "load", error), VALUE], HOSTS)
    assert type(status) is cls
    assert isinstance(status, (JobFailed, JobError))
    assert status.error is error
    assert isinstance(status.info, ExecutionInfo)
    assert (status.info.state, status.info.host, status.info.method) == (state, HOSTS[2], "load")


def test_the_first_error_in_output_order_decides_and_all_are_listed() -> None:
    first, second = task_error("first"), task_error("second")
    status = status_of_outputs(
        partial(replace, INFO), SPEC, [failed_at(0, error=first), VALUE, failed_at(5, error=second)], HOSTS
    )
    assert isinstance(status, JobFailed)
    assert status.error is first
    assert isinstance(status.info, ExecutionInfo)
    assert status.info.host is HOSTS[0]
    assert status.info.failures == (HostFailure(HOSTS[0], "step", first), HostFailure(HOSTS[5], "step", second))


def test_what_has_not_arrived_does_not_hide_an_error() -> None:
    status = status_of_outputs(partial(replace, INFO), SPEC, [None, failed_at(2), None], HOSTS)
    assert isinstance(status, JobFailed)


def test_the_rest_of_the_info_is_carried_over() -> None:
    for outputs in ([VALUE, VALUE, VALUE], [failed_at(0), VALUE, VALUE]):
        info = status_of_outputs(partial(replace, INFO), SPEC, outputs, HOSTS).info
        assert isinstance(info, ExecutionInfo)
        assert replace(info, state="pending", host=None, method=None, failures=()) == INFO


# -- the failures in them ----------------------------------------------------------------------------------------------

A, B, C = task_error("a"), task_error("b"), task_error("c")


@pytest.mark.parametrize(
    ("outputs", "failures"),
    [
        ([], ()),
        ([VALUE, None], ()),
        ([failed_at(0, error=A)], (HostFailure(HOSTS[0], "step", A),)),
        ([failed_at(0, error=A), failed_at(0, error=B)], (HostFailure(HOSTS[0], "step", A),)),
        (
            [failed_at(0, "load", A), failed_at(0, "step", B)],
            (HostFailure(HOSTS[0], "load", A), HostFailure(HOSTS[0], "step", B)),
        ),
        (
            [failed_at(2, error=A), VALUE, failed_at(0, error=B), failed_at(2, error=C)],
            (HostFailure(HOSTS[2], "step", A), HostFailure(HOSTS[0], "step", B)),
        ),
        (
            [failed_at(None, None, A), failed_at(None, None, B)],
            (HostFailure(None, None, A), HostFailure(None, None, B)),
        ),
        (
            [failed_at(0, None, A), failed_at(0, None, B)],
            (HostFailure(HOSTS[0], None, A),),
        ),
        ([failed_at(9, error=A)], (HostFailure(None, "step", A),)),
        ([failed_at(0, error=SYSTEM_ERROR), failed_at(2, error=A)], (HostFailure(HOSTS[2], "step", A),)),
    ],
)
def test_each_host_and_method_that_raised_is_listed_once(
    outputs: list[Output | None], failures: tuple[HostFailure, ...]
) -> None:
    assert failures_in(outputs, HOSTS) == failures


# -- one output by itself ----------------------------------------------------------------------------------------------

OTHERWISE = JobPreempted(INFO, ActorDiedError())


def test_an_output_that_arrived_is_a_success_of_its_own_host() -> None:
    status = status_of_output(INFO, SPEC, 1, VALUE, OTHERWISE, HOSTS)
    assert status == JobSucceeded(replace(INFO, state="succeeded", host=HOSTS[2], method="step"), "value")


def test_an_output_that_did_not_arrive_is_what_the_execution_became() -> None:
    assert status_of_output(INFO, SPEC, 1, None, OTHERWISE, HOSTS) is OTHERWISE


@pytest.mark.parametrize(
    ("output", "cls", "host", "method"),
    [
        (failed_at(5, "load", A), JobFailed, HOSTS[5], "load"),  # raised upstream of the output
        (failed_at(None, None, A), JobFailed, None, None),
        (failed_at(2, "step", SYSTEM_ERROR), JobError, HOSTS[2], "step"),
    ],
)
def test_an_error_of_one_output_names_where_it_was_raised(
    output: OutputError, cls: type[JobStatus], host: HostInfo | None, method: str | None
) -> None:
    status = status_of_output(INFO, SPEC, 1, output, OTHERWISE, HOSTS)
    assert type(status) is cls
    assert isinstance(status, (JobFailed, JobError))
    assert status.error is output.error
    assert isinstance(status.info, ExecutionInfo)
    assert (status.info.host, status.info.method) == (host, method)
    assert status.info.failures == (HostFailure(host, method, output.error),)


# -- a break -----------------------------------------------------------------------------------------------------------

DIED, NODE_DIED, CLOSED, RAISED = ActorDiedError(), NodeDiedError("gone"), RayChannelError("closed"), task_error("loop")
SEEN = RayChannelError("what the driver saw")


def is_like(found: BaseException, shared: BaseException) -> bool:
    """Return whether an exception says what another does, without being that one."""
    return found is not shared and (type(found), str(found), vars(found)) == (type(shared), str(shared), vars(shared))


def are_like(found: tuple[LostHost, ...], shared: tuple[LostHost, ...]) -> bool:
    same = [replace(each, cause=DIED) for each in found] == [replace(each, cause=DIED) for each in shared]
    return same and all(is_like(mine.cause, theirs.cause) for mine, theirs in zip(found, shared, strict=True))


def lost(host_id: int, cause: Exception) -> LostHost:
    return LostHost(replace(HOSTS[host_id], healthy=False, failed=True), 2, cause)


@pytest.mark.parametrize(
    ("errors", "error", "lost_hosts"),
    [
        (((0, DIED),), DIED, (lost(0, DIED),)),
        (((0, DIED), (5, NODE_DIED)), DIED, (lost(0, DIED), lost(5, NODE_DIED))),
        (((2, CLOSED), (5, NODE_DIED)), NODE_DIED, (lost(5, NODE_DIED),)),
        (((2, RAISED), (0, DIED)), DIED, (lost(0, DIED),)),
    ],
)
def test_a_break_that_cost_a_host_preempts(
    errors: tuple[tuple[int, Exception], ...], error: Exception, lost_hosts: tuple[LostHost, ...]
) -> None:
    status = status_of_break(INFO, Break(errors, SEEN), HOSTS)
    assert isinstance(status, JobPreempted)
    assert is_like(status.error, error)
    assert isinstance(status.info, ExecutionInfo)
    assert are_like(status.info.lost_hosts, lost_hosts)
    assert replace(status.info, lost_hosts=()) == replace(INFO, state="preempted", host=lost_hosts[0].info)
    assert are_like(lost_at(Break(errors, SEEN), HOSTS, 2), lost_hosts)


@pytest.mark.parametrize(
    ("errors", "error", "host"),
    [
        ((), SEEN, None),
        (((2, CLOSED),), CLOSED, HOSTS[2]),
        (((2, RAISED), (0, CLOSED)), RAISED, HOSTS[2]),
        (((2, MET_A_DEATH),), MET_A_DEATH, HOSTS[2]),
        (((9, CLOSED),), CLOSED, None),
    ],
)
def test_a_break_with_every_host_alive_is_an_error(
    errors: tuple[tuple[int, Exception], ...], error: Exception, host: HostInfo | None
) -> None:
    status = status_of_break(INFO, Break(errors, SEEN), HOSTS)
    assert isinstance(status, JobError)
    assert status.info == replace(INFO, state="error", host=host)
    assert is_like(status.error, error)
    assert lost_at(Break(errors, SEEN), HOSTS, 2) == ()


def test_the_first_reason_of_a_break_is_the_culprits_or_what_the_driver_saw() -> None:
    assert Break(((2, DIED), (0, CLOSED)), SEEN).error is DIED
    assert Break((), SEEN).error is SEEN


# -- by verdict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", Verdict)
def test_the_state_in_the_info_is_the_verdict(verdict: Verdict) -> None:
    status = failed_status(INFO, verdict, A)
    assert status.info == replace(INFO, state=verdict.value)
    assert type(status) in (JobFailed, JobPreempted, JobError)


def test_a_wait_that_ran_out_is_a_pending_error() -> None:
    error = TimeoutError("ran out")
    assert pending_status(replace(INFO, state="running"), error) == JobError(INFO, error)
