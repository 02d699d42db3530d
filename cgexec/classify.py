"""Foreign exceptions, classified in one ordered table.

The same exception means different things in different places. A ``RayTaskError`` that arrives as an output is a method
that raised: the graph goes on. From a reference to an actor's loop it says that the loop has ended: the graph is dead.
Each row therefore answers for three places (``Place``), and the first row that fits is the answer.

``RayTaskError`` is asked for before anything else: Ray makes the error of a method that itself met a dead actor an
instance of both ``RayTaskError`` and ``ActorDiedError``, and that is no preemption of ours.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import ray.exceptions
from ray.exceptions import RayActorError, RayError

from cgexec.status import JobError, JobFailed, JobInfo, JobPreempted, JobStatus
from cgexec.texts import as_plain_exception


class Verdict(enum.Enum):
    """Which status an exception becomes."""

    FAILED = "failed"
    PREEMPTED = "preempted"
    ERROR = "error"

    def status(self, info: JobInfo, error: Exception) -> JobFailed | JobPreempted | JobError:
        """Return the status of this verdict."""
        if self is Verdict.FAILED:
            return JobFailed(info, error)
        return JobPreempted(info, error) if self is Verdict.PREEMPTED else JobError(info, error)


class Place(enum.Enum):
    """Where an exception was seen."""

    ALONE = "alone"  # nothing is known but the exception: what handle_ray_error sees
    OUTPUT = "output"  # it arrived in the place of a result, from a graph that still runs
    LOOP = "loop"  # it ended an actor's loop, or answers a call to the actor


@dataclass(frozen=True)
class Row:
    """One line of the table: these classes, told further apart by ``only_if``, mean this, in each place."""

    classes: str
    alone: Verdict
    output: Verdict
    loop: Verdict
    why: str
    only_if: Callable[[BaseException], bool] | None = None

    def types(self) -> tuple[type[BaseException], ...]:
        """Return the row's classes, without those the installed Ray does not have."""
        found = (getattr(ray.exceptions, name, None) for name in self.classes.split())
        return tuple(cls for cls in found if cls is not None)

    def verdict(self, place: Place) -> Verdict:
        """Return what the row says of ``place``."""
        return {Place.ALONE: self.alone, Place.OUTPUT: self.output, Place.LOOP: self.loop}[place]


_F, _P, _E = Verdict.FAILED, Verdict.PREEMPTED, Verdict.ERROR


def is_failed_constructor(error: BaseException) -> bool:
    """Return whether ``error`` says that an actor died of its own ``__init__``: replacing it would only repeat it."""
    return isinstance(error, RayActorError) and error.actor_init_failed


# fmt: off
TABLE: tuple[Row, ...] = (
    #   class(es)                                                        alone output loop
    Row("RayTaskError",                                                    _E, _F, _E,
        "a method raised; in a loop's reference: the loop itself ended"),
    Row("UnserializableException",                                         _E, _F, _E,
        "a method raised something that cannot be loaded here"),
    Row("ActorDiedError RayActorError",                                    _E, _E, _E,
        "the actor's constructor raised: an error of the application, not of its host",
        only_if=is_failed_constructor),
    Row("RayChannelTimeoutError GetTimeoutError",                          _E, _E, _E,
        "a wait ran out; what was waited for may still come"),
    Row("RayCgraphCapacityExceeded PendingCallsLimitExceeded",             _E, _E, _E,
        "too much was asked for at once; nothing is broken"),
    Row("ActorDiedError ActorUnavailableError RayActorError AsyncioActorExit", _P, _E, _P,
        "an actor is gone, or gone for the moment"),
    Row("NodeDiedError LocalRayletDiedError WorkerCrashedError OwnerDiedError", _P, _E, _P,
        "a node, a worker, or the owner of an object is gone"),
    Row("RayChannelError",                                                 _E, _E, _E,
        "a channel was closed or failed; by itself it names no culprit"),
    Row("RaySystemError RayDirectTransportError StreamingGeneratorReplayInconsistentError", _E, _E, _E,
        "Ray failed; as an output: a result that could not be loaded"),
    Row("ObjectLostError ObjectFetchTimedOutError ReferenceCountingAssertionError ObjectFreedError "
        "ObjectReconstructionFailedError ObjectReconstructionFailedMaxAttemptsExceededError "
        "ObjectReconstructionFailedLineageEvictedError PlasmaObjectNotAvailable ObjectRefStreamEndOfStreamError "
        "OufOfBandObjectRefSerializationException",                        _E, _E, _E,
        "an object is not to be had"),
    Row("ObjectStoreFullError OutOfDiskError OutOfMemoryError",            _E, _E, _E,
        "a resource of a node is exhausted; the same call would exhaust it again"),
    Row("TaskCancelledError TaskPlacementGroupRemoved ActorPlacementGroupRemoved TaskUnschedulableError "
        "ActorUnschedulableError RuntimeEnvSetupError",                    _E, _E, _E,
        "somebody cancelled it, or it could never be placed"),
    Row("CrossLanguageError UserCodeException AuthenticationError RpcError ActorAlreadyExistsError "
        "ActorHandleNotFoundError",                                        _E, _E, _E,
        "the call as such was refused"),
    Row("RayError",                                                        _E, _E, _E,
        "Ray's root class: only what carries no better name"),
)
# fmt: on


def row_for(error: BaseException) -> Row | None:
    """Return the first row that fits ``error``, or None for an exception that is not Ray's."""
    for row in TABLE:
        if isinstance(error, row.types()) and (row.only_if is None or row.only_if(error)):
            return row
    return None


def classify(error: BaseException, place: Place) -> Verdict:
    """Return the verdict on ``error`` seen in ``place``. What is not in the table is an ERROR."""
    row = row_for(error)
    return row.verdict(place) if row is not None else Verdict.ERROR


def handle_ray_error(job_info: JobInfo, e: RayError) -> JobStatus:
    """Return the status of a job that met ``e``, from the exception alone.

    JobPreempted for the death of a node, an owner, an actor or a worker and for an actor that is unavailable; JobError
    for system errors, task errors, an actor whose constructor raised, and anything else. It never answers JobFailed:
    that takes knowing where the exception was seen, which only ``GraphExecutor`` does.
    """
    return classify(e, Place.ALONE).status(job_info, as_plain_exception(e))
