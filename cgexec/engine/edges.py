"""The channels of a graph: how frames get from the process that writes an edge to those that read it.

::

    writer ──┬── in the same process: handed over as it is ──────> reader
             ├── "socket": a wire to each reading process ───────> reader
             └── "ray": tagged bytes in a channel of Ray's own ──> reader

Ray asks each node's type hint for the channel of its output, in the process that writes it (public API, alpha), and
pickles the channel to its readers. Nodes with a hint of their own (``with_tensor_transport``, collectives) keep it.
A task reads every channel exactly once for each execution, through its ``Tap``.

Ray's teardown closes pickled copies of channels, and does so as soon as an actor has died: before what has arrived is
read, and past the buffers that a channel has grown into. ``close`` therefore does nothing here: a channel ends when the
process's hub does.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ray.dag import DAGContext
from ray.exceptions import RayChannelError, RayTaskError
from ray.experimental.channel.common import ChannelInterface, ChannelOutputType
from ray.experimental.channel.shared_memory_channel import SharedMemoryType

from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.failures import as_exception, capture, decode_failures, encode_failures
from cgexec.engine.frames import Bytes, Encoded, Frame, FrameError, Kind, join, pack, unpack
from cgexec.engine.handshake import Address, HandshakeError
from cgexec.engine.hub import DRIVER, GraphKey, Hub, HubClosedError, find_hub
from cgexec.engine.segments import Segment
from cgexec.engine.wire import Wire, WireClosedError

CONNECT_S = 30.0  # for one edge: its reader listens before its writer is told of it


class Taken:
    """What a reader took from an edge for one execution: a value, or the failures that are there in its place."""

    __slots__ = ("_frame", "_value", "execution", "failures")

    def __init__(self, execution: int, failures: Bytes | None, frame: Frame | None = None, value: Any = None) -> None:
        self.execution = execution
        self.failures = failures
        self._frame = frame
        self._value = value

    @classmethod
    def from_frame(cls, frame: Frame) -> Taken:
        """Return what ``frame`` carries."""
        return cls(frame.execution, frame.payload if frame.kind is Kind.ERROR else None, frame)

    def value(self) -> Any:
        """Return the value, loaded once. Raises whatever loading it raises."""
        if self._frame is not None:
            self._value, self._frame = payload.decode(self._frame), None
        return self._value


class Incoming(Protocol):
    """Where an edge's frames come from, in a process that reads it."""

    def next(self) -> Taken:
        """Wait for the next frame. Raises RayChannelError when the graph has ended."""


class Tap:
    """One process's reading end of an edge, shared by the tasks that read it. Each execution is taken from it once."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._num_taken = 0
        self._last: Taken | None = None
        self._left = 0

    def take(self, index: int, num_readers: int) -> Taken:
        """Return what arrived ``index``-th, waiting for it; it is kept until ``num_readers`` tasks have taken it."""
        if index >= self._num_taken:
            self._last, self._left = self._incoming.next(), num_readers
            self._num_taken += 1
        taken = self._last
        if taken is None:
            raise RayChannelError(f"what arrived {index}-th has been taken already")
        self._left -= 1
        if self._left == 0:
            self._last = None
        return taken


class Outlet(Protocol):
    """One process's writing end of an edge."""

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        """Write to every reader: ``encoded`` to other processes, ``value`` itself to this one.

        Raises:
            RayChannelError: the graph has ended.
        """


class Edge(ChannelInterface):
    """A channel of frames. Pickled by Ray to every process that uses it; what a process keeps of it is in its hub."""

    def __init__(self, key: GraphKey, channel_id: bytes, writer: str, has_local: bool) -> None:
        self.key = key
        self.channel_id = channel_id
        self.writer = writer
        self.has_local = has_local
        self._num_read = self._num_written = 0

    # -- for our own tasks -------------------------------------------------------------------------------------------

    @property
    def has_remote(self) -> bool:
        """Whether another process reads the edge."""
        raise NotImplementedError

    def open_writer(self, hub: Hub) -> Outlet:
        """Return the outlet of this process. Raises RayChannelError if the graph has ended or no reader is there."""
        with ending_as_ray_says():
            return self._outlet(hub, _queue(hub, self) if self.has_local else None)

    def open_reader(self, hub: Hub) -> Tap:
        """Return the tap of this process. Raises RayChannelError if the graph has ended."""
        with ending_as_ray_says():
            here = self.writer == hub.identity
            tap: Tap = hub.shared(self.channel_id, lambda: Tap(_queue(hub, self) if here else self._incoming(hub)))
            return tap

    def _outlet(self, hub: Hub, queue: _Queue | None) -> Outlet:
        raise NotImplementedError

    def _incoming(self, hub: Hub) -> Incoming:
        raise NotImplementedError

    # -- for tasks of Ray's own: those that hold tensors on an accelerator, and collectives ----------------------------

    def read(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - Ray's signature
        """Return the next value, or a RayTaskError. Waits for it whatever ``timeout`` says, as such tasks want."""
        taken = self.open_reader(self._hub()).take(self._num_read, 1)
        self._num_read += 1
        return taken.value() if taken.failures is None else as_exception(decode_failures(taken.failures)[0])

    def write(self, value: Any, timeout: float | None = None) -> None:  # noqa: ARG002 - Ray's signature
        """Write ``value``, or a RayTaskError, as what this writer wrote ``n``-th."""
        hub = self._hub()
        outlet: Outlet = hub.shared(self.channel_id + b"written", lambda: self.open_writer(hub))
        if isinstance(value, RayTaskError):
            encoded = encode_failures([capture(value.cause, None, None)])
        else:
            encoded = payload.encode(value)
        outlet.put(encoded, value, self._num_written)
        self._num_written += 1

    def _hub(self) -> Hub:
        with ending_as_ray_says():
            return find_hub(self.key)

    def ensure_registered_as_writer(self) -> None:
        """Do nothing: opening may take a while, and is done where that is bounded."""

    def ensure_registered_as_reader(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: see the module."""


@contextmanager
def ending_as_ray_says() -> Iterator[None]:
    """Raise RayChannelError, at which Ray leaves an actor's loop, for an end of the graph in our terms."""
    try:
        yield
    except (HubClosedError, HandshakeError) as error:
        raise RayChannelError(f"Channel closed: {error}") from error


class _Queue(deque[Taken]):
    """An edge between two tasks of one actor: Ray runs the one that writes before the one that reads."""

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        failures = encoded.payload if encoded is not None and encoded.kind is Kind.ERROR else None
        self.append(Taken(execution, failures, None, value))

    def next(self) -> Taken:
        if not self:
            raise RayChannelError("a task was to read before the one that writes for it")
        return self.popleft()


def _queue(hub: Hub, edge: Edge) -> _Queue:
    queue: _Queue = hub.shared(edge.channel_id + b"here", _Queue)
    return queue


# -- sockets -----------------------------------------------------------------------------------------------------------


class _FromWire:
    """Frames from the process at the other end of a wire."""

    def __init__(self, hub: Hub, channel_id: bytes) -> None:
        self._inlet = hub.inlet(channel_id)

    def next(self) -> Taken:
        wire = self._inlet.wire
        if wire is None:
            self._inlet.connected.wait()
            wire = self._inlet.wire
        if wire is None:
            raise RayChannelError("Channel closed: the graph has ended in this process")
        try:
            frame = wire.receive(block=True)
        except WireClosedError as error:
            raise RayChannelError(f"Channel closed: {error}") from error
        if frame is None:
            raise RayChannelError("Channel closed: nothing came")
        return Taken.from_frame(frame)


class _SocketOutlet:
    """A wire to each process that reads the edge, and the queue of those that read it here."""

    def __init__(self, hub: Hub, wires: Sequence[Wire], queue: _Queue | None) -> None:
        self._hub = hub
        self._wires = wires
        self._queue = queue
        self._any_near = any(wire.passes_descriptors for wire in wires)

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        if self._queue is not None:
            self._queue.put(encoded, value, execution)
        if encoded is None:
            return
        try:
            segment = self._share(encoded) if encoded.buffers and self._any_near else None
            for wire in self._wires:
                wire.send(encoded, execution, segment if wire.passes_descriptors else None)
        except WireClosedError as error:
            raise RayChannelError(f"Channel closed: {error}") from error

    def _share(self, encoded: Encoded) -> Segment | None:
        """Return a segment that holds the buffers of ``encoded``; None where the stream is better, or all there is."""
        size = encoded.buffer_bytes()
        if size < payload.LARGE_BYTES:
            return None
        pool = self._hub.pool
        for wire in self._hub.edge_wires():
            for number in wire.take_releases():
                pool.released(number)
        segment, given_up = pool.take(size)
        for number in given_up:
            for wire in self._hub.edge_wires():
                wire.forget(number)
        if segment is not None:
            segment.write(encoded.buffers)
        return segment


class SocketEdge(Edge):
    """An edge with a wire to each process that reads it."""

    def __init__(
        self, key: GraphKey, channel_id: bytes, writer: str, has_local: bool, addresses: tuple[Address, ...]
    ) -> None:
        super().__init__(key, channel_id, writer, has_local)
        self._addresses = addresses

    def __reduce__(self) -> tuple[Any, ...]:
        return SocketEdge, (self.key, self.channel_id, self.writer, self.has_local, self._addresses)

    @property
    def has_remote(self) -> bool:
        return bool(self._addresses)

    def _outlet(self, hub: Hub, queue: _Queue | None) -> Outlet:
        deadline = Deadline.after(CONNECT_S)
        wires = [hub.connect_edge(self.channel_id, address, deadline) for address in self._addresses]
        return _SocketOutlet(hub, wires, queue)

    def _incoming(self, hub: Hub) -> Incoming:
        return _FromWire(hub, self.channel_id)


# -- Ray's own channels ------------------------------------------------------------------------------------------------


class _FromRay:
    """Frames out of a channel of Ray's."""

    def __init__(self, edge: RayEdge) -> None:
        self._edge = edge

    def next(self) -> Taken:
        return Taken.from_frame(self._edge.unpack(self._edge.carrier.read()))


class _RayOutlet:
    """A channel of Ray's to the processes that read the edge, and the queue of those that read it here."""

    def __init__(self, edge: RayEdge, queue: _Queue | None) -> None:
        self._edge = edge
        self._queue = queue

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        if self._queue is not None:
            self._queue.put(encoded, value, execution)
        if encoded is not None and self._edge.carrier is not None:
            self._edge.carrier.write(self._edge.tagged(encoded, execution))


class RayEdge(Edge):
    """An edge whose frames travel as bytes in Ray's shared-memory channels. ``carrier`` is None if only tasks of the
    writing actor read it."""

    def __init__(self, key: GraphKey, channel_id: bytes, writer: str, has_local: bool, carrier: Any) -> None:
        super().__init__(key, channel_id, writer, has_local)
        self.carrier = carrier

    def __reduce__(self) -> tuple[Any, ...]:
        return RayEdge, (self.key, self.channel_id, self.writer, self.has_local, self.carrier)

    @property
    def has_remote(self) -> bool:
        return self.carrier is not None

    def _outlet(self, hub: Hub, queue: _Queue | None) -> Outlet:
        if self.carrier is not None:
            self.carrier.ensure_registered_as_writer()
            hub.close_with(self.carrier.close)
        return _RayOutlet(self, queue)

    def _incoming(self, hub: Hub) -> Incoming:
        # Now, not at the first read: Ray aborts the process if the channel's writer has died by then.
        self.carrier.ensure_registered_as_reader()
        hub.close_with(self.carrier.close)
        return _FromRay(self)

    def tagged(self, encoded: Encoded, execution: int) -> bytes:
        """Return the bytes to write."""
        return join(pack(encoded, self.key.generation, execution))

    def unpack(self, data: Any) -> Frame:
        """Return the frame that was read. Raises RayChannelError if it is none of this generation."""
        if not isinstance(data, bytes):
            raise RayChannelError(f"what was read is no frame but a {type(data).__name__}: {data}")
        try:
            frame = unpack(data)
        except FrameError as error:
            raise RayChannelError(f"what was read is no frame: {error}") from error
        if frame.generation != self.key.generation:
            raise RayChannelError(f"what was read is of generation {frame.generation}, not {self.key.generation}")
        return frame


# -- the door into Ray -------------------------------------------------------------------------------------------------

_sizing = threading.Lock()


def actor_name(actor: Any | None) -> str:
    """Return what an actor's process goes by in its hub; None is the driver. Private: the handle's id."""
    return DRIVER if actor is None else str(actor._actor_id.hex())


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


class RayHint(SharedMemoryType):
    """Makes edges over Ray's channels, with buffers of the size that was asked for.

    ``experimental_compile(_buffer_size_bytes=...)`` does not reach the buffers: they take the writer's ``DAGContext``.
    """

    def __init__(self, key: GraphKey, buffer_size_bytes: int, num_buffers: int) -> None:
        super().__init__(buffer_size_bytes=buffer_size_bytes, num_shm_buffers=num_buffers)
        self._key = key

    def create_channel(  # type: ignore[override] # a ChannelInterface is all that Ray asks for
        self, writer: Any, readers: Sequence[tuple[Any, str]], driver_actor_id: Any = None
    ) -> Edge:
        """Return the edge from ``writer`` (None: the driver) to ``readers``."""
        remote = [(reader, node_id) for reader, node_id in readers if reader != writer]
        carrier = self._shared_memory(writer, remote, driver_actor_id) if remote else None
        return RayEdge(self._key, uuid.uuid4().bytes, actor_name(writer), len(remote) < len(readers), carrier)

    def _shared_memory(self, *args: Any) -> Any:
        context = DAGContext.get_current()
        with _sizing:
            before = context.buffer_size_bytes
            context.buffer_size_bytes = self.buffer_size_bytes
            try:
                return super().create_channel(*args)
            finally:
                context.buffer_size_bytes = before


def give_hints(nodes: Iterable[Any], hint: ChannelOutputType) -> None:
    """Set ``hint`` on every node that has none of its own."""
    for node in nodes:
        # Exactly this class, as Ray itself asks: a subclass is somebody's choice.
        if type(node.type_hint) is ChannelOutputType:
            node.type_hint = hint
