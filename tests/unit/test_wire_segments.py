"""Shared memory over a wire: passed once, written again when its readers let go, and gone with the wire."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from leaks import nothing_left, num_descriptors
from wires import GENERATION, MEGABYTE, Ends, ends_of, flush_all, in_a_thread, joined, next_frame, tcp_pair

from cgexec.engine.frames import HEADER, Encoded, Frame, Kind, join, pack
from cgexec.engine.payload import decode, encode
from cgexec.engine.segments import MOST_SEGMENTS, Segment, SegmentPool
from cgexec.engine.stream import WireClosedError


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def unix(_leaves_nothing: None) -> Iterator[Ends]:
    both = ends_of(*socket.socketpair())
    yield both
    both.close()


# -- segments ----------------------------------------------------------------------------------------------------------


def share(ends: Ends, pool: SegmentPool, value: Any) -> Segment:
    """Send ``value`` through shared memory, as an edge does."""
    encoded = encode(value)
    segment, given_up = pool.take(encoded.buffer_bytes())
    for number in given_up:
        ends.writer.forget(number)
    assert segment is not None
    ends.send_through(segment, encoded)
    return segment


def test_a_segment_is_passed_once_and_written_again_when_the_reader_lets_go(unix: Ends) -> None:
    pool = SegmentPool(64 * MEGABYTE)
    before = num_descriptors()
    for number in range(50):
        assert share(unix, pool, np.full(MEGABYTE, number, "u1")).number == 1
        found = unix.receive()
        assert (set(found[:: MEGABYTE // 10]), found.flags.writeable) == ({number}, False)
        del found
    assert num_descriptors() <= before + 3


def test_a_segment_that_an_array_lies_on_is_not_written(unix: Ends) -> None:
    pool = SegmentPool(64 * MEGABYTE)
    kept = []
    for number in range(10):
        share(unix, pool, np.full(MEGABYTE, number, "u1"))
        kept.append(unix.receive()[7:9])
    assert [row.tolist() for row in kept] == [[number] * 2 for number in range(10)]
    kept.clear()
    assert share(unix, pool, np.zeros(MEGABYTE, "u1")).number <= 10
    assert unix.receive().size == MEGABYTE


def test_a_segment_that_was_given_up_is_forgotten_by_the_reader(unix: Ends) -> None:
    pool = SegmentPool(4 * MEGABYTE)
    before = num_descriptors()
    for size in (4, 1, 3, 2, 4, 1, 4) * 3:
        share(unix, pool, np.full(size * MEGABYTE, size, "u1"))
        assert unix.receive().size == size * MEGABYTE
    unix.send("the end")
    assert unix.receive() == "the end"
    assert num_descriptors() <= before + 3 * 4


def test_every_segment_that_there_can_be_is_released(unix: Ends) -> None:
    pool = SegmentPool(1 << 30)
    segments, kept = [], []
    for number in range(MOST_SEGMENTS):
        segments.append(share(unix, pool, np.full(1 << 16, number, "u1")))
        kept.append(unix.receive())
    while segments:
        assert not any(segment.is_free() for segment in segments)
        kept.pop()
        assert segments.pop().is_free()


def test_a_segment_is_held_until_each_of_several_readers_has_let_go() -> None:
    wires = [ends_of(*socket.socketpair()) for _ in range(3)]
    encoded = encode(np.arange(MEGABYTE // 8))
    segment = Segment(1, MEGABYTE)
    for number in range(3):  # in whatever order they do
        packed = [ends.writer.pack(encoded, number, segment) for ends in wires]
        segment.write(encoded.buffers)
        for ends, pieces in zip(wires, packed, strict=True):
            ends.writer.send(pieces)
        kept = [ends.receive() for ends in wires]
        while kept:
            assert not segment.is_free()
            np.testing.assert_array_equal(kept.pop(number % len(kept)), np.arange(MEGABYTE // 8))
        assert segment.is_free()
    for ends in wires:
        ends.close()


class Held:
    """A frame of which the writer has sent all but the last byte, before its buffers were there."""

    def __init__(self, ends: Ends, segment: Segment, value: Any, execution: int = 0) -> None:
        self._ends, self._segment, self._encoded = ends, segment, encode(value)
        *others, last = ends.writer.pack(self._encoded, execution, segment)
        ends.writer.send([*others, last[:-1]])
        self._last = last[-1:]

    def fill(self) -> None:
        """Put the buffers where they are to be; of this the reader does not hear."""
        self._segment.write(self._encoded.buffers)

    def finish(self, behind: bytes = b"") -> None:
        self._ends.writer.send([self._last + behind])


VALUES: list[Any] = [
    np.arange(MEGABYTE // 8),
    np.arange(MEGABYTE // 4, dtype="f4").reshape(16, -1),
    [np.arange(1000), np.arange(2.0, 5.0), b"text", np.ones((300, 300))],
    bytes(range(256)) * 512,
]
SAME = pytest.mark.parametrize("value", VALUES, ids=["array", "matrix", "several", "bytes"])


@SAME
def test_a_frame_is_not_there_before_its_last_byte_and_then_has_what_was_filled_in_meanwhile(
    unix: Ends, value: Any
) -> None:
    segment = Segment(1, 2 * MEGABYTE)
    for number in range(3):
        held = Held(unix, segment, value, number)
        for _ in range(2):
            assert unix.reader.receive() is None
            assert unix.reader.amid
        held.fill()
        assert unix.reader.receive() is None
        held.finish()
        frame = unix.reader.receive()
        assert frame is not None
        assert (frame.execution, unix.reader.amid) == (number, False)
        np.testing.assert_equal(decode(frame), value)
        assert not segment.is_free()
        del frame
        assert segment.is_free()


@SAME
@pytest.mark.parametrize("seen_before", [True, False])
def test_what_comes_with_the_last_byte_is_a_frame_of_its_own(unix: Ends, value: Any, seen_before: bool) -> None:
    held = Held(unix, Segment(1, 2 * MEGABYTE), value)
    arrived: deque[Frame] = deque()
    if seen_before:
        unix.reader.receive_into(arrived)
        assert not arrived
    held.fill()
    held.finish(b"".join(join(pack(encode(number), GENERATION, number)) for number in (1, 2)))
    unix.reader.receive_into(arrived)
    assert [frame.execution for frame in arrived] == [0, 1, 2]
    np.testing.assert_equal(decode(arrived.popleft()), value)
    assert [decode(frame) for frame in arrived] == [1, 2]
    assert not unix.reader.amid


def test_a_frame_behind_others_is_waited_for_as_well(unix: Ends) -> None:
    unix.send("before")
    held = Held(unix, Segment(1, MEGABYTE), np.arange(9000), 1)
    arrived: deque[Frame] = deque()
    unix.reader.receive_into(arrived)
    assert [decode(frame) for frame in arrived] == ["before"]
    assert unix.reader.amid
    reading = in_a_thread(lambda: arrived.append(next_frame(unix.reader)))
    held.fill()
    held.finish()
    assert joined(reading)
    np.testing.assert_array_equal(decode(arrived[1]), np.arange(9000))


def test_a_frame_whose_last_byte_never_comes_is_none(unix: Ends) -> None:
    segment = Segment(1, MEGABYTE)
    held = Held(unix, segment, np.arange(9000))
    assert unix.reader.receive() is None
    held.fill()
    unix.writer.shut()
    for _ in range(2):
        with pytest.raises(WireClosedError):
            unix.reader.receive()


@pytest.mark.parametrize(("num_buffers", "payload_bytes"), [(1, 0), (3, 0), (1, 5)])
@pytest.mark.parametrize("spare", [0, 2])
def test_a_frame_whose_region_is_not_its_lengths_and_payload_and_one_byte_is_none(
    unix: Ends, num_buffers: int, payload_bytes: int, spare: int
) -> None:
    share(unix, SegmentPool(MEGABYTE), np.arange(9000))
    unix.receive()
    filled = 8 * num_buffers + payload_bytes
    header = HEADER.pack(Kind.ARRAY, 0, 0, GENERATION, num_buffers, 1, 0, payload_bytes, filled + spare)
    unix.writer.send([header + bytes(filled + spare - 1)])
    for _ in range(2):
        with pytest.raises(WireClosedError, match="no frame"):
            unix.reader.receive()


def test_an_array_that_cannot_be_made_is_an_error_where_it_is_loaded(unix: Ends) -> None:
    encoded = encode(np.arange(9000))
    pieces = unix.writer.pack(Encoded(encoded.kind, b"\xff" * 16, encoded.buffers), 0, Segment(1, MEGABYTE))
    unix.writer.send([pieces[0][:-1]])
    assert unix.reader.receive() is None
    unix.writer.send([pieces[0][-1:]])
    frame = unix.reader.receive()
    assert frame is not None
    with pytest.raises((ArithmeticError, LookupError, ValueError)):
        decode(frame)


def test_new_segments_wait_in_a_backlog_with_their_descriptors(unix: Ends) -> None:
    pool = SegmentPool(64 * MEGABYTE)
    unix.send(bytes(4 * MEGABYTE))
    for number in range(5):
        share(unix, pool, np.full(MEGABYTE, number, "u1"))
    flushing = in_a_thread(lambda: flush_all(unix.writer))
    assert len(unix.receive()) == 4 * MEGABYTE
    for number in range(5):
        assert set(unix.receive()[::1000]) == {number}
    assert joined(flushing)


def test_new_segments_of_which_nobody_takes_the_frames_leave_nothing_open(unix: Ends) -> None:
    pool = SegmentPool(16 * MEGABYTE)
    unix.send(bytes(4 * MEGABYTE))
    for _ in range(5):
        share(unix, pool, np.zeros(MEGABYTE, "u1"))
    assert len(unix.backlogged) > 0


def test_a_wire_between_nodes_passes_no_descriptors() -> None:
    here, there = tcp_pair()
    ends = ends_of(here, there)
    assert not ends.writer.passes_descriptors
    ends.send(np.arange(MEGABYTE))
    flushing = in_a_thread(lambda: flush_all(ends.writer))
    np.testing.assert_array_equal(ends.receive(), np.arange(MEGABYTE))
    assert joined(flushing)


def test_every_frame_is_delivered_when_the_writer_has_gone(unix: Ends) -> None:
    pool = SegmentPool(8 * MEGABYTE)
    share(unix, pool, np.zeros(MEGABYTE, "u1"))
    unix.receive()
    for number in range(20):
        unix.send(number)
    unix.writer.stream.let_go()  # as the system does when the writer's process ends
    assert [unix.receive() for _ in range(20)] == list(range(20))
    with pytest.raises(WireClosedError):
        unix.receive()


def test_a_segment_that_is_too_short_for_its_frame_ends_the_wire(unix: Ends) -> None:
    unix.writer.send(unix.writer.pack(Encoded(Kind.VALUE, b"x", [memoryview(bytes(1 << 17))]), 0, Segment(1, 1 << 16)))
    with pytest.raises(WireClosedError, match="do not fill"):
        unix.receive()
