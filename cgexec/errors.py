"""The exceptions cgexec raises, or puts into a status, on its own account.

::

    CgexecError
    ├── GraphClosedError            you closed the graph and then used it
    ├── GraphSpecError              the builder's graph, or its actors, cannot be used
    ├── GraphFailedError            the policy has given up; carries the first reason
    │   └── NotEnoughHostsError     because fewer hosts are left than the policy asks for
    ├── TransferError               a value could not cross from one method of the graph to the next, or to you
    └── UnpicklableExceptionError   stands in for an exception that could not cross a process

``GraphClosedError`` and ``GraphSpecError`` are raised: they are misuse. ``GraphFailedError`` comes inside a
``JobError``, and is raised by ``GraphExecutor.rebuild`` and ``Execution.result``; ``TransferError`` comes inside a
``JobError`` too. What Ray or a method raised is never wrapped in these: it stands in its status as it came.
"""

from __future__ import annotations

from typing import Any


class CgexecError(Exception):
    """The root of every exception that cgexec defines."""


class GraphClosedError(CgexecError):
    """The graph was used after ``close()``, or was closed while an execution was in flight."""


class GraphSpecError(CgexecError, ValueError):
    """The builder's graph cannot be compiled, or its actors cannot be used.

    The message names the node or the actor, the reason, and what to do. Nothing has run, and every actor is usable.
    """


class GraphFailedError(CgexecError):
    """The graph could not be rebuilt and will not run again. ``reason`` is the first cause."""

    def __init__(self, message: str, reason: BaseException | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        if reason is not None:
            self.__cause__ = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reason)


class NotEnoughHostsError(GraphFailedError):
    """Fewer hosts are left alive than ``RebuildPolicy.min_hosts``."""


class TransferError(CgexecError):
    """A value could not cross from one method of the graph to the next, or to the caller. The graph goes on.

    A result that cannot be pickled, one that cannot be loaded where it arrived, or the wrong number of results.
    ``type_name``, ``text`` and ``traceback_text`` are of the exception that says so, as it was raised.
    """

    def __init__(self, message: str, type_name: str, text: str, traceback_text: str) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.type_name, self.text, self.traceback_text)


class UnpicklableExceptionError(CgexecError):
    """Stands in for an exception that could not be pickled, or could not be loaded where it arrived.

    ``type_name`` is the qualified name of the original's class, ``text`` its ``str``, ``traceback_text`` its formatted
    traceback in the process where it was raised.
    """

    def __init__(self, type_name: str, text: str, traceback_text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.type_name, self.text, self.traceback_text)
