"""Where do the microseconds of one execution go?

    python -m benchmarks.hot_path [--json FILE] [--rounds N]

CPU time of each part by itself, on one thread and with nobody to wait for: what the driver does beside the engine, what
it writes, what it reads, and what an actor does. Not among it is what the kernel takes to wake a process that sleeps,
and what that process then finds no longer in its caches. The shortest of many batches counts: it is the one that
nothing else has disturbed. The parts are put together here from the inside of cgexec: where that changes, so must this.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from benchmarks import harness
from cgexec import GraphConfig, HostInfo
from cgexec.core import GraphCore
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.driver_ends import SocketInput, SocketOutput, WireOutputs
from cgexec.engine.frames import Encoded, Frame
from cgexec.engine.protocol import GraphSpec, InputSpec, Member, OutputValue
from cgexec.engine.ray_context import effective_settings
from cgexec.engine.reports import OutputPort
from cgexec.engine.socket_edges import FromWire, SocketOutlet
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Step
from cgexec.engine.stream import Stream
from cgexec.engine.wire import Wire
from cgexec.isolation import Apart

ROUNDS, CALLS = 60, 1000
SPEC = GraphSpec(InputSpec(1, frozenset()), (OutputPort(0, "echo"),), False)
HEAD_BYTES = 48


def microseconds(call: Callable[[], object], count: int) -> list[float]:
    """Return the CPU time of one call, of a batch of so many."""
    started = time.thread_time_ns()
    for _ in range(count):
        call()
    return [(time.thread_time_ns() - started) / 1e3 / count]


class Nobody:
    """Whom the core tells what has happened."""

    def broke(self, *_: Any) -> None: ...
    def wait_ran_out(self, *_: Any) -> None: ...
    def never_collected(self, *_: Any) -> None: ...


class AtOnce:
    """An engine that answers at once."""

    spec, capacity, broken, condemned = SPEC, 4, False, False
    answer = OutputValue(b"x")

    def encode(self, args: Any, _kwargs: Any) -> Any:
        return args

    def send(self, _encoded: Any, _timeout_s: float) -> None: ...

    def collect(self, outputs: list[Any], _timeout_s: float) -> None:
        outputs[0] = self.answer


def beside_the_engine() -> Callable[[], object]:
    """Return an execution that no engine runs: line, lock, handle, status, counters."""
    nobody: Any = Nobody()
    core = GraphCore("g", "k", effective_settings(GraphConfig()), nobody, fail_fast=True, retry_preempted=0)
    engine: Any = AtOnce()
    info = HostInfo(host_id=0, node_id="n", slice_name=None, num_devices=0, healthy=True, failed=False)
    core.open(engine, [Member(info, None)])
    return lambda: core.execute((b"x",), {}, None)


class _EnoughError(Exception):
    """As many executions as were wanted have been answered."""


class Ends:
    """The driver's engine and what an actor does, over a pair of sockets in one process."""

    def __init__(self) -> None:
        (to_actor, in_actor), (to_driver, in_driver) = self._edge(), self._edge()
        self.engine = self._engine(self._hub(in_driver), to_actor)
        hub = self._hub(in_actor)
        self.incoming, self.outlet = FromWire(hub, b""), SocketOutlet(hub, [to_driver], None)
        self.incoming.look_first(Spin(True))
        self.step = Step(OutputPort(0, "echo"), 1, [None])

    @staticmethod
    def _edge() -> list[Wire]:
        """Return the end that is written and the end that is read of an edge within one node."""
        ends = [Stream(end) for end in socket.socketpair()]
        ends[0].give_pipe()
        ends[1].take_pipe()
        return [Wire(end, 0, lambda _wire: None) for end in ends]

    @staticmethod
    def _hub(wire: Wire) -> Any:
        inlet = SimpleNamespace(wire=wire, connected=SimpleNamespace(wait=lambda: True))
        return SimpleNamespace(inlet=lambda _channel: inlet, key=SimpleNamespace(generation=0), edge_wires=list)

    def _engine(self, hub: Any, to_actor: Wire) -> CompiledEngine:
        engine = CompiledEngine.__new__(CompiledEngine)
        engine.spec, engine.broken, engine._may_wait_to_send = SPEC, False, False
        engine._num_sent, engine._num_collected, engine._apart = 0, 0, Apart()
        engine._inputs = [SocketInput(None, SocketOutlet(hub, [to_actor], None))]
        engine._encoders = [(end.key, end.encode) for end in engine._inputs]
        edge: Any = SimpleNamespace(channel_id=b"")
        output = SocketOutput(edge, hub)
        output.places = [0]
        engine._outputs, engine._over_wires = [output], WireOutputs([output], None, Spin(True))
        return engine

    def answer(self, count: int, between: Callable[[str], None]) -> None:
        """Run so many executions; ``between`` is told of each part before it begins: send, act, collect."""
        left = count

        def next_frame() -> Frame:
            nonlocal left
            if left == 0:
                raise _EnoughError
            left -= 1
            between("send")
            self.engine.send(self.engine.encode((b"x",), {}), 10.0)
            between("act")
            return self.incoming.next_frame()

        def put(encoded: Encoded, value: Any, execution: int) -> None:
            self.outlet.put(encoded, value, execution)
            between("collect")
            self.engine.collect([None], 0.1)
            between("")

        self.engine._num_sent = self.engine._num_collected = 0
        with suppress(_EnoughError):
            self.step.serve(SimpleNamespace(echo=lambda message: message), next_frame, put)

    def microseconds(self, count: int) -> dict[str, float]:
        """Return the CPU time of each part, for one execution of so many."""
        taken = dict.fromkeys(("send", "act", "collect"), 0)
        doing, since = "", 0

        def between(part: str) -> None:
            nonlocal doing, since
            now = time.thread_time_ns()
            if doing:
                taken[doing] += now - since
            doing, since = part, time.thread_time_ns()

        self.answer(count, between)
        return {part: spent / 1e3 / count for part, spent in taken.items()}


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    found: harness.Rounds = {}
    ends, execute = Ends(), beside_the_engine()
    there, here = os.pipe()
    frame = b"x" * (HEAD_BYTES + 1)

    def one_way() -> None:
        os.write(here, frame)
        os.read(there, 1 << 16)

    def all_of_it() -> None:
        ends.answer(options.calls, str)

    parts: dict[str, Callable[[], list[float]]] = {
        "beside the engine": lambda: microseconds(execute, options.calls),
        "of send and act, the kernel's": lambda: microseconds(one_way, options.calls),
        "send, act and collect": lambda: [sum(microseconds(all_of_it, 1)) / options.calls],
    }
    names = {
        "send": "the driver serialises and sends",
        "act": "the actor takes, calls and puts",
        "collect": "the driver collects",
    }
    with harness.progress("hot path", options.rounds) as step:
        for _ in range(options.rounds):
            for name, part in parts.items():
                found.setdefault(name, []).append(part())
            for part_of_it, taken in ends.microseconds(options.calls).items():
                found.setdefault(names[part_of_it], []).append([taken])
            step()
    best = {name: [min(turns)] for name, turns in found.items()}
    table = [row for name, turns in best.items() for row in harness.rows(name, "us", {"cgexec, socket": turns})]
    harness.show("CPU time of one execution, by part", table, options.json, "python -m benchmarks.hot_path")


if __name__ == "__main__":
    main()
