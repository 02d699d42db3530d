"""The moving part of a graph: its state and its generations, on top of its executions.

When a generation breaks, the thread that notices only says so (``on_break``). The supervisor finds out why, calls
``break_off`` to settle what was in flight, and later ``open`` or ``fail``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from cgexec.deadline import Deadline
from cgexec.engine.protocol import Break, Engine, Member
from cgexec.errors import GraphClosedError, GraphFailedError
from cgexec.executions import Executions
from cgexec.isolation import copy_of
from cgexec.lifecycle import GraphEvent, GraphState, HistoryEntry
from cgexec.reading import LONGEST_WAIT_S
from cgexec.texts import text_of
from cgexec.topology import LostHost

_LOADED_WITHIN_S = 0.3  # what has come, as a rule


class GraphCore(Executions):
    """See the module. Every method may be called from any thread."""

    # -- what callers may look at --------------------------------------------------------------------------------

    @property
    def state(self) -> GraphState:
        """Where the graph is in its life. It is broken as soon as its engine is, though why is found out only then."""
        engine = self._reader.engine
        broken = engine is not None and engine.broken
        state = self._lifecycle.state
        # Without the lock anything may happen between two looks: a graph that is closed or rebuilt breaks its engine.
        is_current = engine is self._reader.engine
        return GraphState.BROKEN if state is GraphState.READY and broken and is_current else state

    @property
    def generation(self) -> int:
        return self._lifecycle.generation

    @property
    def failure(self) -> Exception | None:
        return None if self._failure is None else copy_of(self._failure)

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
            return [replace(lost, cause=copy_of(lost.cause)) for lost in self._lost_hosts]

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
            self._notices.opened()
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
            self._changed.wait_for(lambda: self._reader.reading is not engine, 10 * LONGEST_WAIT_S)
            if self._reader.engine is not engine:
                return False
            deadline = Deadline.after(self.settings.teardown_timeout_s.value)
            self._read_aside_locked(lambda: self._reader.take_arrived(engine), deadline)
            if self._reader.engine is not engine:
                return False
            self._reader.engine, self._why, self._failure = None, why, why.error
            if self._lifecycle.state is GraphState.READY:
                self._lifecycle.apply(GraphEvent.SYSTEM_ERROR, time.monotonic(), _one_line(why.error))
            self._lose_in_flight_locked()
            self._attendance.end()
        self._reader.spent.clear()
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
            if self._lifecycle.state not in (GraphState.CLOSED, GraphState.FAILED):
                self._failure = reason
                gone = {host.info.host_id for host in self._lost_hosts}
                self._members = tuple(member for member in self._members if member.info.host_id not in gone)
                self._lifecycle.apply(GraphEvent.GAVE_UP, time.monotonic(), _one_line(reason))
                self._end_locked(reason)

    def drain(self, deadline: Deadline, unless: Callable[[], bool] = lambda: False) -> None:
        """Settle what is in flight, as far as it arrives before the deadline, and before ``unless()``."""
        ended: list[None] = []
        try:
            with self._changed:
                enough = lambda: not self._reader.in_flight or bool(ended) or unless()  # noqa: E731
                self._read_aside_locked(lambda: self._reader.until(enough, deadline), deadline, enough)
        finally:
            ended.append(None)
        self._reader.spent.clear()

    def _read_aside_locked(
        self, read: Callable[[], object], deadline: Deadline, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Have ``read()`` done on another thread, and wait for it: it loads values, and one may take for ever.

        Waits until the deadline at the latest, but at least as long as it takes to load what has come, as a rule; or
        until ``enough()``, which is asked now and then.
        """
        if not self._reader.in_flight:
            return
        done: list[None] = []

        def run() -> None:
            with self._changed:
                try:
                    read()
                finally:
                    done.append(None)
                    self._changed.notify_all()

        try:
            threading.Thread(target=run, name=f"cgexec-drain-{self.name}", daemon=True).start()
        except RuntimeError:  # the system has none left
            read()
            return
        at_least = Deadline.after(_LOADED_WITHIN_S)
        while not (done or enough() or deadline.remaining_s() == at_least.remaining_s() == 0):
            self._changed.wait(LONGEST_WAIT_S)

    def close(self) -> bool:
        """Take no more executions; False if the graph was closed before."""
        with self._changed:
            first = self._lifecycle.state is not GraphState.CLOSED
            if first:
                self._lifecycle.apply(GraphEvent.CLOSE, time.monotonic())
            # Again if it was closed before: who did so may have been interrupted.
            self._end_locked(GraphClosedError(f"graph {self.name!r} was closed before this was sent"))
            return first

    def abandon(self, error: Exception) -> Engine | None:
        """Settle what is still in flight with ``error``, and return the engine, to be torn down by the caller.

        It returns the same engine again, for a caller who was interrupted, until that was ``let_go``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._reader.reading is None, 5 * LONGEST_WAIT_S)
            self._why = Break((), error)
            if self._reader.engine is not None:
                self._engine_left, self._reader.engine = self._reader.engine, None
            self._lose_in_flight_locked()
            self._attendance.end()
        self._reader.spent.clear()
        return self._engine_left

    def let_go(self) -> None:
        """Keep the engine no longer that ``abandon`` returned."""
        self._engine_left = None

    def _lose_in_flight_locked(self) -> None:
        while self._reader.in_flight:
            execution = self._reader.in_flight[0]  # until it has settled, or is in line again, whatever interrupts that
            self._lose_locked(execution)
            self._reader.spent.append(self._reader.in_flight.popleft())
        self._changed.notify_all()

    def _end_locked(self, error: Exception) -> None:
        """Settle what was not sent, and will not be; threads that wait in line find out by themselves."""
        for execution in self._sender.unattended():
            self._refuse_locked(execution, error)
        self._notices.opened()
        self._changed.notify_all()

    def stop_threads(self, timeout_s: float) -> None:
        """End the threads that serve those who do not wait in one; waits for them up to ``timeout_s``."""
        deadline = Deadline.after(timeout_s)
        with self._changed:
            self._pump.end()
        self._pump.join(timeout_s)
        self._afterwards.end()
        self._afterwards.join(deadline)
        self._reader.spent.clear()

    def note_never_collected(self) -> None:
        """Count an execution whose outcome nobody has asked for. Takes no lock: a finaliser may say so."""
        self._tally.note_never_collected()

    def note_lost(self, lost: Sequence[LostHost]) -> None:
        """Add to the hosts that were lost."""
        with self._changed:
            self._lost_hosts += lost


def _one_line(error: BaseException) -> str:
    text = text_of(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
