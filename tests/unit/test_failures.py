"""Failures: what a method raised reaches the driver as it was, or as much of it as can."""

from __future__ import annotations

import os
import pickle
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from cgexec import TransferError, UnpicklableExceptionError
from cgexec.engine.failures import (
    as_exception,
    as_task_error,
    capture,
    decode_failures,
    encode_failures,
    from_ray,
    merged,
)
from cgexec.engine.frames import Kind
from cgexec.engine.reports import OutputPort
from cgexec.testing.misbehaviour import HoldsALockError, NeedsArgumentsError

ORIGIN = OutputPort(2, "step")


class Worker:
    """Stands for the actor's instance."""


def caught(error: Exception) -> Exception:
    """Return ``error`` as it is once it has been raised."""
    try:
        raise error
    except Exception as raised:
        return raised


def crossed(error: Exception, transfer: str = "") -> Exception:
    """Return what the driver makes of ``error``."""
    encoded = encode_failures([capture(caught(error), ORIGIN, Worker(), transfer)])
    assert encoded.kind is Kind.ERROR
    (failure,) = decode_failures(encoded.payload)
    return as_exception(failure)


class PlainError(Exception):
    pass


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class HasFieldsError(Exception):
    def __init__(self, code: int, *, hint: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class SlottedError(ValueError):
    __slots__ = ("code",)


class OwnNewError(Exception):
    def __new__(cls, first: int, second: int) -> OwnNewError:
        return super().__new__(cls, first, second)


class SealedError(Exception):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("final")


# -- what a method raised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        PlainError("the text"),
        ValueError("the text"),
        KeyError("the text"),
        OSError(2, "the text"),
        SlottedError("the text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_arrives_as_its_own_class_and_as_rays(error: Exception) -> None:
    found = crossed(error)
    assert isinstance(found, type(error))
    assert isinstance(found, RayTaskError)
    assert type(found.cause) is type(error)
    assert found.cause.args == error.args
    assert "the text" in str(found)


def test_its_text_is_the_remote_traceback_under_a_heading_like_rays() -> None:
    found = crossed(PlainError("the text"))
    text = re.sub(r"\x1b\[\d+m", "", str(found))
    heading, *rest = text.splitlines()
    assert heading == f"ray::Worker.step() (pid={os.getpid()}, ip={ray.util.get_node_ip_address()})"
    assert any("in caught" in line for line in rest)
    assert rest[-1].endswith("PlainError: the text")


def test_what_the_exception_carries_is_kept() -> None:
    found: Any = crossed(HasFieldsError(7, hint="look there"))
    assert (found.code, found.hint, found.cause.hint) == (7, "look there", "look there")


def test_cause_context_and_notes_are_kept() -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise PlainError("second") from error

    with pytest.raises(PlainError) as raised:
        fail()
    if sys.version_info >= (3, 11):
        raised.value.add_note("a note")
    found: Any = crossed(raised.value)
    assert isinstance(found.cause.__cause__, KeyError)
    assert "first" in str(found)
    if sys.version_info >= (3, 11):
        assert found.cause.__notes__ == ["a note"]
        assert "a note" in str(found)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_an_exception_group_arrives_with_its_members() -> None:
    found: Any = crossed(ExceptionGroup("several", [ValueError("one"), PlainError("two")]))  # noqa: F821
    assert isinstance(found, ExceptionGroup)  # noqa: F821
    assert isinstance(found, RayTaskError)
    assert [type(each) for each in found.cause.exceptions] == [ValueError, PlainError]
    assert all(part in str(found) for part in ("several", "one", "two"))


@pytest.mark.parametrize(
    "error",
    [HoldsALockError("the text"), NeedsArgumentsError("the", "text"), FrozenError(7)],
    ids=["unpicklable", "unloadable", "frozen"],
)
def test_one_that_cannot_cross_is_stood_in_for_with_all_that_is_known_of_it(error: Exception) -> None:
    found: Any = crossed(error)
    assert isinstance(found, RayTaskError)
    cause = found.cause
    assert isinstance(cause, UnpicklableExceptionError)
    assert cause.type_name.endswith(type(error).__name__)
    assert cause.text == str(error)
    assert "in caught" in cause.traceback_text
    assert str(error) in str(found)


def test_one_without_a_text_arrives() -> None:
    found: Any = crossed(MuteError())
    assert isinstance(found, RayTaskError)
    assert isinstance(found, MuteError)
    failure = capture(caught(MuteError()), ORIGIN, Worker())
    assert "RuntimeError" in failure.text
    assert failure.type_name.endswith("MuteError")


def test_one_whose_text_is_of_a_class_of_its_own_arrives() -> None:
    class Local(str):
        __slots__ = ()

    class WordyError(Exception):
        def __str__(self) -> str:
            return Local("the text")

    assert "the text" in str(crossed(WordyError()))


@pytest.mark.parametrize(
    "error",
    [OwnNewError(1, 2), SealedError("final")],
    ids=lambda error: type(error).__name__,
)
def test_a_class_that_cannot_be_joined_with_rays_arrives_as_rays_with_the_cause(error: Exception) -> None:
    found: Any = crossed(error)
    assert isinstance(found, RayTaskError)
    assert type(found.cause) is type(error)
    assert vars(found.cause) == vars(error)


def test_an_error_of_a_call_that_is_not_known_still_arrives() -> None:
    found = as_exception(capture(caught(PlainError("the text")), None, None))
    assert isinstance(found, PlainError)
    assert "the text" in str(found)


# -- what could not be sent or loaded ----------------------------------------------------------------------------------


def test_a_failed_transfer_says_what_was_not_done_and_why() -> None:
    found = crossed(PlainError("the text"), "what step() of host 2 returned cannot be sent")
    assert type(found) is TransferError
    assert str(found) == "what step() of host 2 returned cannot be sent: PlainError: the text"
    assert (found.type_name.rpartition(".")[2], found.text) == ("PlainError", "the text")
    assert "in caught" in found.traceback_text
    assert isinstance(found.__cause__, PlainError)
    assert not isinstance(found, RayTaskError)


@pytest.mark.parametrize("error", [HoldsALockError("x"), NeedsArgumentsError("x", "y"), MuteError()], ids=type)
def test_a_failed_transfer_survives_whatever_its_error_is(error: Exception) -> None:
    found = crossed(error, "it cannot be sent")
    assert isinstance(found, TransferError)
    assert str(found).startswith(f"it cannot be sent: {type(error).__name__}: ")
    assert isinstance(found.__cause__, Exception)


def test_an_exception_that_cannot_be_loaded_at_all_is_stood_in_for() -> None:
    failure = capture(caught(PlainError("the text")), ORIGIN, Worker())
    broken = failure._replace(exception=b"no pickle")
    found: Any = as_exception(broken)
    assert isinstance(found.cause, UnpicklableExceptionError)
    assert found.cause.text == "the text"


# -- to and from Ray's own tasks and channels --------------------------------------------------------------------------

RAYS_TRACEBACK = "Traceback (most recent call last):\n  File 'w.py', line 1, in f\nPlainError: the text"
RAYS_TEXT = "ray::W.f() (pid=12345, ip=192.0.2.1)\n  File 'w.py', line 1, in f\nPlainError: the text"


def rays(cause: Exception) -> RayTaskError:
    """Return what a task of Ray's makes of ``cause``."""
    return RayTaskError("f", RAYS_TRACEBACK, cause, proctitle="ray::W.f", pid=12345, ip="192.0.2.1")


def plain(text: object) -> str:
    """Return ``text`` without its colours."""
    return re.sub(r"\x1b\[\d+m", "", str(text))


@pytest.mark.parametrize("dual", [False, True])
def test_an_error_of_rays_keeps_its_class_and_its_remote_traceback(dual: bool) -> None:
    error: Any = rays(HasFieldsError(7, hint="look there"))
    failure = from_ray(error.as_instanceof_cause() if dual else error)
    assert (failure.origin, failure.transfer, failure.actor_class) == (None, "", "")
    assert failure.type_name.endswith("HasFieldsError")
    assert failure.text == "7"
    assert plain(failure.traceback_text) == RAYS_TEXT
    found: Any = as_exception(failure)
    assert isinstance(found, HasFieldsError)
    assert isinstance(found, RayTaskError)
    assert plain(found) == RAYS_TEXT
    assert (type(found.cause), found.cause.code, found.cause.hint) == (HasFieldsError, 7, "look there")


def test_an_error_of_rays_crosses_again_and_again_without_growing() -> None:
    error: Any = rays(PlainError("the text"))
    for _ in range(3):
        encoded = encode_failures([from_ray(error)])
        error = as_task_error(decode_failures(encoded.payload)[0])
    assert plain(error) == RAYS_TEXT
    assert isinstance(error, PlainError)
    assert type(error.cause) is PlainError


def test_an_error_of_rays_whose_cause_cannot_be_pickled_crosses_as_what_ray_made_of_it() -> None:
    error: Any = rays(HoldsALockError("the text"))
    found: Any = as_exception(from_ray(error))
    assert isinstance(found, RayTaskError)
    assert type(found.cause) is type(error.cause)
    assert "HoldsALockError" in str(found.cause)
    assert plain(found) == RAYS_TEXT


def test_an_error_of_rays_whose_cause_is_no_exception_is_its_own() -> None:
    error: Any = rays(PlainError("the text"))
    error.cause = KeyboardInterrupt()
    failure = from_ray(error)
    assert failure.type_name.endswith("RayTaskError")
    assert plain(failure.traceback_text) == RAYS_TEXT
    assert isinstance(as_exception(failure), RayTaskError)


def test_without_an_actors_class_the_heading_names_the_method_alone() -> None:
    failure = capture(caught(PlainError("the text")), ORIGIN, Worker())._replace(actor_class="")
    place = f"(pid={os.getpid()}, ip={ray.util.get_node_ip_address()})"
    assert plain(as_exception(failure)).splitlines()[0] == f"ray::step() {place}"
    assert plain(as_exception(failure._replace(origin=None))).splitlines()[0] == f"ray::task() {place}"


@pytest.mark.parametrize(
    "error", [PlainError("the text"), ValueError("the text"), FrozenError(7), HoldsALockError("the text")], ids=type
)
def test_what_a_method_raised_is_the_same_error_to_a_task_of_rays(error: Exception) -> None:
    failure = capture(caught(error), ORIGIN, Worker())
    found: Any = as_task_error(failure)
    expected: Any = as_exception(failure)
    assert isinstance(found, RayTaskError)
    assert type(found).__mro__[1:] == type(expected).__mro__[1:]
    assert (type(found.cause), str(found)) == (type(expected.cause), str(expected))
    assert "in caught" in str(found)


@pytest.mark.parametrize(
    "error", [PlainError("the text"), HoldsALockError("x"), NeedsArgumentsError("x", "y")], ids=type
)
def test_a_failed_transfer_is_an_error_of_rays_to_its_tasks(error: Exception) -> None:
    failure = capture(caught(error), ORIGIN, Worker(), "it cannot be sent")
    found = as_task_error(failure)
    assert isinstance(found, RayTaskError)
    assert type(found.cause) is TransferError
    assert str(found) == str(found.cause) == str(as_exception(failure)) == failure.transfer
    back: Any = as_exception(from_ray(found))
    assert isinstance(back, TransferError)
    assert (back.cause.type_name, back.cause.text) == (failure.type_name, failure.text)
    assert str(back) == failure.transfer


# -- several -----------------------------------------------------------------------------------------------------------


def test_a_single_error_frame_is_passed_on_untouched() -> None:
    payload = b"not to be loaded on the way"
    assert merged([memoryview(payload)]).payload == payload


def test_failures_that_meet_stand_side_by_side_and_each_once() -> None:
    one, two, three = (
        capture(caught(PlainError(text)), OutputPort(host, "step"), Worker()) for host, text in enumerate("abc")
    )
    payloads = [encode_failures(each).payload for each in ([one, two], [two], [three, one])]
    together = merged(payloads)
    assert together.kind is Kind.ERROR
    found = decode_failures(together.payload)
    assert [(each.origin, each.text) for each in found] == [
        (OutputPort(0, "step"), "a"),
        (OutputPort(1, "step"), "b"),
        (OutputPort(2, "step"), "c"),
    ]


def test_like_failures_of_different_hosts_are_not_taken_for_one() -> None:
    error = caught(PlainError("x"))
    failures = [capture(error, OutputPort(host, "step"), Worker()) for host in range(2)]
    assert decode_failures(encode_failures(failures).payload) == failures


def test_a_failure_survives_being_pickled() -> None:
    failure = capture(caught(PlainError("x")), ORIGIN, Worker(), "transfer")
    assert pickle.loads(pickle.dumps(failure)) == failure


class NoCauseError(Exception):
    """Raises when its cause is asked for."""

    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        raise RuntimeError("no cause for you")


def a_frame_that_cannot_be_pickled() -> Exception:
    """Return an exception raised in a module whose name is a function of this one."""
    namespace: dict[str, object] = {"__name__": lambda: "module"}
    exec("def raises(): raise ValueError('from nowhere')", namespace)
    try:
        namespace["raises"]()  # type: ignore[operator]
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [NoCauseError("text"), SyntaxError("bad", ("file", 1, 2, b"bytes")), a_frame_that_cannot_be_pickled()],
    ids=["its cause raises", "its text is of bytes", "its frame cannot be pickled"],
)
@pytest.mark.parametrize("transfer", ["", "what step() returned cannot be sent"])
def test_an_exception_that_cannot_be_looked_at_is_still_an_error_of_its_class_by_name(
    error: Exception, transfer: str
) -> None:
    captured = capture(error, OutputPort(1, "step"), None, transfer)
    (failure,) = decode_failures(encode_failures([captured]).payload)
    exception = as_exception(failure)
    assert isinstance(exception, TransferError if transfer else RayTaskError)
    assert type(error).__name__ in failure.type_name
    assert type(error).__name__ in str(exception)
    assert failure.origin == OutputPort(1, "step")


class ExitsWhenLoadedError(Exception):
    """Ends the interpreter that loads it, if that lets it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_an_exception_that_exits_when_it_is_loaded_ends_nothing() -> None:
    captured = capture(ExitsWhenLoadedError("text"), OutputPort(1, "step"), None)
    exception = as_exception(captured)
    assert isinstance(exception, UnpicklableExceptionError)
    assert "ExitsWhenLoadedError: text" in str(exception)
