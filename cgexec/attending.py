"""An event loop that reads by itself what its coroutines wait for, so that no thread has to be woken for an answer.

::

    coroutine ── attend ──> the listener on its event loop ── something has come ──> read, settle, ring its bell
                              │  │
                              │  └ it takes a thread (long, of somebody's classes, a failure, an end): the pump reads it
                              └ somebody else reads: the loop hears nothing until that has been done

Nothing here takes long, or runs anybody's code but that of finalisers, on the loop's thread: what would is left to the
graph's ``pump``. No execution is left to a loop that may not hear of it: one is attended only while it is in flight on
the generation that the loop listens to, and what others have received ahead of its turn, of which the descriptor says
nothing, is looked for when an execution is first attended, and whenever somebody else has read.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from cgexec.changed import Changed
from cgexec.engine.protocol import AtOnce, Engine, EngineBrokenError
from cgexec.execution import Execution
from cgexec.notices import Notices, Signal
from cgexec.pump import Pump
from cgexec.reading import Reader
from cgexec.trials import Trials

_PAUSE_S = 0.1  # before another look, or try to start a thread, where nothing may tell of it
_BEING_READ_S = 0.05  # by a thread that what had come was handed over to


class Attendance:
    """Which event loop reads for its coroutines: one at a time. Called with the lock of ``changed`` held."""

    def __init__(self, changed: Changed, reader: Reader, notices: Notices, pump: Pump) -> None:
        self.changed = changed
        self.reader = reader
        self._notices = notices
        self._pump = pump
        self._trials = Trials()
        self._listener: _Listener | None = None
        self._reading: _Listener | None = None
        self._handed_over_at = 0.0
        reader.tell_when_read(self._when_read)

    def is_here(self) -> bool:
        """Return whether the running event loop can attend to what it sends."""
        return self._listener_here() is not None

    def attend(self, execution: Execution, signal: Signal) -> bool:
        """Have the running event loop read for ``execution``, and call ``signal`` when it settles; False if it cannot.

        The execution has not settled. It may do so before this returns.
        """
        listener = self._listener_here() if execution.sent else None
        if listener is None or (not self._trials.due() and self._pump.runs()):
            return False
        self._notices.attend(execution, signal)
        self.look(listener, only_arrived=True)
        return True

    def is_arriving(self, execution: Execution) -> bool:
        """Look once more for ``execution``, on the loop that attends to it; return whether it may be being read."""
        if self._listener is not None and self._notices.is_attended(execution):
            self.look(self._listener)
        return execution.final is None and time.monotonic() < self._handed_over_at + _BEING_READ_S

    def _listener_here(self) -> _Listener | None:
        """Return what listens on the running event loop, to the current generation, if anything can."""
        engine = self.reader.engine
        at_once = None if engine is None or engine.broken else engine.at_once
        if engine is None or at_once is None:
            return None
        loop, listener = asyncio.get_running_loop(), self._listener
        if listener is not None and (listener.engine is not engine or listener.loop is not loop):
            if listener.engine is engine and self._notices.attended() and not listener.loop.is_closed():
                return None  # another loop reads
            self.end()
        if self._listener is None:
            with suppress(OSError, NotImplementedError, EngineBrokenError):  # no descriptor left, a loop that has none
                self._listener = _Listener(self, loop, engine, at_once)
        return self._listener

    def look(self, listener: _Listener, *, only_arrived: bool = False) -> None:
        """Read what has come, on the listener's event loop. ``only_arrived``: what it does not hear of."""
        if listener is not self._listener:
            listener.close()  # it has ended
            return
        engine: Engine = listener.engine
        at_once: AtOnce = listener.at_once
        if self.reader.engine is not engine or engine.broken:
            self.end()
        elif self.reader.reading is engine or not self.reader.in_flight:
            listener.pause()  # until somebody has read, or the next is attended
            if self._notices.attended():
                listener.look_later()  # should an interruption have kept that from being said
        else:
            try:
                listener.listen()
                if not only_arrived or at_once.has_arrived():
                    self._read(listener)
            except (EngineBrokenError, OSError):  # torn down meanwhile, or nothing can be heard: the pump goes on
                self.end()

    def _read(self, listener: _Listener) -> None:
        engine: Engine = listener.engine
        at_once: AtOnce = listener.at_once
        first = self.reader.in_flight[0]
        self._reading = listener
        try:
            self.reader.take_at_once(engine, at_once)
        finally:
            self._reading = None
        if first.complete:
            self._trials.paid()
        if listener is not self._listener or self.reader.engine is not engine or self.reader.reading is engine:
            return  # who listens, or reads, now has been told
        if engine.broken or not self.reader.in_flight:
            return  # if there is more to hear, it is heard
        head = self.reader.in_flight[0]
        # A failure is an answer after a moment, of which no descriptor tells.
        failed = head.error_seen_at is not None and head.final is None
        if failed or at_once.takes_a_thread(head.received):
            self._trials.in_vain()
            listener.pause()
            if not self._hand_over():
                listener.look_later()

    def _hand_over(self) -> bool:
        """Have the pump read what is attended, if anything is; return whether nothing is any more."""
        if not self._notices.attended():
            return True
        if not self._pump.runs():
            return False
        self._handed_over_at = time.monotonic()
        self.changed.notify_all()
        self._notices.hand_over()
        return True

    def _when_read(self) -> None:
        """Have the loop look for what somebody else has received and not been asked for."""
        if self._listener is not None and self._listener is not self._reading and self._notices.attended():
            self._listener.look_soon()

    def end(self) -> None:
        """Listen no more: the generation has ended, or another loop is to."""
        listener, self._listener = self._listener, None
        try:
            if listener is not None:
                listener.close_soon()
        finally:
            self._hand_over()


class _Listener:
    """An event loop that hears when outputs of a generation have come. All but ``..._soon`` is called on its thread."""

    def __init__(
        self, attendance: Attendance, loop: asyncio.AbstractEventLoop, engine: Engine, at_once: AtOnce
    ) -> None:
        self.loop = loop
        self.engine: Any = engine  # and what it does at once, until it has ended
        self.at_once: Any = at_once
        self._attendance: Attendance | None = attendance
        self._later: asyncio.TimerHandle | None = None
        self._listening = self._asked = False
        self._readiness = at_once.readiness()
        try:
            self.listen()
        except BaseException:
            self.close()
            raise

    def listen(self) -> None:
        """Hear of what comes, unless it does already."""
        if not self._listening and self._attendance is not None:
            self.loop.add_reader(self._readiness.fileno(), self._look)
            self._listening = True

    def pause(self) -> None:
        """Hear of nothing until it is to ``listen`` again."""
        self._listening = False  # first: who is interrupted in between is called again
        if not self._readiness.closed:
            self.loop.remove_reader(self._readiness.fileno())

    def look_later(self) -> None:
        """Look again in a while, whether or not anything is heard."""
        if self._later is None or self._later.when() <= self.loop.time():
            self._later = self.loop.call_later(_PAUSE_S, self._look)

    def look_soon(self) -> None:
        """Look again, from any thread. Neither blocks nor raises."""
        if not self._asked:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self.loop.call_soon_threadsafe(self._look)
            self._asked = True

    def _look(self) -> None:
        attendance = self._attendance
        if attendance is None:
            self.close()
            return
        try:
            with attendance.changed:
                self._asked = False
                attendance.look(self)
        except Exception:
            self._asked = False
            self.look_later()
            raise
        except BaseException:  # an interruption: what it left undone is to be done
            self._asked = False
            self.look_soon()
            raise
        attendance.reader.spent.clear()

    def close_soon(self) -> None:
        """Listen no more, from any thread. Neither blocks nor raises."""
        self._attendance = self.engine = self.at_once = None  # a loop that never runs again may keep this
        try:
            self.loop.call_soon_threadsafe(self.close)
        except RuntimeError:  # the loop is closed, and uses nothing any more
            self._readiness.close()

    def close(self) -> None:
        """Listen no more."""
        with suppress(NotImplementedError):  # by a loop that has none
            self.pause()
        self._readiness.close()
