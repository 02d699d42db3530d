"""A wire: frames in order and whole, a writer that never waits, and an end that everybody sees."""

from __future__ import annotations

import gc
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from leaks import nothing_left, num_descriptors
from wires import GENERATION, LONG_S, MEGABYTE, PAIRS, Ends, ends_of, flush_all, in_a_thread, joined, next_frame, send

from cgexec.engine.frames import HEADER, Frame, join, pack
from cgexec.engine.payload import decode, encode
from cgexec.engine.stream import Stream, WireClosedError
from cgexec.engine.wire import Wire


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(params=PAIRS)
def ends(request: pytest.FixtureRequest, _leaves_nothing: None) -> Iterator[Ends]:
    both = ends_of(*PAIRS[request.param]())
    yield both
    both.close()


# -- frames ------------------------------------------------------------------------------------------------------------


def test_frames_arrive_in_order_with_their_tags(ends: Ends) -> None:
    for number in range(100):
        ends.send({"number": number}, number)
    for number in range(100):
        frame = next_frame(ends.reader)
        assert (frame.execution, frame.generation, decode(frame)) == (number, GENERATION, {"number": number})


def test_what_is_received_at_once_is_no_more_than_is_received_in_one_go(ends: Ends) -> None:
    arrived: deque[Frame] = deque()
    ends.reader.receive_into(arrived, once=True)
    assert (list(arrived), ends.reader.amid) == ([], False)
    for number in range(3):
        ends.send(bytes([number]) * (1 << 15), number)
    ends.reader.receive_into(arrived, once=True)
    assert len(arrived) <= 1, "more than 64 kB"
    flushing = in_a_thread(lambda: flush_all(ends.writer))
    while len(arrived) < 3:
        ends.reader.receive_into(arrived)
    assert joined(flushing)
    assert [(frame.execution, decode(frame)) for frame in arrived] == [(n, bytes([n]) * (1 << 15)) for n in range(3)]
    assert not ends.reader.amid


@pytest.mark.parametrize("size", [0, 1, 1 << 15, (1 << 16) - HEADER.size, (1 << 16) + 1, 3 * MEGABYTE + 5])
@pytest.mark.parametrize("make", [bytes, lambda size: np.arange(size, dtype="u1")], ids=["bytes", "array"])
def test_values_of_every_size_arrive_whole(ends: Ends, size: int, make: Callable[[int], Any]) -> None:
    value = make(size)
    for _ in range(2):
        ends.send(value)
        ends.send("behind it")
    flushing = in_a_thread(lambda: flush_all(ends.writer))
    for _ in range(2):
        np.testing.assert_array_equal(ends.receive(), value)
        assert ends.receive() == "behind it"
    assert joined(flushing)


def test_small_and_large_values_may_be_mixed(ends: Ends) -> None:
    sizes = [3, MEGABYTE, 0, 70_000, 5, 5, 200_000, 1]
    for size in sizes:
        ends.send([np.full(size, size % 200, "u1"), np.full(3, 1.5), b"x" * size])
    flushing = in_a_thread(lambda: flush_all(ends.writer))
    for size in sizes:
        first, second, third = ends.receive()
        assert (first.size, set(first)) == (size, {size % 200} if size else set())
        assert (second.tolist(), len(third)) == ([1.5] * 3, size)
        assert not first.flags.writeable
    assert joined(flushing)


def test_a_value_of_more_buffers_than_one_call_sends_arrives(ends: Ends) -> None:
    arrays = [np.full(index % 300, index % 100, "u1") for index in range(2000)]
    ends.send(arrays)
    flushing = in_a_thread(lambda: flush_all(ends.writer))
    for found, sent in zip(ends.receive(), arrays, strict=True):
        np.testing.assert_array_equal(found, sent)
    assert joined(flushing)


def test_nothing_is_there_before_it_has_arrived_whole() -> None:
    here, there = socket.socketpair()
    wire = Wire(Stream(there), GENERATION, lambda _: None)
    data = join(pack(encode([1, "two"]), GENERATION, 7))
    for index in range(len(data)):
        assert wire.receive() is None
        here.send(data[index : index + 1])
    frame = wire.receive()
    assert frame is not None
    assert decode(frame) == [1, "two"]
    here.close()


def test_every_frame_that_has_arrived_is_taken_in_order(ends: Ends) -> None:
    arrived: deque[Frame] = deque()
    ends.reader.receive_into(arrived)
    assert not arrived
    for number in range(3):
        ends.send(number)
    while len(arrived) < 3:
        ends.reader.receive_into(arrived)
    assert [decode(frame) for frame in arrived] == [0, 1, 2]


def test_what_came_before_the_end_is_taken_and_then_the_end_is_told(ends: Ends) -> None:
    arrived: deque[Frame] = deque()

    def take_for_ever() -> None:
        while True:
            ends.reader.receive_into(arrived)

    ends.send(b"last")
    ends.writer.shut()
    with pytest.raises(WireClosedError):
        take_for_ever()
    assert [decode(frame) for frame in arrived] == [b"last"]


# -- a writer that never waits -----------------------------------------------------------------------------------------


def test_a_writer_does_not_wait_for_its_reader_and_may_write_over_what_it_sent(ends: Ends) -> None:
    source = np.zeros(MEGABYTE // 8, "i8")
    for number in range(32):
        source[:] = number
        ends.send(source, number)
    source[:] = -1
    assert set(ends.backlogged) == {ends.writer}

    flushing = in_a_thread(lambda: flush_all(ends.writer))
    for number in range(32):
        found = ends.receive()
        assert (found.size, int(found.min()), int(found.max())) == (source.size, number, number)
    assert joined(flushing)


def test_two_ends_that_send_each_other_large_values_do_not_wait_for_each_other() -> None:
    there, back = ends_of(*socket.socketpair()), ends_of(*socket.socketpair())
    for ends in (there, back):
        ends.send(bytes(8 * MEGABYTE))
    for ends in (there, back):
        flushing = in_a_thread(lambda wire=ends.writer: flush_all(wire))  # type: ignore[misc]
        assert len(ends.receive()) == 8 * MEGABYTE
        assert joined(flushing)


def test_what_is_sent_while_the_backlog_is_flushed_comes_behind_it(ends: Ends) -> None:
    ends.send((0, bytes(4 * MEGABYTE)))
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            flush_all(ends.writer)

    flushing = in_a_thread(flush)
    for number in range(1, 200):
        ends.send((number, bytes(number * 500)))
    assert [ends.receive()[0] for _ in range(200)] == list(range(200))
    done.set()
    assert joined(flushing)


def test_a_backlog_whose_reader_has_gone_is_dropped() -> None:
    here, there = socket.socketpair()
    wire = Wire(Stream(here), GENERATION, lambda _: None)
    send(wire, bytes(4 * MEGABYTE), 0)
    assert not wire.flush()
    there.close()
    assert wire.flush()
    with pytest.raises(WireClosedError):
        send(wire, 1, 1)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_shut_wakes_whoever_waits_on_either_end(ends: Ends, who: str) -> None:
    outcome: list[Any] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        try:
            outcome.append(ends.receive())
        except WireClosedError as error:
            outcome.append(error)

    waiting = in_a_thread(wait)
    assert started.wait(LONG_S)
    getattr(ends, who).shut()
    assert joined(waiting)
    assert [type(each) for each in outcome] == [WireClosedError]


def test_a_wire_that_was_shut_takes_nothing_and_may_be_shut_again(ends: Ends) -> None:
    for _ in range(2):
        ends.writer.shut()
    for _ in range(2):
        with pytest.raises(WireClosedError):
            ends.send(1)
    assert ends.backlogged == []


def test_every_frame_before_the_end_is_delivered(ends: Ends) -> None:
    for number in range(20):
        ends.send((number, bytes(1000)))
    ends.writer.shut()
    assert [ends.receive()[0] for _ in range(20)] == list(range(20))
    for _ in range(3):
        with pytest.raises(WireClosedError):
            ends.reader.receive()


def test_a_wire_waits_for_ever_whatever_the_default_timeout_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        ends = ends_of(here, there)
    finally:
        socket.setdefaulttimeout(before)
    assert (ends.reader.sock.gettimeout(), ends.writer.sock.gettimeout()) == (None, None)


def test_a_wire_that_nobody_holds_is_closed_without_the_garbage_collector() -> None:
    before = num_descriptors()
    gc.disable()
    try:
        ends = ends_of(*socket.socketpair())
        ends.writer.shut()
        del ends
        assert num_descriptors() == before
    finally:
        gc.enable()
