"""Edges over sockets: a wire from the process that writes to each that reads."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ray.exceptions import RayChannelError
from ray.experimental.channel.common import ChannelOutputType

from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.edges import Edge, Incoming, Outlet, Queue, actor_name
from cgexec.engine.frames import Encoded, Frame, pack
from cgexec.engine.handshake import Address
from cgexec.engine.hub import GraphKey, Hub
from cgexec.engine.segments import MOST_MARKS, Segment
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Taken
from cgexec.engine.stream import WireClosedError
from cgexec.engine.wire import Wire

_SOON_BYTES = 1 << 22  # are copied while a reader looks for them
CONNECT_S = 30.0  # for one edge: its reader listens before its writer is told of it


class FromWire:
    """Frames from the process at the other end of a wire."""

    def __init__(self, hub: Hub, channel_id: bytes) -> None:
        self._inlet = hub.inlet(channel_id)
        self._wire: Wire | None = None
        self._look: Callable[[], object] | None = None

    def next(self) -> Taken:
        return Taken.from_frame(self.next_frame())

    def next_frame(self) -> Frame:
        """Wait for the next frame. Raises RayChannelError when the graph has ended."""
        wire = self._wire or self._connected()
        try:
            frame = wire.receive() if wire.amid else None
            while frame is None:
                if self._look is None or not self._look():
                    wire.stream.wait()  # to be woken and then to read takes less than to find nothing to read first
                frame = wire.receive()
        except WireClosedError as error:
            raise RayChannelError(f"Channel closed: {error}") from error
        return frame

    def look_first(self, spin: Spin) -> None:
        """Have ``next_frame`` look for a moment before it sleeps."""
        wire = self._wire or self._connected()
        self._look = partial(spin.look, wire.stream.looked_at())

    def _connected(self) -> Wire:
        self._inlet.connected.wait()
        wire = self._wire = self._inlet.wire
        if wire is None:
            raise RayChannelError("Channel closed: the graph has ended in this process")
        return wire


class SocketOutlet:
    """A wire to each process that reads the edge, and the queue of those that read it here."""

    def __init__(self, hub: Hub, wires: Sequence[Wire], queue: Queue | None) -> None:
        self._hub = hub
        self._generation = hub.key.generation
        self.wires = wires
        self._queue = queue
        self.has_local = queue is not None
        self._told_first: Wire | None = None
        self._shares = 0 < sum(wire.passes_descriptors for wire in wires) <= MOST_MARKS

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        if self._queue is not None:
            self._queue.put(encoded, value, execution)
        if encoded is None:
            return
        try:
            segment = self._share(encoded) if encoded.buffers and self._shares else None
            if segment is None:
                pieces = pack(encoded, self._generation, execution)
                for wire in self.wires:
                    wire.send(pieces)
                return
            if self._told_first is not None and segment.size <= _SOON_BYTES:
                *others, last = self._told_first.pack(encoded, execution, segment)
                self._told_first.send([*others, last[:-1]])
                segment.write(encoded.buffers)
                self._told_first.send([last[-1:]])
                return
            # First: to copy what is large throws out of the caches what this takes.
            packed = [wire.pack(encoded, execution, segment) for wire in self.wires]
            segment.write(encoded.buffers)
            for wire, pieces in zip(self.wires, packed, strict=True):
                wire.send(pieces)
        except WireClosedError as error:
            raise RayChannelError(f"Channel closed: {error}") from error

    def tell_first(self) -> None:
        """Have frames sent before their buffers have been copied, but for their last byte, if one process reads them.

        For one that looks before it sleeps: it makes what it can of a frame ready meanwhile. (1 MB there and back: 64
        us where it took 71.) Who sleeps would have to be woken twice.
        """
        self._told_first = self.wires[0] if len(self.wires) == 1 else None

    def _share(self, encoded: Encoded) -> Segment | None:
        """Return a segment for the buffers of ``encoded``; None where the stream is better, or all there is."""
        size = encoded.buffer_bytes()
        if size < payload.LARGE_BYTES:
            return None
        segment, given_up = self._hub.pool.take(size)
        for number in given_up:
            for wire in self._hub.edge_wires():
                wire.forget(number)
        return segment


class SocketEdge(Edge):
    """An edge with a wire to each process that reads it."""

    def __init__(
        self, key: GraphKey, channel_id: bytes, writer: str, has_local: bool, addresses: tuple[Address, ...]
    ) -> None:
        super().__init__(key, channel_id, writer, has_local)
        self._addresses = addresses

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.key, self.channel_id, self.writer, self.has_local, self._addresses)
        return SocketEdge, arguments, {"cached_by_ray": self.cached_by_ray}

    @property
    def has_remote(self) -> bool:
        return bool(self._addresses)

    def _outlet(self, hub: Hub, queue: Queue | None) -> Outlet:
        deadline = Deadline.after(CONNECT_S)
        wires = [hub.connect_edge(self.channel_id, address, deadline) for address in self._addresses]
        return SocketOutlet(hub, wires, queue)

    def _incoming(self, hub: Hub) -> Incoming:
        return FromWire(hub, self.channel_id)


class SocketHint(ChannelOutputType):
    """Makes edges over sockets. ``addresses`` by actor; whoever is not among them is the driver."""

    def __init__(self, key: GraphKey, addresses: Mapping[str, Address], driver: Address) -> None:
        self._key = key
        self._addresses = dict(addresses)
        self._driver = driver

    def create_channel(self, writer: Any, readers: Sequence[tuple[Any, str]], _driver_actor_id: Any = None) -> Edge:
        """Return the edge from ``writer`` (None: the driver) to ``readers``."""
        remote = [reader for reader, _ in readers if reader != writer]
        addresses = tuple(self._addresses.get(actor_name(reader), self._driver) for reader in remote)
        return SocketEdge(self._key, uuid.uuid4().bytes, actor_name(writer), len(remote) < len(readers), addresses)
