"""What an error frame carries: why there is no value, told where it happened, passed on untouched.

A method that fails makes a ``Failure``. The stages behind it hand its bytes on without loading the exception, which
they may not be able to load; where several meet they are put side by side. Only the driver makes exceptions of them.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import ray
from ray.exceptions import RayTaskError

from cgexec.engine.frames import Bytes, Encoded, Kind
from cgexec.engine.reports import OutputPort
from cgexec.errors import TransferError, UnpicklableExceptionError
from cgexec.interruption import is_interruption
from cgexec.isolation import apart
from cgexec.texts import class_name, qualified_name, text_of


class Failure(NamedTuple):
    """One reason why an execution has no value here.

    ``transfer`` is empty for an exception that a method raised; else it says what could not be sent or loaded.
    ``exception`` is a pickled ``ExceptionInfo``.
    """

    origin: OutputPort | None
    transfer: str
    type_name: str
    text: str
    traceback_text: str
    actor_class: str
    pid: int
    node_ip: str
    exception: bytes


def capture(error: Exception, origin: OutputPort | None, instance: Any, transfer: str = "") -> Failure:
    """Return ``error`` ready to be sent. ``transfer``: what could not be done, if it is not what a method raised.

    Raises nothing, whatever the class of ``error`` does when it is looked at: then less of it crosses.
    """
    try:
        return _captured(error, origin, instance, transfer)
    except BaseException as broken:  # noqa: BLE001 - a loop must not end of what a method raises, SystemExit included
        name, text = class_name(error), f"<it cannot be looked at: {class_name(broken)}>"
        what = f"{transfer}: {name}" if transfer else ""
        return Failure(origin, what, name, text, f"{name}: {text}", class_name(instance), os.getpid(), "", b"")


def _captured(error: Exception, origin: OutputPort | None, instance: Any, transfer: str) -> Failure:
    from cgexec.exception_info import ExceptionInfo  # not before something fails: hosts start sooner without

    text = text_of(error)
    return Failure(
        origin=origin,
        transfer=f"{transfer}: {type(error).__name__}: {text}" if transfer else "",
        type_name=qualified_name(error),
        text=text,
        traceback_text="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        actor_class=class_name(instance),
        pid=os.getpid(),
        node_ip=ray.util.get_node_ip_address(),
        exception=pickle.dumps(ExceptionInfo.ser_exc_info(error)),
    )


def from_ray(error: RayTaskError) -> Failure:
    """Return what one of Ray's own tasks, or channels, hands on for an error."""
    cause = error.cause if isinstance(error.cause, Exception) else error
    # What Ray has made an instance of its cause says no more where it was raised.
    where = {"pid": error.pid, "node_ip": error.ip} if {"pid", "ip"} <= vars(error).keys() else {}
    return capture(cause, None, None)._replace(traceback_text=str(error), actor_class="", **where)


def encode_failures(failures: Iterable[Failure]) -> Encoded:
    """Return ``failures`` as the payload of an error frame; one that arrived by several ways stands once."""
    return Encoded(Kind.ERROR, pickle.dumps(list(dict.fromkeys(failures))))


def decode_failures(payload: Bytes) -> list[Failure]:
    """Return the failures of an error frame."""
    failures: list[Failure] = pickle.loads(payload)
    return failures


def _cause(failure: Failure) -> Exception:
    """Return the exception of ``failure``, or what stands in for one that cannot be loaded here."""
    stand_in = UnpicklableExceptionError(failure.type_name, failure.text, failure.traceback_text)
    try:
        loaded = pickle.loads(failure.exception).ex
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a user's class may raise anything as it is loaded, SystemExit too
        return stand_in
    return loaded if isinstance(loaded, Exception) else stand_in


def as_exception(failure: Failure) -> Exception:
    """Return ``failure`` as an exception of this process.

    What a method raised becomes what Ray makes of it: an instance of both its own class and ``RayTaskError``, with the
    remote traceback for a text. What could not be sent or loaded becomes a ``TransferError``.
    """
    cause = _cause(failure)
    if failure.transfer:
        refused = TransferError(failure.transfer, failure.type_name, failure.text, failure.traceback_text)
        refused.__cause__ = cause
        return refused
    method = failure.origin.method if failure.origin is not None else "task"
    # Built around a stand-in: RayTaskError pickles its cause to see whether it can, and that may raise anything.
    task_error = RayTaskError(
        method,
        failure.traceback_text,
        ValueError(failure.text),
        proctitle=f"ray::{failure.actor_class}.{method}" if failure.actor_class else f"ray::{method}",
        pid=failure.pid,
        ip=failure.node_ip,
    )
    task_error.cause = cause
    task_error.args = (*task_error.args[:2], cause, *task_error.args[3:])
    # Its class may have a say in that, and raise.
    dual, error = apart(task_error.as_instanceof_cause)
    if error is not None and is_interruption(error):
        raise error
    return task_error if dual is None else cast("Exception", dual)


def as_task_error(failure: Failure) -> RayTaskError:
    """Return ``failure`` as Ray's own tasks and channels tell an error from a value."""
    error = as_exception(failure)
    return error if isinstance(error, RayTaskError) else RayTaskError("task", str(error), error)


def merged(payloads: Sequence[Bytes]) -> Encoded:
    """Return one error frame's content for the failures of several: as they are if there is only one."""
    if len(payloads) == 1:
        return Encoded(Kind.ERROR, bytes(payloads[0]))
    return encode_failures(failure for payload in payloads for failure in decode_failures(payload))
