"""Edges whose frames travel as bytes in Ray's own channels, where sockets cannot be had."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

from ray.dag import DAGContext
from ray.exceptions import RayChannelError
from ray.experimental.channel.shared_memory_channel import SharedMemoryType

from cgexec.engine.edges import Edge, Incoming, Outlet, Queue, actor_name
from cgexec.engine.frames import Encoded, Frame, FrameError, join, pack, unpack
from cgexec.engine.hub import GraphKey, Hub
from cgexec.engine.steps import Taken

_sizing = threading.Lock()


class _FromRay:
    """Frames out of a channel of Ray's."""

    def __init__(self, edge: RayEdge) -> None:
        self._edge = edge

    def next(self) -> Taken:
        return Taken.from_frame(self._edge.unpack(self._edge.carrier.read()))


class _RayOutlet:
    """A channel of Ray's to the processes that read the edge, and the queue of those that read it here."""

    def __init__(self, edge: RayEdge, queue: Queue | None) -> None:
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
        arguments = (self.key, self.channel_id, self.writer, self.has_local, self.carrier)
        return RayEdge, arguments, {"cached_by_ray": self.cached_by_ray}

    @property
    def has_remote(self) -> bool:
        return self.carrier is not None

    def _outlet(self, hub: Hub, queue: Queue | None) -> Outlet:
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
