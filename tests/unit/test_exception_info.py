"""Exceptions arrive whole, or as a stand-in that says what they were; crossing never raises."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

import cgexec
from cgexec import ExceptionInfo, GraphFailedError, UnpicklableExceptionError

needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with Python 3.11")


def innermost(depth: int = 2) -> None:
    if depth == 0:
        raise ValueError("from the depths")
    innermost(depth - 1)


def raised(call: Callable[[], object]) -> BaseException:
    """Return what ``call`` raises, with its traceback."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError(f"{call} raised nothing")


def crossed(error: BaseException | None) -> BaseException:
    """Return ``error`` as it is on the other side of a pickle."""
    arrived = pickle.loads(pickle.dumps(ExceptionInfo(error, None))).ex
    assert isinstance(arrived, BaseException)
    return arrived


def stand_in_for(error: BaseException) -> UnpicklableExceptionError:
    arrived = crossed(error)
    assert isinstance(arrived, UnpicklableExceptionError)
    return arrived


def frame_names(tb: TracebackType | None) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(tb)]


# -- capture, restore, reraise -----------------------------------------------------------------------------------------


def test_the_exception_being_handled_is_captured() -> None:
    try:
        innermost()
    except ValueError as error:
        expected, info = error, ExceptionInfo.ser_exc_info()
    assert info.ex is expected
    assert info.tb is not None
    assert frame_names(info.tb.as_traceback())[-3:] == ["innermost"] * 3


def test_a_given_exception_is_captured_in_preference_to_the_one_being_handled() -> None:
    given = raised(lambda: innermost(0))
    try:
        raise KeyError("another")
    except KeyError:
        info = ExceptionInfo.ser_exc_info(given)
    assert info.ex is given


def test_an_exception_that_was_never_raised_has_no_traceback() -> None:
    info = ExceptionInfo.ser_exc_info(ValueError("x"))
    assert isinstance(info.ex, ValueError)
    assert info.tb is None
    exc_type, error, tb = info.restore()
    assert (exc_type, error, tb) == (ValueError, info.ex, None)


def test_nothing_to_capture_becomes_a_plain_exception() -> None:
    info = ExceptionInfo.ser_exc_info()
    assert (info.ex, info.tb) == (None, None)
    for each in (info, pickle.loads(pickle.dumps(info))):
        exc_type, error, tb = each.restore()
        assert (exc_type, type(error), tb) == (Exception, Exception, None)
        with pytest.raises(Exception, match="no exception was captured") as caught:
            each.reraise()
        assert caught.type is Exception


def test_restore_answers_as_exc_info_does() -> None:
    error = raised(innermost)
    exc_type, restored, tb = ExceptionInfo.ser_exc_info(error).restore()
    assert exc_type is ValueError
    assert restored is error
    assert frame_names(tb) == frame_names(error.__traceback__)


@pytest.mark.parametrize("cross", [lambda info: info, lambda info: pickle.loads(pickle.dumps(info))])
def test_reraise_keeps_the_original_frames(cross: Callable[[ExceptionInfo], ExceptionInfo]) -> None:
    error = raised(innermost)
    names = frame_names(error.__traceback__)
    assert names[-3:] == ["innermost"] * 3
    info = cross(ExceptionInfo.ser_exc_info(error))
    again = raised(info.reraise)
    assert isinstance(again, ValueError)
    assert frame_names(again.__traceback__)[-len(names) :] == names


# -- the whole chain crosses -------------------------------------------------------------------------------------------


def fails_because() -> None:
    try:
        innermost(0)
    except ValueError as error:
        raise KeyError("key") from error


def fails_while_handling() -> None:
    try:
        fails_because()
    except KeyError:
        raise TypeError("type")  # noqa: B904 - the context is what is tested


def fails_from_none() -> None:
    try:
        innermost(0)
    except ValueError:
        raise TypeError("type") from None


def test_causes_and_contexts_cross_with_their_tracebacks() -> None:
    arrived = crossed(raised(fails_while_handling))
    assert isinstance(arrived, TypeError)
    assert arrived.__cause__ is None
    assert not arrived.__suppress_context__
    key = arrived.__context__
    assert isinstance(key, KeyError)
    assert key.__suppress_context__
    assert isinstance(key.__cause__, ValueError)
    assert key.__cause__ is key.__context__
    assert frame_names(arrived.__traceback__)[-1] == "fails_while_handling"
    assert frame_names(key.__traceback__)[-1] == "fails_because"
    assert frame_names(key.__cause__.__traceback__)[-1] == "innermost"


def printed(error: BaseException) -> list[str]:
    """Return how ``error`` is printed, without the marks under the code, which no traceback keeps."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    return [line for line in lines if line.strip(" ^~")]


def test_a_chain_is_printed_the_same_on_both_sides() -> None:
    error = raised(fails_while_handling)
    assert printed(crossed(error)) == printed(error)


def test_a_suppressed_context_stays_suppressed() -> None:
    arrived = crossed(raised(fails_from_none))
    assert arrived.__suppress_context__
    assert arrived.__cause__ is None
    assert isinstance(arrived.__context__, ValueError)


@needs_3_11
def test_notes_cross_on_every_link() -> None:
    error = raised(fails_because)
    error.add_note("the first")
    error.add_note("the second")
    assert error.__cause__ is not None
    error.__cause__.add_note("of the cause")
    arrived = crossed(error)
    assert arrived.__notes__ == ["the first", "the second"]
    assert arrived.__cause__ is not None
    assert arrived.__cause__.__notes__ == ["of the cause"]


def test_a_cycle_in_the_chain_is_a_cycle_on_the_other_side() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    arrived = crossed(first)
    assert isinstance(arrived.__cause__, KeyError)
    assert arrived.__cause__.__context__ is arrived


def test_an_exception_shared_by_two_links_is_still_shared() -> None:
    shared, middle, outer = OSError("shared"), ValueError("middle"), KeyError("outer")
    outer.__cause__, outer.__context__, middle.__cause__ = shared, middle, shared
    arrived = crossed(outer)
    assert arrived.__context__ is not None
    assert isinstance(arrived.__cause__, OSError)
    assert arrived.__cause__ is arrived.__context__.__cause__


def test_a_long_chain_crosses() -> None:
    error = first = ValueError("0")
    for number in range(1, 100):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    arrived: BaseException | None = crossed(first)
    length = 0
    while arrived is not None:
        assert str(arrived) == str(length)
        arrived, length = arrived.__context__, length + 1
    assert length == 100


def test_an_endless_recursion_crosses() -> None:
    def endless() -> None:
        endless()

    error = raised(endless)
    assert isinstance(error, RecursionError)
    arrived = crossed(error)
    assert isinstance(arrived, RecursionError)
    assert "endless" in frame_names(arrived.__traceback__)


# -- exceptions that resist --------------------------------------------------------------------------------------------


class LockHoldingError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class TwoArgumentError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class IrreducibleError(Exception):
    def __reduce__(self) -> Any:
        raise OSError("not me")


class MistakenError(Exception):
    def __reduce__(self) -> Any:
        return dict, ()


RESISTING = [LockHoldingError("locked"), TwoArgumentError(7, "seven"), IrreducibleError("no"), MistakenError("other")]


@pytest.mark.parametrize("error", RESISTING, ids=lambda error: type(error).__name__)
def test_what_cannot_cross_by_itself_arrives_as_a_stand_in(error: Exception) -> None:
    def raises() -> None:
        raise error

    arrived = stand_in_for(raised(raises))
    assert arrived.type_name == f"{__name__}.{type(error).__name__}"
    assert arrived.text == str(error)
    assert arrived.traceback_text.startswith("Traceback (most recent call last):\n")
    assert ", in raises\n" in arrived.traceback_text
    assert arrived.traceback_text.endswith(f"{arrived.type_name}: {error}\n")
    assert frame_names(arrived.__traceback__)[-1] == "raises"


def test_a_link_that_cannot_cross_does_not_keep_the_others_from_it() -> None:
    outer, middle, inner = ValueError("outer"), LockHoldingError("middle"), KeyError("inner")
    outer.__cause__, middle.__context__ = middle, inner
    arrived = crossed(outer)
    assert isinstance(arrived, ValueError)
    assert isinstance(arrived.__cause__, UnpicklableExceptionError)
    assert arrived.__cause__.text == "middle"
    assert isinstance(arrived.__cause__.__context__, KeyError)


def test_a_stand_in_crosses_again_as_it_is() -> None:
    first = stand_in_for(LockHoldingError("locked"))
    second = stand_in_for(first)
    assert (second.type_name, second.text, second.traceback_text) == (
        first.type_name,
        first.text,
        first.traceback_text,
    )


@needs_3_11
def test_a_stand_in_has_the_notes_of_the_original() -> None:
    error = LockHoldingError("locked")
    error.add_note("the key is under the mat")
    assert stand_in_for(error).__notes__ == ["the key is under the mat"]


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class WordlessLockHoldingError(WordlessError, LockHoldingError):
    pass


def test_a_broken_text_does_not_lose_the_exception() -> None:
    assert type(crossed(WordlessError("x"))) is WordlessError
    arrived = stand_in_for(WordlessLockHoldingError("x"))
    assert arrived.type_name.endswith(".WordlessLockHoldingError")
    assert "RuntimeError" in arrived.text


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int

    def __reduce__(self) -> Any:
        return FrozenError, (self.code,)


def test_a_frozen_exception_crosses() -> None:
    arrived = crossed(FrozenError(3))
    assert isinstance(arrived, (FrozenError, UnpicklableExceptionError))
    assert "3" in str(arrived)


class BreaksWhenPrinted:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("notes", [None, 7, [BreaksWhenPrinted()], "a text"], ids=["none", "number", "broken", "text"])
def test_notes_of_any_kind_do_not_lose_the_exception(notes: object) -> None:
    error = ValueError("x")
    error.__notes__ = notes  # type: ignore[attr-defined]
    arrived = crossed(error)
    assert isinstance(arrived, (ValueError, UnpicklableExceptionError))
    assert str(arrived).endswith("x")


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit(3), GeneratorExit()], ids=repr)
def test_exceptions_outside_the_exception_class_cross(error: BaseException) -> None:
    def raises() -> None:
        raise error

    info = pickle.loads(pickle.dumps(ExceptionInfo.ser_exc_info(raised(raises))))
    again = raised(info.reraise)
    assert type(again) is type(error)
    assert again.args == error.args
    assert frame_names(again.__traceback__)[-1] == "raises"


@pytest.mark.parametrize(
    "error",
    [
        RayTaskError("f", "remote traceback", ValueError("x")),
        RayTaskError("f", "remote traceback", ValueError("x")).as_instanceof_cause(),
        ActorDiedError(),
        NodeDiedError("gone"),
        GraphFailedError("text", ActorDiedError()),
        OSError(2, "no such", "file"),
        UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_with_ways_of_their_own_cross(error: Exception) -> None:
    arrived = crossed(error)
    assert type(arrived).__name__ == type(error).__name__
    assert str(arrived) == str(error)


def test_attributes_of_an_exception_cross() -> None:
    error = ValueError("x")
    error.host = 3  # type: ignore[attr-defined]
    assert vars(crossed(error)) == {"host": 3}


# -- groups ------------------------------------------------------------------------------------------------------------


@needs_3_11
def test_a_group_crosses_with_its_members() -> None:
    arrived = crossed(raised(lambda: raise_group([ValueError("a"), KeyError("b")])))
    assert isinstance(arrived, ExceptionGroup)  # noqa: F821
    assert arrived.message == "several"
    assert [type(member) for member in arrived.exceptions] == [ValueError, KeyError]
    assert frame_names(arrived.__traceback__)[-1] == "raise_group"


@needs_3_11
def test_a_group_with_a_member_that_cannot_cross_says_all_of_it() -> None:
    arrived = stand_in_for(raised(lambda: raise_group([ValueError("an ordinary one"), LockHoldingError("locked")])))
    assert arrived.type_name == "ExceptionGroup"
    assert "several (2 sub-exceptions)" in arrived.text
    assert "ValueError: an ordinary one" in arrived.traceback_text
    assert "LockHoldingError: locked" in arrived.traceback_text


@needs_3_11
def test_the_members_of_a_group_keep_their_causes_and_tracebacks() -> None:
    arrived = crossed(raised(lambda: raise_group([raised(fails_because)])))
    assert isinstance(arrived, ExceptionGroup)  # noqa: F821
    (member,) = arrived.exceptions
    assert isinstance(member.__cause__, ValueError)
    assert frame_names(member.__traceback__)[-1] == "fails_because"


def raise_group(members: list[Any]) -> None:
    raise ExceptionGroup("several", members)  # noqa: F821


# -- another process ---------------------------------------------------------------------------------------------------

SAY_WHAT_ARRIVED = """
import json, pickle, sys, traceback
answers = []
with open(sys.argv[1], "rb") as file:
    for blob in pickle.load(file):
        info = pickle.loads(blob)
        try:
            info.reraise()
        except BaseException as error:
            data = {k: v for k, v in vars(error).items() if isinstance(v, str)}
            frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            cause = type(error.__cause__).__name__
            answers.append({"type": type(error).__name__, "cause": cause, "frames": frames, **data})
json.dump(answers, sys.stdout)
"""


def in_another_process(infos: list[ExceptionInfo], folder: Path) -> list[dict[str, Any]]:
    """Return what a process that knows cgexec, and nothing of this one's modules, finds of each."""
    crossing = folder / "crossing.pickle"
    crossing.write_bytes(pickle.dumps([cloudpickle.dumps(info) for info in infos]))
    package = Path(cgexec.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SAY_WHAT_ARRIVED, str(crossing)],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def test_exceptions_arrive_in_a_process_that_lacks_their_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "known_only_here.py").write_text(
        "class LocalError(Exception):\n    pass\n\ndef fails():\n    raise LocalError('only here')\n"
    )
    monkeypatch.syspath_prepend(modules)
    known_only_here = importlib.import_module("known_only_here")
    try:
        local = raised(known_only_here.fails)
        ordinary = raised(fails_because)
        caused = ValueError("because of it")
        caused.__cause__ = local
        missing, whole, mixed = in_another_process(
            [ExceptionInfo.ser_exc_info(error) for error in (local, ordinary, caused)], tmp_path
        )
    finally:
        sys.modules.pop("known_only_here")

    assert missing["type"] == "UnpicklableExceptionError"
    assert missing["type_name"] == "known_only_here.LocalError"
    assert missing["text"] == "only here"
    assert "raise LocalError('only here')" in missing["traceback_text"]
    assert missing["frames"][-1] == "fails"

    assert (whole["type"], whole["cause"]) == ("KeyError", "ValueError")
    assert whole["frames"][-1] == "fails_because"

    assert (mixed["type"], mixed["cause"]) == ("ValueError", "UnpicklableExceptionError")
