"""The table that maps Ray's exceptions: complete, in a working order, and with the documented answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import ray.exceptions as rx
from ray.exceptions import RayError, RayTaskError

from cgexec import (
    ExecutionInfo,
    JobError,
    JobFailed,
    JobInfo,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    handle_ray_error,
)
from cgexec.classify import TABLE, Place, Row, Verdict, classify, is_failed_constructor, row_for

INFO = JobInfo("echo", "running", "inference")


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("f", "remote traceback", cause, proctitle="worker", pid=1, ip="127.0.0.1")


def lost_object(cls: type[rx.ObjectLostError]) -> Callable[[], RayError]:
    return lambda: cls("ab", None, "here")


# How each class of Ray's is made; a class that is not here is made from one text.
MAKERS: dict[str, Callable[[], RayError]] = {
    "RayError": lambda: RayError("x"),
    "CrossLanguageError": lambda: rx.CrossLanguageError.__new__(rx.CrossLanguageError),  # made from a protobuf message
    "TaskCancelledError": lambda: rx.TaskCancelledError(None, "x"),
    "RayTaskError": lambda: task_error(ValueError("x")),
    "RayActorError": lambda: rx.RayActorError(),
    "ActorDiedError": lambda: rx.ActorDiedError(),
    "ActorUnavailableError": lambda: rx.ActorUnavailableError("x", None),
    "ObjectLostError": lost_object(rx.ObjectLostError),
    "ObjectFetchTimedOutError": lost_object(rx.ObjectFetchTimedOutError),
    "ReferenceCountingAssertionError": lost_object(rx.ReferenceCountingAssertionError),
    "ObjectFreedError": lost_object(rx.ObjectFreedError),
    "OwnerDiedError": lambda: rx.OwnerDiedError.__new__(rx.OwnerDiedError),  # reads an address in its constructor
    "UnserializableException": lambda: rx.UnserializableException("x"),
}

RAY_ERRORS = {
    name: thing
    for name, thing in vars(rx).items()
    if isinstance(thing, type) and issubclass(thing, BaseException) and thing.__module__ == rx.__name__
}


# Not in every release of the range: the table names them all, since a class it does not name has no meaning of its own.
OF_SOME_RELEASES = {
    "ActorAlreadyExistsError",
    "ActorHandleNotFoundError",
    "AuthenticationError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "RayDirectTransportError",
    "StreamingGeneratorReplayInconsistentError",
}
NAMED = [(row, name) for row in TABLE for name in row.classes.split() if name in RAY_ERRORS]


def made(name: str) -> RayError:
    maker, cls = MAKERS.get(name), RAY_ERRORS[name]
    if maker is None and cls.__init__ is rx.ObjectLostError.__init__:
        maker = lost_object(cls)
    error = maker() if maker is not None else cls("x")
    assert isinstance(error, RayError)
    return error


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_exception_of_ray_is_named_by_a_row() -> None:
    named = {name for row in TABLE for name in row.classes.split()}
    assert set(RAY_ERRORS) - named == set()


def test_every_name_in_the_table_is_an_exception_of_ray() -> None:
    named = {name for row in TABLE for name in row.classes.split()}
    assert named - set(RAY_ERRORS) <= OF_SOME_RELEASES


@pytest.mark.parametrize("name", RAY_ERRORS)
def test_every_exception_falls_into_a_row_that_names_it(name: str) -> None:
    row = row_for(made(name))
    assert row is not None
    assert name in row.classes.split()


def fits(row: Row, name: str) -> RayError | None:
    """Return an instance of the class called ``name`` that ``row`` is the first to fit, or None."""
    candidates = [made(name)]
    if issubclass(RAY_ERRORS[name], rx.ActorDiedError):
        candidates.append(rx.ActorDiedError(task_error(ValueError("x"))))
    elif issubclass(RAY_ERRORS[name], rx.RayActorError):
        candidates.append(rx.RayActorError(actor_init_failed=True))
    return next((error for error in candidates if row_for(error) is row), None)


@pytest.mark.parametrize(("row", "name"), NAMED, ids=lambda v: v if isinstance(v, str) else "")
def test_no_row_and_no_name_in_it_is_hidden_by_an_earlier_one(row: Row, name: str) -> None:
    assert fits(row, name) is not None


def test_no_name_stands_twice_but_where_a_condition_tells_the_rows_apart() -> None:
    names = [(name, row.only_if is None) for row in TABLE for name in row.classes.split()]
    assert len(names) == len(set(names))


def test_every_row_says_why() -> None:
    assert all(row.why.strip() for row in TABLE)


def test_a_row_leaves_out_the_classes_that_the_installed_ray_lacks() -> None:
    row = Row("NodeDiedError OfAFutureRayError", Verdict.PREEMPTED, Verdict.ERROR, Verdict.PREEMPTED, "why")
    assert row.types() == (rx.NodeDiedError,)


def test_an_exception_that_is_not_rays_has_no_row_and_is_an_error() -> None:
    for error in (ValueError("x"), KeyboardInterrupt(), TimeoutError()):
        assert row_for(error) is None
        assert {classify(error, place) for place in Place} == {Verdict.ERROR}


# -- where it was seen -------------------------------------------------------------------------------------------------

_F, _P, _E = Verdict.FAILED, Verdict.PREEMPTED, Verdict.ERROR

# error -> its meaning (alone, as an output, as the end of a loop)
MEANINGS: list[tuple[RayError, tuple[Verdict, Verdict, Verdict]]] = [
    (task_error(ValueError("x")), (_E, _F, _E)),
    (task_error(ValueError("x")).as_instanceof_cause(), (_E, _F, _E)),
    (task_error(rx.ActorDiedError()).as_instanceof_cause(), (_E, _F, _E)),
    (task_error(rx.NodeDiedError("x")).as_instanceof_cause(), (_E, _F, _E)),
    (task_error(rx.GetTimeoutError("x")).as_instanceof_cause(), (_E, _F, _E)),
    (rx.UnserializableException("x"), (_E, _F, _E)),
    (rx.ActorDiedError(), (_P, _E, _P)),
    (rx.ActorDiedError(task_error(ValueError("in __init__"))), (_E, _E, _E)),
    (rx.RayActorError(actor_init_failed=True), (_E, _E, _E)),
    (rx.RayActorError(), (_P, _E, _P)),
    (rx.ActorUnavailableError("x", None), (_P, _E, _P)),
    (rx.NodeDiedError("x"), (_P, _E, _P)),
    (rx.LocalRayletDiedError("x"), (_P, _E, _P)),
    (rx.WorkerCrashedError("x"), (_P, _E, _P)),
    (made("OwnerDiedError"), (_P, _E, _P)),
    (made("ObjectLostError"), (_E, _E, _E)),
    (rx.RayChannelTimeoutError("x"), (_E, _E, _E)),
    (rx.GetTimeoutError("x"), (_E, _E, _E)),
    (rx.RayCgraphCapacityExceeded("x"), (_E, _E, _E)),
    (rx.RayChannelError("x"), (_E, _E, _E)),
    (rx.RaySystemError("x"), (_E, _E, _E)),
    (rx.OutOfMemoryError("x"), (_E, _E, _E)),
    (rx.TaskCancelledError(None, "x"), (_E, _E, _E)),
    (RayError("x"), (_E, _E, _E)),
]


@pytest.mark.parametrize(
    ("error", "meaning"), MEANINGS, ids=lambda v: type(v).__name__ if isinstance(v, RayError) else ""
)
def test_an_error_means_what_the_place_makes_of_it(error: RayError, meaning: tuple[Verdict, Verdict, Verdict]) -> None:
    assert (classify(error, Place.ALONE), classify(error, Place.OUTPUT), classify(error, Place.LOOP)) == meaning


def test_what_a_method_met_is_no_preemption_of_ours() -> None:
    error = task_error(rx.ActorDiedError()).as_instanceof_cause()
    assert isinstance(error, rx.ActorDiedError)
    assert isinstance(error, RayTaskError)
    assert TABLE[0].types() == (RayTaskError,)
    assert row_for(error) is TABLE[0]
    assert isinstance(handle_ray_error(INFO, error), JobError)
    assert classify(error, Place.OUTPUT) is Verdict.FAILED


@pytest.mark.parametrize(
    ("error", "classes"),
    [
        (rx.RayChannelTimeoutError("x"), "RayChannelTimeoutError GetTimeoutError"),
        (rx.GetTimeoutError("x"), "RayChannelTimeoutError GetTimeoutError"),
        (rx.RayCgraphCapacityExceeded("x"), "RayCgraphCapacityExceeded PendingCallsLimitExceeded"),
        (rx.RayChannelError("x"), "RayChannelError"),
        (rx.ActorDiedError(task_error(ValueError("x"))), "ActorDiedError RayActorError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RayError) else "",
)
def test_the_special_is_asked_for_before_the_general(error: RayError, classes: str) -> None:
    row = row_for(error)
    assert row is not None
    assert row.classes == classes


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (rx.ActorDiedError(task_error(ValueError("x"))), True),
        (rx.RayActorError(actor_init_failed=True), True),
        (rx.ActorDiedError(), False),
        (rx.ActorUnavailableError("x", None), False),
        (task_error(ValueError("x")), False),
        (ValueError("x"), False),
    ],
)
def test_a_failed_constructor_is_told_from_a_death(error: BaseException, expected: bool) -> None:
    assert is_failed_constructor(error) is expected


# -- handle_ray_error --------------------------------------------------------------------------------------------------

PREEMPTED = {
    "NodeDiedError",
    "OwnerDiedError",
    "ActorDiedError",
    "ActorUnavailableError",
    "RayActorError",
    "AsyncioActorExit",
    "WorkerCrashedError",
    "LocalRayletDiedError",
}


@pytest.mark.parametrize("name", RAY_ERRORS)
def test_handle_ray_error_answers_as_documented(name: str) -> None:
    error = made(name)
    status = handle_ray_error(INFO, error)
    assert type(status) is (JobPreempted if name in PREEMPTED else JobError)
    assert isinstance(status, (JobPreempted, JobError))
    assert status.error is error
    assert status.info is INFO


@pytest.mark.parametrize("error", [ValueError("not Ray's"), RuntimeError()], ids=repr)
def test_handle_ray_error_takes_any_exception(error: Exception) -> None:
    assert handle_ray_error(INFO, error) == JobError(INFO, error)  # type: ignore[arg-type]


def test_handle_ray_error_never_puts_a_base_exception_into_a_status() -> None:
    status = handle_ray_error(INFO, KeyboardInterrupt("stop"))  # type: ignore[arg-type]
    assert isinstance(status, JobError)
    assert isinstance(status.error, RuntimeError)
    assert "KeyboardInterrupt: stop" in str(status.error)


def test_handle_ray_error_passes_any_info_through() -> None:
    info = ExecutionInfo("echo", "pending", "training", 4)
    assert handle_ray_error(info, rx.NodeDiedError("x")).info is info


@pytest.mark.parametrize(
    ("verdict", "cls"),
    [(Verdict.FAILED, JobFailed), (Verdict.PREEMPTED, JobPreempted), (Verdict.ERROR, JobError)],
)
def test_each_verdict_has_its_status(verdict: Verdict, cls: type[JobStatus]) -> None:
    error = ValueError("x")
    assert verdict.status(INFO, error) == cls(INFO, error)  # type: ignore[call-arg]


def test_no_verdict_is_a_success() -> None:
    assert not any(isinstance(verdict.status(INFO, ValueError()), JobSucceeded) for verdict in Verdict)
