"""One step of one execution: call one method with what arrived for it, and make ready what it returned.

The same for every engine: only how what was taken got here, and where what is put goes, differs between them.

::

    what arrived ── of another execution: error ──> arguments ── raises: error ──> parts ── cannot be sent: error
                    an error: handed on            cannot be loaded: error         the wrong number: error
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cgexec.engine import payload
from cgexec.engine.failures import capture, encode_failures, merged
from cgexec.engine.frames import Bytes, Encoded, Frame, Kind
from cgexec.engine.protocol import OutputPort
from cgexec.exception_info import class_name

Arguments = tuple[Sequence[Any], dict[str, Any]]


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
        return cls(frame.execution, frame.payload if frame.kind is Kind.ERROR else None, frame)

    def value(self) -> Any:
        """Return the value, loaded once. Raises whatever loading it raises."""
        if self._frame is not None:
            self._value, self._frame = payload.decode(self._frame), None
        return self._value


def _check_executions(taken: Sequence[Taken], due: int) -> None:
    if any(each.execution != due for each in taken):
        raise _MixedInputsError(f"execution {due} met inputs of {sorted({each.execution for each in taken})}")


class Step:
    """One method of one host in the graph. ``parts``: which part of its result goes out where, None for all of it."""

    def __init__(self, origin: OutputPort, num_returns: int, parts: Sequence[Any]) -> None:
        self.origin = origin
        self._num_returns = num_returns
        self._parts = parts

    def call(
        self, instance: Any, taken: Sequence[Taken], due: int, arguments: Callable[[list[Any]], Arguments]
    ) -> tuple[Any, Encoded | None]:
        """Return what the method returned for execution ``due``; or None and the error frame to send in its place.

        ``arguments(values)`` makes the method's arguments of what arrived. What is no Exception is let through.
        """
        try:
            _check_executions(taken, due)
            failures = [each.failures for each in taken if each.failures is not None]
            if failures:
                return None, merged(failures)
            values = [each.value() for each in taken]
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything as it is loaded
            return None, self.failure(error, instance, f"what {self.name} was to be given cannot be used")
        del taken
        try:
            args, kwargs = arguments(values)
            return getattr(instance, self.origin.method)(*args, **kwargs), None
        except Exception as error:  # noqa: BLE001 - an application error, of whichever class
            with suppress(Exception):  # without this frame, if the exception's class lets it be left out
                BaseException.with_traceback(error, error.__traceback__ and error.__traceback__.tb_next)
            return None, self.failure(error, instance)

    def put(
        self, instance: Any, result: Any, failed: Encoded | None, is_remote: Sequence[bool]
    ) -> list[tuple[Encoded | None, Any]]:
        """Return, for each place where the result goes, what to send there and the value itself.

        Nothing is made to be sent where ``is_remote`` says that nobody elsewhere reads it, unless it is an error.
        """
        if failed is None:
            try:
                values = self._parts_of(result)
                return [
                    (payload.encode(value) if remote else None, value)
                    for value, remote in zip(values, is_remote, strict=True)
                ]
            except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
                what = f"what {self.name} returned, a {class_name(result)}, cannot be sent"
                failed = self.failure(error, instance, what)
        return [(failed, None)] * len(is_remote)

    def _parts_of(self, result: Any) -> list[Any]:
        if self._num_returns == 1:
            return [result] * len(self._parts)
        if not isinstance(result, (tuple, list)) or len(result) != self._num_returns:
            found = f"{len(result)} values" if isinstance(result, (tuple, list)) else "one value"
            raise _WrongNumberError(f"{self._num_returns} values were expected, and {found} came")
        return [result[index] for index in self._parts]

    @property
    def name(self) -> str:
        """How an error names the step."""
        return f"{self.origin.method}() of host {self.origin.host_id}"

    def failure(self, error: Exception, instance: Any, transfer: str = "") -> Encoded:
        """Return the error frame for ``error``; ``transfer``: see ``failures.capture``."""
        return encode_failures([capture(error, self.origin, instance, transfer)])
