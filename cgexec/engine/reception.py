"""Where a process listens for the others of its graph, and lets in only those that prove themselves (``handshake``).

It is open while a generation is being built, and closed for as long as it runs. Strangers are dropped: those of another
user, without the key, silent, or too many. There is one warning for all of them; none is given memory, time or a
descriptor beyond a bound.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cgexec.deadline import Deadline
from cgexec.engine.handshake import Address, Applicant, HandshakeError, Role, family_of
from cgexec.engine.stream import Stream, WireClosedError
from cgexec.log import logger

_logger = logger(__name__)

MOST_APPLICANTS = 64
APPLICATION_S = 5.0
_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.05


def _nobody(_role: Role, _name: bytes, stream: Stream) -> None:
    stream.let_go()


class Reception:
    """The listeners of one process, tended by the thread that waits on ``selector``: no other may call anything here.

    Whatever is registered with ``selector`` has a function for its data, which is to be called with the socket.
    ``admit(role, name, stream)`` is given each connection that has proved itself, and has the pipe that goes with it.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        node_id: str,
        secret: bytes,
        tcp_ip: str | None,
        admit: Callable[[Role, bytes, Stream], None],
    ) -> None:
        self._selector = selector
        self._secret = secret
        self._admit = admit
        self._applicants: dict[socket.socket, Applicant] = {}
        self._admitted: set[Stream] = set()  # of which the pipe is yet to come
        self._listeners: list[socket.socket] = []
        self._warned = False
        self.address = self._listen(node_id, tcp_ip)

    def _listen(self, node_id: str, tcp_ip: str | None) -> Address:
        name = b"\0cgexec-" + secrets.token_hex(16).encode()
        tcp = None
        try:
            self._add(socket.AF_UNIX, name)
            if tcp_ip is not None:
                listener = self._add(family_of(tcp_ip), (tcp_ip, 0))
                tcp = (tcp_ip, int(listener.getsockname()[1]))
        except BaseException:
            self.close()
            raise
        return Address(node_id, name, tcp)

    def _add(self, family: socket.AddressFamily, address: Any) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        return listener

    def close(self) -> None:
        """Take no more connections, and drop those that have not proved themselves."""
        self._admit = _nobody  # and hold the hub no longer
        while self._listeners:
            listener = self._listeners.pop()
            self._selector.unregister(listener)
            listener.close()
        for applicant in list(self._applicants.values()):
            self._drop(applicant, "")
        while self._admitted:
            stream = self._admitted.pop()
            self._selector.unregister(stream.sock)
            stream.let_go()

    def close_in_child(self) -> None:
        """Let go of every descriptor, in a forked child."""
        for sock in [*self._listeners, *self._applicants]:
            sock.close()
        for stream in self._admitted:
            stream.let_go()

    def patience_s(self) -> float | None:
        """Return after how long ``drop_late`` is due; None if nobody is waiting."""
        return APPLICATION_S if self._applicants else None

    def drop_late(self) -> None:
        """Drop those who have not proved themselves in time."""
        for applicant in list(self._applicants.values()):
            if applicant.deadline.remaining_s() == 0:
                self._drop(applicant, "it kept silent")

    def _accept(self, listener: Any) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # there are no descriptors left, say: it will still be there
            time.sleep(_ACCEPT_PAUSE_S)
            return
        if len(self._applicants) >= MOST_APPLICANTS:
            self._drop(next(iter(self._applicants.values())), "too many at once")
        applicant = Applicant(sock, self._secret, Deadline.after(APPLICATION_S))
        self._applicants[sock] = applicant
        self._selector.register(sock, selectors.EVENT_READ, self._hear)
        try:
            applicant.challenge()
        except HandshakeError as error:
            self._drop(applicant, str(error))

    def _hear(self, sock: Any) -> None:
        applicant = self._applicants.get(sock)
        if applicant is None:  # dropped by what was ready before it
            return
        try:
            application = applicant.hear()
        except HandshakeError as error:
            self._drop(applicant, str(error))
            return
        if application is None:
            return
        del self._applicants[sock]
        self._selector.unregister(sock)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        role, name = application
        stream = Stream(sock)
        if role is Role.EDGE and stream.is_near:
            self._admitted.add(stream)
            self._selector.register(stream.sock, selectors.EVENT_READ, lambda _sock: self._take_pipe(name, stream))
        else:
            self._admit(role, name, stream)

    def _take_pipe(self, name: bytes, stream: Stream) -> None:
        """Admit the writer of an edge as soon as it has said what it writes to; its own end is told over that."""
        with suppress(WireClosedError):
            if not stream.take_pipe():
                return
        self._admitted.discard(stream)
        self._selector.unregister(stream.sock)
        self._admit(Role.EDGE, name, stream)

    def _drop(self, applicant: Applicant, why: str) -> None:
        """Drop an applicant, with a warning if there is a reason that is its own."""
        del self._applicants[applicant.sock]
        self._selector.unregister(applicant.sock)
        applicant.sock.close()
        if why and not self._warned:
            self._warned = True
            _logger.warning("a connection to a graph was dropped, and others may be: %s", why)
