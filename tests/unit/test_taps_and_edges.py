"""Edges as Ray's own tasks use them, and the taps that tasks of one actor share."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hubs import CHANNEL, FIRST, LONG_S, SECOND, Site, a_site
from leaks import nothing_left
from ray.exceptions import RayChannelError, RayTaskError
from ray.experimental.channel.cached_channel import CachedChannel
from ray.experimental.channel.common import ChannelOutputType
from ray.experimental.channel.shared_memory_channel import SharedMemoryType
from wires import send

from cgexec import TransferError
from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.edges import Tap, give_hints
from cgexec.engine.failures import capture, decode_failures, encode_failures
from cgexec.engine.frames import join, pack
from cgexec.engine.handshake import Address
from cgexec.engine.hub import DRIVER, GraphKey
from cgexec.engine.ray_edges import RayEdge
from cgexec.engine.reports import OutputPort
from cgexec.engine.socket_edges import FromWire, SocketEdge, SocketHint
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Taken
from cgexec.engine.tasks import _reader

ORIGIN = OutputPort(2, "step")


def value(execution: int, what: Any) -> Taken:
    return Taken(execution, None, None, what)


@pytest.fixture
def site() -> Iterator[Site]:
    with nothing_left(), a_site() as made:
        yield made


class Handle:
    """Stands for the handle of an actor."""

    def __init__(self, identity: str) -> None:
        self._actor_id = SimpleNamespace(hex=lambda: identity)


def local_edge(site: Site) -> SocketEdge:
    site.hub(FIRST)
    return SocketEdge(site.key, CHANNEL, FIRST, True, ())


def test_values_go_through_a_local_edge_in_order_and_as_they_are(site: Site) -> None:
    edge = local_edge(site)
    values = [{"a": 1}, np.zeros(3), None]
    for each in values:
        edge.write(each)
    assert all(edge.read() is each for each in values)
    with pytest.raises(RayChannelError):
        edge.read()


def test_rays_errors_go_through_a_local_edge(site: Site) -> None:
    edge = local_edge(site)
    edge.write(RayTaskError("f", "Traceback ...", KeyError("missing"), proctitle="ray::W.f", pid=1, ip="127.0.0.1"))
    edge.write("behind it")
    found = edge.read()
    assert isinstance(found, RayTaskError)
    assert isinstance(found, KeyError)
    assert edge.read() == "behind it"


def test_what_could_not_be_transferred_is_rays_error_to_a_task_of_rays(site: Site) -> None:
    edge = local_edge(site)
    failure = capture(TypeError("a lock"), ORIGIN, None, "it cannot be sent")
    edge.open_writer(site.hubs[0]).put(encode_failures([failure]), None, 0)
    found = edge.read()
    assert isinstance(found, RayTaskError)
    assert isinstance(found.cause, TransferError)
    assert "it cannot be sent: TypeError: a lock" in str(found)


def test_a_local_value_that_cannot_be_pickled_need_not_be(site: Site) -> None:
    edge, lock = local_edge(site), threading.Lock()
    edge.write(lock)
    assert edge.read() is lock


def test_a_tap_keeps_what_arrived_until_every_task_has_taken_it() -> None:
    arrived = iter([value(0, "a"), value(1, "b")])
    tap = Tap(SimpleNamespace(next=lambda: next(arrived)))
    assert [tap.take(0, 2).value(), tap.take(0, 2).value(), tap.take(1, 2).value()] == ["a", "a", "b"]
    tap.take(1, 2)
    with pytest.raises(RayChannelError):
        tap.take(1, 2)


def test_tasks_of_one_actor_share_a_tap_through_rays_cache(site: Site) -> None:
    edge, hub = local_edge(site), site.hubs[0]
    readers = [_reader(CachedChannel(2, edge), hub) for _ in range(2)]
    outlet = edge.open_writer(hub)
    for number in range(3):
        outlet.put(None, number, number)
        assert [take_next().value() for take_next in readers] == [number, number]


def test_an_edge_serves_readers_here_and_in_another_process_and_ends_with_the_hub(site: Site) -> None:
    here, there = site.hub(FIRST), site.hub(SECOND)
    edge = SocketEdge(site.key, CHANNEL, FIRST, True, (there.address,))
    outlet = edge.open_writer(here)
    array = np.zeros(1 << 17)
    for number in range(3):
        outlet.put(payload.encode(array + number), array, number)
    taps = {here.identity: edge.open_reader(here), there.identity: edge.open_reader(there)}
    for number in range(3):
        mine, theirs = taps[FIRST].take(number, 1), taps[SECOND].take(number, 1)
        assert (mine.execution, theirs.execution) == (number, number)
        assert mine.value() is array
        assert set(theirs.value()[::1000]) == {number}
    there.shut()
    with pytest.raises(RayChannelError):
        taps[SECOND].take(3, 1)
    here.shut()
    with pytest.raises(RayChannelError):
        outlet.put(payload.encode(1), 1, 3)
    for open_again in (edge.open_reader, edge.open_writer):
        with pytest.raises(RayChannelError):
            open_again(here)


@pytest.mark.parametrize("may_pay", [True, False])
def test_a_reader_that_is_told_first_is_given_what_is_copied_afterwards(site: Site, may_pay: bool) -> None:
    here, there = site.hub(FIRST), site.hub(SECOND)
    edge = SocketEdge(site.key, CHANNEL, FIRST, False, (there.address,))
    outlet: Any = edge.open_writer(here)
    outlet.tell_first()
    incoming: Any = edge.open_reader(there).incoming
    incoming.look_first(Spin(may_pay))
    sizes = [20_000, 130_000, 90, 600_000, 20_001]  # the longest is not told of first, nor is what is no segment's

    def write() -> None:
        for number in range(200):
            outlet.put(payload.encode(np.full(sizes[number % 5], number)), None, number)

    writing = threading.Thread(target=write)
    writing.start()
    kept = []
    for number in range(200):
        taken = incoming.next()
        array = taken.value()
        assert (taken.execution, array.shape, set(array.tolist())) == (number, (sizes[number % 5],), {number})
        if number % 40 == 1:
            kept.append((number, array))
    writing.join(LONG_S)
    assert not writing.is_alive()
    assert all(set(array.tolist()) == {number} for number, array in kept)


def test_every_copy_of_an_edge_reads_and_writes_the_same_ends(site: Site) -> None:
    here, there = site.hub(FIRST), site.hub(SECOND)
    edge = SocketEdge(site.key, CHANNEL, FIRST, True, (there.address,))
    copies = [pickle.loads(pickle.dumps(edge)) for _ in range(3)]
    outlet = copies[0].open_writer(here)
    for number in range(3):
        outlet.put(payload.encode(number), number, number)
    for hub in (here, there):
        taps = [copy.open_reader(hub) for copy in copies]
        assert taps[0] is taps[1] is taps[2]
        assert [taps[number].take(number, 1).value() for number in range(3)] == [0, 1, 2]


def test_an_edge_that_no_other_process_reads_has_nothing_to_send() -> None:
    address = Address("node", b"\0name", None)
    assert not SocketEdge(GraphKey("graph", 3), CHANNEL, FIRST, True, ()).has_remote
    assert SocketEdge(GraphKey("graph", 3), CHANNEL, FIRST, False, (address,)).has_remote


def test_a_hint_makes_edges_to_each_reading_process_but_the_writers_own() -> None:
    addresses = {identity: Address("node", identity.encode(), None) for identity in (FIRST, SECOND)}
    driver = Address("node", b"driver", None)
    hint = SocketHint(GraphKey("graph", 3), addresses, driver)
    first, second, proxy = (Handle(identity) for identity in (FIRST, SECOND, "cc" * 16))
    edge = hint.create_channel(first, [(proxy, "node"), (first, "node"), (second, "node")])
    assert (edge.writer, edge.has_local, edge._addresses) == (FIRST, True, (driver, addresses[SECOND]))
    alone = hint.create_channel(first, [(first, "node")])
    assert (alone.has_local, alone.has_remote) == (True, False)
    from_driver = hint.create_channel(None, [(second, "node")])
    assert (from_driver.writer, from_driver.has_local, from_driver._addresses) == (DRIVER, False, (addresses[SECOND],))
    assert len({each.channel_id for each in (edge, alone, from_driver)}) == 3


def test_hints_are_given_to_the_nodes_that_have_none_of_their_own() -> None:
    own, ours = SharedMemoryType(), SharedMemoryType()
    nodes = [SimpleNamespace(type_hint=ChannelOutputType()), SimpleNamespace(type_hint=own)]
    give_hints(nodes, ours)
    assert nodes[0].type_hint is ours
    assert nodes[1].type_hint is own


# -- in channels of Ray's ----------------------------------------------------------------------------------------------


class Carrier:
    """A channel of Ray's, within one process."""

    def __init__(self) -> None:
        self.carried: list[Any] = []
        self.asked: list[str] = []

    def ensure_registered_as_writer(self) -> None:
        self.asked.append("writer")

    def ensure_registered_as_reader(self) -> None:
        self.asked.append("reader")

    def write(self, data: Any) -> None:
        self.carried.append(data)

    def read(self) -> Any:
        if not self.carried:
            raise RayChannelError("Channel closed.")
        return self.carried.pop(0)

    def close(self) -> None:
        self.asked.append("close")


def test_frames_go_through_a_channel_of_rays_and_it_is_closed_with_the_hub(site: Site) -> None:
    here, there, carrier = site.hub(FIRST), site.hub(SECOND), Carrier()
    edge = RayEdge(site.key, CHANNEL, FIRST, True, carrier)
    outlet, tap = edge.open_writer(here), edge.open_reader(there)
    assert carrier.asked == ["writer", "reader"]  # as they are opened, and not when they are used
    array = np.arange(5.0)
    outlet.put(payload.encode(array), array, 0)
    outlet.put(encode_failures([capture(ValueError("x"), ORIGIN, None)]), None, 1)
    assert all(type(data) is bytes for data in carrier.carried)
    first, second = tap.take(0, 1), tap.take(1, 1)
    assert (first.execution, first.failures, first.value().tolist()) == (0, None, array.tolist())
    assert (second.execution, [each.text for each in decode_failures(second.failures or b"")]) == (1, ["x"])
    mine = edge.open_reader(here)
    assert mine.take(0, 1).value() is array
    assert mine.take(1, 1).failures is not None
    there.shut()
    here.shut()
    assert carrier.asked[2:] == ["close"] * 2
    for open_again in (edge.open_reader, edge.open_writer):
        with pytest.raises(RayChannelError):
            open_again(here)


FRAME = join(pack(payload.encode("value"), 3, 0))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (join(pack(payload.encode("value"), 2, 0)), "of generation 2, not 3"),
        (FRAME[:-1], "no frame"),
        (b"", "no frame"),
        (ValueError("of another writer"), "no frame but a ValueError: of another writer"),
        (memoryview(FRAME), "no frame but a memoryview"),
        (None, "no frame but a NoneType"),
    ],
    ids=["another generation", "cut", "empty", "error", "view", "none"],
)
def test_what_is_no_frame_of_the_graph_is_its_end(site: Site, data: Any, says: str) -> None:
    carrier = Carrier()
    tap = RayEdge(site.key, CHANNEL, FIRST, False, carrier).open_reader(site.hub(SECOND))
    carrier.carried = [FRAME, data]
    assert tap.take(0, 1).value() == "value"
    with pytest.raises(RayChannelError, match=says):
        tap.take(1, 1)


def test_a_reader_that_waits_for_its_writer_is_woken_when_the_graph_ends(site: Site) -> None:
    hub = site.hub(SECOND)
    tap = SocketEdge(site.key, CHANNEL, FIRST, False, (hub.address,)).open_reader(hub)
    errors: list[RayChannelError] = []

    def take() -> None:
        try:
            tap.take(0, 1)
        except RayChannelError as error:
            errors.append(error)

    waiting = threading.Thread(target=take)
    waiting.start()
    hub.shut()
    waiting.join(LONG_S)
    assert len(errors) == 1


@pytest.mark.parametrize("may_pay", [True, False])
def test_frames_that_are_looked_for_come_in_order_and_whole_and_so_does_the_end(site: Site, may_pay: bool) -> None:
    reader, writer = site.hub(FIRST), site.hub(SECOND)
    wire = writer.connect_edge(CHANNEL, reader.address, Deadline.after(LONG_S))
    incoming = FromWire(reader, CHANNEL)
    incoming.look_first(Spin(may_pay))
    values = [b"short", "x" * 200_000, np.arange(3), 4]

    def write() -> None:
        for execution, each in enumerate(values):
            send(wire, each, execution)
            time.sleep(0.002)  # some are looked for in vain
        while not wire.flush():
            time.sleep(0.001)
        wire.shut()

    writing = threading.Thread(target=write)
    writing.start()
    for execution, each in enumerate(values):
        frame = incoming.next_frame()
        assert frame.execution == execution
        np.testing.assert_array_equal(payload.decode(frame), each)
        del frame
    with pytest.raises(RayChannelError, match="Channel closed"):
        incoming.next_frame()
    writing.join(LONG_S)
