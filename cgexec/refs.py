"""References that cross processes: boxed object refs, the end-of-stream sentinel, an actor's own handle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ray


@dataclass(frozen=True)
class RefBox:
    """Carries an ``ObjectRef`` through a remote call without Ray resolving it on the way.

    Ray replaces an ``ObjectRef`` that is itself an argument by its value; inside another object it leaves it alone.
    """

    ref: ray.ObjectRef[Any]

    def get(self) -> Any:
        """Return the value of the reference; raises whatever its computation raised. Blocks without a bound."""
        return ray.get(self.ref)


class DoneSentinel:
    """The type of ``DONE``. There is one instance per process, so ``item is DONE`` holds wherever it arrives."""

    _instance: DoneSentinel | None = None

    def __new__(cls) -> DoneSentinel:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __reduce__(self) -> str:
        # A string makes pickle store the global of that name, and copy return the object itself.
        return "DONE"

    def __repr__(self) -> str:
        return "DONE"


DONE: Final = DoneSentinel()
"""Marks the end of a stream in which None is a legitimate item: test with ``item is DONE``."""


def current_actor_handle() -> Any:
    """Return the handle of the actor that this code runs in.

    Raises:
        RuntimeError: this code runs in a driver or in an ordinary task.
    """
    try:
        handle = ray.get_runtime_context().current_actor if ray.is_initialized() else None
    except RuntimeError as error:
        raise RuntimeError("current_actor_handle() was called outside an actor: in a driver or a task") from error
    if handle is None:
        raise RuntimeError("current_actor_handle() was called outside an actor: Ray is not initialised here")
    return handle
