"""Both ends of a connection in one process."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cgexec.engine.frames import Encoded, Frame, pack
from cgexec.engine.payload import decode, encode
from cgexec.engine.segments import Segment
from cgexec.engine.stream import Stream
from cgexec.engine.wire import Wire

GENERATION = 3
LONG_S = 30.0
MEGABYTE = 1 << 20


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        return here, listener.accept()[0]


PAIRS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {"unix": socket.socketpair, "tcp": tcp_pair}


def send(wire: Wire, value: Any, execution: int = 0) -> None:
    """Send a value as an edge does, through the stream alone."""
    wire.send(pack(encode(value), wire._generation, execution))


def next_frame(wire: Wire) -> Frame:
    """Wait for the next frame. Raises as ``Wire.receive``."""
    while (frame := wire.receive()) is None:
        wire.stream.wait()
    return frame


@dataclass
class Ends:
    """Both ends of a connection, and who was told that something had to wait."""

    writer: Wire
    reader: Wire
    backlogged: list[Wire] = field(default_factory=list)

    def close(self) -> None:
        """Shut both ends and let go of them."""
        for wire in (self.writer, self.reader):
            wire.shut()
        self.backlogged.clear()
        del self.writer, self.reader

    def send(self, value: Any, execution: int = 0) -> None:
        send(self.writer, value, execution)

    def send_through(self, segment: Segment, encoded: Encoded) -> None:
        """Send ``encoded`` as an edge does, its buffers in ``segment`` if that can be."""
        pieces = self.writer.pack(encoded, 0, segment)
        segment.write(encoded.buffers)
        self.writer.send(pieces)

    def receive(self) -> Any:
        return decode(next_frame(self.reader))


def ends_of(here: socket.socket, there: socket.socket) -> Ends:
    """Return both ends of a connection as a hub makes them: with a pipe, if both are in one node."""
    backlogged: list[Wire] = []
    writer, reader = Stream(here), Stream(there)
    if writer.is_near:
        writer.give_pipe()
        assert reader.take_pipe()
    return Ends(*(Wire(each, GENERATION, backlogged.append) for each in (writer, reader)), backlogged)


def flush_all(wire: Wire) -> None:
    """Do what a hub's thread does for a wire with a backlog."""
    while not wire.flush():
        select.select([], [wire], [], LONG_S)


def in_a_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(LONG_S)
    return not thread.is_alive()
