"""The executions of a graph, from submission to outcome, over all its generations.

::

    submit ──> in line ──> send ──> in flight (oldest first) ──collect──> settled
                 │  │       │           │                           │
                 │  │       │           └ generation broke: lost,   └ by whoever waits: one reader at a time
                 │  │       └ unfit:      or in line again
                 │  └ late:   JobFailed
                 │    JobError
                 └ closed: JobError

One lock guards everything; nothing that can block is called under it. Who sends takes turns (``sending``), and so does
who reads (``reading``). Who waits in a thread does both by itself; the ``pump`` does it for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayChannelError

from cgexec.asynchronous import outcome
from cgexec.attending import Attendance
from cgexec.changed import Changed
from cgexec.classify import Verdict
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Break, Engine, Member
from cgexec.errors import CgexecError, GraphClosedError, GraphFailedError
from cgexec.execution import Execution
from cgexec.isolation import copy_of
from cgexec.lifecycle import GraphEvent, GraphState, Lifecycle
from cgexec.notices import Afterwards, Notices, Signal
from cgexec.outcomes import (
    failed_status,
    no_room,
    not_ready,
    pending_status,
    ran_out,
    status_of_break,
    status_of_output,
)
from cgexec.overseer import Overseer
from cgexec.pump import Pump
from cgexec.reading import Reader
from cgexec.sending import Sender
from cgexec.settings import FROM_CALL, Settings, check_wait
from cgexec.stats import GraphStats, Tally
from cgexec.status import JobError, JobFailed, JobPreempted, JobStatus, JobSucceeded
from cgexec.topology import HostInfo, LostHost

_READY, _BROKEN, _CLOSED = GraphState.READY, GraphState.BROKEN, GraphState.CLOSED  # on an enum, a lookup is slow
_DOWN = (_BROKEN, GraphState.REBUILDING)


class Executions:
    """What callers do with a graph. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        kind: str,
        settings: Settings,
        overseer: Overseer,
        *,
        fail_fast: bool,
        retry_preempted: int,
    ) -> None:
        self.name = name
        self.kind = kind
        self.settings = settings
        self._overseer = overseer
        self._retry_preempted = retry_preempted
        self._changed = Changed()
        self._reader = Reader(self._changed, fail_fast, self.settle_locked, overseer.broke)
        self._sender = Sender(self._changed, self._reader, self, overseer.broke, retry_preempted)
        self._lifecycle = Lifecycle()
        self._notices = Notices()
        self._pump = Pump(name, self._changed, self._reader, self._sender, self._notices)
        self._attendance = Attendance(self._changed, self._reader, self._notices, self._pump)
        self._afterwards = Afterwards(name)
        self._tally = Tally()
        self._num_submitted = 0
        self._members: tuple[Member, ...] = ()
        self._hosts: Mapping[int, HostInfo] = {}
        self._lost_hosts: list[LostHost] = []
        self._why: Break | None = None
        self._failure: Exception | None = None
        self._engine_left: Engine | None = None  # by a graph that was closed, to be torn down

    # -- sending ---------------------------------------------------------------------------------------------------

    def submit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution:
        """Send one execution, waiting for room up to the submit timeout; raises GraphClosedError only."""
        with self._changed:
            execution = self._new_locked(args, kwargs)
            self._sender.send_in_turn(execution, self._submit_by(execution))
        self._reader.spent.clear()
        return execution

    def execute(self, args: Sequence[Any], kwargs: Mapping[str, Any], timeout_s: float | None) -> JobStatus:
        """See ``GraphExecutor.execute``: as ``submit`` and ``wait_status``, in one go."""
        wait_s = self.wait_s(timeout_s)
        with self._changed:
            execution = self._new_locked(args, kwargs)
            self._sender.send_in_turn(execution, self._submit_by(execution))
            started = time.monotonic()
            deadline = Deadline(started, wait_s)
            status = self._wait_locked(execution, deadline, started)
            lost = not isinstance(status, (JobSucceeded, JobFailed)) and execution.final is not None
            if lost and execution.attempts > 0:  # let the next one find the graph rebuilt
                self._changed.wait_for(lambda: self._lifecycle.state not in _DOWN, deadline.wait_s())
        self._reader.spent.clear()
        return status

    def try_submit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution | None:
        """Send one execution if there is room now, else return None; raises GraphClosedError only."""
        with self._changed:
            self._check_open_locked()
            failed = self._lifecycle.state is GraphState.FAILED
            taken: Execution | None = None
            if failed or self._reader.look(lambda: self.has_room_locked(len(self._sender.line))):
                taken = self._try_to_send_locked(args, kwargs)
        self._reader.spent.clear()
        return taken

    def _try_to_send_locked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution | None:
        execution = self._new_locked(args, kwargs)
        self._sender.send_in_turn(execution, Deadline.after(0))
        failed = self._lifecycle.state is GraphState.FAILED
        if execution.attempts == 0 and not failed and isinstance(execution.final, JobError):
            execution.collected = True
            self._tally.take_back(execution.final)
            return None
        return execution

    def _new_locked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution:
        """Return a new execution. Raises GraphClosedError."""
        if self._lifecycle.state is _CLOSED:
            self._check_open_locked()
        number = self._num_submitted
        self._num_submitted = number + 1
        return Execution(self, self.name, self.kind, number, args, kwargs, time.monotonic())

    def _submit_by(self, execution: Execution) -> Deadline:
        return Deadline(execution.submitted_at, self.settings.submit_timeout_s.value)

    def admit_locked(self, execution: Execution, its_turn: bool, late: bool) -> Engine | None:
        """See ``sending.Keeper``."""
        engine = self._usable_engine()
        if engine is not None and its_turn:
            has_room = len(self._reader.in_flight) < engine.capacity
            if has_room or (late and self._reader.look(self.has_room_locked)):
                execution.generation, execution.hosts = self._lifecycle.generation, self._hosts
                return engine
        self._check_open_locked()
        if self._lifecycle.state is GraphState.FAILED:
            self._refuse_locked(execution, self._failure or GraphFailedError(f"graph {self.name!r} has failed"))
        elif late and execution.is_in_line():
            self._refuse_late_locked(execution)
        return None

    def _refuse_late_locked(self, execution: Execution) -> None:
        """Settle an execution whose submit timeout has run out."""
        timeout_s, state = self.settings.submit_timeout_s.value, self._lifecycle.state
        error: Exception = not_ready(self.name, (_BROKEN if state is _READY else state).value, timeout_s)
        if self._usable_engine() is not None:
            error = no_room(self.name, len(self._reader.in_flight), len(self._sender.line) - 1, timeout_s)
        self._refuse_locked(execution, error)
        self.gave_up()

    def _check_open_locked(self) -> None:
        if self._lifecycle.state is _CLOSED:
            raise GraphClosedError(f"graph {self.name!r} is closed")

    def _usable_engine(self) -> Engine | None:
        engine = self._reader.engine if self._lifecycle.state is _READY else None
        return None if engine is None or engine.broken else engine

    def has_room_locked(self, ahead: int = 0) -> bool:
        """See ``sending.Keeper``."""
        engine = self._usable_engine()
        return engine is not None and len(self._reader.in_flight) + ahead < engine.capacity

    def _refuse_locked(self, execution: Execution, error: Exception) -> None:
        """Settle an execution of which nothing was sent."""
        refused = failed_status(execution.draft_info(), Verdict.ERROR, copy_of(error))
        self.settle_locked(execution, execution.loss or refused)

    def sent_locked(self, engine: Engine, execution: Execution) -> None:
        """Put ``execution`` in flight: it was sent, or may have been."""
        if execution.sent:
            return
        self._sender.leave(execution)
        execution.sent_at = execution.sent_at or time.monotonic()
        execution.spec, execution.loss = engine.spec, None
        if execution.received:  # before it was lost: what stays, if it is never sent again
            self._reader.spent.append(execution.received)
        execution.received = [None] * len(engine.spec.outputs)
        in_flight, is_current = self._reader.in_flight, engine is self._reader.engine
        # From here to where it is in flight nothing is called, and so nothing can come in between.
        execution.attempts += 1
        execution.sent = True
        if is_current:
            in_flight.append(execution)
        else:  # the generation was broken off while this was being sent
            self._lose_locked(execution)
        self._reader.spent.append((execution.args, execution.kwargs))
        execution.args, execution.kwargs = (), {}
        if execution.attempts > self._retry_preempted:
            execution.kept = None
        if execution.when_sent is not None:
            self._notices.sent(execution)
        if len(in_flight) == 1:  # whoever waits for it has found nothing to read
            self._changed.notify_all()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait_s(self, timeout_s: float | None) -> float:
        """Return how long to wait for an outcome. Raises ValueError if ``timeout_s`` is not usable."""
        return self.settings.get_timeout_s.value if timeout_s is None else check_wait("timeout_s", timeout_s, FROM_CALL)

    def wait_status(self, execution: Execution, timeout_s: float | None) -> JobStatus:
        """See ``Execution.status``."""
        wait_s, started = self.wait_s(timeout_s), time.monotonic()
        with self._changed:
            status = self._wait_locked(execution, Deadline(started, wait_s), started)
        self._reader.spent.clear()
        return status

    def _wait_locked(self, execution: Execution, deadline: Deadline, started: float) -> JobStatus:
        """Return the outcome of ``execution``, or a pending JobError at the deadline, of a wait that began then."""
        self._reader.settle(execution, deadline)
        return self._answer_locked(execution, started)

    def wait_outputs(self, execution: Execution, timeout_s: float | None) -> list[JobStatus]:
        """See ``Execution.outputs``."""
        deadline, started = Deadline.after(self.wait_s(timeout_s)), time.monotonic()
        with self._changed:
            arrived = self._reader.until(lambda: execution.complete, deadline)
            missing = (execution.loss or execution.final) if arrived else None
            execution.collected |= arrived
            if missing is None:
                missing = self._ran_out_locked(execution, time.monotonic() - started)
            statuses = [missing]
            if execution.spec is not None:
                info = execution.draft_info()
                # Of one that is in line to be sent again nothing has arrived that stays.
                received = [None] * len(execution.received) if execution.is_in_line() else execution.received
                statuses = [
                    status_of_output(info, execution.spec, place, output, missing, execution.hosts)
                    for place, output in enumerate(received)
                ]
        self._reader.spent.clear()
        return statuses

    def look(self, execution: Execution) -> bool:
        """See ``Execution.done``."""
        with self._changed:
            found = self._reader.look(lambda: execution.final is not None)
        self._reader.spent.clear()
        return found

    def gave_up(self) -> None:
        """Somebody does not wait any longer for what has not settled: have the hosts looked after."""
        engine = self._reader.engine
        if engine is not None:
            self._overseer.wait_ran_out(engine)

    def _answer_locked(self, execution: Execution, started: float) -> JobStatus:
        if execution.final is None:
            return self._ran_out_locked(execution, time.monotonic() - started)
        execution.collected = True
        return execution.final

    def _ran_out_locked(self, execution: Execution, waited_s: float) -> JobStatus:
        self.gave_up()
        self._tally.waits_ran_out += 1
        self._lifecycle.apply(GraphEvent.WAIT_RAN_OUT, time.monotonic(), f"execution {execution.number}")
        ahead = next((place for place, other in enumerate(self._reader.in_flight) if other is execution), 0)
        info = execution.draft_info()
        spec = execution.spec if execution.sent else None
        return pending_status(info, ran_out(info, waited_s, ahead, spec, execution.received))

    # -- for those who do not wait in a thread ----------------------------------------------------------------------

    def submit_later(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], when_sent: Signal | None = None
    ) -> Execution:
        """Put an execution in line, and return; it is sent, or settles unsent, within the submit timeout.

        It has been sent already, and has left the line, where that takes no time. Else ``when_sent`` is told. Raises
        GraphClosedError.
        """
        with self._changed:
            if self._attendance.is_here() and self.has_room_locked() and self._sender.can_send_now(args, kwargs):
                execution = self._new_locked(args, kwargs)
                self._sender.send_now(execution, self._submit_by(execution), when_sent, self._pump.start)
            else:
                self._pump.start()  # first: nobody else would send it
                execution = self._new_locked(args, kwargs)
                execution.submit_by, execution.when_sent = self._submit_by(execution), when_sent
                self._sender.join(execution)
            self._changed.notify_all()
        self._reader.spent.clear()
        return execution

    def status_now(self, execution: Execution, waited_s: float) -> JobStatus:
        """Return the outcome of ``execution``, or a pending JobError for somebody who has waited for it."""
        with self._changed:
            status = self._answer_locked(execution, time.monotonic() - waited_s)
        self._reader.spent.clear()
        return status

    def withdraw(self, execution: Execution) -> None:
        """Settle an execution that nobody wants any more, unless it was sent, or is about to be."""
        with self._changed:
            if self._sender.can_be_refused(execution):
                execution.collected = True
                self._refuse_locked(execution, CgexecError("who submitted this has cancelled it; nothing was sent"))

    def refuse_late(self, execution: Execution) -> None:
        """Settle an execution that was not sent within the submit timeout, unless it is about to be."""
        with self._changed:
            if self._sender.can_be_refused(execution):
                self._refuse_late_locked(execution)

    def tell(self, execution: Execution, signal: Signal, *, here: bool = False) -> bool:
        """Have ``signal`` called once it settles; False if it has. ``here``: the running event loop may read for it."""
        with self._changed:
            if execution.final is not None:
                return False
            if not (here and self._attendance.attend(execution, signal)):
                self._pump.start()
                self._notices.tell(execution, signal)
                self._changed.notify_all()
            return True

    def is_arriving(self, execution: Execution) -> bool:
        """Return whether a thread may be reading what an event loop has heard of too late."""
        with self._changed:
            return self._attendance.is_arriving(execution)

    def untell(self, execution: Execution, signal: Signal) -> None:
        """Have ``signal`` not called any more. Takes no lock: finalisers do this."""
        self._notices.untell(execution, signal)

    def tell_when_open(self, signal: Signal) -> bool:
        """Have ``signal`` called when the graph is neither broken nor being rebuilt; False if it is neither now."""
        with self._changed:
            if self._lifecycle.state not in _DOWN:
                return False
            self._notices.tell_when_open(signal)
            return True

    def call_back(self, execution: Execution, callback: Callable[[Execution], object]) -> None:
        """See ``Execution.add_done_callback``."""
        self._afterwards.call_back(execution, callback)

    def settle_future(self, execution: Execution, settle: Callable[[Execution], object]) -> None:
        """Call ``settle(execution)`` once it has settled, on a thread that no callback keeps waiting."""
        self._afterwards.settle_future(execution, settle)

    def stats(self) -> GraphStats:
        """Return what was counted so far."""
        self._reader.spent.clear()
        with self._changed:
            return self._tally.stats(
                in_line=len(self._sender.line),
                in_flight=sum(each.final is None for each in self._reader.in_flight),
                generation=self._lifecycle.generation,
            )

    async def wait_status_async(self, execution: Execution, timeout_s: float | None) -> JobStatus:
        """See ``Execution.status_async``."""
        return await outcome(self, execution, self.wait_s(timeout_s))

    def never_collected(self, status: JobStatus) -> None:
        """Note that nobody asked what became of an execution. For a finaliser: it takes no lock, and does not wait."""
        self._overseer.never_collected(status)

    # -- settling ----------------------------------------------------------------------------------------------------

    def settle_locked(self, execution: Execution, status: JobStatus) -> None:
        """Give ``execution`` its one outcome. The second time, tell whoever was not told, as an interruption came."""
        if execution.final is not None:
            self._notices.settled(execution)
            return
        if not execution.sent:
            self._sender.leave(execution)
        execution.final = status
        if not execution.sent:
            execution.complete = True
            self._reader.spent.append((execution.args, execution.kwargs))
            execution.args, execution.kwargs = (), {}
        execution.kept = None
        self._tally.note(status)
        self._notices.settled(execution)
        if isinstance(status, JobFailed):
            detail = f"execution {execution.number}: {type(status.error).__name__}"
            self._lifecycle.apply(GraphEvent.APPLICATION_ERROR, time.monotonic(), detail)
        self._changed.notify_all()

    def _lose_locked(self, execution: Execution) -> None:
        """Settle an execution whose generation is gone, or have it sent again; what had arrived of it stays."""
        why = self._why or Break((), RayChannelError("the generation ended"))
        execution.loss = status_of_break(execution.draft_info(), why, execution.hosts)
        retries = isinstance(execution.loss, JobPreempted) and execution.attempts <= self._retry_preempted
        open_still = execution.final is None and self._lifecycle.state is not GraphState.CLOSED
        if retries and open_still and self._pump.runs():
            execution.sent, execution.submit_by, execution.error_seen_at = False, Deadline.after(-1), None
            self._tally.retried += 1
            self._notices.hand_over(execution)
            self._sender.join(execution)
            self._changed.notify_all()
            return
        self.settle_locked(execution, execution.loss)
        execution.complete = True
