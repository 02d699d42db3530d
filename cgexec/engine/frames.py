"""What an edge of the graph carries: frames, never bare values.

::

    header (48 bytes)                                  region
    kind  flags  mark  generation  buffers  segment  │ lengths of the buffers │ payload │ buffers, each aligned
    execution  payload bytes  region bytes           │

A frame says which execution of which generation it belongs to, so that every reader can check it. The buffers of a
frame that names a segment are not in the region: they lie in that segment of shared memory, in the same order and
aligned alike, until its reader sets the mark (``segments``). Such a frame ends with one more byte, which may be sent
when the buffers are there, and the rest of it before: its reader gets ready meanwhile.

Everything here is a pure function of bytes. What comes in from a peer is checked before a byte of it is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

Bytes = bytes | memoryview

HEADER = struct.Struct("<BBHIIIQQQ8x")
_HEADER_BYTES = HEADER.size
ALIGNMENT = 64
MOST_BUFFERS = 1 << 20
SHORT_BYTES = 1 << 14  # up to here a plain value is serialised, sent, received and loaded in no time to speak of
MOST_BYTES = 1 << 40  # no frame is longer: beyond any machine's memory, below what overflows

_NEW_SEGMENT = 1  # flag: the segment's descriptor comes with this frame
_PADDING = bytes(ALIGNMENT)
_LAST = b"\1"  # of a frame that names a segment


class FrameError(Exception):
    """What was received is no frame."""


class Kind(IntEnum):
    """What a frame carries."""

    VALUE = 1  # a pickled value, which may take anybody's code to load
    BYTES = 2  # a ``bytes`` object as it is
    ERROR = 3  # why there is no value (``failures``)
    FORGET = 4  # nothing: the segment it names is not used any more
    PLAIN = 5  # a pickled value that runs no code of anybody's as it is loaded
    ARRAY = 6  # an array of numbers, without a pickle (``arrays``)


_KINDS = {int(kind): kind for kind in Kind}
_WITH_PAYLOAD = {int(kind): kind for kind in Kind if kind is not Kind.FORGET}


# Frames and what is in them are tuples, and made by ``made``: their class's own way runs a function of Python's.
made = tuple.__new__


class Encoded(NamedTuple):
    """A value ready to be sent: what is pickled, and the buffers that were left out of the pickle."""

    kind: Kind
    payload: bytes
    buffers: Sequence[memoryview] = ()

    def buffer_bytes(self) -> int:
        """Return how much room the buffers take, each aligned."""
        return sum([aligned(buffer.nbytes) for buffer in self.buffers])


class Header(NamedTuple):
    """The head of a frame, checked."""

    kind: Kind
    new_segment: bool
    mark: int
    generation: int
    num_buffers: int
    segment: int
    execution: int
    payload_bytes: int
    region_bytes: int


class Frame(NamedTuple):
    """One frame as it arrived."""

    kind: Kind
    generation: int
    execution: int
    payload: Bytes
    buffers: Sequence[Any] = ()


def aligned(num_bytes: int) -> int:
    """Return ``num_bytes``, rounded up to the alignment of buffers."""
    return (num_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def offsets(start: int, lengths: Sequence[int]) -> list[int]:
    """Return where each of the buffers of these ``lengths`` begins, the first not before ``start``."""
    found = []
    for length in lengths:
        start = aligned(start)
        found.append(start)
        start += length
    return found


def pack(
    encoded: Encoded, generation: int, execution: int, segment: int = 0, mark: int = 0, new_segment: bool = False
) -> list[Bytes]:
    """Return the pieces of a frame, in order. With a ``segment`` the buffers are left out: they are in there."""
    kind, payload, buffers = encoded
    if not buffers:
        size = len(payload)
        head = HEADER.pack(kind, 0, 0, generation, 0, segment, execution, size, size)
        return [head + payload] if size < _JOINED_BYTES else [head, payload]
    lengths = [buffer.nbytes for buffer in buffers]
    table = _table(len(lengths)).pack(*lengths)
    size, end = len(payload), len(table) + len(payload)
    pieces: list[Bytes] = [table, payload]
    if segment:
        pieces.append(_LAST)
        end += len(_LAST)
    else:
        for buffer, offset in zip(buffers, offsets(end, lengths), strict=True):
            pieces += [_PADDING[: offset - end], buffer]
            end = offset + buffer.nbytes
    flags = _NEW_SEGMENT if new_segment else 0
    head = HEADER.pack(kind, flags, mark, generation, len(lengths), segment, execution, size, end)
    return [head + table + payload + _LAST] if segment and end < _JOINED_BYTES else _joined([head, *pieces])


@lru_cache(16)
def _table(num_buffers: int) -> struct.Struct:
    """Return how the lengths of so many buffers are written down."""
    return struct.Struct(f"<{num_buffers}Q")


def _joined(pieces: list[Bytes]) -> list[Bytes]:
    """Return ``pieces`` with those that are small copied together."""
    joined: list[Bytes] = []
    small: list[Bytes] = []
    for piece in pieces:
        if len(piece) < _JOINED_BYTES:
            small.append(piece)
        else:
            joined += [b"".join(small), piece]
            small = []
    return [*joined, b"".join(small)] if small else joined


_JOINED_BYTES = 1 << 16  # pieces shorter than this are copied together: one is sent faster than several


def unpack_header(data: Bytes, start: int = 0) -> Header:
    """Return the header that begins at ``start`` of ``data``, which holds all of it.

    Raises:
        FrameError: it is no header that ``pack`` could have written.
    """
    return _checked(HEADER.unpack_from(data, start))


def _checked(fields: tuple[int, ...]) -> Header:
    kind, flags, mark, generation, num_buffers, segment, execution, payload_bytes, region_bytes = fields
    if kind not in _KINDS or flags & ~_NEW_SEGMENT or ((flags or mark) and not segment):
        raise FrameError(f"kind {kind}, flags {flags}, mark {mark}")
    filled = 8 * num_buffers + payload_bytes
    fits = filled + len(_LAST) == region_bytes if segment and num_buffers else filled <= region_bytes
    if num_buffers > MOST_BUFFERS or region_bytes > MOST_BYTES or not fits:
        raise FrameError(f"{num_buffers} buffers and {payload_bytes} bytes in a region of {region_bytes} bytes")
    known = _KINDS[kind], bool(flags)
    return made(Header, (*known, mark, generation, num_buffers, segment, execution, payload_bytes, region_bytes))


def unpack_next(data: bytes, start: int = 0) -> Frame | Header | None:
    """Return the frame that begins at ``start`` of ``data``, if all of it is there and it has no buffers, as most.

    Such a frame is ``HEADER.size`` bytes long and as many as its payload. Else its header, if all of that is there;
    else None. Raises FrameError as ``unpack_header``.
    """
    begin = start + _HEADER_BYTES
    left = len(data) - begin
    if left < 0:
        return None
    fields = HEADER.unpack_from(data, start)
    kind, flags, mark, generation, num_buffers, segment, execution, payload_bytes, region_bytes = fields
    known = _WITH_PAYLOAD.get(kind)
    if known is None or flags or num_buffers or segment or mark or payload_bytes != region_bytes or region_bytes > left:
        return _checked(fields)
    return made(Frame, (known, generation, execution, data[begin : begin + payload_bytes], ()))


def unpack_region(header: Header, region: memoryview, shared: memoryview | None = None) -> Frame:
    """Return the frame of ``header``; ``shared`` is the memory of the segment that it names.

    Of ``region`` the last byte may be missing where there is such a segment: the buffers are then not to be used yet.

    Raises:
        FrameError: the lengths do not fit the region, or the segment.
    """
    kind, _, _, generation, num_buffers, _, execution, payload_bytes, region_bytes = header
    if not num_buffers:
        if payload_bytes != region_bytes or shared is not None:
            raise FrameError("bytes are left over behind the payload, or a segment without buffers")
        return Frame(kind, generation, execution, region)
    table_bytes = 8 * num_buffers
    end = table_bytes + payload_bytes
    where, filled, limit = (region, end, region_bytes) if shared is None else (shared, 0, shared.nbytes)
    lengths = _table(num_buffers).unpack_from(region)
    buffers = []
    for length in lengths:
        start = aligned(filled)
        filled = start + length
        buffers.append(where[start:filled])
    if filled > limit or (filled != limit and shared is None):
        raise FrameError(f"{sum(lengths)} bytes of buffers do not fill {limit}")
    return made(Frame, (kind, generation, execution, region[table_bytes:end], buffers))


def join(pieces: Sequence[Bytes]) -> bytes:
    """Return a frame in one piece."""
    return b"".join(pieces)


def unpack(data: bytes) -> Frame:
    """Return the frame that ``data`` is, all of it.

    Raises:
        FrameError: it is no frame, or there is more or less of it.
    """
    if len(data) < HEADER.size:
        raise FrameError(f"{len(data)} bytes are shorter than a header")
    header = unpack_header(data)
    if header.segment or HEADER.size + header.region_bytes != len(data):
        raise FrameError(f"a region of {header.region_bytes} bytes in a frame of {len(data)}")
    return unpack_region(header, memoryview(data)[HEADER.size :])
