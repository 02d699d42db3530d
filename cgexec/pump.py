"""The threads that send and read for those who do not wait themselves.

They are started by the first asynchronous caller, callback or execution that is to be sent again, sleep while there is
nothing to do for them, and end with the graph. One sends and one reads, so that an input that takes long to serialise
keeps no answer waiting. Who waits in a thread of their own does without them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from cgexec.changed import Changed
from cgexec.deadline import Deadline
from cgexec.log import logger
from cgexec.notices import Notices
from cgexec.reading import Reader
from cgexec.sending import Sender

_logger = logger(__name__)

_FOR_EVER = Deadline.after(-1)
_PAUSE_S = 0.5  # after a defect, which may be met again


class Pump:
    """Every method but ``join`` is called with the lock of ``changed`` held."""

    def __init__(self, name: str, changed: Changed, reader: Reader, sender: Sender, notices: Notices) -> None:
        self._notices = notices
        self._changed = changed
        self._reader = reader
        self._sender = sender
        self._name = name
        self._ended = False
        self._threads: dict[str, threading.Thread] = {}

    def start(self) -> None:
        """Start the threads, unless they run. Raises RuntimeError if the system has none left."""
        for what, step in (("sender", self._send_next), ("reader", self._read_next)):
            if what not in self._threads and not self._ended:
                name = f"cgexec-{what}-{self._name}"
                thread = threading.Thread(target=self._run, args=(step,), name=name, daemon=True)
                thread.start()
                self._threads[what] = thread

    def runs(self) -> bool:
        """Start the threads, unless they run; return whether they do: the system may have none left."""
        try:
            self.start()
        except RuntimeError:
            _logger.exception("graph %r: nothing is sent or read for those who do not wait in a thread", self._name)
            return False
        return True

    def end(self) -> None:
        """Do no more, and start no thread; what has begun is seen through."""
        self._ended = True
        self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end, unless it is one of them that asks."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads.values():
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, step: Callable[[], None]) -> None:
        with self._changed:
            while not self._ended or (step == self._send_next and self._sender.first_unattended() is not None):
                try:
                    step()
                    if self._reader.spent:
                        self._changed.outside(self._reader.spent.clear)
                except BaseException:
                    _logger.exception("graph %r: what is sent and read for those who do not wait", self._name)
                    self._changed.wait(_PAUSE_S)

    def _send_next(self) -> None:
        head = self._sender.first_unattended()
        if head is None:
            self._changed.wait()
        elif not self._sender.advance(head):
            self._reader.read_or_wait((head.submit_by or _FOR_EVER).remaining_s())

    def _read_next(self) -> None:
        if self._notices.watched():
            self._reader.read_or_wait(math.inf)
        else:
            self._changed.wait()
