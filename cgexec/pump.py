"""The thread that sends and reads for those who do not wait themselves.

It is started by the first asynchronous caller, callback or execution that is to be sent again, sleeps while there is
nothing to do for them, and ends with the graph. Who waits in a thread of their own does without it.
"""

from __future__ import annotations

import logging
import threading

from cgexec.deadline import Deadline
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
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have the thread look for something to do; starts it if need be."""
        if self._thread is None and not self._ended:
            self._thread = threading.Thread(target=self._run, name=f"cgexec-pump-{self._name}", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def end(self) -> None:
        """Do no more, and start no thread."""
        self._ended = True
        self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                try:
                    self._do_next()
                except BaseException:
                    _logger.exception("graph %r: what is sent and read for those who do not wait", self._name)

    def _do_next(self) -> None:
        head = self._sender.first_unattended()
        if head is not None and self._sender.advance(head):
            return
        if head is not None:
            self._reader.read_or_wait(head.submit_by or _FOR_EVER)
        elif self._notices.watched:
            self._reader.read_or_wait(_FOR_EVER)
        else:
            self._changed.wait()
