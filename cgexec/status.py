"""The outcome of a job as a closed set of values.

Every execution settles as exactly one of ``JobSucceeded``, ``JobFailed``, ``JobPreempted`` and ``JobError``. Consume
them with ``match``. The names and their meaning are those of eformer's Ray executor: *failed* ran to completion but
failed for a reason in the job; *preempted* lost its infrastructure; *error* is anything unexpected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from cgexec.texts import Readable
from cgexec.topology import HostInfo, LostHost

T = TypeVar("T")

_new, _set = object.__new__, object.__setattr__


def made(kind: type[T], fields: dict[str, Any]) -> T:
    """Return a frozen dataclass with these fields, which are all that it has, in a third of the usual time.

    What ``dataclass`` makes for one that is frozen sets each field by itself, past the class's own ``__setattr__``.
    """
    value = _new(kind)
    _set(value, "__dict__", fields)
    return value


@dataclass(frozen=True)
class JobInfo:
    """What a job is called, what state it is in ("pending", "running", "succeeded", "failed", ...), and its kind."""

    name: str
    state: str
    kind: str


@dataclass(frozen=True, repr=False)
class HostFailure(Readable):
    """One host's application error in one execution. ``host`` or ``method`` is None where it cannot be known."""

    host: HostInfo | None
    method: str | None
    error: Exception


@dataclass(frozen=True)
class ExecutionInfo(JobInfo):
    """A ``JobInfo`` about one execution of one graph.

    ``state`` is "pending", "succeeded", "failed", "preempted" or "error". ``execution`` counts the executions of the
    graph from 0. ``generation`` is the build it ran on. ``attempts`` says how often it was sent: 0 means that no method
    ran. ``elapsed_s`` runs from its submission to its outcome, or to now while it is pending. ``host`` and ``method``
    are those concerned, None where there is none or it cannot be known; ``failures`` lists every application error
    known when the execution settled; ``lost_hosts`` the hosts whose loss ended it.
    """

    execution: int = -1
    generation: int = 0
    attempts: int = 0
    elapsed_s: float = 0.0
    host: HostInfo | None = None
    method: str | None = None
    failures: tuple[HostFailure, ...] = ()
    lost_hosts: tuple[LostHost, ...] = ()


@dataclass(frozen=True, repr=False)
class JobStatus(Readable):
    """The common base: what is known about a job once a call to Ray has ended.

    Ray, and ``ray.cloudpickle``, can send a status anywhere. Plain ``pickle`` cannot if the error came from a method:
    Ray makes its class on the spot. ``ExceptionInfo`` carries such an error through plain pickle.
    """

    info: JobInfo


@dataclass(frozen=True, repr=False)
class JobSucceeded(JobStatus):
    """The job completed. ``result`` is what it returned."""

    result: object


@dataclass(frozen=True, repr=False)
class JobFailed(JobStatus):
    """The job ran to completion but failed for a reason of its own: ``error``."""

    error: Exception


@dataclass(frozen=True, repr=False)
class JobPreempted(JobStatus):
    """The infrastructure under the job went away: ``error`` says how. The job may have run, wholly or in part."""

    error: Exception


@dataclass(frozen=True, repr=False)
class JobError(JobStatus):
    """Something unexpected: infrastructure or serialisation, or, with state "pending", a wait that ran out."""

    error: Exception
