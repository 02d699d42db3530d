"""Running somebody else's code so that what it raises holds on to nothing of ours.

An exception holds its traceback, that its frames, and each frame the one that called it. An exception may live long: in
a status that a user keeps, or in a cycle (``def fail(error): raise error`` makes one) until the garbage collector comes
by. Then all that our frames refer to lives as long: sockets, shared memory, whole graphs. A generator that has been
closed, or waits, is not linked to whoever ran it, so the chain of frames ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_OURS = {"cgexec", "concurrent", "contextlib", "threading"}  # packages whose frames only lead to the caller's code


Outcome = tuple[T, None] | tuple[None, BaseException]


# Past what the class of an error may have made of it: it may be frozen, say.
_traceback_of: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__
_set_traceback: Callable[[BaseException, TracebackType | None], None] = vars(BaseException)["__traceback__"].__set__
_cause_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__cause__"].__get__
_set_cause: Callable[[BaseException, BaseException | None], None] = vars(BaseException)["__cause__"].__set__
_context_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__context__"].__get__


class Apart:
    """Runs calls one after the other, on one thread at a time; see ``apart``."""

    def __init__(self) -> None:
        self._passing: list[Any] = []  # the call there, its outcome back: no frame is to hold either in between
        self._run = _run_each(self._passing).__next__

    def __reduce__(self) -> tuple[type[Apart], tuple[()]]:
        return Apart, ()

    def __call__(self, call: Callable[[], T]) -> Outcome[T]:
        try:
            self._passing.append(call)
            self._run()
            outcome: Outcome[T] = self._passing.pop()
        except BaseException:  # an interruption, which has ended the generator, or comes behind it
            self._passing.clear()
            self._run = _run_each(self._passing).__next__
            raise
        return outcome


def apart(call: Callable[[], T]) -> Outcome[T]:
    """Return (what ``call()`` returns, None), or (None, what it raises) with a traceback of none but its own frames."""
    return Apart()(call)


def _run_each(passing: list[Any]) -> Generator[None, None, None]:
    while True:
        try:
            passing.append((passing.pop()(), None))
        except BaseException as error:  # noqa: BLE001 - handed back
            passing[:] = [(None, without_first_frame(error))]
        yield


def without_first_frame(error: E) -> E:
    """Return ``error`` with a traceback that begins where the frame which caught it had called."""
    tb = _traceback_of(error)
    _set_traceback(error, tb and tb.tb_next)
    return error


def copy_of(error: E) -> E:
    """Return an exception like ``error``, which several may be given: whoever raises one adds frames to it.

    For those of Ray and of cgexec. One that cannot be made again is returned itself.
    """
    try:
        copy = type(error).__new__(type(error), *error.args)
        vars(copy).update(vars(error))
        _set_cause(copy, _cause_of(error))
    except Exception:  # noqa: BLE001 - whatever its class wants, it does not get it here
        return error
    return copy


def bare(error: Exception) -> Exception:
    """Return ``error`` without tracebacks: it may be kept for long, and their frames hold whatever was in use."""
    for link in _links(error):
        _set_traceback(link, None)
    return error


def without_our_frames(error: Exception) -> Exception:
    """Return ``error`` with tracebacks that begin in the caller's code; ``bare`` if they never come there."""
    for link in _links(error):
        tb = _traceback_of(link)
        while tb is not None and tb.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
            tb = tb.tb_next
        _set_traceback(link, tb)
    return error


def _links(error: BaseException) -> list[BaseException]:
    """Return ``error`` and whatever led to it."""
    found: dict[int, BaseException] = {}
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in found:
            found[id(link)] = link
            links += [_cause_of(link), _context_of(link)]
    return list(found.values())
