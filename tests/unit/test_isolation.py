"""What somebody else's code raises holds on to nothing of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import pickle
import sys
import traceback
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayChannelError

from cgexec import ExceptionInfo, GraphFailedError
from cgexec.isolation import Apart, apart, bare, copy_of, without_our_frames


class Ours:
    """Something that our frames refer to."""


def fail(error: BaseException) -> None:
    raise error  # and so the error holds this frame, which holds the error


def user_code() -> None:
    fail(ValueError("of the user's"))


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_what_is_returned_is_returned() -> None:
    assert apart(lambda: 3) == (3, None)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), StopIteration(1), GeneratorExit()]
)
def test_what_is_raised_is_returned_with_its_own_frames_alone(error: BaseException) -> None:
    _, raised = apart(lambda: fail(error))
    assert raised is error
    assert raised is not None
    assert [frame.name for frame in traceback.extract_tb(raised.__traceback__)] == ["<lambda>", "fail"]


def an_execution(run: Any) -> weakref.ref[Ours]:
    ours = Ours()
    kept.append(run())
    return weakref.ref(ours)


kept: list[Any] = []


def test_a_cycle_of_the_users_does_not_hold_our_frames() -> None:
    assert an_execution(lambda: apart(user_code)[0])() is None


def test_neither_does_an_exception_that_is_kept() -> None:
    assert an_execution(lambda: apart(user_code)[1])() is None
    assert isinstance(kept[-1], ValueError)


def test_nor_one_that_crossed_a_process() -> None:
    _, error = apart(user_code)
    crossed = pickle.dumps(ExceptionInfo.ser_exc_info(error))
    assert an_execution(lambda: pickle.loads(crossed))() is None
    names = [frame.name for frame in traceback.extract_tb(kept[-1].ex.__traceback__)]
    assert names[-2:] == ["user_code", "fail"]


def test_without_that_they_do() -> None:
    def run() -> None:
        with contextlib.suppress(ValueError):
            user_code()

    assert an_execution(run)() is not None


def named_frames(error: BaseException | None) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)] if error is not None else []


def caught(call: Any) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError


def test_what_is_kept_of_a_traceback_begins_in_the_callers_code() -> None:
    names: dict[str, Any] = {"__name__": "cgexec.somewhere", "user_code": user_code}
    exec("def outer(): inner()\ndef inner(): user_code()\n", names)
    _, error = apart(names["outer"])
    assert isinstance(error, ValueError)
    assert named_frames(error) == ["outer", "inner", "user_code", "fail"]
    assert without_our_frames(error) is error
    assert named_frames(error) == ["user_code", "fail"]


def test_that_goes_for_every_link_of_the_chain_and_one_of_our_own_keeps_none() -> None:
    names: dict[str, Any] = {"__name__": "cgexec.somewhere", "user_code": user_code}
    exec(
        "def ours():\n"
        "    try:\n"
        "        user_code()\n"
        "    except ValueError as error:\n"
        "        raise KeyError('ours') from error\n",
        names,
    )
    _, error = apart(names["ours"])
    assert isinstance(error, KeyError)
    assert named_frames(error) == ["ours"]
    assert named_frames(error.__cause__) == ["ours", "user_code", "fail"]
    without_our_frames(error)
    assert named_frames(error) == []
    assert named_frames(error.__cause__) == ["user_code", "fail"]


def test_a_chain_that_goes_round_in_a_circle_is_walked_once() -> None:
    first, second = caught(user_code), caught(user_code)
    first.__context__, second.__context__ = second, first
    assert bare(first) is first
    assert [named_frames(each) for each in (first, second)] == [[], []]


class Value:
    pass


def test_one_runs_call_after_call_and_keeps_nothing_of_them() -> None:
    run = pickle.loads(pickle.dumps(Apart()))
    values = [Value() for _ in range(3)]
    refs = [weakref.ref(value) for value in values]

    def stop() -> None:
        raise StopIteration(values[1])

    def leave() -> None:
        raise GeneratorExit

    assert run(lambda: values[0]) == (values[0], None)
    outcome = run(stop)
    assert outcome[0] is None
    assert isinstance(outcome[1], StopIteration)
    assert isinstance(run(leave)[1], GeneratorExit)
    assert run(partial(str, values[2]))[1] is None
    values.clear()
    del outcome
    assert [ref() for ref in refs] == [None] * 3


def test_one_that_was_interrupted_runs_the_next_call() -> None:
    """At any line of it: the interruption is raised, and nothing is kept of what it interrupted."""

    class AlarmError(Exception):
        pass

    run, met = Apart(), 0
    for line in range(30):
        count = itertools.count()

        def trace(frame: Any, _event: str, _arg: Any, count: Any = count, line: int = line) -> Any:
            if frame.f_code.co_filename.endswith("cgexec/isolation.py") and next(count) == line:
                raise AlarmError
            return trace

        call = user_code if line % 2 else int
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            run(call)
        except AlarmError:
            met += 1
        finally:
            sys.settrace(before)
        assert run(lambda: 3) == (3, None)
        assert run._passing == []
    assert met > 5


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Lets nobody set anything, its traceback neither."""

    number: int


class ReticentError(Exception):
    """Does not like to be asked."""

    __traceback__ = property(lambda _self: 1 / 0)  # type: ignore[assignment]
    __cause__ = property(lambda _self: 1 / 0)  # type: ignore[assignment]
    __context__ = property(lambda _self: 1 / 0)  # type: ignore[assignment]


@pytest.mark.parametrize("error", [FrozenError(1), ReticentError()], ids=["frozen", "reticent"])
def test_the_class_of_an_error_has_no_say_in_what_it_holds(error: Exception) -> None:
    traceback_of = vars(BaseException)["__traceback__"].__get__
    _, raised = apart(lambda: fail(error))
    assert raised is error
    assert traceback_of(error) is not None
    assert without_our_frames(error) is error
    assert traceback_of(error) is not None
    assert bare(error) is error
    assert traceback_of(error) is None


class ChoosyError(Exception):
    """Cannot be made again."""

    def __new__(cls, *args: Any) -> ChoosyError:
        if args:
            raise TypeError("without arguments")
        return super().__new__(cls)


def test_a_copy_says_what_the_error_says_and_has_a_traceback_of_its_own() -> None:
    for error in (
        ActorDiedError(),
        RayChannelError("closed"),
        GraphFailedError("why", ValueError("first")),
        OSError(2, "x"),
    ):
        error.__cause__ = cause = ValueError("cause")
        copy = copy_of(error)
        _, raised = apart(lambda copy=copy: fail(copy))  # type: ignore[misc]
        assert raised is copy is not error
        assert (type(copy), str(copy), copy.args, copy.__cause__) == (type(error), str(error), error.args, cause)
        assert copy.__traceback__ is not None
        assert error.__traceback__ is None
    choosy = ChoosyError()
    choosy.args = (1,)
    assert copy_of(choosy) is choosy
