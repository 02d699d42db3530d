"""Calls that may never return, under a bound."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import Future

import pytest

from cgexec.engine.bounded import BoundExceededError, ExitedError, call_theirs, start, wait

LONG_S = 30.0


def test_the_result_of_the_call_is_returned() -> None:
    assert call_theirs(lambda: 42, LONG_S, "a-thread", "counting") == 42
    assert call_theirs(lambda: None, LONG_S, "a-thread", "counting") is None


def test_the_call_runs_on_a_daemon_thread_of_the_given_name() -> None:
    thread = call_theirs(threading.current_thread, LONG_S, "a-thread", "looking")
    assert thread is not threading.current_thread()
    assert (thread.name, thread.daemon) == ("a-thread", True)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        TimeoutError("of the call itself"),
        concurrent.futures.TimeoutError("of the call itself"),
        concurrent.futures.CancelledError("of the call itself"),
        SystemExit(3),
        KeyboardInterrupt("x"),
        BoundExceededError("of a call within the call"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_call_raises_is_raised_here(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        wait(start(fails, "a-thread"), LONG_S, "failing")
    assert caught.value is error
    if isinstance(error, Exception):
        with pytest.raises(type(error)) as caught:
            call_theirs(fails, LONG_S, "a-thread", "failing")
        assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(3), GeneratorExit(3)], ids=repr)
def test_the_callers_code_ends_no_thread_of_ours(error: BaseException) -> None:
    def leaves() -> None:
        raise error

    with pytest.raises(ExitedError, match=f"^the hook raised {type(error).__name__}: 3$") as caught:
        call_theirs(leaves, LONG_S, "a-thread", "the hook")
    assert caught.value.__cause__ is error


def test_a_call_that_is_still_running_at_its_bound_is_left_to_end_by_itself() -> None:
    may_end = threading.Event()

    def slow() -> str:
        may_end.wait(LONG_S)
        return "late"

    future = start(slow, "a-thread")
    with pytest.raises(BoundExceededError, match=r"compiling was still running after 0\.01 s") as caught:
        wait(future, 0.01, "compiling")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not future.done()
    may_end.set()
    assert wait(future, LONG_S, "compiling") == "late"


@pytest.mark.parametrize("timeout_s", [0.0, LONG_S])
def test_a_call_that_has_ended_answers_whatever_the_bound(timeout_s: float) -> None:
    future: Future[int] = Future()
    future.set_result(42)
    assert wait(future, timeout_s, "counting") == 42


class EndsAtTheBound(Future[str]):
    """Runs out of time, and has its result a moment later."""

    def result(self, timeout: float | None = None) -> str:
        if not self.done():
            self.set_result("just in time")
            raise concurrent.futures.TimeoutError
        return super().result(timeout)


def test_a_call_that_ends_just_at_its_bound_is_not_taken_for_one_that_raised() -> None:
    try:
        answer = wait(EndsAtTheBound(), 0.01, "compiling")
    except BoundExceededError:
        return  # the one answer
    assert answer == "just in time"  # the other
