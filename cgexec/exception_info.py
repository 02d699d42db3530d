"""Exceptions that cross processes whole.

``pickle`` drops an exception's traceback, cause, context and notes, and fails on an exception whose arguments cannot
be pickled or whose class cannot be built again. An ``ExceptionInfo`` takes the chain apart before it crosses: each
link carries its pickled exception if that can be had, and always its type name, text and traceback. A link that cannot
be loaded arrives as an ``UnpicklableExceptionError`` that says what it was.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import tblib
from ray import cloudpickle

from cgexec.errors import UnpicklableExceptionError


@dataclass
class ExceptionInfo:
    """An exception and its traceback, ready to be sent to another process.

    ``ex`` is the exception, or None if there was none; ``tb`` its ``tblib.Traceback``, or None where it has none.
    """

    ex: BaseException | None
    tb: tblib.Traceback | None

    @classmethod
    def ser_exc_info(cls, exception: BaseException | None = None) -> ExceptionInfo:
        """Capture ``exception``, or the one being handled if None. With neither, ``ex`` and ``tb`` are None."""
        ex = sys.exc_info()[1] if exception is None else exception
        tb = ex.__traceback__ if ex is not None else None
        return cls(ex, tblib.Traceback(tb) if tb is not None else None)

    def restore(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """Return (type, exception, traceback) as ``sys.exc_info`` would; a plain Exception if none was captured."""
        ex = self.ex if self.ex is not None else Exception("no exception was captured")
        return type(ex), ex, self.tb.as_traceback() if self.tb is not None else None

    def reraise(self) -> None:
        """Raise the captured exception with its original traceback; a plain Exception if none was captured."""
        _, ex, tb = self.restore()
        raise ex.with_traceback(tb)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (_take_apart(self.ex), self.tb.to_dict() if self.tb is not None else None)


@dataclass
class _Link:
    """One exception of a chain; ``cause`` and ``context`` are the places of others in the chain."""

    pickled: bytes | None
    type_name: str
    text: str
    traceback_text: str
    traceback: dict[str, Any] | None
    notes: list[str]
    cause: int | None
    context: int | None
    suppress_context: bool


def qualified_name(exception: BaseException) -> str:
    """Return the name a traceback gives the class of ``exception``."""
    cls = type(exception)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as error:  # noqa: BLE001 - a broken __str__ of a user's class must not lose the exception
        return f"<its text cannot be had: {type(error).__name__}>"


def _pickled(exception: BaseException) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps(exception))
    except Exception:  # noqa: BLE001 - whatever a user's class raises here, it means that it cannot cross by itself
        return None


def _formatted(exception: BaseException) -> str:
    return "".join(traceback.format_exception(type(exception), exception, exception.__traceback__, chain=False))


def _take_apart(ex: BaseException | None) -> list[_Link]:
    """Return the chain of ``ex``, itself first; an exception that occurs twice, or in a cycle, stands once."""
    chain: list[BaseException] = [] if ex is None else [ex]
    place = {id(exception): index for index, exception in enumerate(chain)}
    for exception in chain:  # grows while it is walked
        for linked in (exception.__cause__, exception.__context__):
            if linked is not None and id(linked) not in place:
                place[id(linked)] = len(chain)
                chain.append(linked)
    return [
        _Link(
            pickled=_pickled(exception),
            type_name=qualified_name(exception),
            text=_text(exception),
            traceback_text=_formatted(exception),
            traceback=tblib.Traceback(exception.__traceback__).to_dict() if exception.__traceback__ else None,
            notes=[str(note) for note in getattr(exception, "__notes__", ())],
            cause=place[id(exception.__cause__)] if exception.__cause__ is not None else None,
            context=place[id(exception.__context__)] if exception.__context__ is not None else None,
            suppress_context=exception.__suppress_context__,
        )
        for exception in chain
    ]


def _put_together(link: _Link) -> BaseException:
    stand_in = UnpicklableExceptionError(link.type_name, link.text, link.traceback_text)
    if link.pickled is None:
        return stand_in
    try:
        loaded = pickle.loads(link.pickled)
    except Exception:  # noqa: BLE001 - a class that is missing here, or whose __init__ fails: any exception at all
        return stand_in
    return loaded if isinstance(loaded, BaseException) else stand_in


def _load(chain: list[_Link], tb: dict[str, Any] | None) -> ExceptionInfo:
    exceptions = [_put_together(link) for link in chain]
    for exception, link in zip(exceptions, chain, strict=True):
        exception.__cause__ = exceptions[link.cause] if link.cause is not None else None
        exception.__context__ = exceptions[link.context] if link.context is not None else None
        exception.__suppress_context__ = link.suppress_context
        if link.traceback is not None:
            exception.__traceback__ = tblib.Traceback.from_dict(link.traceback).as_traceback()
        if link.notes:
            exception.__notes__ = list(link.notes)  # type: ignore[attr-defined] # PEP 678: 3.11 on, harmless before
    return ExceptionInfo(exceptions[0] if exceptions else None, tblib.Traceback.from_dict(tb) if tb else None)
