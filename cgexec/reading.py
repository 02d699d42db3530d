"""Reading what is in flight: oldest first, one thread at a time.

A thread that waits for an execution reads, if nobody else does, until its own has settled or its time has run out; then
the next one reads on. Executions are read strictly in the order in which they were sent, and an output that was read
stays with its execution: that is what keeps each answer with its own question, through any number of waits that ran
out.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX, get_ident
from typing import cast

from ray.exceptions import RayChannelError

from cgexec.changed import Changed
from cgexec.deadline import Deadline
from cgexec.engine.protocol import AtOnce, Engine, EngineBrokenError
from cgexec.errors import CgexecError
from cgexec.execution import Execution
from cgexec.interruption import is_interruption
from cgexec.outcomes import status_of_outputs
from cgexec.status import JobStatus
from cgexec.texts import class_name

LONGEST_WAIT_S = 0.1  # in one go, so that Ctrl-C and a closed graph are noticed
FAIL_FAST_GRACE_S = 0.05  # after a first application error, for the other hosts' errors to be reported with it

OnBreak = Callable[[Engine, Exception], None]


def condemn(engine: Engine, error: BaseException, what: str, on_break: OnBreak) -> None:
    """Give up a generation whose channels may have lost their place; an interruption is raised again."""
    reason: Exception | None = None
    interrupted = True
    try:
        engine.condemned = engine.broken = True  # in this order: whoever sees it broken knows by whom
        interrupted = not isinstance(error, Exception) or is_interruption(error)
        reason = RayChannelError(f"{class_name(error)} interrupted {what}") if interrupted else cast("Exception", error)
    finally:  # Ctrl-C may have come on top of the error, and may come as this is told, before the first line of that
        if reason is None:
            reason = RayChannelError(f"something interrupted {what}")
        try:
            on_break(engine, reason)
        except BaseException:
            on_break(engine, reason)
            raise
    if interrupted:
        raise error


def say_broken(engine: Engine, reason: Exception, on_break: OnBreak) -> None:
    """Call ``on_break``, and once more if an interruption came in between: it is raised when that has been said."""
    try:
        on_break(engine, reason)
    except BaseException:
        on_break(engine, reason)
        raise


class Reader:
    """The executions in flight on ``engine``, and who reads them.

    Every method is called with the lock of ``changed`` held, and returns with it held; outputs are read without it.
    """

    def __init__(
        self,
        changed: Changed,
        fail_fast: bool,
        settle: Callable[[Execution, JobStatus], None],
        on_break: OnBreak,
    ) -> None:
        self.engine: Engine | None = None
        self.in_flight: deque[Execution] = deque()
        self.spent: deque[object] = deque()  # to be let go of without the lock: a finaliser may do anything
        self.reading: Engine | None = None  # by somebody, now; a value may take for ever to load
        self._reading_thread = 0
        self._changed = changed
        self._fail_fast = fail_fast
        self._settle = settle
        self._on_break = on_break
        self._when_read: Callable[[], None] = lambda: None

    def tell_when_read(self, when_read: Callable[[], None]) -> None:
        """Call ``when_read()``, which neither blocks nor raises, whenever somebody has read, with the lock held."""
        self._when_read = when_read

    def until(self, settled: Callable[[], bool], deadline: Deadline) -> bool:
        """Read, or wait for who does, until ``settled()`` or the deadline; a deadline that has passed looks once."""
        while not settled():
            left_s = deadline.remaining_s()
            if left_s == 0:
                return self.look(settled)
            self.read_or_wait(left_s)
        return True

    def settle(self, execution: Execution, deadline: Deadline) -> None:
        """Do as ``until``, for one execution to settle: what most calls wait for."""
        while execution.final is None:
            left_s = deadline.remaining_s()
            if left_s == 0:
                self.look(lambda: execution.final is not None)
                return
            self.read_or_wait(left_s)

    def look(self, settled: Callable[[], bool]) -> bool:
        """Take what has arrived, without waiting, for as long as each look completes an execution."""
        while not settled() and self._may_read() and self._complete_head():
            pass
        return settled()

    def take_arrived(self, engine: Engine) -> None:
        """Take what arrived before the generation broke: it is an answer, whatever became of its host."""
        while self.in_flight and self.engine is engine and self.reading is not engine and not engine.condemned:
            if not self._complete_head():
                break

    def take_at_once(self, engine: Engine, at_once: AtOnce) -> None:
        """Take what has arrived and takes no time, as ``look`` does. For an event loop's thread."""
        while self.engine is engine and self._may_read() and self._complete_head(at_once):
            pass

    def _complete_head(self, at_once: AtOnce | None = None) -> bool:
        """Take what has arrived of the oldest execution; return whether that was all that it lacked."""
        head = self.in_flight[0]
        self._read(0.0, at_once)
        return head.complete

    def read_or_wait(self, at_most_s: float) -> None:
        """Read the oldest execution for a while, or wait for a change if it is not for this thread to read.

        Raises:
            CgexecError: this thread is reading already, and loads a value.
        """
        if self._may_read():
            self._read(min(at_most_s, LONGEST_WAIT_S))
        elif self.reading is not None and self._reading_thread == get_ident():
            raise CgexecError("a result that is being loaded waits for the graph that it came from, and so for itself")
        else:
            self._changed.wait(None if at_most_s == math.inf else min(at_most_s, TIMEOUT_MAX))

    def _may_read(self) -> bool:
        usable = self.engine is not None and not self.engine.broken and self.reading is not self.engine
        return usable and bool(self.in_flight)

    def _read(self, timeout_s: float, at_once: AtOnce | None = None) -> None:
        """Read outputs of the oldest execution, without the lock, and settle it if that is enough."""
        engine, head = self.engine, self.in_flight[0]
        if engine is None:
            return
        if self._fail_fast and head.error_seen_at is not None and head.final is None:
            timeout_s = min(timeout_s, _left_of_grace_s(head))
        self._reading_thread, self.reading = get_ident(), engine
        broke_by: Exception | None = None
        try:
            if None in head.received:  # else who read the last of them was interrupted twice
                if at_once is None:
                    self._changed.outside(engine.collect, head.received, timeout_s)
                else:
                    self._changed.outside(at_once.collect_at_once, head.received)
        except EngineBrokenError as error:
            broke_by = error.reason
        except BaseException as error:  # noqa: BLE001 - condemn() raises an interruption again
            # Ctrl-C, say: whether an output was taken from its channel and dropped cannot be known.
            condemn(engine, error, "a read", self._on_break)
        finally:
            try:
                self._have_read(engine, head, broke_by)
            except BaseException:  # an interruption: whatever it left undone is done now
                self._have_read(engine, head, broke_by)
                raise

    def _have_read(self, engine: Engine, head: Execution, broke_by: Exception | None) -> None:
        """Say what broke, let others read, see how far ``head`` has come. Done twice, it does what was left undone."""
        if broke_by is not None:
            self._on_break(engine, broke_by)
        if self.reading is engine:  # nobody has begun to read the next generation
            self.reading = None
        if engine is self.engine and self.in_flight and self.in_flight[0] is head:  # not lost meanwhile
            self._advance(head)
        self._changed.notify_all()
        self._when_read()

    def _advance(self, head: Execution) -> None:
        """Settle ``head`` if enough of it has arrived, and let the next one be read if all of it has."""
        complete = None not in head.received
        if not complete and head.error_seen_at is None and head.has_error():
            head.error_seen_at = time.monotonic()
        if head.spec is not None and (complete or (self._fail_fast and _left_of_grace_s(head) == 0)):
            self._settle(head, head.final or status_of_outputs(head.draft_info, head.spec, head.received, head.hosts))
        if complete:
            head.complete = True
            self.spent.append(self.in_flight.popleft())


def _left_of_grace_s(head: Execution) -> float:
    """Return for how long the other outputs of an execution with an error are waited for."""
    return (
        math.inf if head.error_seen_at is None else max(0.0, head.error_seen_at + FAIL_FAST_GRACE_S - time.monotonic())
    )
