"""The handshake: only ends that hold the graph's key get past it, in bounded time."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forks import ended_well, fork
from leaks import nothing_left

from cgexec.deadline import Deadline
from cgexec.engine import handshake
from cgexec.engine.handshake import (
    APPLICATION_BYTES,
    NAME_BYTES,
    Address,
    Applicant,
    HandshakeError,
    Role,
    connect,
    new_key,
)

NODE = "node"
NAME = bytes(range(NAME_BYTES))
LONG_S = 30.0
SHORT_S = 0.3  # where connecting is tried until the deadline
NONCE_BYTES = PROOF_BYTES = 32


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


def soon() -> Deadline:
    return Deadline.after(LONG_S)


class Listener:
    """A listener, on this node or for others, that does to each connection what it is told to do, on its own thread.

    ``heard`` is what that gave, for one connection after the other.
    """

    def __init__(self, family: str, serve: Callable[[socket.socket], object]) -> None:
        name = b"\0cgexec-test-" + secrets.token_hex(8).encode()
        if family == "unix":
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.bind(name)
            self._sock.listen(1)
            self.address = Address(NODE, name, None)
        else:
            self._sock = socket.create_server(("127.0.0.1", 0))
            self.address = Address("another", name, self._sock.getsockname())
        self.heard: list[Any] = []
        self._serve = serve
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:  # it was shut
                return
            with sock:
                sock.settimeout(LONG_S)
                try:
                    self.heard.append(self._serve(sock))
                except HandshakeError as error:
                    self.heard.append(error)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(LONG_S)
        self._sock.close()
        assert not self._thread.is_alive()


def welcome(key: bytes) -> Callable[[socket.socket], Any]:
    """Return what listens as the reception does."""

    def serve(sock: socket.socket) -> Any:
        applicant = Applicant(sock, key, soon())
        applicant.challenge()
        while (application := hear(applicant)) is None:
            pass
        return application

    return serve


def hear(applicant: Applicant) -> tuple[Role, bytes] | None:
    """Wait for what comes in, and let ``applicant`` hear it."""
    applicant.sock.recv(1, socket.MSG_PEEK)
    return applicant.hear()


FAMILIES = pytest.mark.parametrize("family", ["unix", "tcp"])


# -- both ends are right -----------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("role", Role)
def test_ends_with_the_same_key_find_each_other(family: str, role: Role) -> None:
    key = new_key()
    with Listener(family, welcome(key)) as listener:
        sock = connect(listener.address, NODE, key, role, NAME, soon())
    assert listener.heard == [(role, NAME)]
    assert sock.gettimeout() is None
    if family == "tcp":
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    sock.close()


def test_what_comes_behind_the_application_is_left_for_the_frames() -> None:
    key = new_key()
    here, there = socket.socketpair()
    applicant = Applicant(there, key, soon())
    applicant.challenge()
    said = application(key, here.recv(NONCE_BYTES))
    here.sendall(said + b"frames")
    assert applicant.hear() == (Role.EDGE, NAME)
    assert there.recv(100) == b"frames"
    here.close()
    there.close()


def test_every_key_is_another() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 32 for key in keys)


# -- who connects is wrong ---------------------------------------------------------------------------------------------


def application(key: bytes, nonce: bytes, role: int = Role.EDGE, side: bytes = b"connects") -> bytes:
    said = bytes([role]) + NAME + secrets.token_bytes(NONCE_BYTES)
    return said + handshake._proof(key, side, nonce, said)


@FAMILIES
def test_who_connects_with_another_key_is_refused_and_learns_nothing(family: str) -> None:
    with Listener(family, welcome(new_key())) as listener, pytest.raises(HandshakeError, match="closed the connection"):
        connect(listener.address, NODE, new_key(), Role.EDGE, NAME, soon())
    assert len(listener.heard) == handshake._MOST_TIMES_HEARD + 1
    assert all("key of the graph" in str(each) for each in listener.heard)


def under_another_name(said: bytes) -> bytes:
    return said[:1] + bytes(NAME_BYTES) + said[1 + NAME_BYTES :]


BAD_APPLICATIONS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "garbage": lambda key, nonce: secrets.token_bytes(APPLICATION_BYTES),
    "zeros": lambda key, nonce: bytes(APPLICATION_BYTES),
    "text": lambda key, nonce: (b"GET / HTTP/1.1\r\n" * 10)[:APPLICATION_BYTES],
    "unknown role": lambda key, nonce: application(key, nonce, role=9),
    "another nonce": lambda key, nonce: application(key, bytes(NONCE_BYTES)),
    "the listener's proof": lambda key, nonce: application(key, nonce, side=b"listens"),
    "another name": lambda key, nonce: under_another_name(application(key, nonce)),
    "one bit of the proof": lambda key, nonce: (said := application(key, nonce))[:-1] + bytes([said[-1] ^ 1]),
    "an empty key": lambda key, nonce: application(b"", nonce),
}


@pytest.mark.parametrize("make", BAD_APPLICATIONS.values(), ids=BAD_APPLICATIONS)
def test_an_application_that_is_not_right_is_refused_without_an_answer(make: Callable[[bytes, bytes], bytes]) -> None:
    key = new_key()
    here, there = socket.socketpair()
    applicant = Applicant(there, key, soon())
    applicant.challenge()
    here.sendall(make(key, here.recv(NONCE_BYTES)))
    with pytest.raises(HandshakeError):
        applicant.hear()
    there.close()
    assert here.recv(100) == b""
    here.close()


def test_an_application_that_was_recorded_is_refused_on_another_connection() -> None:
    key = new_key()
    recorded = b""
    for attempt in range(2):
        here, there = socket.socketpair()
        applicant = Applicant(there, key, soon())
        applicant.challenge()
        nonce = here.recv(NONCE_BYTES)
        recorded = recorded or application(key, nonce)
        here.sendall(recorded)
        if attempt == 0:
            assert applicant.hear() == (Role.EDGE, NAME)
        else:
            with pytest.raises(HandshakeError, match="key"):
                applicant.hear()
        here.close()
        there.close()


def test_the_listeners_own_challenge_cannot_be_turned_against_it() -> None:
    key = new_key()
    pairs = [socket.socketpair() for _ in range(2)]
    first, second = (Applicant(there, key, soon()) for _, there in pairs)
    first.challenge()
    second.challenge()
    nonces = [here.recv(NONCE_BYTES) for here, _ in pairs]
    pairs[0][0].sendall(application(key, nonces[1]))
    with pytest.raises(HandshakeError):
        first.hear()
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_an_application_may_come_in_pieces_and_is_not_waited_for() -> None:
    key = new_key()
    here, there = socket.socketpair()
    applicant = Applicant(there, key, soon())
    applicant.challenge()
    assert applicant.hear() is None
    said = application(key, here.recv(NONCE_BYTES))
    for index in range(len(said)):
        assert applicant.hear() is None
        here.sendall(said[index : index + 1])
    assert applicant.hear() == (Role.EDGE, NAME)
    here.close()
    there.close()


def hear_all(applicant: Applicant) -> None:
    applicant.challenge()
    while applicant.hear() is None:
        continue


@pytest.mark.parametrize("num_bytes", [0, 1, APPLICATION_BYTES - 1])
def test_an_applicant_that_goes_away_is_refused(num_bytes: int) -> None:
    here, there = socket.socketpair()
    applicant = Applicant(there, new_key(), soon())
    here.sendall(bytes(num_bytes))
    here.close()
    with pytest.raises(HandshakeError):
        hear_all(applicant)
    there.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_refused_though_it_has_the_key() -> None:
    key = new_key()

    def visit() -> None:
        os.setuid(65534)
        with pytest.raises(HandshakeError, match="closed the connection"):
            connect(listener.address, NODE, key, Role.EDGE, NAME, Deadline.after(SHORT_S))

    with Listener("unix", welcome(key)) as listener:
        assert ended_well(fork(visit))
    assert len(listener.heard) > 1  # dropped before the nonce, it may try again, and is dropped again
    assert all("belongs to user 65534" in str(each) for each in listener.heard)


# -- who listens is wrong ----------------------------------------------------------------------------------------------


def impostor(sock: socket.socket) -> None:
    sock.sendall(secrets.token_bytes(NONCE_BYTES))
    sock.recv(APPLICATION_BYTES, socket.MSG_WAITALL)
    sock.sendall(secrets.token_bytes(PROOF_BYTES))


def mirror(sock: socket.socket) -> None:
    sock.sendall(secrets.token_bytes(NONCE_BYTES))
    sock.sendall(sock.recv(APPLICATION_BYTES, socket.MSG_WAITALL)[-PROOF_BYTES:])


def ends_at_once(sock: socket.socket) -> None:
    return


def ends_in_the_nonce(sock: socket.socket) -> None:
    sock.sendall(bytes(NONCE_BYTES - 1))


def ends_in_the_proof(sock: socket.socket) -> None:
    sock.sendall(bytes(NONCE_BYTES))
    sock.recv(APPLICATION_BYTES, socket.MSG_WAITALL)
    sock.sendall(bytes(PROOF_BYTES - 1))


@FAMILIES
@pytest.mark.parametrize("serve", [impostor, mirror])
def test_a_listener_without_the_key_is_found_out_at_once(family: str, serve: Callable[[socket.socket], None]) -> None:
    with Listener(family, serve) as listener, pytest.raises(HandshakeError, match="does not have the key"):
        connect(listener.address, NODE, new_key(), Role.EDGE, NAME, soon())
    assert len(listener.heard) == 1


@FAMILIES
@pytest.mark.parametrize("serve", [ends_at_once, ends_in_the_nonce])
def test_a_listener_that_closes_unheard_is_tried_until_the_deadline(
    family: str, serve: Callable[[socket.socket], None]
) -> None:
    start = time.monotonic()
    with Listener(family, serve) as listener, pytest.raises(HandshakeError, match="no connection"):
        connect(listener.address, NODE, new_key(), Role.EDGE, NAME, Deadline.after(SHORT_S))
    assert len(listener.heard) > 1
    assert time.monotonic() - start >= SHORT_S


@FAMILIES
def test_a_listener_that_closes_on_the_proof_is_tried_a_few_times_only(family: str) -> None:
    with Listener(family, ends_in_the_proof) as listener, pytest.raises(HandshakeError, match="closed the connection"):
        connect(listener.address, NODE, new_key(), Role.EDGE, NAME, soon())
    assert len(listener.heard) == handshake._MOST_TIMES_HEARD + 1


@FAMILIES
@pytest.mark.parametrize(
    ("drop", "times"), [(ends_at_once, 6), (ends_in_the_nonce, 6), (ends_in_the_proof, handshake._MOST_TIMES_HEARD)]
)
def test_a_connection_that_was_dropped_in_a_crowd_is_made_in_the_end(
    family: str, drop: Callable[[socket.socket], None], times: int
) -> None:
    key, num_dropped = new_key(), 0

    def serve(sock: socket.socket) -> Any:
        nonlocal num_dropped
        if num_dropped < times:
            num_dropped += 1
            return drop(sock)
        return welcome(key)(sock)

    with Listener(family, serve) as listener:
        connect(listener.address, NODE, key, Role.EDGE, NAME, soon()).close()
    assert listener.heard == [None] * times + [(Role.EDGE, NAME)]


@FAMILIES
def test_a_listener_that_keeps_silent_is_not_waited_for_beyond_the_deadline(family: str) -> None:
    left = threading.Event()
    with Listener(family, lambda sock: left.wait(LONG_S)) as listener:
        with pytest.raises(HandshakeError, match="timed out"):
            connect(listener.address, NODE, new_key(), Role.EDGE, NAME, Deadline.after(0))
        left.set()
    assert listener.heard == [True]


def test_a_listener_that_drips_is_not_listened_to_beyond_the_deadline() -> None:
    pause = threading.Event()

    def drip(sock: socket.socket) -> int:
        for num_sent in range(NONCE_BYTES):
            try:
                sock.sendall(b"x")
            except OSError:
                return num_sent
            pause.wait(0.03)
        return NONCE_BYTES

    with Listener("unix", drip) as listener, pytest.raises(HandshakeError):
        connect(listener.address, NODE, new_key(), Role.EDGE, NAME, Deadline.after(0.15))
    assert listener.heard[0] < NONCE_BYTES


@pytest.mark.parametrize(
    "address",
    [
        Address(NODE, b"\0cgexec-nobody-listens-here", None),
        Address("another", b"\0x", ("127.0.0.1", 1)),
        Address("another", b"\0x", None),
    ],
    ids=["unix", "tcp", "this node only"],
)
def test_an_address_where_nobody_listens_is_an_error_that_names_it(address: Address) -> None:
    with pytest.raises(HandshakeError) as caught:
        connect(address, NODE, new_key(), Role.EDGE, NAME, soon())
    assert any(part in str(caught.value) for part in ("nobody", "127.0.0.1", "node another"))


def test_a_listener_that_is_busy_is_waited_for() -> None:
    listener = Listener("unix", lambda sock: None)
    crowd: list[socket.socket] = []
    error = 0
    while error == 0:  # until its queue is full
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].setblocking(False)
        error = crowd[-1].connect_ex(listener.address.unix)
    assert error == errno.EAGAIN
    errors: list[HandshakeError] = []

    def apply() -> None:
        try:
            connect(listener.address, NODE, new_key(), Role.EDGE, NAME, soon())
        except HandshakeError as error:
            errors.append(error)

    applying = threading.Thread(target=apply)
    applying.start()
    applying.join(0.3)
    was_waiting = applying.is_alive()
    listener._sock.close()
    applying.join(LONG_S)
    for sock in crowd:
        sock.close()
    assert was_waiting, errors


def test_a_listener_that_was_busy_is_reached_when_it_has_room() -> None:
    key = new_key()
    listener = Listener("unix", lambda sock: welcome(key)(sock))
    crowd: list[socket.socket] = []
    error = 0
    while error == 0:  # until its queue is full
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].setblocking(False)
        error = crowd[-1].connect_ex(listener.address.unix)
    with pytest.raises(HandshakeError, match="no connection"):
        connect(listener.address, NODE, key, Role.EDGE, NAME, Deadline.after(0.05))
    for sock in crowd:
        sock.close()
    with listener:
        connect(listener.address, NODE, key, Role.EDGE, NAME, soon()).close()
    *gone, last = listener.heard
    assert last == (Role.EDGE, NAME)
    assert len(gone) == len(crowd) - 1
    assert all(isinstance(each, HandshakeError) for each in gone)
