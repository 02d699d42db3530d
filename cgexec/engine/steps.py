"""One step of one execution: call one method with what arrived for it, and make ready what it returned.

The same for every engine: only how what was taken got here, and where what is put goes, differs between them.

::

    what arrived ── of another execution: error ──> arguments ── raises: error ──> parts ── cannot be sent: error
                    an error: handed on            cannot be loaded: error         the wrong number: error
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn, cast

from cgexec.engine import payload
from cgexec.engine.failures import capture, encode_failures, merged
from cgexec.engine.frames import Bytes, Encoded, Frame, Kind
from cgexec.engine.reports import OutputPort, Pulse
from cgexec.isolation import Apart, without_first_frame
from cgexec.texts import as_plain_exception, class_name, told

Arguments = tuple[Sequence[Any], dict[str, Any]]

_ERROR = Kind.ERROR
_LOADING, _CALLING, _SERIALISING = "loading", "calling", "serialising"


class _MixedInputsError(Exception):
    """The inputs of one task belong to different executions."""


class _WrongNumberError(Exception):
    """A method did not return as many values as the graph takes of it."""


class Taken:
    """What a reader took from an edge for one execution: a value, or the failures that are there in its place."""

    __slots__ = ("_frame", "_value", "execution", "failures")

    def __init__(self, execution: int, failures: Bytes | None, frame: Frame | None = None, value: Any = None) -> None:
        self.execution = execution
        self.failures = failures
        self._frame = frame
        self._value = value

    @classmethod
    def from_frame(cls, frame: Frame) -> Taken:
        """Return what ``frame`` carries."""
        return cls(frame.execution, frame.payload if frame.kind is _ERROR else None, frame)

    def value(self) -> Any:
        """Return the value, loaded once. Raises whatever loading it raises."""
        if self._frame is not None:
            self._value, self._frame = payload.decode(self._frame), None
        return self._value


Arrived = Frame | Taken  # what carries an execution's number, and a value or failures


class LoopEndedError(Exception):
    """A method raised what is no Exception, and no SystemExit: the actor leaves the graph. Its text tells."""


def _no_arguments(_values: list[Any]) -> Arguments:
    raise AssertionError("nothing is called for an error, or another execution")


def _values(taken: Sequence[Taken]) -> list[Any]:
    return [each.value() for each in taken]


class Step:
    """One method of one host in the graph. ``parts``: which part of its result goes out where, None for all of it."""

    def __init__(self, origin: OutputPort, num_returns: int, parts: Sequence[Any]) -> None:
        self.origin = origin
        self.num_returns = num_returns
        self._parts = parts
        self._apart = Apart()
        self._begun_at: float | None = None  # in the method

    def pulse(self) -> Pulse:
        """Return whether the step is in its method, and for how long. Any thread may ask."""
        return Pulse.since(self.origin.method, self._begun_at)

    def call(
        self, instance: Any, taken: Sequence[Taken], due: int, arguments: Callable[[list[Any]], Arguments]
    ) -> tuple[Any, Encoded | None]:
        """Return what the method returned for execution ``due``; or None and the error frame to send in its place.

        ``arguments(values)`` makes the method's arguments of what arrived.

        Raises:
            SystemExit: the method did: the process is to end.
            LoopEndedError: it raised something else that is no Exception.
        """
        mixed = failed = False
        for each in taken:
            mixed = mixed or each.execution != due
            failed = failed or each.failures is not None
        if mixed:
            met = sorted({each.execution for each in taken})
            return None, self._unusable(_MixedInputsError(f"execution {due} met inputs of {met}"), instance)
        if failed:
            return None, merged([each.failures for each in taken if each.failures is not None])
        values, error = self._apart(partial(_values, taken))
        if error is not None:
            return None, self._unusable(as_plain_exception(error), instance)
        args, kwargs = arguments(values or [])
        self._begun_at = time.monotonic()
        # With no frame of ours in between, which the exception would hold.
        result, error = self._apart(partial(methodcaller(self.origin.method, *args, **kwargs), instance))
        self._begun_at = None
        return (result, None) if error is None else (None, self._raised(error, instance))

    def serve(
        self, instance: Any, next_frame: Callable[[], Frame], put: Callable[[Encoded, Any, int], None]
    ) -> NoReturn:
        """Answer frame after frame, each of one execution, until ``next_frame`` or ``put`` raises.

        For a step with one input, which is all that its method is given, and one result, which goes out whole. As
        ``call`` and ``put`` for each; but a process that has just been woken has little of what it runs in its caches,
        and what counts then is how much of it there is.

        Raises whatever those two raise, and as ``call``.
        """
        passing: list[Any] = []
        answered: Any  # a frame's content, or what was raised in its place
        answer = self._answers(instance, passing).__next__
        due = 0
        while True:
            frame = next_frame()
            execution = frame.execution
            if execution != due or frame.kind is _ERROR:
                _, answered = self.call(instance, [Taken.from_frame(frame)], due, _no_arguments)
                del frame
            else:
                passing.append(frame)
                del frame
                answer()
                answered = passing.pop()
            put(answered if type(answered) is Encoded else self._instead(answered, instance), None, execution)
            passing.clear()
            del answered
            due += 1

    def _answers(self, instance: Any, passing: list[Any]) -> Generator[None, None, None]:
        """For each frame that is in ``passing``, leave there what to send, or what was raised, where, and the result.

        Before it what to send is a view of: that is not to end, and perhaps be used for something else, until it has
        been sent. A generator, so that what is raised holds on to nothing of ours (``isolation``).
        """
        method = self.origin.method
        while True:
            doing, value, result = _LOADING, None, None
            try:
                value = payload.decode(passing.pop())
                doing, self._begun_at = _CALLING, time.monotonic()
                result = getattr(instance, method)(value)
                doing, self._begun_at = _SERIALISING, None
                passing += result, payload.encode(result)
            except BaseException as error:  # noqa: BLE001 - handed back
                self._begun_at = None
                passing[:] = [(without_first_frame(error), doing, result)]
            del value, result
            yield

    def _instead(self, raised: tuple[BaseException, str, Any], instance: Any) -> Encoded:
        """Return the error frame for what was raised, doing what, with which result. Raises as ``call``."""
        error, doing, result = raised
        if doing is _LOADING:
            return self._unusable(as_plain_exception(error), instance)
        if doing is _CALLING:
            return self._raised(error, instance)
        return self._unsendable(error, result, instance)

    def _raised(self, error: BaseException, instance: Any) -> Encoded:
        """Return the error frame for what the method raised. Raises as ``call``."""
        if issubclass(type(error), SystemExit):  # isinstance() would ask the error what it says its class is
            raise error
        if not issubclass(type(error), Exception):
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            raise LoopEndedError(f"{told(error)}\n\n{text}")
        return self.failure(cast("Exception", error), instance)

    def _unusable(self, error: Exception, instance: Any) -> Encoded:
        return self.failure(error, instance, f"what {self.name} was to be given cannot be used")

    def put(
        self, instance: Any, result: Any, failed: Encoded | None, is_remote: Sequence[bool]
    ) -> list[tuple[Encoded | None, Any]]:
        """Return, for each place where the result goes, what to send there and the value itself.

        Nothing is made to be sent where ``is_remote`` says that nobody elsewhere reads it, unless it is an error.
        """
        if failed is None:
            ready, error = self._apart(partial(self._ready, result, is_remote))
            if error is None:
                return ready or []
            failed = self._unsendable(error, result, instance)
        return [(failed, None)] * len(is_remote)

    def _unsendable(self, error: BaseException, result: Any, instance: Any) -> Encoded:
        what = f"what {self.name} returned, a {class_name(result)}, cannot be sent"
        return self.failure(as_plain_exception(error), instance, what)

    def _ready(self, result: Any, is_remote: Sequence[bool]) -> list[tuple[Encoded | None, Any]]:
        if self.num_returns == 1:
            encoded = payload.encode(result) if True in is_remote else None
            return [(encoded if remote else None, result) for remote in is_remote]
        return [
            (payload.encode(value) if remote else None, value)
            for value, remote in zip(self._parts_of(result), is_remote, strict=True)
        ]

    def _parts_of(self, result: Any) -> list[Any]:
        if not isinstance(result, (tuple, list)) or len(result) != self.num_returns:
            found = f"{len(result)} values" if isinstance(result, (tuple, list)) else "one value"
            raise _WrongNumberError(f"{self.num_returns} values were expected, and {found} came")
        return [result[index] for index in self._parts]

    @property
    def name(self) -> str:
        """How an error names the step."""
        return f"{self.origin.method}() of host {self.origin.host_id}"

    def failure(self, error: Exception, instance: Any, transfer: str = "") -> Encoded:
        """Return the error frame for ``error``; ``transfer``: see ``failures.capture``."""
        return encode_failures([capture(error, self.origin, instance, transfer)])
