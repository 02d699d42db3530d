"""The handle of one execution."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from cgexec.engine.protocol import GraphSpec, Output, OutputError
from cgexec.status import ExecutionInfo, JobStatus, JobSucceeded
from cgexec.topology import HostInfo


class Waiter(Protocol):
    """Who settles executions: the graph."""

    def wait_status(self, execution: Execution, timeout_s: float | None) -> JobStatus: ...

    def wait_outputs(self, execution: Execution, timeout_s: float | None) -> list[JobStatus]: ...

    def look(self, execution: Execution) -> bool: ...


class Execution:
    """One run of a graph: sent, and settled once, whatever dies and whenever.

    Every method may be called any number of times and from any thread. Whoever waits does the reading, for this
    execution and for those sent before it. Nothing is lost by giving up a wait.
    """

    __slots__ = (
        "_graph",
        "_kind",
        "_name",
        "attempts",
        "complete",
        "error_seen_at",
        "final",
        "generation",
        "hosts",
        "loss",
        "number",
        "received",
        "spec",
        "submitted_at",
    )

    def __init__(self, graph: Waiter, name: str, kind: str, number: int) -> None:
        # What the graph keeps here, under its lock:
        self._graph = graph
        self._name = name
        self._kind = kind
        self.number = number
        self.submitted_at = time.monotonic()
        self.attempts = 0
        self.generation = 0
        self.spec: GraphSpec | None = None
        self.hosts: Mapping[int, HostInfo] = {}
        self.received: list[Output | None] = []
        self.error_seen_at: float | None = None
        self.final: JobStatus | None = None
        self.loss: JobStatus | None = None  # what became of outputs that will not arrive
        self.complete = False  # no further output will arrive

    def status(self, timeout_s: float | None = None) -> JobStatus:
        """Return the outcome: JobSucceeded, JobFailed, JobPreempted or JobError.

        ``timeout_s`` replaces the get timeout: 0 looks once, -1 waits for ever. A wait that runs out is no outcome: it
        answers JobError with a ``RayChannelTimeoutError`` and ``info.state == "pending"``, and a later call may get the
        outcome.

        Raises:
            ValueError: ``timeout_s`` is not usable.
        """
        return self._graph.wait_status(self, timeout_s)

    def result(self, timeout_s: float | None = None) -> Any:
        """Return the value of a JobSucceeded; raise the error of any other status, of a wait that ran out too."""
        status = self.status(timeout_s)
        if isinstance(status, JobSucceeded):
            return status.result
        raise getattr(status, "error", RuntimeError(f"a status without an error: {status!r}"))

    def outputs(self, timeout_s: float | None = None) -> list[JobStatus]:
        """Return one status for each output of the graph, in output order, once all have arrived.

        So one host's application error does not hide the others' values. An output that will not arrive, because the
        graph broke, has the status of the execution; one that has not arrived in time is a pending JobError.

        Raises:
            ValueError: ``timeout_s`` is not usable.
        """
        return self._graph.wait_outputs(self, timeout_s)

    def done(self) -> bool:
        """Return whether the execution has settled. Looks once for what has arrived, and does not wait."""
        return self._graph.look(self)

    @property
    def info(self) -> ExecutionInfo:
        """What is known of the execution now."""
        if self.final is not None:
            return self.final.info  # type: ignore[return-value] # an execution settles with an ExecutionInfo
        return self.draft_info()

    def draft_info(self) -> ExecutionInfo:
        """Return the info of an execution that has not settled."""
        return ExecutionInfo(
            name=self._name,
            state="pending",
            kind=self._kind,
            execution=self.number,
            generation=self.generation,
            attempts=self.attempts,
            elapsed_s=time.monotonic() - self.submitted_at,
        )

    def has_all(self) -> bool:
        """Return whether every output has arrived."""
        return None not in self.received

    def has_error(self) -> bool:
        """Return whether any output that has arrived is an error."""
        return any(isinstance(output, OutputError) for output in self.received)

    def __repr__(self) -> str:
        info = self.info
        return f"<Execution {info.execution} of {info.name!r}, generation {info.generation}: {info.state}>"
