"""Children report their failures to a parent actor; and failures are shown."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayTaskError

from cgexec.errors import UnpicklableExceptionError
from cgexec.exception_info import ExceptionInfo
from cgexec.refs import current_actor_handle
from cgexec.status import JobStatus

_logger = logging.getLogger(__name__)


class SnitchRecipient:
    """Base class of actors that receive the failures of their children.

    Set ``logger`` in the constructor to choose where the reports go; override ``_child_failed`` to do more with them.
    """

    logger: logging.Logger = _logger

    def _child_failed(self, child: Any, exception: ExceptionInfo) -> None:
        """Log the failure of ``child``: an actor handle, or None if it was no actor."""
        exc_type, error, tb = exception.restore()
        self.logger.error("child %s failed: %s", child or "(no actor)", error, exc_info=(exc_type, error, tb))


@contextmanager
def log_failures_to(parent: Any, suppress: bool = False) -> Iterator[None]:
    """Report an exception that leaves the block to ``parent``, the handle of a ``SnitchRecipient`` actor.

    The report is sent and not waited for: the parent may itself be waiting for this child. The exception goes on after
    that, unless ``suppress``; it is never swallowed if the report could not be sent.
    """
    try:
        yield
    except Exception as error:
        reported = _report(parent, error)
        if not (suppress and reported):
            raise


def _report(parent: Any, error: Exception) -> bool:
    """Send ``error`` to ``parent``; return whether it could be sent."""
    try:
        child = current_actor_handle()
    except RuntimeError:
        child = None
    try:
        parent._child_failed.remote(child, ExceptionInfo.ser_exc_info(error))
    except Exception:
        _logger.exception("the failure of %s could not be reported to %s", child or "a child", parent)
        return False
    return True


def print_remote_raise(ray_error: object) -> None:
    """Print what is known of a remote failure to standard error: its remote traceback, or the next best.

    Accepts a ``RayTaskError``, an ``ExceptionInfo``, a ``JobStatus`` or the ``error`` of one, any other exception, and,
    for want of better, anything that has a text.
    """
    print(remote_traceback(ray_error), file=sys.stderr)


def remote_traceback(ray_error: object) -> str:
    """Return the text that ``print_remote_raise`` prints."""
    if isinstance(ray_error, JobStatus):
        return remote_traceback(getattr(ray_error, "error", f"no error: {ray_error}"))
    if isinstance(ray_error, ExceptionInfo):
        exc_type, error, tb = ray_error.restore()
        if isinstance(error, (RayTaskError, UnpicklableExceptionError)):
            return remote_traceback(error)
        return "".join(traceback.format_exception(exc_type, error, tb)).rstrip()
    if isinstance(ray_error, RayTaskError):
        return str(ray_error)  # Ray puts the remote traceback into the text
    if isinstance(ray_error, UnpicklableExceptionError):
        return ray_error.traceback_text.rstrip()
    if isinstance(ray_error, BaseException):
        return "".join(traceback.format_exception(type(ray_error), ray_error, ray_error.__traceback__)).rstrip()
    return str(ray_error)
