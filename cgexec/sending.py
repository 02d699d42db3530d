"""Sending what was submitted: first come, first served, whoever submits.

::

    lost with its generation, to be sent again ──> again ─┐
                                                          ├─its turn, and a slot──> encode ──> send ──> in flight
    submitted ────────────────────────────────────> line ─┘                                          (``reading``)

Who submits from a thread waits in line there and sends by itself, and meanwhile helps to settle what is in flight. The
others are sent by the graph's ``pump``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ray.exceptions import RayChannelTimeoutError

from cgexec.classify import Verdict
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Engine, EngineBrokenError, SendTimeoutError
from cgexec.errors import CgexecError, GraphClosedError
from cgexec.execution import Execution
from cgexec.interruption import is_interruption, unlocked
from cgexec.isolation import without_our_frames
from cgexec.outcomes import failed_status
from cgexec.reading import OnBreak, Reader, condemn
from cgexec.status import JobStatus

_FOR_EVER = Deadline.after(-1)

Admit = Callable[[Execution, bool, bool], Engine | None]


class Sender:
    """The executions that wait to be sent. Called with the lock of ``changed`` held; sends without it.

    ``admit(execution, its_turn, late)`` returns the engine to send it on now, or None; it may settle the execution
    instead, and does if it is ``late``. It raises GraphClosedError if a thread waits.
    """

    def __init__(
        self,
        changed: threading.Condition,
        reader: Reader,
        admit: Admit,
        settle: Callable[[Execution, JobStatus], None],
        sent: Callable[[Engine, Execution], None],
        on_break: OnBreak,
    ) -> None:
        self.line: deque[Execution] = deque()
        self.again: deque[Execution] = deque()
        self._sending: set[Execution] = set()
        self._changed = changed
        self._reader = reader
        self._admit = admit
        self._settle = settle
        self._sent = sent
        self._on_break = on_break

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits to be sent."""
        return not self.line and not self.again

    def send_in_turn(self, execution: Execution, deadline: Deadline) -> None:
        """Wait in line and for a slot, and send; returns when the execution has been sent or has settled unsent."""
        self.line.append(execution)
        try:
            while execution.is_in_line() and execution.submit_by is None:
                if not self._advance(execution, deadline):
                    self._reader.read_or_wait(deadline)
        except BaseException as error:
            execution.collected = True  # who submitted it is told, and has no handle
            self._settle_unsent(execution, Verdict.ERROR, error)
            raise
        finally:
            self._leave(self.line, execution)

    def first_unattended(self) -> Execution | None:
        """Return the execution whose turn it is, if no thread waits with it."""
        head = self._head()
        return head if head is not None and head.submit_by is not None else None

    def advance(self, execution: Execution) -> bool:
        """Send the unattended execution whose turn it is, or settle it, if either can be done now."""
        done = True
        try:
            done = self._advance(execution, execution.submit_by or _FOR_EVER)
        except GraphClosedError as error:
            self._settle_unsent(execution, Verdict.ERROR, error)
        except BaseException as error:  # noqa: BLE001 - an input may raise anything, and here is nobody to be told
            self._settle_unsent(execution, Verdict.FAILED, error)
        if not execution.is_in_line():
            self._leave(self.again if execution in self.again else self.line, execution)
        return done

    def withdraw(self, execution: Execution) -> bool:
        """Take an unattended execution out of the line, unless it is being sent, or has been."""
        if execution in self._sending or not execution.is_in_line() or execution not in self.line:
            return False
        self._leave(self.line, execution)
        return True

    def take_unattended(self) -> list[Execution]:
        """Take out of the line, and return, whom nobody sends any more."""
        taken = [each for each in (*self.again, *self.line) if each.submit_by and each not in self._sending]
        for execution in taken:
            (self.again if execution in self.again else self.line).remove(execution)
        return taken

    def _head(self) -> Execution | None:
        if self.again:
            return self.again[0]
        return self.line[0] if self.line else None

    def _leave(self, line: deque[Execution], execution: Execution) -> None:
        line.remove(execution)  # the first, as a rule
        if not self.is_idle:
            self._changed.notify_all()

    def _advance(self, execution: Execution, deadline: Deadline) -> bool:
        """Send the execution if that can be done now; return whether anything was done, and is to be looked at."""
        self._sending.add(execution)
        try:
            engine = self._admit(execution, self._head() is execution, deadline.remaining_s() == 0)
            if engine is not None:
                self._send(engine, execution, deadline)
        finally:
            self._sending.discard(execution)
        return engine is not None or not execution.is_in_line()

    def _send(self, engine: Engine, execution: Execution, deadline: Deadline) -> None:
        """Send ``execution`` on ``engine``. It is left unsent if the engine turns out broken before anything went."""
        writing = False
        try:
            with unlocked(self._changed):
                encoded = engine.encode(execution.args, execution.kwargs)
                writing = True
                engine.send(encoded, -1 if deadline.wait_s() is None else deadline.remaining_s())
            self._sent(engine, execution)
        except BaseException as error:
            if writing:
                self._write_failed(engine, execution, error)
            elif not isinstance(error, Exception) or is_interruption(error):
                raise
            else:  # the input is the caller's: anything can happen in its __reduce__
                self._settle_unsent(execution, Verdict.FAILED, error)

    def _settle_unsent(self, execution: Execution, verdict: Verdict, error: BaseException) -> None:
        """Settle an execution that is not sent, or not again: its input does not fit fewer hosts, say."""
        if not execution.is_in_line():
            return
        if not isinstance(error, Exception):
            error = CgexecError(f"{type(error).__name__}: {error}; nothing was sent")
        why = without_our_frames(error)  # they refer to the execution: it would live on in a cycle
        self._settle(execution, execution.loss or failed_status(execution.draft_info(), verdict, why))

    def _write_failed(self, engine: Engine, execution: Execution, error: BaseException) -> None:
        """Settle, or put in flight, an execution whose sending ended with ``error``."""
        if isinstance(error, SendTimeoutError):
            self._settle_unsent(execution, Verdict.ERROR, RayChannelTimeoutError(f"{error}; nothing was sent"))
        elif isinstance(error, EngineBrokenError):
            self._on_break(engine, error.reason)
            if error.sent:
                self._sent(engine, execution)
        else:  # Ctrl-C, say: whether the input was written cannot be known, so no later answer could be trusted
            self._sent(engine, execution)
            condemn(engine, error, "a write", self._on_break)
