"""The handle of one execution."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from cgexec.deadline import Deadline
from cgexec.engine.protocol import GraphSpec, Output, OutputError
from cgexec.status import ExecutionInfo, HostFailure, JobStatus, JobSucceeded, made
from cgexec.topology import HostInfo


class Waiter(Protocol):
    """Who settles executions: the graph."""

    def wait_status(self, execution: Execution, timeout_s: float | None) -> JobStatus: ...

    def wait_outputs(self, execution: Execution, timeout_s: float | None) -> list[JobStatus]: ...

    async def wait_status_async(self, execution: Execution, timeout_s: float | None) -> JobStatus: ...

    def look(self, execution: Execution) -> bool: ...

    def tell(self, execution: Execution, signal: Callable[[], None]) -> bool: ...

    def untell(self, execution: Execution, signal: Callable[[], None]) -> None: ...

    def gave_up(self) -> None: ...

    def call_back(self, execution: Execution, callback: Callable[[Execution], object]) -> None: ...

    def settle_future(self, execution: Execution, settle: Callable[[Execution], object]) -> None: ...

    def never_collected(self, status: JobStatus) -> None: ...


class Execution:
    """One run of a graph: sent, and settled once, whatever dies and whenever.

    Every method may be called any number of times and from any thread. Whoever waits does the reading, for this
    execution and for those sent before it. Nothing is lost by giving up a wait.
    """

    __slots__ = (
        "__weakref__",
        "_graph",
        "_kind",
        "_name",
        "args",
        "attempts",
        "collected",
        "complete",
        "error_seen_at",
        "final",
        "generation",
        "hosts",
        "kept",
        "kwargs",
        "loss",
        "number",
        "received",
        "sent",
        "sent_at",
        "signals",
        "spec",
        "submit_by",
        "submitted_at",
        "when_sent",
        "writing",
    )

    def __init__(
        self,
        graph: Waiter,
        name: str,
        kind: str,
        number: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        submitted_at: float,
    ) -> None:
        # What the graph keeps here, under its lock:
        self._graph = graph
        self._name = name
        self._kind = kind
        self.number = number
        self.args = args  # until it has been sent
        self.kwargs = kwargs
        # Both, serialised, until it will not be sent again:
        self.kept: tuple[Sequence[Any], Mapping[str, Any]] | None = None
        self.submitted_at = submitted_at
        self.submit_by: Deadline | None = None  # of one that is in line without a thread
        self.writing = False  # by somebody, now
        self.sent = False
        self.sent_at: float | None = None  # for the first time
        self.attempts = 0
        self.generation = 0
        self.spec: GraphSpec | None = None
        self.hosts: Mapping[int, HostInfo] = {}
        self.received: list[Output | None] = []
        self.error_seen_at: float | None = None
        self.final: JobStatus | None = None
        self.loss: JobStatus | None = None  # what became of outputs that will not arrive
        self.complete = False  # no further output will arrive
        self.collected = False  # somebody has been given the outcome
        self.signals: tuple[Callable[[], None], ...] = ()  # called once it settles
        self.when_sent: Callable[[], None] | None = None  # called once it is sent, or settles

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
        try:
            raise getattr(status, "error", RuntimeError(f"a status without an error: {status!r}"))
        finally:
            del self, status  # the error holds this frame from now on

    def outputs(self, timeout_s: float | None = None) -> list[JobStatus]:
        """Return one status for each output of the graph, in output order, once all have arrived.

        So one host's application error does not hide the others' values. An output that will not arrive, because the
        graph broke, has the status of the execution; one that has not arrived in time is a pending JobError.

        Raises:
            ValueError: ``timeout_s`` is not usable.
        """
        return self._graph.wait_outputs(self, timeout_s)

    def __await__(self) -> Generator[Any, None, JobStatus]:
        """Do as ``status()``, for ``await execution``. Cancelling the await is no harm to the execution."""
        return self._graph.wait_status_async(self, None).__await__()

    async def status_async(self, timeout_s: float | None = None) -> JobStatus:
        """Do as ``status``, without blocking the event loop. Cancelling the await is no harm to the execution."""
        return await self._graph.wait_status_async(self, timeout_s)

    def add_done_callback(self, callback: Callable[[Execution], object]) -> None:
        """Call ``callback(execution)`` once the execution has settled; at once, on this thread, if it has.

        Else it is called on a thread of the graph's, which calls those of all its executions in the order in which they
        settle: a callback that takes long keeps the others waiting, and nobody else. What it raises is logged.

        Raises:
            TypeError: ``callback`` cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"a callback is called with the execution: {callback!r} cannot be")
        self._graph.call_back(self, callback)

    def tell(self, signal: Callable[[], None]) -> bool:
        """Have ``signal``, which must neither block nor raise, called once it settles; False if it has."""
        return self._graph.tell(self, signal)

    def untell(self, signal: Callable[[], None]) -> None:
        """Have ``signal`` not called any more."""
        self._graph.untell(self, signal)

    def gave_up(self) -> None:
        """Say that somebody has waited for it for longer than they would, if it has not settled."""
        if self.final is None:
            self._graph.gave_up()

    def future(self) -> Future[JobStatus]:
        """Return a Future that has the outcome once the execution has settled, whatever it is.

        For what takes such futures, as ``asyncio.wrap_future`` does. Cancelling it is no harm to the execution. What is
        added to it by ``add_done_callback`` is called on the one thread that settles the graph's futures, and so must
        not wait for another of them.
        """
        found: Future[JobStatus] = Future()

        def settle(execution: Execution) -> None:
            if found.set_running_or_notify_cancel():
                found.set_result(execution.status(0))

        self._graph.settle_future(self, settle)
        return found

    def done(self) -> bool:
        """Return whether the execution has settled. Looks once for what has arrived, and does not wait."""
        return self._graph.look(self)

    @property
    def info(self) -> ExecutionInfo:
        """What is known of the execution now."""
        if self.final is not None:
            return self.final.info  # type: ignore[return-value] # an execution settles with an ExecutionInfo
        return self.draft_info()

    def draft_info(
        self,
        state: str = "pending",
        host: HostInfo | None = None,
        method: str | None = None,
        failures: tuple[HostFailure, ...] = (),
    ) -> ExecutionInfo:
        """Return the info of an execution that has not settled, with these fields."""
        return made(
            ExecutionInfo,
            {
                "name": self._name,
                "state": state,
                "kind": self._kind,
                "execution": self.number,
                "generation": self.generation,
                "attempts": self.attempts,
                "elapsed_s": time.monotonic() - self.submitted_at,
                "host": host,
                "method": method,
                "failures": failures,
                "lost_hosts": (),
            },
        )

    def is_in_line(self) -> bool:
        """Return whether it is yet to be sent."""
        return not self.sent and self.final is None

    def has_error(self) -> bool:
        """Return whether any output that has arrived is an error."""
        return OutputError in map(type, self.received)

    def __del__(self) -> None:
        """Say so if nobody has asked what became of it and it did not succeed."""
        try:
            final = self.final
        except AttributeError:  # an interruption came before it was made
            return
        if final is not None and not self.collected and not isinstance(final, JobSucceeded):
            self._graph.never_collected(final)

    def __repr__(self) -> str:
        info = self.info
        return f"<Execution {info.execution} of {info.name!r}, generation {info.generation}: {info.state}>"
