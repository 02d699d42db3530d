"""Frames: what is packed is unpacked, and what comes in from a peer is not believed."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgexec.engine import frames
from cgexec.engine.frames import (
    ALIGNMENT,
    HEADER,
    MOST_BUFFERS,
    MOST_BYTES,
    Encoded,
    Frame,
    FrameError,
    Kind,
    aligned,
    join,
    offsets,
    pack,
    unpack,
    unpack_header,
    unpack_next,
    unpack_region,
)

GENERATION, EXECUTION = 3, 2**40
LARGE = 1 << 17
SIZES = [(), (0,), (1,), (64,), (0, 0, 0), (5, 0, 64, 65, 1), (LARGE,), (3, LARGE, 0, 7), tuple(range(300))]


def contents(sizes: Sequence[int]) -> list[bytes]:
    """Return bytes of these sizes, no two alike."""
    return [(bytes(range(251)) * (size // 251 + 2))[index % 251 :][:size] for index, size in enumerate(sizes)]


def encoded(sizes: Sequence[int], payload: bytes = b"payload", kind: Kind = Kind.VALUE) -> Encoded:
    return Encoded(kind, payload, [memoryview(content) for content in contents(sizes)])


def packed(sizes: Sequence[int] = (), payload: bytes = b"payload") -> bytes:
    return join(pack(encoded(sizes, payload), GENERATION, EXECUTION))


def header(
    kind: int = 1, flags: int = 0, mark: int = 0, buffers: int = 0, segment: int = 0, payload: int = 0, region: int = 0
) -> bytes:
    return HEADER.pack(kind, flags, mark, GENERATION, buffers, segment, EXECUTION, payload, region)


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if more than a megabyte is allocated meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def seen(data: bytes) -> Frame | None:
    """Return the frame that is seen at a glance; what else is seen is what ``unpack_header`` finds."""
    try:
        found = unpack_next(data)
    except FrameError:
        with pytest.raises(FrameError):
            unpack_header(data)
        return None
    if isinstance(found, Frame):
        return found
    assert found == (None if len(data) < HEADER.size else unpack_header(data))
    return None


def frame_or_refusal(data: bytes) -> Frame | None:
    """Return the frame that ``data`` is, None if it is refused; it never holds more than ``data`` does.

    One that is seen at a glance is the one that a closer look finds.
    """
    plain = seen(data)
    if plain is not None and HEADER.size + len(plain.payload) < len(data):
        assert unpack_next(bytes(7) + data, 7) == plain
        data = data[: HEADER.size + len(plain.payload)]
    try:
        frame = unpack(data)
    except FrameError:
        assert plain is None
        return None
    assert plain in (None, Frame(frame.kind, frame.generation, frame.execution, bytes(frame.payload)))
    assert len(frame.payload) + sum(buffer.nbytes for buffer in frame.buffers) <= len(data) - HEADER.size
    return frame


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)} buffers of {sum(sizes)} bytes")
@pytest.mark.parametrize("payload", [b"", b"payload", bytes(LARGE)], ids=["empty", "short", "long"])
def test_what_is_packed_is_unpacked(sizes: tuple[int, ...], payload: bytes) -> None:
    frame = unpack(packed(sizes, payload))
    assert (frame.kind, frame.generation, frame.execution) == (Kind.VALUE, GENERATION, EXECUTION)
    assert bytes(frame.payload) == payload
    assert [bytes(buffer) for buffer in frame.buffers] == contents(sizes)


def test_a_frame_without_buffers_is_seen_at_a_glance() -> None:
    frame = Frame(Kind.VALUE, GENERATION, EXECUTION, b"payload")
    assert unpack_next(packed()) == unpack_next(packed() + b"x") == unpack_next(b"abc" + packed(), 3) == frame


@pytest.mark.parametrize("data", [packed((1,)), packed()[:-1], join(pack(Encoded(Kind.FORGET, b""), 0, 0, 7))])
def test_of_any_other_frame_the_header_is_seen(data: bytes) -> None:
    assert unpack_next(data) == unpack_next(b"abc" + data, 3) == unpack_header(data)
    for end in range(HEADER.size):
        assert unpack_next(data[:end]) is None


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("generation", "execution"), [(0, 0), (2**32 - 1, 2**64 - 1)])
def test_the_tag_of_a_frame_is_kept(kind: Kind, generation: int, execution: int) -> None:
    frame = unpack(join(pack(encoded((3,), kind=kind), generation, execution)))
    assert (frame.kind, frame.generation, frame.execution) == (kind, generation, execution)


@given(payload=st.binary(max_size=200), buffers=st.lists(st.binary(max_size=200), max_size=12))
@settings(deadline=None)
def test_any_payload_and_buffers_are_carried(payload: bytes, buffers: list[bytes]) -> None:
    frame = unpack(join(pack(Encoded(Kind.VALUE, payload, [*map(memoryview, buffers)]), 0, 1)))
    assert bytes(frame.payload) == payload
    assert [bytes(buffer) for buffer in frame.buffers] == buffers


@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_every_buffer_begins_aligned_and_none_overlap(sizes: tuple[int, ...]) -> None:
    data = packed(sizes)
    start = address(data) + HEADER.size
    end = len(sizes) * 8 + len(b"payload")
    for buffer in unpack(data).buffers:
        if buffer.nbytes:
            where = address(buffer) - start
            assert where % ALIGNMENT == 0
            assert where >= end
            end = where + buffer.nbytes


@pytest.mark.parametrize(("num_bytes", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128), (2**40 + 1, 2**40 + 64)])
def test_sizes_are_rounded_up_to_the_alignment(num_bytes: int, expected: int) -> None:
    assert aligned(num_bytes) == expected


def test_the_room_for_buffers_is_what_they_take_in_a_segment() -> None:
    each = encoded((5, 0, 64, 65))
    starts = offsets(0, [buffer.nbytes for buffer in each.buffers])
    assert starts == [0, 64, 64, 128]
    assert each.buffer_bytes() == aligned(starts[-1] + 65)


# -- pieces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (10, 20)], ids=len)
def test_a_short_frame_is_one_piece(sizes: tuple[int, ...]) -> None:
    assert len(pack(encoded(sizes), GENERATION, EXECUTION)) == 1


def test_long_buffers_and_payloads_are_not_copied_into_the_pieces() -> None:
    each = encoded((LARGE, 1, LARGE), bytes(LARGE))
    pieces = pack(each, GENERATION, EXECUTION)
    assert any(piece is each.payload for piece in pieces)
    assert all(any(piece is buffer for piece in pieces) for buffer in each.buffers if buffer.nbytes == LARGE)
    assert pack(encoded((), each.payload), GENERATION, EXECUTION)[1] is each.payload


def test_any_number_of_short_buffers_is_a_few_pieces() -> None:
    sizes = [*[24] * 5_000, LARGE, *[24] * 5_000]
    pieces = pack(encoded(sizes), GENERATION, EXECUTION)
    assert len(pieces) == 5  # what comes before the table, the table, and what comes before, at and behind the long one
    assert [len(buffer) for buffer in unpack(join(pieces)).buffers] == sizes


@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_the_header_says_how_long_the_pieces_are_together(sizes: tuple[int, ...]) -> None:
    pieces = pack(encoded(sizes), GENERATION, EXECUTION)
    head = unpack_header(join(pieces))
    assert sum(len(piece) for piece in pieces) == HEADER.size + head.region_bytes
    assert (head.num_buffers, head.payload_bytes) == (len(sizes), len(b"payload"))


# -- segments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [0, 1, 2**16 - 1])
@pytest.mark.parametrize("new", [True, False])
def test_the_buffers_of_a_frame_that_names_a_segment_are_found_there(new: bool, mark: int) -> None:
    sizes = (100, 0, LARGE)
    shared = bytearray(1 << 20)
    for content, start in zip(contents(sizes), offsets(0, sizes), strict=True):
        shared[start : start + len(content)] = content
    data = join(pack(encoded(sizes), GENERATION, EXECUTION, 7, mark, new))
    assert len(data) < 200

    head = unpack_header(data)
    assert (head.segment, head.new_segment, head.mark) == (7, new, mark)
    frame = unpack_region(head, memoryview(data)[HEADER.size :], memoryview(shared))
    assert bytes(frame.payload) == b"payload"
    assert [bytes(buffer) for buffer in frame.buffers] == contents(sizes)


def test_buffers_that_reach_beyond_their_segment_are_refused() -> None:
    data = join(pack(encoded((100, 100)), GENERATION, EXECUTION, 7))
    head, region = unpack_header(data), memoryview(data)[HEADER.size :]
    assert unpack_region(head, region, memoryview(bytes(228))).buffers[1].nbytes == 100
    with pytest.raises(FrameError):
        unpack_region(head, region, memoryview(bytes(227)))


def test_a_frame_in_one_piece_cannot_name_a_segment() -> None:
    with pytest.raises(FrameError):
        unpack(join(pack(encoded((100,)), GENERATION, EXECUTION, 7)))


# -- what is no frame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        header(kind=0),
        header(kind=7),
        header(kind=255),
        header(flags=1),  # a new segment, and none is named
        header(flags=2, segment=1),
        header(mark=1),  # of no segment
        header(buffers=MOST_BUFFERS + 1, region=MOST_BYTES),
        header(region=MOST_BYTES + 1),
        header(region=2**64 - 1),
        header(payload=1, region=0),
        header(buffers=1, region=7),
        header(buffers=1, segment=1, region=8),  # no last byte
        header(buffers=1, segment=1, payload=5, region=13),
        header(buffers=1, segment=1, payload=5, region=15),  # and more than that
        header(buffers=1, payload=2**64 - 8, region=8),  # the sum would wrap to 0
        header(payload=2**64 - 1, region=2**64 - 1),
    ],
    ids=lambda data: data.hex(),
)
def test_a_header_that_nobody_packs_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_header(data)


def test_a_header_is_found_where_it_begins() -> None:
    assert unpack_header(b"before" + packed((1,)) + b"behind", len(b"before")).num_buffers == 1


@pytest.mark.parametrize("sizes", [(), (10, 20)], ids=len)
def test_a_frame_that_is_cut_or_has_a_tail_is_refused(sizes: tuple[int, ...]) -> None:
    data = packed(sizes)
    for end in range(len(data)):
        with pytest.raises(FrameError):
            unpack(data[:end])
    with pytest.raises(FrameError):
        unpack(data + b"\0")


@pytest.mark.parametrize("sizes", [(), (10, 20)], ids=len)
def test_bytes_left_over_in_the_region_are_refused(sizes: tuple[int, ...]) -> None:
    data = packed(sizes)
    head = unpack_header(data)
    longer = header(buffers=head.num_buffers, payload=head.payload_bytes, region=head.region_bytes + 9)
    with pytest.raises(FrameError):
        unpack(longer + data[HEADER.size :] + bytes(9))


ABSURD = [2**30, 2**40, 2**62, 2**63, 2**64 - 64, 2**64 - 1]


@pytest.mark.parametrize("length", ABSURD)
@pytest.mark.parametrize("others", [[], [0], [1, 2**63], [2**64 - 1] * 3], ids=len)
def test_absurd_lengths_of_buffers_are_refused_and_cost_nothing(length: int, others: list[int]) -> None:
    lengths = [*others, length, *others]
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    data = header(buffers=len(lengths), region=len(table)) + table
    with little_memory(), pytest.raises(FrameError):
        unpack(data)


@pytest.mark.parametrize("length", ABSURD)
@pytest.mark.parametrize("field", ["payload", "region", "both"])
@pytest.mark.parametrize("buffers", [0, 1, MOST_BUFFERS, 2**32 - 1])
def test_absurd_lengths_in_the_header_are_refused_and_cost_nothing(length: int, field: str, buffers: int) -> None:
    payload, region = (length if field != "region" else 0), (length if field != "payload" else 0)
    with little_memory(), pytest.raises(FrameError):
        unpack(header(buffers=buffers, payload=payload, region=region) + bytes(1000))


def test_more_buffers_than_anybody_packs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST_BUFFERS", 8)
    assert len(unpack(packed((1,) * 8)).buffers) == 8
    with pytest.raises(FrameError, match="9 buffers"):
        unpack(packed((1,) * 9))


def test_the_header_is_48_bytes_whatever_is_in_it() -> None:
    assert HEADER.size == 48
    assert len(pack(encoded(()), 2**32 - 1, 2**64 - 1)[0]) == 48 + len(b"payload")


@given(st.binary(max_size=500))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    frame = frame_or_refusal(data)
    assert frame is None or frame.kind in Kind


@given(
    st.tuples(*[st.integers(0, most) for most in (7, 3, 1, 20, 1)]),
    st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
    st.lists(st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1)), max_size=5),
    st.binary(max_size=300),
)
@settings(deadline=None, max_examples=300)
def test_any_header_over_any_region_is_a_frame_or_refused(
    small: tuple[int, int, int, int, int], payload: int, table: list[int], rest: bytes
) -> None:
    kind, flags, mark, buffers, segment = small
    region = struct.pack(f"<{len(table)}Q", *table) + rest
    frame = frame_or_refusal(header(kind, flags, mark, buffers, segment, payload, len(region)) + region)
    assert frame is None or len(frame.buffers) == buffers


@given(st.sampled_from(SIZES), st.lists(st.integers(0, 8 * 10_000), min_size=1, max_size=4), st.integers(0, 10_000))
@settings(deadline=None, max_examples=300)
def test_flipped_bits_and_cut_ends_give_a_frame_or_are_refused(sizes: Any, bits: list[int], cut: int) -> None:
    data = bytearray(packed(sizes))
    for bit in bits:
        data[bit // 8 % min(len(data), 400)] ^= 1 << bit % 8
    whole = frame_or_refusal(bytes(data))
    assert whole is None or len(whole.payload) < len(data)
    half = frame_or_refusal(bytes(data[: cut % len(data)]))
    assert half is None or whole is None  # one length is right at most
