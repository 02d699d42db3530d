"""What the bytes of a wire go through: a pipe where there can be one, and the socket beside it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from leaks import nothing_left, num_descriptors
from wires import LONG_S, MEGABYTE, PAIRS, Ends, ends_of, flush_all, in_a_thread, joined

from cgexec.engine import stream as stream_module
from cgexec.engine.payload import encode
from cgexec.engine.segments import SegmentPool
from cgexec.engine.stream import Stream, WireClosedError, behind


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def near(_leaves_nothing: None) -> Iterator[Ends]:
    both = ends_of(*socket.socketpair())
    yield both
    both.close()


def a_pair() -> tuple[Stream, Stream]:
    here, there = socket.socketpair()
    return Stream(here), Stream(there)


def crosses(writer: Stream, reader: Stream, data: bytes) -> bool:
    """Return whether ``data`` arrives, through the pipe or without it."""
    assert writer.write(data) == len(data)
    reader.wait()
    return reader.read(1 << 16) == data


def no_pipe(*_: Any) -> tuple[int, int]:
    raise OSError(24, "Too many open files")


# -- whether there is a pipe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_pair", PAIRS.values(), ids=PAIRS)
def test_frames_go_through_a_pipe_on_one_node_alone(make_pair: Any) -> None:
    ends = ends_of(*make_pair())
    through_a_pipe = ends.writer.fileno() != ends.writer.sock.fileno()
    assert through_a_pipe == ends.writer.passes_descriptors == (make_pair is PAIRS["unix"])
    ends.send("value", 1)
    assert ends.receive() == "value"
    ends.close()


def test_there_is_no_pipe_where_a_reader_that_has_gone_would_end_the_process() -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        ends = ends_of(*socket.socketpair())
        assert not ends.writer.passes_descriptors
        ends.send(np.arange(MEGABYTE))
        flushing = in_a_thread(lambda: flush_all(ends.writer))
        np.testing.assert_array_equal(ends.receive(), np.arange(MEGABYTE))
        assert joined(flushing)
        ends.reader.stream.let_go()
        with pytest.raises(WireClosedError):
            ends.send(1)
        ends.close()
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_there_is_no_pipe_where_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module.os, "pipe2", no_pipe)
    ends = ends_of(*socket.socketpair())
    assert not ends.writer.passes_descriptors
    ends.send("value", 1)
    assert ends.receive() == "value"
    ends.close()


def test_a_pipe_that_cannot_grow_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def may_not(*_: Any) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(stream_module.fcntl, "fcntl", may_not)
    writer, reader = a_pair()
    writer.give_pipe()
    assert reader.take_pipe()
    assert writer.passes_descriptors
    assert crosses(writer, reader, b"data")


def test_a_reader_waits_for_word_of_the_pipe() -> None:
    writer, reader = a_pair()
    assert not reader.take_pipe()
    writer.give_pipe()
    assert reader.take_pipe()
    assert crosses(writer, reader, b"data")


def test_what_is_no_pipe_is_not_taken_and_is_closed() -> None:
    writer, reader = a_pair()
    before, other = num_descriptors(), os.eventfd(0)
    assert writer.pass_on(other)
    os.close(other)
    with pytest.raises(WireClosedError, match="no pipe"):
        reader.take_pipe()
    assert num_descriptors() == before


def test_who_has_gone_neither_gives_nor_takes_a_pipe() -> None:
    writer, reader = a_pair()
    writer.let_go()
    with pytest.raises(WireClosedError):
        reader.take_pipe()
    writer, reader = a_pair()
    reader.let_go()
    with pytest.raises(WireClosedError):
        writer.give_pipe()


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["reader", "writer"])
@pytest.mark.parametrize("how", ["shut", "let_go"])
def test_all_that_came_before_the_end_is_read_and_then_the_end_is_told(near: Ends, who: str, how: str) -> None:
    if (who, how) == ("reader", "let_go"):
        return  # it reads nothing any more
    writer, reader = near.writer.stream, near.reader.stream
    for _ in range(3):
        assert writer.write(b"x" * 1000) == 1000
    getattr(getattr(near, who).stream, how)()
    assert [reader.read(1000) for _ in range(3)] == [b"x" * 1000] * 3
    for _ in range(2):
        with pytest.raises(WireClosedError):
            reader.read(1000)
        with pytest.raises(WireClosedError):
            reader.read_into(memoryview(bytearray(10)))
        reader.wait()  # comes back at once


def test_who_finds_no_room_is_told_that_the_reader_has_shut(near: Ends) -> None:
    writer = near.writer.stream
    while writer.write(bytes(4096)):
        continue
    assert (writer.write(b"more"), writer.write_all([b"more", b"still"])) == (0, 0)
    near.reader.shut()
    for write in (lambda: writer.write(b"more"), lambda: writer.write_all([b"more", b"still"])):
        with pytest.raises(WireClosedError):
            write()


def test_who_writes_to_a_reader_that_has_gone_is_told_and_lives(near: Ends) -> None:
    near.reader.stream.let_go()
    for write in (lambda: near.writer.stream.write(b"x"), lambda: near.writer.stream.write_all([b"x", b"y"])):
        with pytest.raises(WireClosedError):
            write()
    with pytest.raises(WireClosedError):
        near.writer.stream.pass_on(0)


# -- descriptors beside it ---------------------------------------------------------------------------------------------


def test_where_there_is_no_room_for_a_descriptor_the_value_goes_through_the_stream(near: Ends) -> None:
    with open(os.devnull) as other:
        while near.writer.stream.pass_on(other.fileno()):
            continue
    pool, value = SegmentPool(4 * MEGABYTE), np.arange(MEGABYTE // 8)
    encoded = encode(value)
    segment, _ = pool.take(encoded.buffer_bytes())
    assert segment is not None
    near.send_through(segment, encoded)
    assert segment.is_free()
    flushing = in_a_thread(lambda: flush_all(near.writer))
    np.testing.assert_array_equal(near.receive(), value)
    assert joined(flushing)


def test_who_is_owed_a_descriptor_is_told_that_none_has_come(near: Ends) -> None:
    for reader in (near.reader.stream, a_pair()[1]):
        with pytest.raises(LookupError):
            reader.take_descriptor()
    near.writer.shut()
    with pytest.raises((OSError, LookupError)):
        near.reader.stream.take_descriptor()


@pytest.mark.parametrize("num_bytes", range(8))
def test_what_is_behind_so_many_bytes(num_bytes: int) -> None:
    assert b"".join(behind([b"ab", b"", memoryview(b"cde"), b"f"], num_bytes)) == b"abcdef"[num_bytes:]


def test_a_frame_of_any_length_crosses_whatever_the_room(near: Ends) -> None:
    for number, size in enumerate((0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 3 * MEGABYTE)):
        value = os.urandom(size)
        near.send([value], number)
        flushing = in_a_thread(lambda: flush_all(near.writer))
        assert near.receive() == [value]
        assert joined(flushing), LONG_S
