"""Faults that happen at a stated place: for graphs in this process, where nothing else goes wrong by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

FaultKind = Literal["die", "stop", "stick", "raise"]
Phase = Literal["build", "probe", "before", "after", "teardown"]

_IN_A_METHOD = frozenset({"before", "after"})


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong on one host.

    Attributes:
        kind: "die": the host's process is gone. "stop": it does nothing more until ``resume``, as after SIGSTOP.
            "stick": the method never returns. "raise": ``error`` is raised in the method.
        host: the ``host_id`` it happens on.
        phase: "before" the method runs, having taken its inputs; "after" it ran, before the result is sent; while the
            graph is in "build" or "teardown"; when the host is asked for a sign of life, "probe".
        execution: in which execution, counting from 0 every one that was sent to hosts with the same plan, over all
            generations; None for whichever comes first. For the phases in a method only.
        times: how often it happens.
        error: what is raised, for "raise".

    Raises:
        ValueError: there is no such fault, or not in that phase.
    """

    kind: FaultKind
    host: int
    phase: Phase = "before"
    execution: int | None = None
    times: int = 1
    error: BaseException | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind) or self.phase not in get_args(Phase):
            raise ValueError(f"{self}: a kind is one of {get_args(FaultKind)}, a phase one of {get_args(Phase)}")
        if self.phase not in _IN_A_METHOD and (self.execution is not None or self.kind in ("stick", "raise")):
            raise ValueError(f"{self}: in the phase {self.phase!r} no method runs, in no execution")
        if (self.kind == "raise") != (self.error is not None):
            raise ValueError(f"{self}: an error goes with the kind 'raise', and with no other")
        if self.error is not None and not isinstance(self.error, BaseException):
            raise ValueError(f"{self}: error is to be an exception, not {self.error!r}")
        for name, value, least in (("host", self.host, 0), ("execution", self.execution, 0), ("times", self.times, 1)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (name == "execution" and value is None):
                raise ValueError(f"{self}: {name} is to be a whole number, {least} or more, not {value!r}")


class FaultPlan:
    """Faults, and how often each has happened. May be asked from any thread."""

    def __init__(self, *faults: Fault) -> None:
        for fault in faults:
            if not isinstance(fault, Fault):
                raise TypeError(f"a FaultPlan is made of Faults: FaultPlan(fault, fault, ...), not {fault!r}")
        self._lock = threading.Lock()
        self._left = {index: fault.times for index, fault in enumerate(faults)}
        self._faults = faults
        self._num_sent = 0
        self._happened: list[tuple[Fault, int | None]] = []

    @property
    def happened(self) -> list[tuple[Fault, int | None]]:
        """What has happened so far, in order: the fault, and the execution it hit, None outside of one."""
        with self._lock:
            return list(self._happened)

    def number_of_next(self) -> int:
        """Return the number of the execution that is about to be sent."""
        with self._lock:
            self._num_sent += 1
            return self._num_sent - 1

    def due(self, host: int, phase: Phase, execution: int | None = None) -> list[Fault]:
        """Return the faults that happen now, and count them as happened."""
        with self._lock:
            found = []
            for index, fault in enumerate(self._faults):
                here = (fault.host, fault.phase) == (host, phase) and fault.execution in (None, execution)
                if here and self._left[index] > 0:
                    self._left[index] -= 1
                    self._happened.append((fault, execution))
                    found.append(fault)
            return found


def raising(instance: Any, error: BaseException) -> Any:
    """Return what stands in for ``instance``, by the same name: all its methods raise."""

    class Raising:
        def __getattribute__(self, _name: str) -> Callable[..., Any]:
            def method(*_args: Any, **_kwargs: Any) -> Any:
                raise error

            return method

    Raising.__name__, Raising.__qualname__ = type(instance).__name__, type(instance).__qualname__
    return Raising()
