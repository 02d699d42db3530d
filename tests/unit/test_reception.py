"""The reception: lets in those that prove themselves, and gives strangers nothing beyond a bound."""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import eventually
from forks import ended_well, fork
from hubs import CHANNEL, FIRST, LONG_S, Site, a_site, soon
from leaks import nothing_left
from wires import next_frame, send

from cgexec.deadline import Deadline
from cgexec.engine import reception
from cgexec.engine.handshake import Address, HandshakeError, Role, connect, new_key
from cgexec.engine.hub import Hub
from cgexec.engine.payload import decode
from cgexec.engine.reception import MOST_APPLICANTS, Reception
from cgexec.engine.stream import Stream

NUM_STRANGERS = 300


@pytest.fixture
def site() -> Iterator[Site]:
    with nothing_left(), a_site() as made:
        yield made


def visit(address: Address, family: str = "unix") -> socket.socket:
    """Return a connection that has said nothing yet."""
    if family == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.unix)
    else:
        assert address.tcp is not None
        sock = socket.create_connection(address.tcp)
    sock.settimeout(LONG_S)
    return sock


def is_dropped(sock: socket.socket) -> bool:
    """Wait until the other end closes ``sock``."""
    try:
        while sock.recv(4096):
            continue
    except ConnectionResetError:
        return True
    return True


def carries(writer: Hub, reader: Hub, channel: bytes = CHANNEL) -> Any:
    """Connect an edge and return what comes over it."""
    wire = writer.connect_edge(channel, reader.address, soon())
    inlet = reader.inlet(channel)
    assert inlet.connected.wait(LONG_S)
    send(wire, "value", 1)
    assert inlet.wire is not None
    return decode(next_frame(inlet.wire))


FAMILIES = pytest.mark.parametrize(("family", "node_id"), [("unix", "node"), ("tcp", "another node")])


@FAMILIES
def test_the_right_ones_get_in_while_strangers_crowd_the_door(
    site: Site, family: str, node_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = site.hub(listen_ip="127.0.0.1"), site.hub(FIRST, node_id)
    applicants = reader._reception._applicants
    most = 0
    with ExitStack() as strangers:
        for _ in range(NUM_STRANGERS):
            strangers.enter_context(visit(reader.address, family))
            most = max(most, len(applicants))
        assert eventually(lambda: len(applicants) == MOST_APPLICANTS)
        assert most <= MOST_APPLICANTS + 1  # the oldest leaves as the newest comes
        assert carries(writer, reader) == "value"
        assert carries(writer, reader, bytes(16)) == "value"
        assert not reader.missing_after(0, soon())
        assert eventually(lambda: not applicants)
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "cgexec.engine.reception")


@FAMILIES
def test_strangers_who_lack_the_key_are_dropped(
    site: Site, family: str, node_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader = site.hub(listen_ip="127.0.0.1")
    for _ in range(3):
        with pytest.raises(HandshakeError):
            connect(reader.address, node_id, new_key(), Role.EDGE, CHANNEL, soon())
        with visit(reader.address, family) as sock:
            sock.sendall(secrets.token_bytes(10_000))
            assert is_dropped(sock)
        visit(reader.address, family).close()
    assert carries(site.hub(FIRST, node_id), reader) == "value"
    assert len(caplog.records) == 1


@FAMILIES
def test_those_who_keep_silent_are_dropped(
    site: Site, family: str, node_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "APPLICATION_S", 0.05)
    reader = site.hub(listen_ip="127.0.0.1")
    with visit(reader.address, family) as silent, visit(reader.address, family) as half:
        half.sendall(b"\1half an application")
        assert is_dropped(silent)
        assert is_dropped(half)
    assert eventually(lambda: not reader._reception._applicants)


@FAMILIES
def test_nobody_gets_in_once_the_graph_is_complete(site: Site, family: str, node_id: str) -> None:
    reader, writer = site.hub(listen_ip="127.0.0.1"), site.hub(FIRST, node_id)
    assert carries(writer, reader) == "value"
    with visit(reader.address, family) as waiting:
        assert not reader.missing_after(0, soon())
        assert is_dropped(waiting)
    with pytest.raises(HandshakeError):
        writer.connect_edge(bytes(16), reader.address, soon())


def test_another_generations_key_does_not_fit(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST, secret=new_key())
    with pytest.raises(HandshakeError):
        writer.connect_edge(CHANNEL, reader.address, soon())
    assert reader.inlet(CHANNEL).wire is None


def test_a_process_on_another_node_needs_a_listener_for_other_nodes(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST, "another node")
    assert reader.address.tcp is None
    with pytest.raises(HandshakeError, match="does not listen for other nodes"):
        writer.connect_edge(CHANNEL, reader.address, soon())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_process_is_refused_on_this_node_though_it_has_the_key(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    reader = site.hub()

    def apply() -> None:
        os.setuid(65534)
        with pytest.raises(HandshakeError):
            connect(reader.address, "node", site.secret, Role.EDGE, CHANNEL, Deadline.after(0.3))

    assert ended_well(fork(apply))
    assert eventually(lambda: caplog.records)
    assert "belongs to user 65534" in caplog.records[0].getMessage()
    assert reader.inlet(CHANNEL).wire is None


# -- without a hub -----------------------------------------------------------------------------------------------------


class Front:
    """A reception that is tended by the test itself."""

    def __init__(self, tcp_ip: str | None = None) -> None:
        self.selector = selectors.DefaultSelector()
        self.secret = new_key()
        self.admitted: list[tuple[Role, bytes, Stream]] = []
        self.reception = Reception(self.selector, "node", self.secret, tcp_ip, self._admit)

    def _admit(self, role: Role, name: bytes, stream: Stream) -> None:
        self.admitted.append((role, name, stream))

    def tend(self, timeout_s: float = 0.0) -> int:
        """Serve all that is ready; return how many that were."""
        ready = self.selector.select(timeout_s)
        for each, _ in ready:
            each.data(each.fileobj)
        return len(ready)

    def close(self) -> None:
        self.reception.close()
        self.selector.close()


@pytest.fixture
def front() -> Iterator[Front]:
    with nothing_left():
        made = Front()
        yield made
        made.close()


def test_the_oldest_leaves_for_the_newest(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "MOST_APPLICANTS", 2)
    visitors = []
    for _ in range(3):
        visitors.append(visit(front.reception.address))
        assert front.tend(LONG_S) == 1
    assert is_dropped(visitors[0])
    assert [sock.fileno() >= 0 for sock in front.reception._applicants] == [True, True]
    for sock in visitors:
        sock.close()


def test_nobody_waiting_needs_no_patience(front: Front) -> None:
    assert front.reception.patience_s() is None
    with visit(front.reception.address):
        front.tend(LONG_S)
        assert front.reception.patience_s() == reception.APPLICATION_S
        front.reception.drop_late()
        assert len(front.reception._applicants) == 1
        (applicant,) = front.reception._applicants.values()
        applicant.deadline = Deadline(time.monotonic(), 0)
        front.reception.drop_late()
        assert front.reception.patience_s() is None


def test_one_who_is_dropped_and_ready_at_the_same_time_is_passed_over(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "MOST_APPLICANTS", 1)
    with visit(front.reception.address) as first:
        front.tend(LONG_S)
        first.sendall(b"x")
        with visit(front.reception.address):
            assert eventually(lambda: len(front.selector.select(0)) == 2)
            assert front.tend() == 2
            assert front.tend() == 0
    assert front.admitted == []


def test_a_system_without_descriptors_is_asked_again_later(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(reception.time, "sleep", pauses.append)

    class Exhausted:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    front.reception._accept(Exhausted())
    assert len(pauses) == 1
    assert front.reception.patience_s() is None


def test_one_who_went_away_before_being_accepted_is_nobody(front: Front) -> None:
    visit(front.reception.address).close()
    while front.tend(0.1):
        continue
    assert (front.admitted, front.reception.patience_s()) == ([], None)


@pytest.mark.parametrize("times", [1, 2])
def test_close_may_be_called_again_and_leaves_the_selector_empty(times: int) -> None:
    with nothing_left():
        front = Front("127.0.0.1")
        with visit(front.reception.address), visit(front.reception.address, "tcp"):
            assert eventually(lambda: front.tend() == 0 and len(front.reception._applicants) == 2)
            for _ in range(times):
                front.reception.close()
        assert len(front.selector.get_map()) == 0
        front.close()


def test_an_address_that_cannot_be_had_leaves_nothing_open() -> None:
    with nothing_left(), selectors.DefaultSelector() as selector:
        with pytest.raises(OSError, match="assign"):
            Reception(selector, "node", new_key(), "192.0.2.1", lambda *_: None)
        assert len(selector.get_map()) == 0
