"""What a wire makes of a peer that does not send frames."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from leaks import nothing_left
from wires import GENERATION, MEGABYTE, PAIRS, ends_of, next_frame

from cgexec.engine.frames import HEADER, Frame, join, pack
from cgexec.engine.payload import decode, encode
from cgexec.engine.stream import Stream, WireClosedError
from cgexec.engine.wire import Wire


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


# -- what is no frame --------------------------------------------------------------------------------------------------


def frame_of(generation: int = GENERATION, **fields: int) -> bytes:
    head = {"kind": 1, "flags": 0, "mark": 0, "buffers": 0, "segment": 0, "payload": 3, "region": 3, **fields}
    return HEADER.pack(
        head["kind"],
        head["flags"],
        head["mark"],
        generation,
        head["buffers"],
        head["segment"],
        1,
        head["payload"],
        head["region"],
    ) + bytes(min(head["region"], 100))


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\n\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "another generation": frame_of(generation=GENERATION - 1),
    "unknown kind": frame_of(kind=9),
    "longer than anything": frame_of(region=2**63, payload=2**63),
    "lengths that wrap": frame_of(buffers=1, payload=2**64 - 8, region=8),
    "a buffer beyond the region": frame_of(buffers=2, payload=0, region=16)[: HEADER.size] + b"\xff" * 16,
    "bytes left over": frame_of(payload=2),
    "a mark of no segment": frame_of(mark=1),
    "a segment that was never passed": frame_of(segment=5, buffers=0),
    "a new segment without a descriptor": frame_of(segment=5, flags=1),
    "a new segment that is forgotten": frame_of(kind=4, segment=5, flags=1),
    "half a frame": frame_of(payload=100, region=100)[:90],
    "half a long frame": frame_of(payload=MEGABYTE, region=MEGABYTE),
    "half a header": frame_of()[:20],
    "nothing": b"",
}


def receive_all(wire: Wire) -> list[Frame]:
    """Return every frame until the wire ends."""
    frames = []
    try:
        while True:
            frames.append(next_frame(wire))
    except WireClosedError:
        return frames


@pytest.mark.parametrize("make_pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_frame_ends_the_wire_behind_the_frames_before_it(data: bytes, make_pair: Any) -> None:
    here, there = make_pair()
    wire = Wire(Stream(there), GENERATION, lambda _: None)
    here.sendall(join(pack(encode("before"), GENERATION, 0)) + data)
    here.shutdown(socket.SHUT_WR)
    assert [decode(frame) for frame in receive_all(wire)] == ["before"]
    here.close()


@pytest.mark.parametrize(
    "data",
    [GARBAGE["bytes left over"], GARBAGE["a buffer beyond the region"], GARBAGE["a segment that was never passed"]],
    ids=["left over", "beyond", "never passed"],
)
def test_nothing_is_delivered_behind_what_was_no_frame(data: bytes) -> None:
    here, there = socket.socketpair()
    wire = Wire(Stream(there), GENERATION, lambda _: None)
    here.sendall(data + join(pack(encode("behind"), GENERATION, 1)))
    for _ in range(2):
        with pytest.raises(WireClosedError):
            next_frame(wire)
    here.close()


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("open_one", [lambda: os.eventfd(0), lambda: os.memfd_create("unsealed")], ids=["event", "mem"])
def test_descriptors_that_are_no_segments_end_the_wire_and_are_closed(flags: int, open_one: Callable[[], int]) -> None:
    ends = ends_of(*socket.socketpair())
    descriptors = [open_one() for _ in range(3)]
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    ends.writer.sock.sendmsg([b"+"], passed)
    ends.writer.stream.write(frame_of(segment=5, flags=flags) + frame_of())
    for descriptor in descriptors:
        os.close(descriptor)
    ends.writer.shut()
    assert receive_all(ends.reader) == []
    with pytest.raises(WireClosedError):
        ends.receive()
    ends.close()
