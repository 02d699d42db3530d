"""What a method can do wrong, by name: for methods that are told to, on real clusters and in one process alike."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cgexec.status import JobError, JobFailed, JobPreempted, JobStatus

_FOR_EVER_S = 3600.0
_SLEEPS = re.compile(r"sleep:(\d+\.?\d*|\.\d+)")


class PlainError(ValueError):
    """An ordinary error of an application."""


class NeedsArgumentsError(Exception):
    """Cannot be loaded: pickle builds an exception from its ``args``, and those are not what this one takes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class HoldsALockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BareError(BaseException):
    """Is no ``Exception``."""


class CannotBeLoaded:
    """Can be pickled, cannot be loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def _raise(error: BaseException) -> Any:
    raise error


def _raise_of_a_module_that_only_this_process_has() -> Any:
    module = type(sys)("cgexec_testing_only_here")
    error = type("ForeignError", (Exception,), {"__module__": module.__name__})
    module.ForeignError = error  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    raise error("from a module that is not there")


def _segfault() -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
    return _never_return()


def _kill_self() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    return _never_return()


def _never_return() -> Any:
    time.sleep(_FOR_EVER_S)


class Misbehaviour:
    """One way to do wrong.

    Attributes:
        name: what it goes by.
        act: does it; what it returns, if it returns, is what the method is to return.
        outcome: the class of status that an execution settles with in which it happens once.
        rebuilds: whether it costs a generation.
        loses_host: whether the host is gone afterwards.
        ends_process: whether it would end any process it happens in, the caller's included.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], Any],
        outcome: type[JobStatus],
        *,
        rebuilds: bool = False,
        loses_host: bool = False,
        ends_process: bool = False,
    ) -> None:
        self.name = name
        self.act = act
        self.outcome = outcome
        self.rebuilds = rebuilds or loses_host
        self.loses_host = loses_host
        self.ends_process = ends_process

    def __repr__(self) -> str:
        return f"Misbehaviour({self.name!r})"


MISBEHAVIOURS: dict[str, Misbehaviour] = {
    each.name: each
    for each in (
        Misbehaviour("raise", lambda: _raise(PlainError("as it was told to")), JobFailed),
        Misbehaviour("raise-what-cannot-be-pickled", lambda: _raise(HoldsALockError("a lock")), JobFailed),
        Misbehaviour("raise-what-needs-arguments", lambda: _raise(NeedsArgumentsError("one", "two")), JobFailed),
        Misbehaviour("raise-of-a-missing-module", _raise_of_a_module_that_only_this_process_has, JobFailed),
        Misbehaviour("return-what-cannot-be-sent", threading.Lock, JobError),
        Misbehaviour("return-what-cannot-be-loaded", CannotBeLoaded, JobError),
        Misbehaviour("raise-keyboard-interrupt", lambda: _raise(KeyboardInterrupt()), JobError, rebuilds=True),
        Misbehaviour("raise-cancelled", lambda: _raise(asyncio.CancelledError()), JobError, rebuilds=True),
        Misbehaviour("raise-base-exception", lambda: _raise(BareError("no Exception")), JobError, rebuilds=True),
        Misbehaviour("raise-system-exit", lambda: _raise(SystemExit(3)), JobPreempted, loses_host=True),
        Misbehaviour("exit", lambda: os._exit(3), JobPreempted, loses_host=True, ends_process=True),
        Misbehaviour("segmentation-fault", _segfault, JobPreempted, loses_host=True, ends_process=True),
        Misbehaviour("kill-itself", _kill_self, JobPreempted, loses_host=True, ends_process=True),
    )
}


def misbehave(name: str) -> Any:
    """Do what ``MISBEHAVIOURS`` calls ``name``; ``"sleep:SECONDS"`` sleeps, ``"never-return"`` sleeps for an hour.

    To whatever process calls it: in a driver, "kill-itself" is the driver's death.

    Returns what the method is to return, None if nothing in particular.

    Raises:
        ValueError: there is nothing of that name.
    """
    sleeps = _SLEEPS.fullmatch(name) if isinstance(name, str) else None
    if sleeps is not None:
        return time.sleep(float(sleeps[1]))
    if name == "never-return":
        return _never_return()
    if not isinstance(name, str) or name not in MISBEHAVIOURS:
        known = ", ".join([*MISBEHAVIOURS, "sleep:SECONDS", "never-return"])
        raise ValueError(f"there is no misbehaviour {name!r}; there are {known}")
    return MISBEHAVIOURS[name].act()
