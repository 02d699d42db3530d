"""Hubs: edges between them, who is told of an end, and nothing left behind it."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import eventually, our_threads
from forks import ended_well, fork
from hubs import CHANNEL, FIRST, LONG_S, SECOND, Site, a_site, soon
from leaks import nothing_left
from wires import next_frame, send

from cgexec.deadline import Deadline
from cgexec.engine import hub as hub_module
from cgexec.engine.hub import DRIVER, GraphKey, Hub, HubClosedError, find_hub, hubs_of
from cgexec.engine.payload import decode
from cgexec.engine.stream import WireClosedError
from cgexec.engine.wire import Wire

MEGABYTE = 1 << 20


@pytest.fixture
def site() -> Iterator[Site]:
    with nothing_left():
        with a_site() as made:
            yield made
        assert hub_module._registry == {}
        assert our_threads() == []


def connected(writer: Hub, reader: Hub, channel: bytes = CHANNEL) -> tuple[Wire, Wire]:
    """Return both ends of a new edge."""
    wire = writer.connect_edge(channel, reader.address, soon())
    inlet = reader.inlet(channel)
    assert inlet.connected.wait(LONG_S)
    assert inlet.wire is not None
    return wire, inlet.wire


def received(wire: Wire) -> Any:
    return decode(next_frame(wire))


def is_readable(descriptor: int, timeout_s: float = LONG_S) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def is_ended(wire: Wire) -> bool:
    """Wait until ``wire`` ends."""
    try:
        while True:
            next_frame(wire)
    except WireClosedError:
        return True


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_id", ["node", "another node"])
def test_an_edge_carries_frames_between_two_hubs(site: Site, node_id: str) -> None:
    reader, writer = site.hub(listen_ip="127.0.0.1"), site.hub(FIRST, node_id)
    sending, receiving = connected(writer, reader)
    for number in range(10):
        send(sending, {"number": number}, number)
    assert [received(receiving)["number"] for _ in range(10)] == list(range(10))
    assert sending.passes_descriptors is (node_id == "node")


def test_what_a_socket_does_not_take_is_sent_on_by_the_hubs_thread(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    edges = [connected(writer, reader, bytes([index]) * 16) for index in range(3)]
    source = np.zeros(MEGABYTE, "u1")
    for number in range(8):
        source[:] = number
        for sending, _ in edges:
            send(sending, source, number)
    for _, receiving in reversed(edges):
        for number in range(8):
            assert set(received(receiving)[::1000]) == {number}
    assert eventually(lambda: not writer._backlogged)


def test_a_reader_that_goes_away_in_front_of_a_backlog_stops_nobody_else(site: Site) -> None:
    first, second, writer = site.hub(), site.hub(SECOND), site.hub(FIRST)
    to_first = connected(writer, first)[0]  # and nobody holds the end that is read, as where a loop has ended
    to_second, receiving = connected(writer, second)
    send(to_first, bytes(4 * MEGABYTE), 0)
    send(to_second, bytes(4 * MEGABYTE), 0)
    first.shut()
    assert len(received(receiving)) == 4 * MEGABYTE
    assert eventually(lambda: not writer._backlogged)
    assert not writer.closed


def test_an_inlet_is_one_and_the_same_whoever_asks_first(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    before = reader.inlet(CHANNEL)
    assert not before.connected.is_set()
    _, receiving = connected(writer, reader)
    assert reader.inlet(CHANNEL) is before
    assert before.wire is receiving


def test_a_channel_is_connected_once(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    sending, receiving = connected(writer, reader)
    again = writer.connect_edge(CHANNEL, reader.address, soon())
    assert is_ended(again)
    send(sending, "value", 1)
    assert reader.inlet(CHANNEL).wire is receiving
    assert received(receiving) == "value"


def test_what_is_shared_is_made_once(site: Site) -> None:
    hub = site.hub()
    made = [hub.shared(CHANNEL, object) for _ in range(3)]
    assert made[0] is made[1] is made[2]
    assert hub.shared(bytes(16), object) is not made[0]


def test_the_pool_of_a_hub_goes_with_it_but_for_what_lies_on_its_segments(site: Site) -> None:
    hub = site.hub()
    segment, _ = hub.pool.take(MEGABYTE)
    assert segment is not None
    gone = weakref.ref(segment)
    del segment
    assert gone() is not None
    hub.shut()
    assert gone() is None


# -- readiness ---------------------------------------------------------------------------------------------------------


def test_a_hub_is_ready_when_its_tasks_have_started_and_its_inlets_are_connected(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    reader.inlet(CHANNEL)
    assert "1 of 1 channels are not connected" in reader.missing_after(0, Deadline.after(0))
    connected(writer, reader)
    assert "0 of 2 tasks have started" in reader.missing_after(2, Deadline.after(0))
    outcome: list[str] = []
    waiting = threading.Thread(target=lambda: outcome.append(reader.missing_after(2, soon())))
    waiting.start()
    reader.task_started()
    reader.task_started()
    waiting.join(LONG_S)
    assert outcome == [""]


def test_a_hub_that_is_shut_is_never_ready_and_wakes_who_waits_for_it(site: Site) -> None:
    hub = site.hub()
    outcome: list[str] = []
    waiting = threading.Thread(target=lambda: outcome.append(hub.missing_after(1, soon())))
    waiting.start()
    hub.shut()
    waiting.join(LONG_S)
    assert outcome == ["the graph has ended in this process"]
    assert hub.missing_after(0, soon()) == outcome[0]


def test_a_hub_is_abandoned_as_soon_as_the_other_end_has_gone(site: Site) -> None:
    driver, actor = site.hub(), site.hub(FIRST)
    assert not actor.is_abandoned()
    actor.connect_control(driver.address, soon())
    assert not actor.is_abandoned()
    assert eventually(lambda: driver.controls.wires())
    driver.shut()
    assert actor.is_abandoned()
    actor.shut()
    assert actor.is_abandoned()


def test_losses_from_before_anyone_asked_are_told(site: Site) -> None:
    driver, first, second = site.hub(), site.hub(FIRST), site.hub(SECOND)
    driver._on_loss = None  # as if nobody had asked yet
    for hub in (first, second):
        hub.connect_control(driver.address, soon())
    assert eventually(lambda: len(driver.controls.wires()) == 2)
    first.shut()
    assert eventually(lambda: driver._lost == [FIRST])
    assert is_readable(driver.alarm)
    told: list[str] = []
    driver.tell_losses(told.append)
    assert told == [FIRST]
    second.shut()
    assert eventually(lambda: told == [FIRST, SECOND])


# -- control -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [DRIVER, FIRST])
def test_each_side_is_told_when_the_other_ends(site: Site, who: str) -> None:
    hubs = {DRIVER: site.hub(), FIRST: site.hub(FIRST)}
    hubs[FIRST].connect_control(hubs[DRIVER].address, soon())
    assert eventually(lambda: len(hubs[DRIVER].controls.wires()) == 1)
    other = FIRST if who == DRIVER else DRIVER
    assert not is_readable(hubs[other].alarm, 0)
    hubs[who].shut()
    assert is_readable(hubs[other].alarm)
    assert eventually(lambda: site.ended)
    assert site.ended == [(other, who)]
    assert not hubs[other].closed


def test_the_driver_is_told_which_of_its_actors_has_ended(site: Site) -> None:
    driver, first, second = site.hub(), site.hub(FIRST), site.hub(SECOND)
    for hub in (first, second):
        hub.connect_control(driver.address, soon())
    assert eventually(lambda: len(driver.controls.wires()) == 2)
    second.shut()
    assert eventually(lambda: site.ended)
    first.shut()
    assert eventually(lambda: len(site.ended) == 2)
    assert site.ended == [(DRIVER, SECOND), (DRIVER, FIRST)]


def test_a_hub_may_shut_itself_when_it_is_told(site: Site) -> None:
    driver = site.hub()
    actor = site.hub(FIRST)
    actor.tell_losses(lambda _identity: actor.shut())
    actor.connect_control(driver.address, soon())
    driver.shut()
    assert actor.has_ended(LONG_S)
    assert actor.closed


def test_an_error_in_who_is_told_is_logged_and_ends_the_hub(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_identity: str) -> None:
        raise ZeroDivisionError

    driver, actor = site.hub(), site.hub(FIRST)
    actor.tell_losses(fail)
    actor.connect_control(driver.address, soon())
    driver.shut()
    assert actor.has_ended(LONG_S)
    assert actor.closed
    assert "ZeroDivisionError" in caplog.text
    for record in caplog.records:
        record.exc_info = None  # its traceback holds the hub


# -- the end -----------------------------------------------------------------------------------------------------------


def test_shut_wakes_readers_calls_the_closers_once_and_may_be_repeated_from_any_thread(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    _, receiving = connected(writer, reader)
    waiting_for_a_writer = reader.inlet(bytes(16))
    calls: list[int] = []
    reader.close_with(lambda: calls.append(1))
    ended: list[bool] = []
    threads = [threading.Thread(target=lambda: ended.append(is_ended(receiving)))]
    threads += [threading.Thread(target=lambda: ended.append(waiting_for_a_writer.connected.wait(LONG_S)))]
    threads += [threading.Thread(target=reader.shut) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert ended == [True, True]
    assert waiting_for_a_writer.wire is None
    assert calls == [1]
    assert reader.closed
    assert reader.has_ended(LONG_S)


def test_a_closer_that_raises_keeps_no_other_from_closing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    hub = site.hub()
    calls: list[int] = []
    hub.close_with(lambda: calls.append(1 // 0))
    hub.close_with(lambda: calls.append(1))
    hub.shut()
    assert calls == [1]
    assert hub.has_ended(LONG_S)
    assert "ZeroDivisionError" in caplog.text
    for record in caplog.records:
        record.exc_info = None  # its traceback holds the hub


def test_nothing_can_be_asked_of_a_hub_that_has_ended(site: Site) -> None:
    other, hub = site.hub(), site.hub(FIRST)
    hub.shut()
    refused: list[Callable[[], object]] = [
        lambda: hub.connect_edge(CHANNEL, other.address, soon()),
        lambda: hub.connect_control(other.address, soon()),
        lambda: hub.shared(CHANNEL, object),
        lambda: hub.close_with(lambda: None),
    ]
    for ask in refused:
        with pytest.raises(HubClosedError):
            ask()
    assert hub.pool.take(1) == (None, [])
    late = hub.inlet(CHANNEL)
    assert late.connected.is_set()
    assert late.wire is None


def test_hubs_are_found_by_generation_until_they_are_shut(site: Site) -> None:
    driver, actor = site.hub(), site.hub(FIRST)
    assert find_hub(site.key) in (driver, actor)
    assert set(hubs_of("graph")) == {driver, actor}
    assert hubs_of("another graph") == []
    with pytest.raises(HubClosedError):
        find_hub(GraphKey("graph", 4))
    actor.shut()
    assert hubs_of("graph") == [driver]


def test_a_hub_that_cannot_listen_leaves_nothing(site: Site) -> None:
    with pytest.raises(OSError, match="assign"):
        site.hub(listen_ip="192.0.2.1")
    assert hubs_of("graph") == []


def test_a_hub_that_gets_no_descriptors_says_just_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        site.hub()


def build_and_shut() -> None:
    with a_site() as site:
        driver, actor = site.hub(), site.hub(FIRST)
        actor.connect_control(driver.address, soon())
        sending, receiving = connected(actor, driver)
        send(sending, bytes(MEGABYTE), 0)
        assert len(received(receiving)) == MEGABYTE


def test_rebuilding_again_and_again_leaves_nothing() -> None:
    with nothing_left():
        for _ in range(20):
            build_and_shut()


# -- forks -------------------------------------------------------------------------------------------------------------


def refuses(name: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as late:
        return late.connect_ex(name) == errno.ECONNREFUSED


def test_a_forked_child_holds_nothing_open(site: Site) -> None:
    reader, writer = site.hub(), site.hub(FIRST)
    writer.connect_control(reader.address, soon())
    sending, receiving = connected(writer, reader)
    parents_end, childs_end = socket.socketpair()

    def live_on() -> None:
        parents_end.close()
        childs_end.sendall(b"running")
        childs_end.recv(1)
        assert hub_module._registry == {}
        with pytest.raises(HubClosedError):
            find_hub(site.key)

    child = fork(live_on)
    childs_end.close()
    assert parents_end.recv(7) == b"running"
    send(sending, "still here", 1)
    assert received(receiving) == "still here"
    sending.stream.let_go()  # as the system does when this process ends, and the child lives on
    assert is_ended(receiving)
    assert not reader.missing_after(0, soon())
    assert eventually(lambda: refuses(reader.address.unix))
    parents_end.close()
    assert ended_well(child)


def test_a_control_connection_that_takes_the_place_of_another_ends_it(site: Site) -> None:
    driver, first, again = site.hub(), site.hub(FIRST), site.hub(FIRST)
    first.connect_control(driver.address, soon())
    assert eventually(lambda: len(driver.controls.wires()) == 1)
    (before,) = driver.controls.wires()
    again.connect_control(driver.address, soon())
    assert eventually(lambda: (DRIVER, FIRST) in site.ended)
    assert [wire is before for wire in driver.controls.wires()] == [False]
    assert not driver.is_abandoned()


def test_a_hub_that_is_shut_keeps_nothing_that_could_not_be_sent(site: Site) -> None:
    gc.collect()
    gc.disable()
    try:
        first = site.hub(FIRST)
        wire, _ = connected(first, site.hub(SECOND))
        send(wire, np.zeros(20 * MEGABYTE, np.uint8), 0)
        gone = weakref.ref(wire)
        first.shut()
        assert first.has_ended(LONG_S)
        del wire
        assert gone() is None
    finally:
        gc.enable()
