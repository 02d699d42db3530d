"""The moving part of a graph: what is in flight, who reads, who writes, and what state it is in.

::

    submit ──encode──> send ──> in flight (oldest first) ──collect──> settled
              │                    │                           │
              └ unfit: JobFailed   └ generation broke: lost    └ by whoever waits: one reader at a time

One lock guards everything; nothing that can block is called under it. Writers take turns; so do readers (``reading``).

When a generation breaks, the thread that notices only says so (``on_break``). The supervisor finds out why, calls
``break_off`` to settle what was in flight, and later ``open`` or ``fail``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayChannelError, RayChannelTimeoutError

from cgexec.classify import Verdict
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Break, Engine, EngineBrokenError, Member, SendTimeoutError
from cgexec.errors import GraphClosedError, GraphFailedError
from cgexec.execution import Execution
from cgexec.interruption import is_interruption
from cgexec.lifecycle import GraphEvent, GraphState, HistoryEntry, Lifecycle
from cgexec.outcomes import (
    failed_status,
    no_room,
    not_ready,
    pending_status,
    ran_out,
    status_of_break,
    status_of_output,
)
from cgexec.reading import LONGEST_WAIT_S, Reader, condemn
from cgexec.settings import FROM_CALL, Settings, check_wait
from cgexec.status import JobError, JobFailed, JobStatus
from cgexec.topology import HostInfo, LostHost


class GraphCore:
    """The executions of one graph, over all its generations. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        kind: str,
        settings: Settings,
        fail_fast: bool,
        on_break: Callable[[Engine, Exception], None],
        on_wait_ran_out: Callable[[Engine], None],
    ) -> None:
        self.name = name
        self.kind = kind
        self.settings = settings
        self._on_break = on_break
        self._on_wait_ran_out = on_wait_ran_out
        self._changed = threading.Condition(threading.Lock())
        self._reader = Reader(self._changed, fail_fast, self._settle_locked, on_break)
        self._writing = threading.Lock()
        self._lifecycle = Lifecycle()
        self._numbers = itertools.count()
        self._members: tuple[Member, ...] = ()
        self._hosts: Mapping[int, HostInfo] = {}
        self._lost_hosts: list[LostHost] = []
        self._why: Break | None = None
        self._failure: Exception | None = None

    # -- what callers may look at --------------------------------------------------------------------------------

    @property
    def state(self) -> GraphState:
        return self._lifecycle.state

    @property
    def generation(self) -> int:
        return self._lifecycle.generation

    @property
    def failure(self) -> Exception | None:
        return self._failure

    @property
    def members(self) -> tuple[Member, ...]:
        return self._members

    @property
    def history(self) -> list[HistoryEntry]:
        with self._changed:
            return self._lifecycle.history

    @property
    def lost_hosts(self) -> list[LostHost]:
        with self._changed:
            return list(self._lost_hosts)

    # -- sending ---------------------------------------------------------------------------------------------------

    def submit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution:
        """Send one execution, waiting for room up to the submit timeout; raises GraphClosedError only."""
        execution = Execution(self, self.name, self.kind, next(self._numbers))
        deadline = Deadline.after(self.settings.submit_timeout_s.value)
        if self._writing.acquire(timeout=deadline.slice_s(threading.TIMEOUT_MAX)):
            try:
                while execution.final is None and execution.attempts == 0:
                    engine = self._await_room(execution, deadline)
                    if engine is not None:
                        self._send(engine, execution, args, kwargs, deadline)
            finally:
                self._writing.release()
        else:
            self._settle(execution, Verdict.ERROR, self._no_room())
        if isinstance(execution.final, JobError):
            self._say_that_a_wait_ran_out()
        return execution

    def _no_room(self) -> Exception:
        return no_room(self.name, len(self._reader.in_flight), self.settings.submit_timeout_s.value)

    def _not_ready(self) -> Exception:
        return not_ready(self.name, self._lifecycle.state.value, self.settings.submit_timeout_s.value)

    def _await_room(self, execution: Execution, deadline: Deadline) -> Engine | None:
        """Return an engine with a free slot; or settle ``execution``, if there is none in time, and return None."""
        with self._changed:
            while True:
                state = self._lifecycle.state
                if state is GraphState.CLOSED:
                    raise GraphClosedError(f"graph {self.name!r} is closed")
                if state is GraphState.FAILED:
                    error: Exception = self._failure or GraphFailedError(f"graph {self.name!r} has failed")
                    self._refuse_locked(execution, error)
                    return None
                engine = self._usable_engine()
                late = deadline.remaining_s() == 0
                if engine is not None and (self._has_room() or (late and self._reader.look(self._has_room))):
                    execution.generation, execution.hosts = self._lifecycle.generation, self._hosts
                    return engine
                if late:
                    self._refuse_locked(execution, self._no_room() if engine else self._not_ready())
                    return None
                self._reader.read_or_wait(deadline)

    def _usable_engine(self) -> Engine | None:
        engine = self._reader.engine if self._lifecycle.state is GraphState.READY else None
        return None if engine is None or engine.broken else engine

    def _has_room(self) -> bool:
        engine = self._usable_engine()
        return engine is not None and len(self._reader.in_flight) < engine.capacity

    def _refuse_locked(self, execution: Execution, error: Exception) -> None:
        """Settle an execution of which nothing was sent."""
        self._settle_locked(execution, failed_status(execution.draft_info(), Verdict.ERROR, error))

    def _send(
        self,
        engine: Engine,
        execution: Execution,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        deadline: Deadline,
    ) -> None:
        """Send ``execution`` on ``engine``. It is left unsent if the engine turns out broken before anything went."""
        try:
            encoded = engine.encode(args, kwargs)
        except Exception as error:
            if is_interruption(error):
                raise
            # The input is the caller's: anything can happen in its __reduce__.
            self._settle(execution, Verdict.FAILED, error)
            return
        try:
            engine.send(encoded, -1 if deadline.wait_s() is None else deadline.remaining_s())
            self._sent(engine, execution)
        except SendTimeoutError as error:
            self._settle(execution, Verdict.ERROR, RayChannelTimeoutError(f"{error}; nothing was sent"))
            return
        except EngineBrokenError as error:
            self._on_break(engine, error.reason)
            if error.sent:
                self._sent(engine, execution)
        except BaseException as error:  # noqa: BLE001 - condemn() raises an interruption again
            # Ctrl-C, say: whether the input was written cannot be known, so no later answer could be trusted.
            self._sent(engine, execution)
            condemn(engine, error, "a write", self._on_break)

    def _sent(self, engine: Engine, execution: Execution) -> None:
        """Put ``execution`` in flight: it was sent, or may have been."""
        with self._changed:
            if execution.attempts > 0:
                return
            execution.attempts = 1
            execution.spec = engine.spec
            execution.received = [None] * len(engine.spec.outputs)
            if engine is self._reader.engine:
                self._reader.in_flight.append(execution)
            else:  # the generation was broken off while this was being sent
                self._lose_locked(execution)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is None:
            return Deadline.after(self.settings.get_timeout_s.value)
        return Deadline.after(check_wait("timeout_s", timeout_s, FROM_CALL))

    def wait_status(self, execution: Execution, timeout_s: float | None) -> JobStatus:
        """See ``Execution.status``."""
        return self.wait_until(execution, self._deadline(timeout_s))

    def wait_until(self, execution: Execution, deadline: Deadline) -> JobStatus:
        """Return the outcome of ``execution``, or a pending JobError at the deadline."""
        started = time.monotonic()
        with self._changed:
            self._reader.until(lambda: execution.final is not None, deadline)
            status = execution.final
            if status is not None:
                return status
            status = self._ran_out_locked(execution, time.monotonic() - started)
        self._say_that_a_wait_ran_out()
        return status

    def wait_outputs(self, execution: Execution, timeout_s: float | None) -> list[JobStatus]:
        """See ``Execution.outputs``."""
        deadline, started = self._deadline(timeout_s), time.monotonic()
        with self._changed:
            arrived = self._reader.until(lambda: execution.complete, deadline)
            missing = (execution.loss or execution.final) if arrived else None
            if missing is None:
                missing = self._ran_out_locked(execution, time.monotonic() - started)
            statuses = [missing]
            if execution.spec is not None:
                info = execution.draft_info()
                statuses = [
                    status_of_output(info, execution.spec, place, output, missing, execution.hosts)
                    for place, output in enumerate(execution.received)
                ]
        if not arrived:
            self._say_that_a_wait_ran_out()
        return statuses

    def look(self, execution: Execution) -> bool:
        """See ``Execution.done``."""
        with self._changed:
            return self._reader.look(lambda: execution.final is not None)

    def wait_open(self, deadline: Deadline) -> None:
        """Return when the graph is neither broken nor being rebuilt, or at the deadline."""
        down = (GraphState.BROKEN, GraphState.REBUILDING)
        with self._changed:
            self._changed.wait_for(lambda: self._lifecycle.state not in down, deadline.wait_s())

    def _say_that_a_wait_ran_out(self) -> None:
        engine = self._reader.engine
        if engine is not None:
            self._on_wait_ran_out(engine)

    def _ran_out_locked(self, execution: Execution, waited_s: float) -> JobStatus:
        self._lifecycle.apply(GraphEvent.WAIT_RAN_OUT, time.monotonic(), f"execution {execution.number}")
        ahead = next((place for place, other in enumerate(self._reader.in_flight) if other is execution), 0)
        info = execution.draft_info()
        return pending_status(info, ran_out(info, waited_s, ahead, execution.spec, execution.received))

    # -- settling ----------------------------------------------------------------------------------------------------

    def _settle(self, execution: Execution, verdict: Verdict, error: Exception) -> None:
        with self._changed:
            self._settle_locked(execution, failed_status(execution.draft_info(), verdict, error))

    def _settle_locked(self, execution: Execution, status: JobStatus) -> None:
        """Give ``execution`` its one outcome; a second one is ignored."""
        if execution.final is not None:
            return
        execution.final = status
        if execution.attempts == 0:
            execution.complete = True
        if isinstance(status, JobFailed):
            detail = f"execution {execution.number}: {type(status.error).__name__}"
            self._lifecycle.apply(GraphEvent.APPLICATION_ERROR, time.monotonic(), detail)
        self._changed.notify_all()

    def _lose_locked(self, execution: Execution) -> None:
        """Settle an execution whose generation is gone; what had arrived of it stays."""
        why = self._why or Break((), RayChannelError("the generation ended"))
        execution.loss = status_of_break(execution.draft_info(), why, execution.hosts)
        self._settle_locked(execution, execution.loss)
        execution.complete = True

    # -- what the supervisor and close() do --------------------------------------------------------------------------

    def open(self, engine: Engine, members: Sequence[Member]) -> bool:
        """Let executions run on ``engine``; False if the graph was closed meanwhile, and ``engine`` is not taken."""
        with self._changed:
            if self._lifecycle.state is GraphState.CLOSED:
                return False
            self._members = tuple(members)
            self._hosts = {member.info.host_id: member.info for member in members}
            self._reader.engine, self._failure = engine, None
            names = ", ".join(str(member.info.host_id) for member in members)
            self._lifecycle.apply(GraphEvent.BUILT, time.monotonic(), f"on host {names}")
            self._changed.notify_all()
            return True

    def current_engine(self) -> Engine | None:
        """Return the engine that executions run on now."""
        return self._reader.engine

    def break_off(self, engine: Engine, why: Break) -> bool:
        """Take ``engine`` away and settle what was in flight on it; it has broken, or is to be replaced.

        False if it had been taken away before. Whoever takes an engine away tears it down.
        """
        with self._changed:
            engine.broken = True  # nobody begins to read on it any more
            # A reader that is on its way out may be carrying an output that completes an execution.
            self._changed.wait_for(lambda: not self._reader.reading, 10 * LONGEST_WAIT_S)
            if self._reader.engine is not engine:
                return False
            self._reader.take_arrived()
            if self._reader.engine is not engine:
                return False
            self._reader.engine, self._why, self._failure = None, why, why.error
            if self._lifecycle.state is GraphState.READY:
                self._lifecycle.apply(GraphEvent.SYSTEM_ERROR, time.monotonic(), _one_line(why.error))
            while self._reader.in_flight:
                self._lose_locked(self._reader.in_flight.popleft())
            self._changed.notify_all()
            return True

    def happened(self, event: GraphEvent, detail: str) -> bool:
        """Record ``event``; False, and nothing is recorded, if the graph was closed."""
        with self._changed:
            if self._lifecycle.state is GraphState.CLOSED:
                return False
            self._lifecycle.apply(event, time.monotonic(), detail)
            self._changed.notify_all()
            return True

    def fail(self, reason: GraphFailedError, lost: Sequence[LostHost]) -> None:
        """Give the graph up for good."""
        with self._changed:
            self._lost_hosts += lost
            if self._lifecycle.state is not GraphState.CLOSED:
                self._failure = reason
                gone = {host.info.host_id for host in self._lost_hosts}
                self._members = tuple(member for member in self._members if member.info.host_id not in gone)
                self._lifecycle.apply(GraphEvent.GAVE_UP, time.monotonic(), _one_line(reason))
            self._changed.notify_all()

    def drain(self, deadline: Deadline, unless: Callable[[], bool] = lambda: False) -> None:
        """Settle what is in flight, as far as it arrives before the deadline, and before ``unless()``."""
        with self._changed:
            self._reader.until(lambda: not self._reader.in_flight or unless(), deadline)

    def close(self) -> bool:
        """Take no more executions; False if the graph was closed before."""
        with self._changed:
            if self._lifecycle.state is GraphState.CLOSED:
                return False
            self._lifecycle.apply(GraphEvent.CLOSE, time.monotonic())
            self._changed.notify_all()
            return True

    def abandon(self, error: Exception) -> Engine | None:
        """Settle what is still in flight with ``error``, and return the engine, to be torn down by the caller."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reader.reading, 5 * LONGEST_WAIT_S)
            engine, self._reader.engine, self._why = self._reader.engine, None, Break((), error)
            while self._reader.in_flight:
                self._lose_locked(self._reader.in_flight.popleft())
            self._changed.notify_all()
            return engine

    def note_lost(self, lost: Sequence[LostHost]) -> None:
        """Add to the hosts that were lost."""
        with self._changed:
            self._lost_hosts += lost


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
