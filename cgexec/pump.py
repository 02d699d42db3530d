"""The threads that send and read for those who do not wait themselves.

They are started by the first asynchronous caller, callback or execution that is to be sent again, sleep while there is
nothing to do for them, and end with the graph. One sends and one reads, so that an input that takes long to serialise
keeps no answer waiting. Who waits in a thread of their own does without them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cgexec.deadline import Deadline
from cgexec.interruption import unlocked
from cgexec.notices import Notices
from cgexec.reading import Reader
from cgexec.sending import Sender

_logger = logging.getLogger(__name__)

_FOR_EVER = Deadline.after(-1)


class Pump:
    """Every method but ``join`` is called with the lock of ``changed`` held."""

    def __init__(
        self, name: str, changed: threading.Condition, reader: Reader, sender: Sender, notices: Notices
    ) -> None:
        self._notices = notices
        self._changed = changed
        self._reader = reader
        self._sender = sender
        self._name = name
        self._ended = False
        self._threads: list[threading.Thread] = []

    def wake(self) -> None:
        """Have the threads look for something to do; starts them if need be."""
        if not self._threads and not self._ended:
            for what, step in (("sender", self._send_next), ("reader", self._read_next)):
                name = f"cgexec-{what}-{self._name}"
                self._threads.append(threading.Thread(target=self._run, args=(step,), name=name, daemon=True))
                self._threads[-1].start()
        self._changed.notify_all()

    def end(self) -> None:
        """Do no more, and start no thread; what has begun is seen through."""
        self._ended = True
        self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end, unless it is one of them that asks."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, step: Callable[[], None]) -> None:
        with self._changed:
            while not self._ended or (step == self._send_next and self._sender.first_unattended() is not None):
                try:
                    step()
                    if self._reader.spent:
                        with unlocked(self._changed):
                            self._reader.spent.clear()
                except BaseException:
                    _logger.exception("graph %r: what is sent and read for those who do not wait", self._name)

    def _send_next(self) -> None:
        head = self._sender.first_unattended()
        if head is None:
            self._changed.wait()
        elif not self._sender.advance(head):
            self._reader.read_or_wait(head.submit_by or _FOR_EVER)

    def _read_next(self) -> None:
        if self._notices.watched:
            self._reader.read_or_wait(_FOR_EVER)
        else:
            self._changed.wait()
