"""Sending what was submitted: first come, first served, whoever submits.

::

    submitted ─────────────────────────────> line ─its turn, and a slot─> encode ─> write ─> in flight
    lost with its generation, to be sent   (by number)                                      (``reading``)
    again ──────────────────────────────────> ┘

The line is kept in the order of submission, so what is sent again comes before what was never sent. An execution is in
it until it has been sent or has settled. Who submits from a thread waits in line there and sends by itself, and
meanwhile helps to settle what is in flight; the others, and all that is sent again, are sent by the graph's ``pump``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, Protocol

from ray.exceptions import RayChannelTimeoutError

from cgexec.changed import Changed
from cgexec.classify import Verdict
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Engine, EngineBrokenError, SendTimeoutError
from cgexec.engine.values import kept_inputs
from cgexec.errors import CgexecError, GraphClosedError
from cgexec.execution import Execution
from cgexec.interruption import is_interruption
from cgexec.isolation import without_our_frames
from cgexec.notices import Signal
from cgexec.outcomes import failed_status
from cgexec.reading import OnBreak, Reader, condemn, say_broken
from cgexec.status import JobStatus
from cgexec.texts import told

_FOR_EVER = Deadline.after(-1)
_FOR_ITS_TURN_S = 0.1  # beyond its deadline, for one that has a slot as soon as those before it have been written


class Keeper(Protocol):
    """Who keeps the executions, and knows what becomes of them. Called with the lock held."""

    def admit_locked(self, execution: Execution, its_turn: bool, late: bool) -> Engine | None:
        """Return the engine to send ``execution`` on now, if there is a slot for it; or settle it, if it is ``late``.

        Raises:
            GraphClosedError: the graph is closed.
        """

    def has_room_locked(self, ahead: int = 0) -> bool:
        """Return whether there is a slot for one more when so many others have been sent."""

    def sent_locked(self, engine: Engine, execution: Execution) -> None:
        """Have the execution, which was sent, or may have been, ``leave`` the line."""

    def settle_locked(self, execution: Execution, status: JobStatus) -> None:
        """Give the execution its outcome, and have it ``leave`` the line."""


class Sender:
    """The executions that wait to be sent. Called with the lock of ``changed`` held; sends without it."""

    def __init__(self, changed: Changed, reader: Reader, keeper: Keeper, on_break: OnBreak, retries: int) -> None:
        self.line: list[Execution] = []
        self._sending: set[int] = set()  # the threads that serialise an input now, and write it
        self._changed = changed
        self._reader = reader
        self._keeper = keeper
        self._on_break = on_break
        self._retries = retries

    def join(self, execution: Execution) -> None:
        """Put an execution in line, where its number has it."""
        if not self.line or self.line[-1].number < execution.number:  # as a rule
            self.line.append(execution)
        else:
            insort(self.line, execution, key=_number)

    def leave(self, execution: Execution) -> None:
        """Take an execution out of the line: it has been sent, or has settled."""
        line = self.line
        place = 0 if line and line[0] is execution else self._place(execution)
        if place < len(line) and line[place] is execution:  # else Ctrl-C came before it had joined
            del line[place]
        if line:
            self._changed.notify_all()

    def _place(self, execution: Execution) -> int:
        """Return how many are in line before an execution."""
        return bisect_left(self.line, execution.number, key=_number)

    def send_in_turn(self, execution: Execution, deadline: Deadline) -> None:
        """Wait in line and for a slot, and send.

        Returns when the execution has been sent, or has settled unsent, or is for the pump to send again.
        """
        try:
            self.join(execution)
            if self._sending and get_ident() in self._sending:
                what = "submitted as an input of the same graph was serialised: it would wait for itself"
                self._settle_unsent(execution, Verdict.ERROR, CgexecError(what))
            while execution.is_in_line() and execution.submit_by is None:
                if self._advance(execution, deadline):
                    continue
                left_s = deadline.remaining_s()
                if left_s == 0:
                    self._changed.wait(_FOR_ITS_TURN_S)
                else:
                    self._reader.read_or_wait(left_s)
        except BaseException as error:
            self._interrupted(execution, error)
            raise

    def can_send_now(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether none is in line, and the engine can send such inputs without waiting or taking long."""
        at_once = None if self.line or self._reader.engine is None else self._reader.engine.at_once
        return at_once is not None and at_once.can_send_at_once(args, kwargs)

    def send_now(
        self, execution: Execution, deadline: Deadline, when_sent: Signal | None, start: Callable[[], None]
    ) -> None:
        """Send an execution that ``can_send_now``, if there is a slot for it.

        If the generation breaks before anything is sent, it is left in line, for the pump, which ``start()`` starts.
        """
        try:
            self.join(execution)
            while execution.is_in_line() and execution.submit_by is None:  # else it is for the pump to send again
                if not self._advance(execution, _FOR_EVER):
                    start()
                    execution.submit_by, execution.when_sent = deadline, when_sent
        except BaseException as error:
            self._interrupted(execution, error)
            raise

    def _interrupted(self, execution: Execution, error: BaseException) -> None:
        execution.collected = True  # who submitted it is told, and has no handle
        self._settle_unsent(execution, Verdict.ERROR, error)

    def first_unattended(self) -> Execution | None:
        """Return the execution whose turn it is, if no thread waits with it."""
        return self.line[0] if self.line and self.line[0].submit_by is not None else None

    def advance(self, execution: Execution) -> bool:
        """Send the unattended execution whose turn it is, or settle it, if either can be done now."""
        try:
            return self._advance(execution, execution.submit_by or _FOR_EVER)
        except GraphClosedError as error:
            self._settle_unsent(execution, Verdict.ERROR, error)
        except BaseException as error:  # noqa: BLE001 - an input may raise anything, and here is nobody to be told
            self._settle_unsent(execution, Verdict.FAILED, error)
        return True

    def can_be_refused(self, execution: Execution) -> bool:
        """Return whether nothing of an unattended execution was sent yet, or is about to be."""
        return execution.is_in_line() and execution.attempts == 0 and not execution.writing

    def unattended(self) -> list[Execution]:
        """Return those in line that nobody sends any more once the graph has ended."""
        return [each for each in self.line if each.submit_by is not None and not each.writing]

    def _advance(self, execution: Execution, deadline: Deadline) -> bool:
        """Send the execution if that can be done now; return whether anything was done, and is to be looked at."""
        its_turn = self.line[0] is execution
        engine = self._keeper.admit_locked(execution, its_turn, False)
        if engine is None and execution.is_in_line() and deadline.remaining_s() == 0:
            ahead = self._place(execution)
            about_to = ahead > 0 and deadline.late_s() < _FOR_ITS_TURN_S and self._keeper.has_room_locked(ahead)
            engine = self._keeper.admit_locked(execution, its_turn, not about_to)
        if engine is not None:
            self._send(engine, execution, deadline)
        return engine is not None or not execution.is_in_line()

    def _send(self, engine: Engine, execution: Execution, deadline: Deadline) -> None:
        """Send ``execution`` on ``engine``. It is left unsent if the engine turns out broken before anything went."""
        here = get_ident()
        try:
            self._sending.add(here)
            self._changed.outside(self._transmit, engine, execution, deadline)
            if execution.writing:
                self._keeper.sent_locked(engine, execution)
        except BaseException as error:
            if execution.writing:
                self._write_failed(engine, execution, error)
            elif not isinstance(error, Exception) or is_interruption(error):
                raise
            else:  # the input is the caller's: anything can happen in its __reduce__
                self._settle_unsent(execution, Verdict.FAILED, error)
        finally:
            self._sending.discard(here)
            execution.writing = False
            if execution.final is not None:
                execution.kept = None  # withdrawn while it was serialised

    def _transmit(self, engine: Engine, execution: Execution, deadline: Deadline) -> None:
        """Serialise the input and write it, without the lock; ``execution.writing`` from when it may be written."""
        args, kwargs = (execution.args, execution.kwargs) if self._retries == 0 else self._kept(execution)
        encoded = engine.encode(args, kwargs)
        if execution.submit_by is None:  # nobody but this thread settles it while it is in line
            execution.writing = True
        else:
            with self._changed:
                if not execution.is_in_line():  # it was withdrawn meanwhile
                    return
                execution.writing = True
        engine.send(encoded, deadline)

    def _kept(self, execution: Execution) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the input, serialised: what is sent again is what was sent the first time."""
        if execution.kept is None:
            execution.kept = kept_inputs(execution.args, execution.kwargs)
        return execution.kept

    def _settle_unsent(self, execution: Execution, verdict: Verdict, error: BaseException) -> None:
        """Settle an execution that is not sent, or not again: its input does not fit fewer hosts, say."""
        if not execution.is_in_line():
            return
        if not isinstance(error, Exception):
            error = CgexecError(f"{told(error)}; nothing was sent")
        why = without_our_frames(error)  # they refer to the execution: it would live on in a cycle
        self._keeper.settle_locked(execution, execution.loss or failed_status(execution.draft_info(), verdict, why))

    def _write_failed(self, engine: Engine, execution: Execution, error: BaseException) -> None:
        """Settle, or put in flight, an execution whose sending ended with ``error``."""
        if isinstance(error, SendTimeoutError):
            self._settle_unsent(execution, Verdict.ERROR, RayChannelTimeoutError(f"{error}; nothing was sent"))
        elif isinstance(error, EngineBrokenError):
            try:
                if error.sent:
                    self._keeper.sent_locked(engine, execution)
            finally:
                say_broken(engine, error.reason, self._on_break)
        else:  # Ctrl-C, say: whether the input was written cannot be known, so no later answer could be trusted
            try:
                self._keeper.sent_locked(engine, execution)
            finally:
                condemn(engine, error, "a write", self._on_break)


def _number(execution: Execution) -> int:
    return execution.number
