"""One process's end of one generation of a graph: its listener, its connections, and the thread that tends them.

::

                     ┌──────────────────── hub ────────────────────┐
    other processes ─┤ listener ─ applicants ─> inlets (edges in)  ├─ read by the actor's loop, or the driver
                     │                          outlets (edges out)├─ written by it
                     │ control connection: its end is the message  │
                     └─ one thread: accepts, sends what had to wait ┘

Ray pickles a graph's channels again and again: what one process keeps of a channel is therefore not in the channel but
here, under (graph, channel). The listener is open only while the graph is being built. The control connection runs
from every actor to the driver: its end tells either side that the other has gone, or wants the graph to end, and then
the hub ends everything that it holds. An idle hub sleeps.
"""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from cgexec.deadline import Deadline
from cgexec.engine.control import AtWork, ControlEndedError, Controls
from cgexec.engine.handshake import Address, HandshakeError, Role, connect
from cgexec.engine.reception import Reception
from cgexec.engine.segments import SegmentPool
from cgexec.engine.steps import Step
from cgexec.engine.stream import Stream, WireClosedError
from cgexec.engine.wire import Wire
from cgexec.log import logger

_logger = logger(__name__)

DRIVER = "driver"


class HubClosedError(Exception):
    """The generation has ended in this process."""


class GraphKey(NamedTuple):
    """Which graph, and which build of it."""

    graph_id: str
    generation: int


class Inlet:
    """Where the frames of one channel come in. ``wire`` is set, once, when its writer has connected."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.connected = threading.Event()


class Hub:
    """See the module. ``identity`` is the actor's id, or DRIVER; ``secret`` the generation's key.

    The descriptor ``alarm`` becomes readable when a control connection ends that this side did not end.
    """

    def __init__(
        self,
        key: GraphKey,
        secret: bytes,
        identity: str,
        node_id: str,
        *,
        listen_ip: str | None,
        pool_bytes: int,
    ) -> None:
        self._own_descriptors: list[int] = []
        self.key = key
        self.identity = identity
        self.pool = SegmentPool(pool_bytes)
        self.secret = secret
        self._node_id = node_id
        self._lock = threading.Condition()
        self._closed = False
        self._lost: list[str] = []  # whose control connection has ended, while nobody was told
        self._on_loss: Callable[[str], None] | None = None
        self._inlets: dict[bytes, Inlet] = {}
        self._shared: dict[bytes, Any] = {}
        self._closers: list[Callable[[], None]] = []
        self._wires: list[Wire] = []
        self._at_work = AtWork()
        self.controls = Controls(self._at_work)
        self._tasks_started = 0
        # For the hub's thread:
        self._errands: deque[Callable[[], None]] = deque()
        self._backlogged: set[Wire] = set()
        self._selector = selectors.DefaultSelector()
        for _ in range(2):
            self._own_descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.alarm, self._wake = self._own_descriptors
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._reception = Reception(self._selector, node_id, secret, listen_ip, self._admit)
        self.address = self._reception.address
        self._thread = threading.Thread(target=self._run, name=f"cgexec-hub-{key.graph_id[:8]}", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the system has none left
            self._end_thread()
            raise
        with _registry_lock:
            _registry[key, identity] = self

    # -- called by the process ---------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the generation has ended here."""
        return self._closed

    def inlet(self, channel_id: bytes) -> Inlet:
        """Return the inlet of a channel that this process reads; the same one every time."""
        with self._lock:
            return self._inlet_locked(channel_id)

    def connect_edge(self, channel_id: bytes, address: Address, deadline: Deadline) -> Wire:
        """Return a wire to the reader of a channel that this process writes.

        Raises:
            HandshakeError: the reader cannot be reached.
            HubClosedError: the generation has ended.
        """
        wire = self._connect(address, Role.EDGE, channel_id, deadline)
        with self._lock:
            self._check_open_locked(wire)
            self._wires.append(wire)
        return wire

    def connect_control(self, address: Address, deadline: Deadline) -> None:
        """Open the control connection to the driver; from here on its end ends everything.

        Raises:
            HandshakeError: the driver cannot be reached.
            HubClosedError: the generation has ended.
        """
        wire = self._connect(address, Role.CONTROL, bytes.fromhex(self.identity), deadline)
        with self._lock:
            self._check_open_locked(wire)
            self.controls.add(DRIVER, wire)
        self._ask(lambda: self._watch_control(DRIVER, wire))

    def tell_losses(self, on_loss: Callable[[str], None]) -> None:
        """Call ``on_loss(identity)`` for every control connection that has ended, now, or ends, on the hub's thread."""
        with self._lock:
            lost, self._lost = self._lost, []
            if not self._closed:
                self._on_loss = on_loss
        for identity in lost:
            on_loss(identity)

    def is_abandoned(self) -> bool:
        """Return whether it has ended, or the other end of a control connection has, noticed here or not."""
        return self._closed or self.controls.has_lost()

    def _connect(self, address: Address, role: Role, name: bytes, deadline: Deadline) -> Wire:
        if self._closed:
            raise HubClosedError("the graph has ended in this process")
        stream = Stream(connect(address, self._node_id, self.secret, role, name, deadline))
        if role is Role.EDGE and stream.is_near:
            try:
                stream.give_pipe()
            except WireClosedError as error:
                raise HandshakeError(f"the reader has gone: {error}") from error
        return Wire(stream, self.key.generation, self._send_later)

    def _check_open_locked(self, wire: Wire | None = None) -> None:
        if self._closed:
            if wire is not None:
                wire.shut()
            raise HubClosedError("the graph has ended in this process")

    def shared(self, channel_id: bytes, make: Callable[[], Any]) -> Any:
        """Return what ``make`` made of a channel in this process: the same for all copies of the channel.

        Raises:
            HubClosedError: the generation has ended.
        """
        with self._lock:
            self._check_open_locked()
            if channel_id not in self._shared:
                self._shared[channel_id] = make()
            return self._shared[channel_id]

    def edge_wires(self) -> list[Wire]:
        """Return the wires that this process writes frames to."""
        return self._wires

    def close_with(self, closer: Callable[[], None]) -> None:
        """Call ``closer`` when the hub is shut. Raises HubClosedError if it has been."""
        with self._lock:
            self._check_open_locked()
            self._closers.append(closer)

    def task_started(self, step: Step | None = None) -> None:
        """Note that one more task of the actor's loop has opened its channels, and what it runs, if that is ours."""
        with self._lock:
            if step is not None:
                self._at_work.steps.append(step)
            self._tasks_started += 1
            self._lock.notify_all()

    @property
    def num_tasks_started(self) -> int:
        """How many tasks of the actor's loop have opened their channels."""
        return self._tasks_started

    def missing_after(self, num_tasks: int, deadline: Deadline) -> str:
        """Wait until so many tasks have started and every inlet is connected; then take no more connections.

        Returns what is missing when the deadline has passed, or the generation has ended; as a rule nothing.
        """

        def unconnected() -> int:
            return sum(not inlet.connected.is_set() for inlet in self._inlets.values())

        def ready() -> bool:
            return self._closed or (self._tasks_started >= num_tasks and not unconnected())

        with self._lock:
            in_time = self._lock.wait_for(ready, deadline.wait_s())
            if self._closed:
                return "the graph has ended in this process"
            if not in_time:
                started = f"{self._tasks_started} of {num_tasks} tasks have started"
                return f"{started}, {unconnected()} of {len(self._inlets)} channels are not connected"
        self.stop_listening()
        return ""

    def stop_listening(self) -> None:
        """Take no more connections."""
        self._ask(self._reception.close)

    def shut(self) -> None:
        """End everything; idempotent, from any thread, does not wait. Whoever reads or writes is woken."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closers, self._closers = self._closers, []
            wires = [*self._wires, *self.controls.close()]
            wires += [inlet.wire for inlet in self._inlets.values() if inlet.wire is not None]
            for inlet in self._inlets.values():
                inlet.connected.set()
            # A wire is closed when nobody holds it any more; those that wait on one do.
            self._wires, self._inlets, self._shared = [], {}, {}
            self._on_loss, self.pool = None, SegmentPool(0)
            self._lock.notify_all()
        with _registry_lock:
            if _registry.get((self.key, self.identity)) is self:
                del _registry[self.key, self.identity]
        for wire in wires:
            wire.shut()
        self._wake_up()
        for closer in closers:
            try:
                closer()
            except Exception:
                _logger.exception("a channel of a graph that has ended could not be closed")

    def has_ended(self, timeout_s: float) -> bool:
        """Return whether the hub's thread has ended, within ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close_in_child(self) -> None:
        """Let go of every descriptor, in a forked child: the parent's end must be seen as its end."""
        for inlet in self._inlets.values():
            if inlet.wire is not None:
                inlet.wire.stream.let_go()
        for wire in [*self._wires, *self.controls.wires()]:
            wire.stream.let_go()
        self._reception.close_in_child()
        self._closed = True

    def __del__(self) -> None:
        for descriptor in self._own_descriptors:  # not before: whoever uses one holds the hub
            os.close(descriptor)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _ask(self, errand: Callable[[], None]) -> None:
        """Have the hub's thread do something."""
        if not self._closed:  # else its thread ends, or has ended
            self._errands.append(errand)
            self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _send_later(self, wire: Wire) -> None:
        self._ask(lambda: self._watch_backlog(wire))

    def _run(self) -> None:
        try:
            while not self._closed:
                for ready, _ in self._selector.select(self._reception.patience_s()):
                    if ready.fileobj == self._wake:
                        os.eventfd_read(self._wake)
                    else:
                        ready.data(ready.fileobj)
                while self._errands and not self._closed:
                    self._errands.popleft()()
                self._reception.drop_late()
        except Exception:
            _logger.exception("the connections of a graph cannot be tended any more")
            self.shut()
        finally:
            self._end_thread()

    def _end_thread(self) -> None:
        """Let go of what the thread had to do: some of it refers to the hub."""
        self._reception.close()
        self._selector.close()
        self._errands.clear()
        self._backlogged.clear()

    def _admit(self, role: Role, name: bytes, stream: Stream) -> None:
        """Take in a connection that has proved itself."""
        wire = Wire(stream, self.key.generation, self._send_later)
        with self._lock:
            if self._closed:
                wire.shut()
                return
            if role is Role.EDGE:
                inlet = self._inlet_locked(name)
                if inlet.wire is not None:  # of the same graph, but nobody connects twice
                    wire.shut()
                    return
                inlet.wire = wire
                inlet.connected.set()
                self._lock.notify_all()
                return
            self.controls.add(name.hex(), wire)
        self._watch_control(name.hex(), wire)

    def _inlet_locked(self, channel_id: bytes) -> Inlet:
        inlet = self._inlets.get(channel_id)
        if inlet is None:
            inlet = self._inlets[channel_id] = Inlet()
            if self._closed:
                inlet.connected.set()
        return inlet

    def _watch_control(self, identity: str, wire: Wire) -> None:
        def readable(sock: Any) -> None:
            try:
                self.controls.hear(identity, wire)
            except ControlEndedError:
                self._selector.unregister(sock)
                ended()

        def ended() -> None:
            with self._lock:
                if self._closed:
                    return
                on_loss = self._on_loss
                if on_loss is None:
                    self._lost.append(identity)
            os.eventfd_write(self.alarm, 1)
            if on_loss is not None:
                on_loss(identity)

        self._selector.register(wire.sock, selectors.EVENT_READ, readable)

    def _watch_backlog(self, wire: Wire) -> None:
        """Send on what a wire's writer could not send, whenever there is room for more."""
        if wire in self._backlogged or wire.flush():
            return

        def writable(_sock: Any) -> None:
            if wire.flush():
                self._selector.unregister(wire)
                self._backlogged.discard(wire)

        self._backlogged.add(wire)
        self._selector.register(wire, selectors.EVENT_WRITE, writable)


# -- the hubs of this process ----------------------------------------------------------------------------------------

_registry: dict[tuple[GraphKey, str], Hub] = {}
_registry_lock = threading.Lock()


def find_hub(key: GraphKey) -> Hub:
    """Return this process's hub of a generation. Raises HubClosedError if there is none."""
    with _registry_lock:
        for (known, _), hub in _registry.items():
            if known == key:
                return hub
    raise HubClosedError("the graph has ended in this process")


def hubs_of(graph_id: str) -> list[Hub]:
    """Return this process's hubs of a graph, of whichever generation."""
    with _registry_lock:
        return [hub for (key, _), hub in _registry.items() if key.graph_id == graph_id]


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for hub in _registry.values():
        hub.close_in_child()
    _registry.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
