"""Showing remote failures, and reporting them to a parent; the parent here is no actor."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cgexec import (
    ExceptionInfo,
    JobError,
    JobFailed,
    JobInfo,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    SnitchRecipient,
    UnpicklableExceptionError,
    log_failures_to,
    print_remote_raise,
)
from cgexec.supervision import remote_traceback

INFO = JobInfo("echo", "failed", "inference")
TASK_ERROR = RayTaskError("f", "the remote traceback", ValueError("x"))
DUAL_ERROR = TASK_ERROR.as_instanceof_cause()
STAND_IN = UnpicklableExceptionError("a.B", "its text", "Traceback, as it was there\n")


def raised(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError(f"{call} raised nothing")


def fails_here() -> None:
    raise ValueError("an ordinary one")


ORDINARY = raised(fails_here)
CAPTURED = ExceptionInfo.ser_exc_info(ORDINARY)


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        TASK_ERROR,
        DUAL_ERROR,
        JobFailed(INFO, TASK_ERROR),
        JobFailed(INFO, DUAL_ERROR),
        JobPreempted(INFO, TASK_ERROR),
        JobError(INFO, TASK_ERROR),
        ExceptionInfo.ser_exc_info(TASK_ERROR),
        ExceptionInfo.ser_exc_info(raised(lambda: (_ for _ in ()).throw(DUAL_ERROR))),
        pickle.loads(pickle.dumps(ExceptionInfo.ser_exc_info(DUAL_ERROR))),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_the_remote_traceback_of_a_task_error_is_shown_wherever_it_stands(failure: object) -> None:
    assert remote_traceback(failure) == "the remote traceback"


@pytest.mark.parametrize(
    "failure",
    [STAND_IN, JobFailed(INFO, STAND_IN), ExceptionInfo.ser_exc_info(STAND_IN)],
    ids=lambda failure: type(failure).__name__,
)
def test_the_original_traceback_of_a_stand_in_is_shown(failure: object) -> None:
    assert remote_traceback(failure) == "Traceback, as it was there"


@pytest.mark.parametrize(
    "failure",
    [
        ORDINARY,
        CAPTURED,
        pickle.loads(pickle.dumps(CAPTURED)),
        *(cls(INFO, ORDINARY) for cls in (JobFailed, JobPreempted, JobError)),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_an_ordinary_exception_is_shown_with_its_own_traceback(failure: object) -> None:
    text = remote_traceback(failure)
    assert text.startswith("Traceback (most recent call last):\n")
    assert ", in fails_here\n" in text
    assert text.endswith("ValueError: an ordinary one")


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (KeyError("never raised"), "KeyError: 'never raised'"),
        (KeyboardInterrupt("stop"), "KeyboardInterrupt: stop"),
        (ActorDiedError(), f"ray.exceptions.ActorDiedError: {ActorDiedError()}"),
        (ExceptionInfo.ser_exc_info(KeyError("never raised")), "KeyError: 'never raised'"),
        (ExceptionInfo(None, None), "Exception: no exception was captured"),
        ("only a text", "only a text"),
        (None, "None"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_traceback_is_shown_as_it_is(failure: object, text: str) -> None:
    assert remote_traceback(failure) == text


@pytest.mark.parametrize("status", [JobSucceeded(INFO, "pong"), JobStatus(INFO)], ids=lambda s: type(s).__name__)
def test_a_status_without_an_error_says_so(status: JobStatus) -> None:
    assert remote_traceback(status) == f"no error: {status}"


def test_the_cause_of_an_exception_is_shown() -> None:
    def fails_because() -> None:
        raise RuntimeError("the later one") from ORDINARY

    text = remote_traceback(raised(fails_because))
    assert text.index("ValueError: an ordinary one") < text.index("RuntimeError: the later one")


@pytest.mark.parametrize("failure", [TASK_ERROR, JobFailed(INFO, TASK_ERROR)], ids=lambda f: type(f).__name__)
def test_it_is_printed_to_standard_error_alone(failure: object, capsys: pytest.CaptureFixture[str]) -> None:
    print_remote_raise(failure)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "the remote traceback\n")


# -- what is reported --------------------------------------------------------------------------------------------------


class FakeMethod:
    def __init__(self, problem: Exception | None) -> None:
        self.calls: list[tuple[Any, ExceptionInfo]] = []
        self._problem = problem

    def remote(self, child: Any, exception: ExceptionInfo) -> None:
        if self._problem is not None:
            raise self._problem
        self.calls.append((child, exception))


class FakeParent:
    """Looks like the handle of a ``SnitchRecipient`` actor."""

    def __init__(self, problem: Exception | None = None) -> None:
        self._child_failed = FakeMethod(problem)

    @property
    def reports(self) -> list[tuple[Any, ExceptionInfo]]:
        return self._child_failed.calls


def test_a_failure_is_reported_and_goes_on() -> None:
    parent, error = FakeParent(), ValueError("x")
    with pytest.raises(ValueError, match="x") as caught, log_failures_to(parent):
        raise error
    assert caught.value is error
    ((child, info),) = parent.reports
    assert child is None  # this is no actor
    assert info.ex is error
    assert info.tb is not None


def test_a_failure_may_be_suppressed_once_it_is_reported() -> None:
    parent = FakeParent()
    with log_failures_to(parent, suppress=True):
        raise ValueError("x")
    assert len(parent.reports) == 1


def test_success_reports_nothing() -> None:
    parent = FakeParent()
    with log_failures_to(parent):
        answer = "done"
    assert answer == "done"
    assert parent.reports == []


@pytest.mark.parametrize("suppress", [False, True])
def test_a_failure_that_could_not_be_reported_is_never_swallowed(
    suppress: bool, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("the child's")
    with (
        pytest.raises(ValueError, match="the child's") as caught,
        log_failures_to(FakeParent(RuntimeError("the parent is dead")), suppress=suppress),
    ):
        raise error
    assert caught.value is error
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "could not be reported" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the parent is dead"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("suppress", [False, True])
def test_being_told_to_stop_is_no_failure(error: BaseException, suppress: bool) -> None:
    parent = FakeParent()
    with pytest.raises(type(error)) as caught, log_failures_to(parent, suppress=suppress):
        raise error
    assert caught.value is error
    assert parent.reports == []


def test_a_reported_failure_can_be_pickled_on_its_way() -> None:
    parent = FakeParent()
    with log_failures_to(parent, suppress=True):
        fails_here()
    ((_, info),) = parent.reports
    with pytest.raises(ValueError, match="an ordinary one"):
        pickle.loads(pickle.dumps(info)).reraise()


def test_each_child_of_nested_blocks_is_reported_to_its_own_parent() -> None:
    inner, outer = FakeParent(), FakeParent()
    with log_failures_to(outer, suppress=True), log_failures_to(inner):
        raise ValueError("x")
    assert len(inner.reports) == len(outer.reports) == 1


def test_a_recipient_logs_what_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    SnitchRecipient()._child_failed(None, pickle.loads(pickle.dumps(CAPTURED)))
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "cgexec.supervision")
    assert "an ordinary one" in record.getMessage()
    assert "(no actor)" in record.getMessage()
    assert ", in fails_here" in caplog.text


def test_a_recipient_logs_where_it_wants_to(caplog: pytest.LogCaptureFixture) -> None:
    class Parent(SnitchRecipient):
        def __init__(self) -> None:
            self.logger = logging.getLogger("of.the.parent")

    Parent()._child_failed("the child", CAPTURED)
    (record,) = caplog.records
    assert record.name == "of.the.parent"
    assert "the child" in record.getMessage()
