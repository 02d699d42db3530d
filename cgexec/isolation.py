"""Running somebody else's code so that what it raises holds on to nothing of ours.

An exception holds its traceback, that its frames, and each frame the one that called it. An exception may live long: in
a status that a user keeps, or in a cycle (``def fail(error): raise error`` makes one) until the garbage collector comes
by. Then all that our frames refer to lives as long: sockets, shared memory, whole graphs. A generator that has been
closed is no longer linked to whoever ran it, so the chain of frames ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


def apart(call: Callable[[], T]) -> tuple[T, None] | tuple[None, BaseException]:
    """Return (what ``call()`` returns, None), or (None, what it raises) with a traceback of none but its own frames."""
    outcomes = _outcomes(call)
    outcome = next(outcomes)
    outcomes.close()
    return outcome


def _outcomes(call: Callable[[], T]) -> Generator[tuple[T, None] | tuple[None, BaseException], None, None]:
    outcome: tuple[T, None] | tuple[None, BaseException]
    try:
        outcome = call(), None
    except BaseException as error:  # noqa: BLE001 - returned
        BaseException.with_traceback(error, error.__traceback__ and error.__traceback__.tb_next)
        outcome = None, error
    yield outcome
