"""One stream socket between two processes of a graph: frames one way, releases of shared memory the other.

Writing never waits: what the socket does not take at once is copied and sent on by the hub's thread. So two stages that
send each other large values do not wait for each other, and a method may write over its arrays once it has returned.

A wire is ended by ``shut``, from any thread: whoever waits on it is woken. The descriptor is closed when the last user
lets go of the object, never while a thread may be waiting on it: a descriptor that is reused would bring someone else's
data.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cgexec.engine.frames import (
    HEADER,
    Bytes,
    Encoded,
    Frame,
    FrameError,
    Header,
    Kind,
    pack,
    unpack_header,
    unpack_plain,
    unpack_region,
)
from cgexec.engine.late_numpy import numpy
from cgexec.engine.segments import Mappings, Segment

_CHUNK_BYTES = 1 << 16
_MOST_DESCRIPTORS = 8  # received and not yet asked for: each comes with the first byte of its frame
_MOST_PIECES = 512  # for one call of sendmsg; Linux takes 1024
# As plain integers: what an enum's members are combined with is looked up at every use.
_DONT_WAIT = int(socket.MSG_DONTWAIT)
_NOT_NOW = _DONT_WAIT | int(socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_RELEASE = struct.Struct("<I")
_ANCILLARY_BYTES = 4 * socket.CMSG_SPACE(array.array("i").itemsize)


class WireClosedError(Exception):
    """The other end has gone, this end was shut, or what came in was no frame."""


class _Socket(socket.socket):
    """Closes itself when nobody holds it any more: that is how a wire wants it, and no reason to warn."""

    def __del__(self) -> None:
        self.close()


class _Unsent:
    """What of a message has not been sent yet: memory of our own, and the descriptor that goes with its first byte."""

    def __init__(self, pieces: Sequence[Bytes], descriptor: int | None) -> None:
        self.pieces: list[Bytes] = [bytes(piece) for piece in pieces]
        self.descriptor = os.dup(descriptor) if descriptor is not None else None

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Wire:
    """One end of a connection whose other end has proved itself. One thread writes, one reads; any may shut."""

    def __init__(self, sock: socket.socket, generation: int, on_backlog: Callable[[Wire], None]) -> None:
        self.sock = _Socket(fileno=sock.detach())
        self.sock.setblocking(True)  # whatever the process's default timeout of sockets is
        self.passes_descriptors = self.sock.family == socket.AF_UNIX
        self._generation = generation
        self._on_backlog = on_backlog
        self._sending = threading.Lock()
        self._unsent: deque[_Unsent] = deque()
        self._shut = False
        # What has been received and not yet been made into frames:
        self._data = b""
        self._start = 0
        self._region: Any = None  # memory for a frame that is longer than a chunk
        self._header: Header | None = None
        self._filled = 0
        self._descriptors: deque[int] = deque()
        self._mappings = Mappings(self)
        self._no_frame = ""  # why nothing behind what has been received can be believed
        # What the other end has seen:
        self._announced: set[int] = set()

    def fileno(self) -> int:
        """Return the descriptor, to poll."""
        return self.sock.fileno()

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        for unsent in self._unsent:
            unsent.close()

    @property
    def has_backlog(self) -> bool:
        """Whether some of what was written is yet to be sent."""
        return bool(self._unsent)

    def shut(self) -> None:
        """End the connection; idempotent. Wakes whoever waits on it, here and at the other end."""
        self._shut = True
        with suppress(OSError):  # the other end was first
            self.sock.shutdown(socket.SHUT_RDWR)

    # -- writing -----------------------------------------------------------------------------------------------------

    def send(self, encoded: Encoded, execution: int, segment: Segment | None = None) -> None:
        """Send one frame; does not wait. ``segment`` holds its buffers, if given.

        Raises:
            WireClosedError: the connection has ended.
        """
        if segment is None:
            self.send_packed(pack(encoded, self._generation, execution))
            return
        new = segment.number not in self._announced
        segment.holders += 1
        self._announced.add(segment.number)
        pieces = pack(encoded, self._generation, execution, segment.number, new)
        self.send_packed(pieces, segment.descriptor if new else None)

    def forget(self, number: int) -> None:
        """Tell the other end that a segment is not used any more."""
        if number in self._announced:
            self._announced.discard(number)
            self.send_packed(pack(Encoded(Kind.FORGET, b""), self._generation, 0, number))

    def send_packed(self, pieces: Sequence[Bytes], descriptor: int | None = None) -> None:
        """Send a frame of this generation, as ``pack`` made it; does not wait. Raises as ``send``.

        ``descriptor`` goes with its first byte.
        """
        with self._sending:
            if self._shut:
                raise WireClosedError("the connection was closed")
            sent = 0 if self._unsent else self._try(pieces, descriptor)
            if len(pieces) == 1 and sent == len(pieces[0]):
                return
            left = _behind(pieces, sent)
            if not left:
                return
            try:
                self._unsent.append(_Unsent(left, descriptor if sent == 0 else None))
            except OSError as error:  # no descriptor left: nothing that comes later would find its place
                self.shut()
                raise WireClosedError(str(error)) from error
        self._on_backlog(self)

    def _try(self, pieces: Sequence[Bytes], descriptor: int | None) -> int:
        """Send what the socket takes now; return how many bytes that was."""
        total = 0
        try:
            if len(pieces) == 1 and descriptor is None:
                return self.sock.send(pieces[0], _NOT_NOW)
            while left := _behind(pieces, total):
                total += self.sock.sendmsg(left[:_MOST_PIECES], _rights(descriptor), _NOT_NOW)
                descriptor = None
        except BlockingIOError:
            pass
        except OSError as error:
            raise WireClosedError(str(error)) from error
        return total

    def flush(self) -> bool:
        """Send on what could not be sent before; returns whether nothing is left. Does not wait, raises nothing."""
        with self._sending:
            try:
                while self._unsent:
                    first = self._unsent[0]
                    sent = self._try(first.pieces, first.descriptor)
                    if sent == 0:
                        return False
                    first.close()
                    first.pieces = _behind(first.pieces, sent)
                    if not first.pieces:
                        self._unsent.popleft()
            except WireClosedError:
                while self._unsent:
                    self._unsent.popleft().close()
            return True

    def take_releases(self) -> list[int]:
        """Return the numbers of the segments that the other end has released since the last call."""
        if not self._announced:
            return []
        try:
            data = self.sock.recv(_CHUNK_BYTES, _DONT_WAIT)
        except OSError:
            return []
        return [number for (number,) in _RELEASE.iter_unpack(data[: len(data) // 4 * 4])]

    def tell_released(self, number: int) -> None:
        """Tell the writer that a frame's buffers are not used any more. Called by finalisers: no locks, no waiting."""
        with suppress(OSError):  # the writer has gone, and the segment with it; its room never runs out
            self.sock.send(_RELEASE.pack(number), _NOT_NOW)

    # -- reading -----------------------------------------------------------------------------------------------------

    def receive(self, *, block: bool, once: bool = False) -> Frame | None:
        """Return the next frame; None if it has not arrived whole and ``block`` is False.

        ``once``: receives no more than once, and so takes no time to speak of, unless the wire is ``amid`` a frame.

        Raises:
            WireClosedError: the connection has ended, and every whole frame that came before has been returned.
        """
        flags = 0 if block else _DONT_WAIT
        if not (self._data or self._header is not None or self._no_frame):  # nothing is left from before, as a rule
            try:
                data = self._receive_chunk(flags)
                frame = unpack_plain(data)
            except BlockingIOError:
                return None
            except OSError as error:
                raise WireClosedError(str(error)) from error
            except (FrameError, MemoryError) as error:
                raise self._none(error) from error
            if frame is not None and frame.generation == self._generation:
                end = HEADER.size + len(frame.payload)
                if end < len(data):
                    self._data, self._start = data, end
                return frame
            if not data:
                raise WireClosedError("the other end has gone")
            self._data = data
        return self._received(None if once else flags)

    def receive_into(self, arrived: deque[Frame], *, once: bool = False) -> None:
        """Append every frame that has arrived whole; does not wait. Raises as ``receive``, when those are appended."""
        frame = self.receive(block=False, once=once)
        while frame is not None:
            arrived.append(frame)
            if not self._data and self._header is None and not self._no_frame:  # as a rule
                return
            frame = self._received(None)

    @property
    def amid(self) -> bool:
        """Whether something has been received that is not a whole frame, and may be part of a long one."""
        return bool(self._data) or self._header is not None or bool(self._no_frame)

    def _none(self, error: Exception) -> WireClosedError:
        """End the wire: what has been received is no frame, and nothing behind it can be believed."""
        self._no_frame = f"what was received is no frame: {error}"
        self.shut()
        return WireClosedError(self._no_frame)

    def _received(self, flags: int | None) -> Frame | None:
        if self._no_frame:
            raise WireClosedError(self._no_frame)
        try:
            while True:
                frame = self._next()
                if frame is not None:
                    if frame.kind is not Kind.FORGET:
                        return frame
                elif flags is None or not self._fill(flags):
                    return None
        except (FrameError, MemoryError, KeyError, IndexError, ValueError) as error:
            raise self._none(error) from error
        except OSError as error:
            raise WireClosedError(str(error)) from error

    def _next(self) -> Frame | None:
        """Return the next frame, if all of it has been received."""
        if self._header is not None:
            return self._next_long(self._header)
        plain = unpack_plain(self._data, self._start)
        if plain is not None and plain.generation == self._generation:
            self._consume(self._start + HEADER.size + len(plain.payload))
            return plain
        have = len(self._data) - self._start - HEADER.size
        if have < 0:
            return None
        header = unpack_header(self._data, self._start)
        if header.generation != self._generation:
            raise FrameError(f"it is of generation {header.generation}, not {self._generation}")
        begin = self._start + HEADER.size
        end = begin + header.region_bytes
        if have >= header.region_bytes:
            region = memoryview(self._data)[begin:end]
            if header.num_buffers:
                region = memoryview(bytes(region))  # arrays want to be aligned
            self._consume(end)
            return self._frame(header, region)
        if header.region_bytes > _CHUNK_BYTES:
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
                self._mappings.add(header.segment, self._descriptors.popleft())
            except OSError as error:
                raise FrameError(str(error)) from error
        if header.kind is Kind.FORGET:
            self._mappings.forget(header.segment)
        elif header.segment:
            return unpack_region(header, region, self._mappings.view(header.segment))
        return unpack_region(header, region)

    def _fill(self, flags: int) -> bool:
        """Receive what there is, waiting for some unless ``flags`` say not to; False if there is nothing yet."""
        try:
            if self._region is not None:
                rest = memoryview(self._region)[self._filled :]
                received = self.sock.recv_into(rest, 0, flags)
                self._filled += received
            else:
                data = self._receive_chunk(flags)
                received = len(data)
                self._data = data if self._start == len(self._data) else self._data[self._start :] + data
                self._start = 0
        except BlockingIOError:
            return False
        if received == 0:
            raise WireClosedError("the other end has gone")
        return True

    def _receive_chunk(self, flags: int) -> bytes:
        if not self.passes_descriptors:
            return self.sock.recv(_CHUNK_BYTES, flags)
        data, ancillary, _, _ = self.sock.recvmsg(_CHUNK_BYTES, _ANCILLARY_BYTES, flags | _CLOSE_ON_EXEC)
        if ancillary:
            self._take_descriptors(ancillary)
        return data

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(content[: len(content) // received.itemsize * received.itemsize])
                self._descriptors.extend(received)
        if len(self._descriptors) > _MOST_DESCRIPTORS:
            raise FrameError(f"{len(self._descriptors)} descriptors came with frames that name no segment")


def _rights(descriptor: int | None) -> list[tuple[int, int, array.array[int]]]:
    """Return the control message that passes ``descriptor`` on, if there is one."""
    return [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]


def _behind(pieces: Sequence[Bytes], sent: int) -> list[Bytes]:
    """Return what is left of ``pieces`` when their first ``sent`` bytes have gone."""
    left: list[Bytes] = []
    for piece in pieces:
        if sent >= len(piece):
            sent -= len(piece)
        else:
            left.append(memoryview(piece)[sent:] if sent else piece)
            sent = 0
    return left
