"""The driver's outputs over wires: each in its own order, whichever comes first, and an end of one is its own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cores import Graph
from hubs import a_site
from leaks import nothing_left
from outputs import FAILED, LONG_S, Outputs, graph_over
from ray.exceptions import RayChannelError, RayChannelTimeoutError
from wires import send

from cgexec import Execution, JobFailed, JobSucceeded
from cgexec.deadline import Deadline
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.driver_ends import ForeignInput, SocketInput
from cgexec.engine.payload import decode


@pytest.fixture
def outputs() -> Iterator[Outputs]:
    with nothing_left(), a_site() as site:
        made = Outputs(site)
        yield made
        vars(made).clear()  # pytest holds it longer than this


def test_what_comes_of_later_executions_waits_for_its_turn(outputs: Outputs) -> None:
    for execution in range(3):
        outputs.send(0, f"a{execution}", execution)
    assert outputs.read(0, 1) == [(0, 0, "a0")]
    started = time.monotonic()
    assert outputs.read(1, timeout_s=0.05) == []
    assert time.monotonic() - started < LONG_S / 2
    outputs.send(1, "b0", 0)
    assert outputs.read(1) == [(1, 0, "b0")]
    outputs.send(1, "b1", 1)
    assert outputs.read(0, 1) == [(0, 1, "a1")]
    assert outputs.read(1) == [(1, 1, "b1")]
    assert outputs.read(0, 1) == [(0, 2, "a2")]


def test_nothing_is_waited_for_where_something_has_arrived(outputs: Outputs) -> None:
    outputs.send(0, "a0", 0)
    outputs.send(1, "b0", 0)
    found = outputs.read(0, 1) + outputs.read(0, 1, timeout_s=0)
    assert sorted(found) == [(0, 0, "a0"), (1, 0, "b0")]


def test_an_end_is_told_to_who_waits_for_that_output_behind_all_that_had_arrived(outputs: Outputs) -> None:
    outputs.send(0, "a0", 0)
    outputs.send(0, "a1", 1)
    outputs.wires[0].shut()
    assert outputs.read(0, 1) == [(0, 0, "a0")]
    outputs.send(1, "b0", 0)
    assert outputs.read(1) == [(1, 0, "b0")], "the other one goes on"
    assert outputs.read(0, 1) == [(0, 1, "a1")]
    with pytest.raises(RayChannelError, match="the other end has gone"):
        outputs.read(0, 1)
    outputs.send(1, "b1", 1)
    assert outputs.read(1) == [(1, 1, "b1")]


def test_what_comes_behind_the_end_of_another_output_is_taken_still(outputs: Outputs) -> None:
    outputs.wires[0].shut()
    for _ in range(2):
        with pytest.raises(RayChannelError, match="the other end has gone"):
            outputs.read(0, 1)
    outputs.send(1, "b0", 0)
    assert outputs.read(0, 1) == [(1, 0, "b0")]
    with pytest.raises(RayChannelError, match="the other end has gone"):
        outputs.read(0, 1)


@pytest.mark.parametrize(("ends", "wait_s"), [((SocketInput,), math.inf), ((SocketInput, ForeignInput), 0.5)])
def test_only_what_goes_over_wires_alone_is_sent_without_a_bound(ends: tuple[Any, ...], wait_s: float) -> None:
    engine, seen = CompiledEngine.__new__(CompiledEngine), []
    channel: Any = SimpleNamespace(write=lambda value, timeout: seen.append(timeout))
    outlet: Any = SimpleNamespace(put=lambda *_: None)
    made = {SocketInput: lambda: SocketInput(0, outlet), ForeignInput: lambda: ForeignInput(1, channel, 0)}
    engine._inputs = [made[end]() for end in ends]
    engine._may_wait_to_send = not all(isinstance(end, SocketInput) for end in engine._inputs)
    engine.broken, engine._num_sent = False, 0
    engine.send([SimpleNamespace(total_bytes=1, metadata=b"")] * len(ends), Deadline.after(0.5))
    assert all(0.4 < timeout <= wait_s for timeout in seen)
    assert len(seen) == len(ends) - 1


def with_a_failure_behind_which_more_has_arrived(outputs: Outputs) -> tuple[Graph, list[Execution]]:
    """Return executions of which the second's failure has been read ahead of its turn; all has arrived of all."""
    graph = graph_over(outputs)
    executions = [graph.core.submit((number,), {}) for number in range(3)]
    outputs.send(0, "a0", 0)
    send(outputs.wires[0], FAILED, 1)
    outputs.send(0, "a2", 2)
    assert executions[0].status(0.02).info.state == "pending"  # type: ignore[attr-defined] # an ExecutionInfo
    outputs.send(1, "b0", 0)
    assert executions[0].result(LONG_S) == ["a0", "b0"]
    for number in (1, 2):
        outputs.send(1, f"b{number}", number)
    return graph, executions


def test_a_failure_does_not_hide_what_else_has_arrived(outputs: Outputs) -> None:
    _, (_, second, third) = with_a_failure_behind_which_more_has_arrived(outputs)
    assert second.done()
    assert [type(status) for status in second.outputs(0)] == [JobFailed, JobSucceeded]
    assert third.result(0) == ["a2", "b2"]


def test_a_death_takes_nothing_of_what_has_arrived_behind_a_failure(outputs: Outputs) -> None:
    graph, (_, second, third) = with_a_failure_behind_which_more_has_arrived(outputs)
    engine: Any = graph.core.current_engine()
    engine.broken = True
    assert graph.core.break_off(engine, graph.why)
    assert isinstance(second.status(LONG_S), JobFailed)
    assert [type(status) for status in second.outputs(0)] == [JobFailed, JobSucceeded]
    assert third.result(LONG_S) == ["a2", "b2"]


def test_an_output_is_read_by_itself_too(outputs: Outputs) -> None:
    outputs.send(0, "a0", 0)
    outputs.send(0, "a1", 1)
    assert [decode(outputs.ends[0].read(LONG_S)) for _ in range(2)] == ["a0", "a1"]
    with pytest.raises(RayChannelTimeoutError):
        outputs.ends[0].read(0)
    outputs.wires[0].shut()
    for _ in range(2):
        with pytest.raises(RayChannelError, match="the other end has gone"):
            outputs.ends[0].read(LONG_S)
