"""Exceptions that cross processes whole.

``pickle`` drops an exception's traceback, cause, context and notes, and fails on an exception whose arguments cannot
be pickled or whose class cannot be built again. An ``ExceptionInfo`` takes the chain apart before it crosses: each
link carries its pickled exception if that can be had, and always its type name, text and traceback. A link that cannot
be loaded arrives as an ``UnpicklableExceptionError`` that says what it was. The members of an exception group count as
links of the chain; of a chain of more than ``LONGEST_CHAIN`` links the rest stays behind.
"""

from __future__ import annotations

import builtins
import copy
import pickle
import sys
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import tblib
from ray import cloudpickle

from cgexec.errors import UnpicklableExceptionError
from cgexec.isolation import apart
from cgexec.texts import qualified_name, text_of

LONGEST_CHAIN = 100

_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11 on


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
        return _load, (_take_apart(self.ex), _frames(self.tb))


class _Link(NamedTuple):
    """One exception of a chain; ``cause``, ``context`` and ``members`` are the places of others in the chain."""

    pickled: bytes | None
    type_name: str
    text: str
    traceback_text: str
    frames: list[dict[str, Any]]
    notes: list[str]
    cause: int | None
    context: int | None
    members: list[int]
    suppress_context: bool


def _notes(exception: BaseException) -> list[str]:
    notes = getattr(exception, "__notes__", None)
    return [text_of(note) for note in notes] if isinstance(notes, (list, tuple)) else []


def _pickled(exception: BaseException) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps(exception))
    except Exception:  # noqa: BLE001 - whatever a user's class raises here, it means that it cannot cross by itself
        return None


def _frames(tb: tblib.Traceback | None) -> list[dict[str, Any]]:
    """Return the frames of ``tb``, outermost first: a flat list, since pickle and tblib recurse once for each."""
    frames = []
    while tb is not None:
        frame = copy.copy(tb)
        frame.tb_next = None
        frames.append(frame.to_dict())
        tb = tb.tb_next
    return frames


def _traceback(frames: list[dict[str, Any]]) -> tblib.Traceback | None:
    """Return the traceback that ``_frames`` took apart."""
    tb: tblib.Traceback | None = None
    for frame in reversed(frames):
        outer = tblib.Traceback.from_dict(frame)
        outer.tb_next = tb
        tb = outer
    return tb


def _linked(exception: BaseException) -> tuple[BaseException | None, BaseException | None, tuple[BaseException, ...]]:
    """Return the cause, the context and the members of ``exception``."""
    members = exception.exceptions if isinstance(exception, _GROUP) else ()
    return exception.__cause__, exception.__context__, members


def _take_apart(ex: BaseException | None) -> list[_Link]:
    """Return the chain of ``ex``, itself first; an exception that occurs twice, or in a cycle, stands once."""
    chain: list[BaseException] = [] if ex is None else [ex]
    place: dict[int | None, int] = {id(exception): index for index, exception in enumerate(chain)}
    for exception in chain:  # grows while it is walked
        cause, context, members = _linked(exception)
        for linked in (cause, context, *members):
            if linked is not None and id(linked) not in place and len(chain) < LONGEST_CHAIN:
                place[id(linked)] = len(chain)
                chain.append(linked)
    return [_link(exception, place) for exception in chain]


def _link(exception: BaseException, place: dict[int | None, int]) -> _Link:
    cause, context, members = _linked(exception)
    tb = exception.__traceback__
    text = traceback.format_exception(type(exception), exception, tb, chain=False)
    return _Link(
        pickled=_pickled(exception),
        type_name=qualified_name(exception),
        text=text_of(exception),
        traceback_text="".join(text),
        frames=_frames(tblib.Traceback(tb)) if tb is not None else [],
        notes=_notes(exception),
        cause=place.get(id(cause)) if cause is not None else None,
        context=place.get(id(context)) if context is not None else None,
        members=[place[id(member)] for member in members] if all(id(m) in place for m in members) else [],
        suppress_context=exception.__suppress_context__,
    )


def _put_together(link: _Link) -> BaseException:
    stand_in = UnpicklableExceptionError(link.type_name, link.text, link.traceback_text)
    if link.pickled is None:
        return stand_in
    pickled = link.pickled
    loaded, error = apart(lambda: pickle.loads(pickled))  # a class that is missing here, or whose __init__ fails
    if isinstance(error, KeyboardInterrupt):
        raise error
    return loaded if isinstance(loaded, BaseException) else stand_in


def _load(chain: list[_Link], frames: list[dict[str, Any]]) -> ExceptionInfo:
    loaded: dict[int, BaseException] = {}
    for index, link in enumerate(chain):
        if index not in loaded:
            loaded[index] = _put_together(link)
        exception = loaded[index]
        if isinstance(exception, _GROUP):  # its members came with it
            loaded.update(zip(link.members, exception.exceptions, strict=False))
    for index, link in enumerate(chain):
        _restore(loaded[index], link, loaded)
    return ExceptionInfo(loaded.get(0), _traceback(frames))


def _restore(exception: BaseException, link: _Link, loaded: dict[int, BaseException]) -> None:
    """Give ``exception`` what pickle drops. Past the class's own ``__setattr__``: it may be frozen."""
    tb = _traceback(link.frames)
    attributes = {
        "__cause__": loaded[link.cause] if link.cause is not None else None,
        "__context__": loaded[link.context] if link.context is not None else None,
        "__suppress_context__": link.suppress_context,
        "__traceback__": apart(tb.as_traceback)[0] if tb is not None else None,
        **({"__notes__": list(link.notes)} if link.notes else {}),
    }
    for name, value in attributes.items():
        BaseException.__setattr__(exception, name, value)
