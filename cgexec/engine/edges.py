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

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, repeat
from typing import Any, Protocol

from ray.exceptions import RayChannelError, RayTaskError
from ray.experimental.channel.common import ChannelInterface, ChannelOutputType

from cgexec.engine import payload
from cgexec.engine.failures import as_task_error, decode_failures, encode_failures, from_ray
from cgexec.engine.frames import Encoded, Kind
from cgexec.engine.handshake import HandshakeError
from cgexec.engine.hub import DRIVER, GraphKey, Hub, HubClosedError, find_hub
from cgexec.engine.steps import Taken


class Incoming(Protocol):
    """Where an edge's frames come from, in a process that reads it."""

    def next(self) -> Taken:
        """Wait for the next frame. Raises RayChannelError when the graph has ended."""


class Tap:
    """One process's reading end of an edge, shared by the tasks that read it. Each execution is taken from it once."""

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self._num_taken = 0
        self._last: Taken | None = None
        self._left = 0

    def reader(self, num_readers: int) -> Callable[[], Taken]:
        """Return what one of so many tasks calls for what comes next, waiting for it."""
        return self.incoming.next if num_readers == 1 else map(self.take, count(), repeat(num_readers)).__next__

    def take(self, index: int, num_readers: int) -> Taken:
        """Return what arrived ``index``-th, waiting for it; it is kept until ``num_readers`` tasks have taken it."""
        if index >= self._num_taken:
            self._last, self._left = self.incoming.next(), num_readers
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
        self.cached_by_ray: set[str] = set()  # the actors where tasks of Ray's own share it, through Ray's cache
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

    def _outlet(self, hub: Hub, queue: Queue | None) -> Outlet:
        raise NotImplementedError

    def _incoming(self, hub: Hub) -> Incoming:
        raise NotImplementedError

    # -- for tasks of Ray's own: those that hold tensors on an accelerator, and collectives ----------------------------

    def read(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - Ray's signature
        """Return the next value, or a RayTaskError. Waits for it whatever ``timeout`` says, as such tasks want."""
        taken = self.open_reader(self._hub()).take(self._num_read, 1)
        self._num_read += 1
        return taken.value() if taken.failures is None else as_task_error(decode_failures(taken.failures)[0])

    def write(self, value: Any, timeout: float | None = None) -> None:  # noqa: ARG002 - Ray's signature
        """Write ``value``, or a RayTaskError, as what this writer wrote ``n``-th."""
        outlet = self.kept_outlet(self._hub())
        encoded: Encoded | None = None
        if isinstance(value, RayTaskError):
            encoded = encode_failures([from_ray(value)])
        elif self.has_remote:
            encoded = payload.encode(value)
        outlet.put(encoded, value, self._num_written)
        self._num_written += 1

    def kept_outlet(self, hub: Hub) -> Outlet:
        """Return the outlet that ``write`` uses. Raises RayChannelError as ``open_writer``."""
        with ending_as_ray_says():
            kept: list[Outlet] = hub.shared(self.channel_id + b"written", list)
        if not kept:
            kept.append(self.open_writer(hub))  # not under the hub's lock: it may take a while
        return kept[0]

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


class Queue(deque[Taken]):
    """An edge between two tasks of one actor: Ray runs the one that writes before the one that reads."""

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        failures = encoded.payload if encoded is not None and encoded.kind is Kind.ERROR else None
        self.append(Taken(execution, failures, None, value))

    def next(self) -> Taken:
        if not self:
            raise RayChannelError("a task was to read before the one that writes for it")
        return self.popleft()


def _queue(hub: Hub, edge: Edge) -> Queue:
    queue: Queue = hub.shared(edge.channel_id + b"here", Queue)
    return queue


def actor_name(actor: Any | None) -> str:
    """Return what an actor's process goes by in its hub; None is the driver. Private: the handle's id."""
    return DRIVER if actor is None else str(actor._actor_id.hex())


def give_hints(nodes: Iterable[Any], hint: ChannelOutputType) -> None:
    """Set ``hint`` on every node that has none of its own."""
    for node in nodes:
        # Exactly this class, as Ray itself asks: a subclass is somebody's choice.
        if type(node.type_hint) is ChannelOutputType:
            node.type_hint = hint
