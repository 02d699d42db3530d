"""The driver's ends of a graph's channels: what it writes an execution's inputs to, and reads its outputs from.

The driver does not use ``CompiledDAG.execute`` or its references: Ray's own reading loses its place after a timeout and
then returns another execution's answer.
"""

from __future__ import annotations

import math
import select
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, cast

import ray
from ray.exceptions import RayChannelError, RayChannelTimeoutError, RayTaskError

from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.detach import detached
from cgexec.engine.failures import encode_failures, from_ray
from cgexec.engine.frames import Encoded, Frame
from cgexec.engine.hub import Hub
from cgexec.engine.ray_edges import RayEdge
from cgexec.engine.socket_edges import SocketEdge, SocketOutlet
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Arrived, Taken
from cgexec.engine.stream import WireClosedError
from cgexec.engine.wire import Wire

_LONGEST_POLL_S = 60.0
_FOR_THE_LAST_MS = 1  # of several outputs, before any of them is waited for
ANY_EXECUTION = -1  # the tag of what carries none


class NothingWrittenError(Exception):
    """There was no room in time, and nothing was written."""


class InputEnd(Protocol):
    """What the driver writes one input to. ``key``: which argument it is; None for the whole input."""

    key: int | str | None

    def encode(self, value: Any) -> Any:
        """Return ``value`` ready to be written. Raises whatever makes it unfit."""

    def write(self, encoded: Any, execution: int, deadline: Deadline, first: bool) -> None:
        """Write one value; ``first`` if nothing of the execution has been written yet.

        Raises:
            NothingWrittenError: only for the first.
            RayChannelTimeoutError: some readers may have it and some not.
            RayChannelError: the graph has ended.
        """


class OutputEnd(Protocol):
    """What the driver reads one output, or several alike, from. ``places``: where the value stands in the result."""

    places: list[int]

    def read(self, timeout_s: float) -> Arrived:
        """Return what comes next. Raises RayChannelTimeoutError, or RayChannelError if the graph has ended."""


class SocketInput:
    """An input that goes over wires: never waits."""

    encode = staticmethod(payload.encode)

    def __init__(self, key: int | str | None, outlet: SocketOutlet) -> None:
        self.key = key
        self._outlet = outlet

    def write(self, encoded: Encoded, execution: int, deadline: Deadline, first: bool) -> None:  # noqa: ARG002
        self._outlet.put(encoded, None, execution)

    def tell_first(self) -> None:
        """See ``SocketOutlet.tell_first``."""
        self._outlet.tell_first()

    def has_backlog(self) -> bool:
        """Return whether what was written before has not all been sent: another thread may be sending it."""
        return any(wire.has_backlog for wire in self._outlet.wires)


class SocketOutput:
    """An output that comes over a wire. What has come of later executions is kept until it is their turn."""

    def __init__(self, edge: SocketEdge, hub: Hub) -> None:
        self.places: list[int] = []
        self.arrived: deque[Frame] = deque()
        self.ended: RayChannelError | None = None  # why nothing comes behind what has arrived
        self._inlet = hub.inlet(edge.channel_id)
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        """The wire that the output comes over. Raises RayChannelError if it never came to be."""
        if self._wire is None:
            self._wire = self._inlet.wire
            if self._wire is None:
                raise RayChannelError("Channel closed: the output was never connected")
        return self._wire

    def receive(self, *, once: bool = False) -> None:
        """Take what the wire has received; does not wait. ``once``: see ``Wire.receive``."""
        try:
            (self._wire or self.wire).receive_into(self.arrived, once=once)
        except WireClosedError as closed:
            self.ended = RayChannelError(f"Channel closed: {closed}")

    def take(self) -> Frame | None:
        """Return the next frame, if it has come; does not wait. An end is left to ``receive``."""
        wire = self._wire or self.wire
        try:
            frame = wire.receive()
        except WireClosedError:
            return None
        if frame is not None and wire.amid:  # of which no descriptor tells
            self.receive()
        return frame

    def is_amid(self) -> bool:
        """Return whether what comes behind what has arrived may be long, or is the end."""
        return self.ended is not None or self.wire.amid

    def read(self, timeout_s: float) -> Frame:
        deadline = Deadline.after(timeout_s)
        while True:
            found, error = WireOutputs([self], None, Spin(False)).read([self], deadline.remaining_s())
            if found:
                return found[0][1]
            if error is not None:
                raise error
            if deadline.remaining_s() == 0:
                raise RayChannelTimeoutError("nothing has arrived")


class WireOutputs:
    """The outputs of a graph that all come over wires: one poll for all of them.

    ``alarm`` is a descriptor that ends a wait when it can be read.
    """

    def __init__(self, outputs: Sequence[SocketOutput], alarm: int | None, spin: Spin) -> None:
        self._outputs = outputs
        self._by_descriptor: dict[int, SocketOutput] = {}
        self._watched: list[tuple[int, int]] = []  # what is polled, and for what
        for output in outputs:
            watched = output.wire.stream.watched() if output.ended is None else []
            self._watched += watched
            self._by_descriptor |= {descriptor: output for descriptor, _ in watched}
        self._poller = select.poll()
        for descriptor, events in self._watched:
            self._poller.register(descriptor, events)
        if alarm is not None:
            self._poller.register(alarm, select.POLLIN)
        self._spin = spin
        self._looked_at = outputs[0].wire.stream.looked_at()
        # Where they come at about the same time, as a rule the last one last: one wake-up, and not one for each.
        last = select.poll()
        for descriptor, events in (
            *outputs[-1].wire.stream.watched(),
            *([] if alarm is None else [(alarm, select.POLLIN)]),
        ):
            last.register(descriptor, events)
        self._poll_last = last.poll

    def look(self) -> Frame | None:
        """Return what comes within a moment from the only output, where it may pay to look for it again and again.

        Nothing may have come before that is not of the execution that is due.
        """
        if not self._spin.may_pay or len(self._outputs) > 1:
            return None
        only = self._outputs[0]
        if only.arrived or only.ended is not None or not self._spin.look(self._looked_at):
            return None  # ``read`` knows
        frame = only.take()
        if frame is None and self._spin.look(self._looked_at):  # there was a frame but for its last byte, as a rule
            frame = only.take()
        return frame

    def read(self, waiting: Sequence[Any], timeout_s: float) -> tuple[list[tuple[Any, Frame]], RayChannelError | None]:
        """Return what has arrived for each of ``waiting``, waiting for some; and what is wrong, if a wire has ended.

        ``waiting`` are some of the outputs, as they were given.
        """
        found = _taken_from(waiting)
        if found:
            return found, None
        if _end_among(waiting) is not None:
            timeout_s = 0.0  # what has come from the others is taken still
        timeout_ms = math.ceil(min(timeout_s, _LONGEST_POLL_S) * 1000)
        if timeout_ms > 0 and len(waiting) == len(self._outputs) > 1 and self._poll_last(_FOR_THE_LAST_MS):
            timeout_ms = 0
        self._receive(self._poller.poll(timeout_ms))
        found = _taken_from(waiting)
        return found, None if found else _end_among(waiting)

    def _receive(self, polled: Sequence[tuple[int, int]], *, at_once: bool = False) -> None:
        """Take what the wires that can be read have received. ``at_once``: in no time, and so not amid a frame."""
        for descriptor, _ in polled:
            ready = self._by_descriptor.get(descriptor)
            if ready is None or (at_once and ready.is_amid()):  # the alarm has no output
                continue
            ready.receive(once=at_once)
            if ready.ended is not None:
                self._forget(ready)

    def _forget(self, ended: SocketOutput) -> None:
        """Do not poll the descriptors of an output that has ended."""
        for descriptor, output in list(self._by_descriptor.items()):
            if output is ended:
                self._poller.unregister(descriptor)
                del self._by_descriptor[descriptor]

    def read_at_once(self, waiting: Sequence[Any]) -> list[tuple[Any, Frame]]:
        """Return what has arrived for each of ``waiting`` and ``loads_at_once``; in no time to speak of."""
        self._receive(self._poller.poll(0), at_once=True)
        return [
            (each, each.arrived.popleft())
            for each in waiting
            if each.arrived and payload.loads_at_once(each.arrived[0])
        ]

    def takes_a_thread(self, waiting: Sequence[Any]) -> bool:
        """Return whether more is to be had from ``waiting`` than ``read_at_once`` takes, or is in its way.

        What is in the way of any output counts: its wire can be read for as long as nobody does.
        """
        return any(output.is_amid() for output in self._outputs) or any(
            each.arrived and not payload.loads_at_once(each.arrived[0]) for each in waiting
        )

    def has_arrived(self) -> bool:
        """Return whether anything has been received that was not asked for yet, of whichever execution."""
        return any(output.arrived for output in self._outputs)

    def readiness(self) -> select.epoll:
        """Return a new descriptor that can be read while something has come that was not received, or an end."""
        found = select.epoll()
        for descriptor, events in self._watched:  # that of poll, and of epoll, are the same
            if descriptor in self._by_descriptor:
                found.register(descriptor, events)
        return found


def _taken_from(outputs: Sequence[SocketOutput]) -> list[tuple[Any, Frame]]:
    return [(output, output.arrived.popleft()) for output in outputs if output.arrived]


def _end_among(outputs: Sequence[SocketOutput]) -> RayChannelError | None:
    for output in outputs:
        if output.ended is not None:
            return output.ended
    return None


class RayInput:
    """An input that goes through a channel of Ray's."""

    encode = staticmethod(payload.encode)

    def __init__(self, key: int | str | None, edge: RayEdge, buffer_size_bytes: int) -> None:
        self.key = key
        self._edge = edge
        self._buffer_size_bytes = buffer_size_bytes

    def write(self, encoded: Encoded, execution: int, deadline: Deadline, first: bool) -> None:
        serialised = _serialised(self._edge.tagged(encoded, execution))
        _write(self._edge.carrier, serialised, deadline, self._buffer_size_bytes if first else 0)


class ForeignInput:
    """An input whose channel is not ours: the value goes as Ray sends it."""

    def __init__(self, key: int | str | None, channel: Any, buffer_size_bytes: int) -> None:
        self.key = key
        self._channel = channel
        self._buffer_size_bytes = buffer_size_bytes

    def encode(self, value: Any) -> Any:
        return _serialised(payload.decode(value) if isinstance(value, Encoded) else value)

    def write(self, encoded: Any, execution: int, deadline: Deadline, first: bool) -> None:  # noqa: ARG002
        _write(self._channel, encoded, deadline, self._buffer_size_bytes if first else 0)


def _serialised(value: Any) -> Any:
    # Private: what a channel takes for a value that is serialised already.
    return ray._private.worker.global_worker.get_serialization_context().serialize(value)


def _write(channel: Any, serialised: Any, deadline: Deadline, at_once_bytes: int) -> None:
    """Write to a channel of Ray's. One that times out has written nothing if it is one channel, and has not to grow.

    Readers on several nodes have a channel each; and the notice of a buffer's growth is a message of its own.
    """
    parts = getattr(channel, "_channels", (channel,))  # private: one for the readers on each side of a node's border
    size = serialised.total_bytes + len(serialised.metadata)
    try:
        channel.write(serialised, None if deadline.wait_s() is None else deadline.remaining_s())
    except RayChannelTimeoutError as error:
        if len(parts) == 1 and size <= at_once_bytes:
            raise NothingWrittenError(str(error)) from error
        raise


class RayOutput:
    """An output that comes through a channel of Ray's."""

    def __init__(self, edge: RayEdge) -> None:
        self.places: list[int] = []
        self._edge = edge

    def read(self, timeout_s: float) -> Frame:
        return self._edge.unpack(self._edge.carrier.read(timeout_s))


class ForeignOutput:
    """An output whose channel is not ours: a value on Ray's memory, or a RayTaskError, of whichever execution."""

    def __init__(self, channel: Any) -> None:
        self.places: list[int] = []
        self._channel = channel

    def read(self, timeout_s: float) -> Taken:
        value = self._channel.read(timeout_s)
        if isinstance(value, RayTaskError):
            return Taken(ANY_EXECUTION, encode_failures([from_ray(value)]).payload)
        return Taken(ANY_EXECUTION, None, None, detached(value))


def read_in_turn(
    waiting: Sequence[OutputEnd], deadline: Deadline, slice_s: float
) -> tuple[Sequence[tuple[OutputEnd, Arrived]], RayChannelError | None]:
    """Read each, waiting a slice of time at most, until one has something; answers as ``WireOutputs.read``."""
    while True:
        found: list[tuple[OutputEnd, Arrived]] = []
        for output in waiting:
            one_go = deadline.remaining_s() if len(waiting) == 1 else deadline.slice_s(slice_s)
            try:
                found.append((output, output.read(0 if found else one_go)))
            except RayChannelTimeoutError:
                continue
            except RayChannelError as error:
                return found, error
        if found or deadline.remaining_s() == 0:
            return found, None


def input_end(key: int | str | None, channel: Any, hub: Hub, buffer_size_bytes: int) -> InputEnd:
    """Return the driver's end of a channel that it writes, open. Raises RayChannelError if no reader is there."""
    if isinstance(channel, SocketEdge):
        return SocketInput(key, cast("SocketOutlet", channel.open_writer(hub)))
    if isinstance(channel, RayEdge):
        channel.open_writer(hub)
        return RayInput(key, channel, buffer_size_bytes)
    return ForeignInput(key, channel, buffer_size_bytes)


def output_end(channel: Any, hub: Hub) -> OutputEnd:
    """Return the driver's end of a channel that it reads, open."""
    if isinstance(channel, SocketEdge):
        return SocketOutput(channel, hub)
    if isinstance(channel, RayEdge):
        channel.open_reader(hub)
        return RayOutput(channel)
    channel.ensure_registered_as_reader()
    return ForeignOutput(channel)
