"""One connection between two processes of a graph, which frames go through.

Writing never waits: what the ``stream`` does not take at once is copied and sent on by the hub's thread. So two stages
that send each other large values do not wait for each other, and a method may write over its arrays once it has
returned.

A wire is ended by ``shut``, from any thread: whoever waits on it is woken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from cgexec.engine.arrays import made_ahead
from cgexec.engine.frames import (
    HEADER,
    Bytes,
    Encoded,
    Frame,
    FrameError,
    Header,
    Kind,
    pack,
    unpack_next,
    unpack_region,
)
from cgexec.engine.late_numpy import numpy
from cgexec.engine.segments import Mappings, Segment
from cgexec.engine.stream import Stream, WireClosedError, behind

_CHUNK_BYTES = 1 << 16
_HEADER_BYTES = HEADER.size
_FORGET = Kind.FORGET  # looked up on an enum, a member takes several times as long


class Wire:
    """One end of a connection whose other end has proved itself. One thread writes, one reads; any may shut."""

    def __init__(self, stream: Stream, generation: int, on_backlog: Callable[[Wire], None]) -> None:
        self.stream = stream
        self.sock = stream.sock
        self._generation = generation
        self._on_backlog = on_backlog
        self._sending = threading.Lock()
        self._unsent: list[Bytes] = []  # memory of our own
        self._shut = False
        # What has been received and not yet been made into frames:
        self._data = b""
        self._start = 0
        self._region: Any = None  # memory for a frame that is longer than a chunk
        self._header: Header | None = None
        self._filled = 0
        self._awaited: Frame | None = None  # all of it but the last byte, which says that its buffers are there
        self._mappings = Mappings()
        self._no_frame = ""  # why nothing behind what has been received can be believed
        self.amid = False  # whether there is any of the above: something that is no whole frame, perhaps of a long one
        # What the other end has seen:
        self._announced: set[int] = set()

    def fileno(self) -> int:
        """Return the descriptor that a backlog waits for."""
        return self.stream.fileno()

    @property
    def passes_descriptors(self) -> bool:
        """Whether its frames may name segments."""
        return self.stream.passes_descriptors

    @property
    def has_backlog(self) -> bool:
        """Whether some of what was written is yet to be sent."""
        return bool(self._unsent)

    def shut(self) -> None:
        """End the connection; idempotent. Wakes whoever waits on it, here and at the other end."""
        self._shut = True
        self.stream.shut()

    # -- writing -----------------------------------------------------------------------------------------------------

    def pack(self, encoded: Encoded, execution: int, segment: Segment) -> list[Bytes]:
        """Return a frame for ``send``, which is to follow. Its buffers are to be in ``segment`` by then.

        Raises:
            WireClosedError: the connection has ended.
        """
        number = segment.number
        if number in self._announced:
            return pack(encoded, self._generation, execution, number, segment.lend())
        if not self.stream.passes_descriptors or not self.stream.pass_on(segment.descriptor):
            return pack(encoded, self._generation, execution)
        self._announced.add(number)
        return pack(encoded, self._generation, execution, number, segment.lend(), True)

    def forget(self, number: int) -> None:
        """Tell the other end that a segment is not used any more."""
        if number in self._announced:
            self._announced.discard(number)
            self.send(pack(Encoded(_FORGET, b""), self._generation, 0, number))

    def send(self, pieces: Sequence[Bytes]) -> None:
        """Send a frame of this generation, as ``pack`` made it; does not wait. Raises as ``pack``."""
        with self._sending:
            if self._shut:
                raise WireClosedError("the connection was closed")
            if not self._unsent:
                if len(pieces) == 1:  # as a rule
                    sent = self.stream.write(pieces[0])
                    if sent == len(pieces[0]):
                        return
                else:
                    sent = self.stream.write_all(pieces)
                pieces = behind(pieces, sent)
                if not pieces:
                    return
            self._unsent += [bytes(piece) for piece in pieces]
        self._on_backlog(self)

    def flush(self) -> bool:
        """Send on what could not be sent before; returns whether nothing is left. Does not wait, raises nothing."""
        with self._sending:
            try:
                self._unsent = behind(self._unsent, self.stream.write_all(self._unsent))
            except WireClosedError:
                self._unsent = []
            return not self._unsent

    # -- reading -----------------------------------------------------------------------------------------------------

    def receive(self, *, once: bool = False) -> Frame | None:
        """Return the next frame; None if it has not arrived whole. Does not wait: ``stream.wait`` does.

        ``once``: receives no more than once, and so takes no time to speak of, unless the wire is ``amid`` a frame.

        Raises:
            WireClosedError: the connection has ended, and every whole frame that came before has been returned.
        """
        if not self.amid:  # nothing is left from before, as a rule
            data = self.stream.read(_CHUNK_BYTES)
            if data is None:
                return None
            try:
                found = unpack_next(data)
            except (FrameError, MemoryError) as error:
                raise self._none(error) from error
            if type(found) is Frame and found.generation == self._generation:
                end = _HEADER_BYTES + len(found.payload)
                if end < len(data):
                    self._data, self._start, self.amid = data, end, True
                return found
            self._data = data
            return self._received(once, found)
        return self._received(once) if self._awaited is None else self._receive_last()

    def _receive_last(self) -> Frame | None:
        """Do as ``receive`` for a frame of which nothing is missing but the last byte."""
        data = self.stream.read(_CHUNK_BYTES)
        if data is None:
            return None
        frame, self._awaited = self._awaited, None
        self._data, self._start = (data, 1) if len(data) > 1 else (b"", 0)
        self.amid = len(data) > 1
        return frame

    def receive_into(self, arrived: deque[Frame], *, once: bool = False) -> None:
        """Append every frame that has arrived whole; does not wait. Raises as ``receive``, when those are appended."""
        frame = self.receive(once=once)
        while frame is not None:
            arrived.append(frame)
            if not self.amid:  # as a rule
                return
            frame = self._received(True)

    def _none(self, error: Exception) -> WireClosedError:
        """End the wire: what has been received is no frame, and nothing behind it can be believed."""
        self._no_frame, self.amid = f"what was received is no frame: {error}", True
        self.shut()
        return WireClosedError(self._no_frame)

    def _received(self, once: bool, seen: Frame | Header | None = None) -> Frame | None:
        """Do as ``receive``; ``seen`` is what comes next, as far as it has been looked at."""
        if self._no_frame:
            raise WireClosedError(self._no_frame)
        try:
            while True:
                frame, seen = self._next(seen), None
                if frame is not None:
                    if frame.kind is not _FORGET:
                        return frame
                elif once:
                    return None
                elif self._awaited is not None:
                    return self._receive_last()
                elif not self._fill():
                    return None
        except (FrameError, MemoryError, KeyError, IndexError, ValueError) as error:
            raise self._none(error) from error
        finally:
            self.amid = self._is_amid()

    def _is_amid(self) -> bool:
        return bool(self._data or self._no_frame) or self._header is not None or self._awaited is not None

    def _next(self, seen: Frame | Header | None) -> Frame | None:
        """Return the next frame, if all of it has been received."""
        if self._header is not None:
            return self._next_long(self._header)
        header = seen or unpack_next(self._data, self._start)
        if header is None:
            return None
        if header.generation != self._generation:
            raise FrameError(f"it is of generation {header.generation}, not {self._generation}")
        begin = self._start + _HEADER_BYTES
        if isinstance(header, Frame):
            self._consume(begin + len(header.payload))
            return header
        have, end = len(self._data) - begin, begin + header.region_bytes
        if have >= header.region_bytes:
            region = memoryview(self._data)[begin:end]
            if header.num_buffers and not header.segment:
                region = memoryview(bytes(region))  # arrays want to be aligned
            self._consume(end)
            return self._frame(header, region)
        if have == header.region_bytes - 1 and header.segment and header.kind is not _FORGET:
            self._awaited = made_ahead(self._frame(header, memoryview(self._data)[begin:]))
            self._data, self._start = b"", 0
        elif header.region_bytes > _CHUNK_BYTES:
            self._header, self._region = header, numpy().empty(header.region_bytes, "uint8")
            self._region[:have] = numpy().frombuffer(self._data, "uint8")[begin:]
            self._filled, self._data, self._start = have, b"", 0
        return None

    def _consume(self, end: int) -> None:
        """Have made a frame of what has been received up to ``end``."""
        self._start = end
        if end == len(self._data):
            self._data, self._start = b"", 0

    def _next_long(self, header: Header) -> Frame | None:
        if self._region is None or self._filled < header.region_bytes:
            return None
        region = memoryview(self._region)
        self._header = self._region = None
        return self._frame(header, region)

    def _frame(self, header: Header, region: memoryview) -> Frame:
        if header.new_segment:
            try:
                self._mappings.add(header.segment, self.stream.take_descriptor())
            except (OSError, LookupError) as error:
                raise FrameError(str(error)) from error
        if header.kind is _FORGET:
            self._mappings.forget(header.segment)
        elif header.segment:
            return unpack_region(header, region, self._mappings.view(header.segment, header.mark))
        return unpack_region(header, region)

    def _fill(self) -> bool:
        """Receive what has come; False if nothing has."""
        if self._region is not None:
            received = self.stream.read_into(memoryview(self._region)[self._filled :])
            self._filled += received
            return received > 0
        data = self.stream.read(_CHUNK_BYTES)
        if data is None:
            return False
        self._data = data if self._start == len(self._data) else self._data[self._start :] + data
        self._start = 0
        return True
