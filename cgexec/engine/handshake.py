"""How two ends of a connection prove to each other that they belong to the same graph, before a byte is unpickled.

::

    who connects                                            who listens
                 <──────────────── nonce ─────────────────
    role, name, nonce, HMAC(key, both nonces, role, name) ─>
                 <──────── HMAC(key, both nonces) ────────

The key is random, of one generation of one graph, and came to both ends through Ray. Every message has a fixed length,
so that nobody can make the listener wait for, or keep, more than that. On a Unix socket the other end must in addition
be a process of the same user. (``multiprocessing.connection`` does the like, but waits for ever for a silent peer, one
at a time, and uses MD5 before Python 3.12.)
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import time
from enum import IntEnum
from typing import Any, NamedTuple

from cgexec.deadline import Deadline

NAME_BYTES = 16
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0  # for each step of connecting
_RETRY_PAUSE_S = 0.02
_MOST_TIMES_HEARD = 3  # a listener that closes on a proof refuses it, or is in a crowd
_CREDENTIALS = struct.Struct("3i")


class Role(IntEnum):
    """What a connection is for."""

    EDGE = 1  # named by its channel: carries frames
    CONTROL = 2  # named by its actor: carries nothing, its end is the message


_ROLES = frozenset(Role)
APPLICATION_BYTES = 1 + NAME_BYTES + _NONCE_BYTES + _PROOF_BYTES


class HandshakeError(Exception):
    """The other end did not prove that it belongs to the graph."""


class Address(NamedTuple):
    """Where a process listens: on its own node under an abstract name, and for other nodes by TCP."""

    node_id: str
    unix: bytes
    tcp: tuple[str, int] | None


def new_key() -> bytes:
    """Return a key for one generation."""
    return secrets.token_bytes(32)


def _proof(key: bytes, side: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"cgexec " + side + b"".join(parts), "sha256")


class Applicant:
    """A connection that has not proved itself yet, as the listener sees it. Never waits for it."""

    def __init__(self, sock: socket.socket, key: bytes, deadline: Deadline) -> None:
        self.sock = sock
        self.deadline = deadline
        self._key = key
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._received = b""

    def challenge(self) -> None:
        """Send the first message. Raises HandshakeError if the process at the other end is another user's."""
        if self.sock.family == socket.AF_UNIX:
            found = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(found)
            if uid != os.geteuid():
                raise HandshakeError(f"process {pid} belongs to user {uid}")
        self._send(self._nonce)

    def hear(self) -> tuple[Role, bytes] | None:
        """Take in what has arrived; return (role, name) once the other end has proved itself, and prove this one.

        Raises:
            HandshakeError: it has gone, or it does not have the key.
        """
        try:
            data = self.sock.recv(APPLICATION_BYTES - len(self._received), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise HandshakeError(str(error)) from error
        if not data:
            raise HandshakeError("it went away")
        self._received += data
        if len(self._received) < APPLICATION_BYTES:
            return None
        said, proof = self._received[:-_PROOF_BYTES], self._received[-_PROOF_BYTES:]
        if not hmac.compare_digest(proof, _proof(self._key, b"connects", self._nonce, said)):
            raise HandshakeError("it does not have the key of the graph")
        if said[0] not in _ROLES:
            raise HandshakeError(f"it is of an unknown role: {said[0]}")
        self._send(_proof(self._key, b"listens", self._nonce, said))
        return Role(said[0]), said[1 : 1 + NAME_BYTES]

    def _send(self, message: bytes) -> None:
        try:  # a fresh socket takes so little at once
            self.sock.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise HandshakeError(str(error)) from error


class _NotNowError(HandshakeError):
    """The listener has more to do than it can; trying again may help. ``heard`` if it may have heard the proof."""

    def __init__(self, message: str, *, heard: bool) -> None:
        super().__init__(message)
        self.heard = heard


def connect(address: Address, node_id: str, key: bytes, role: Role, name: bytes, deadline: Deadline) -> socket.socket:
    """Return a connection to the listener at ``address``, both ends proved; ``node_id`` is this process's own node.

    Raises:
        HandshakeError: there is no way there, nobody answers before the deadline, or the listener lacks the key.
    """
    where: Any = address.unix if address.node_id == node_id else address.tcp
    if where is None:
        raise HandshakeError(f"the process on node {address.node_id} does not listen for other nodes")
    times_heard = 0
    while True:
        try:
            return _connect_once(where, key, role, name, max(_SHORTEST_WAIT_S, deadline.slice_s(_LONGEST_WAIT_S)))
        except _NotNowError as error:
            times_heard += error.heard
            if deadline.remaining_s() == 0 or times_heard > _MOST_TIMES_HEARD:
                raise
            time.sleep(_RETRY_PAUSE_S)


def _connect_once(where: Any, key: bytes, role: Role, name: bytes, timeout_s: float) -> socket.socket:
    unix = isinstance(where, bytes)
    try:
        sock = socket.socket(socket.AF_UNIX if unix else family_of(where[0]), socket.SOCK_STREAM)
    except OSError as error:  # no descriptor left, say
        raise HandshakeError(f"no connection to {where!r}: {error}") from error
    answered_by = Deadline.after(timeout_s)
    heard = False
    try:
        sock.settimeout(timeout_s)
        sock.connect(where)
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs = _receive(sock, _NONCE_BYTES, answered_by)
        said = bytes([role]) + name + secrets.token_bytes(_NONCE_BYTES)
        sock.sendall(said + _proof(key, b"connects", theirs, said))
        heard = True
        proved = hmac.compare_digest(_receive(sock, _PROOF_BYTES, answered_by), _proof(key, b"listens", theirs, said))
        sock.settimeout(None)
    except (BlockingIOError, ConnectionError) as error:  # its queue is full, or it dropped us
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            raise HandshakeError(f"nobody listens at {where!r}") from error
        raise _NotNowError(f"no connection to {where!r}: {error}", heard=heard) from error
    except OSError as error:
        sock.close()
        raise HandshakeError(f"no connection to {where!r}: {error}") from error
    except BaseException:
        sock.close()
        raise
    if not proved:
        sock.close()
        raise HandshakeError("the listener does not have the key of the graph")
    return sock


def family_of(ip: str) -> socket.AddressFamily:
    """Return the family of sockets for an address of a node."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _receive(sock: socket.socket, num_bytes: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < num_bytes:
        if deadline.remaining_s() == 0:
            raise HandshakeError("the listener did not answer in time")
        sock.settimeout(max(0.001, deadline.remaining_s()))
        more = sock.recv(num_bytes - len(data))
        if not more:
            raise ConnectionResetError("the listener closed the connection")
        data += more
    return data
