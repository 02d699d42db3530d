"""Where do the microseconds of one execution go?

    python -m benchmarks.hot_path [--json FILE] [--rounds N]

CPU time of each part by itself, on one thread and with nobody to wait for: what the driver does beside the engine, what
it writes, what it reads, and what an actor does. Not among it is what the kernel takes to wake a process that sleeps,
which happens twice for one actor, unless both spin. The shortest of many batches counts: it is the one that nothing
else has disturbed. The parts are put together here from the inside of cgexec: where that changes, so must this.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks import harness
from cgexec import GraphConfig, HostInfo
from cgexec.core import GraphCore
from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.driver_ends import SocketInput, SocketOutput, WireOutputs
from cgexec.engine.protocol import GraphSpec, InputSpec, Member, OutputPort, OutputValue
from cgexec.engine.ray_context import effective_settings
from cgexec.engine.socket_edges import _FromWire, _SocketOutlet
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Step
from cgexec.engine.tasks import FramedTask
from cgexec.engine.wire import Wire

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


class Ends:
    """The driver's engine and an actor's task, over a pair of sockets in one process."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.driver, self.actor = (Wire(end, 0, lambda _wire: None) for end in (here, there))
        self.engine = self._engine(self._hub(self.driver))
        self.task = self._task(self._hub(self.actor))
        self.instance = SimpleNamespace(echo=lambda message: message)

    @staticmethod
    def _hub(wire: Wire) -> Any:
        inlet = SimpleNamespace(wire=wire, connected=SimpleNamespace(wait=lambda: True))
        return SimpleNamespace(
            inlet=lambda _channel: inlet, spin=Spin(1 << 30), key=SimpleNamespace(generation=0), edge_wires=list
        )

    def _engine(self, hub: Any) -> CompiledEngine:
        engine = CompiledEngine.__new__(CompiledEngine)
        engine.spec, engine.broken = SPEC, False
        engine._num_sent = engine._num_collected = 0
        engine._inputs = [SocketInput(None, _SocketOutlet(hub, [self.driver], None))]
        engine._encoders = [(end.key, end.encode) for end in engine._inputs]
        edge: Any = SimpleNamespace(channel_id=b"")
        output = SocketOutput(edge, hub)
        output.places = [0]
        engine._outputs, engine._over_wires = [output], WireOutputs([output], None, hub.spin)
        return engine

    def _task(self, hub: Any) -> FramedTask:
        task = FramedTask.__new__(FramedTask)
        task._step = Step(OutputPort(0, "echo"), 1, [None])
        task._readers, task._takes_inputs_alone = [_FromWire(hub, b"").next], True
        task._outlets, task._is_remote = [_SocketOutlet(hub, [self.actor], None)], [True]
        task._index, task.resolved_kwargs = 0, {}
        task._failed = task._result = None
        return task

    def send(self) -> None:
        self.engine.send(self.engine.encode((b"x",), {}), 10.0)

    def act(self) -> None:
        self.task._take()
        self.task._call(self.instance)
        self.task._put(self.instance)

    def collect(self) -> None:
        self.engine.collect([None], 0.1)


def main() -> None:
    options = harness.options(__doc__ or "", rounds=ROUNDS, calls=CALLS)
    found: harness.Rounds = {}
    ends, execute = Ends(), beside_the_engine()
    here, there = socket.socketpair()
    frame = b"x" * (HEAD_BYTES + 1)

    def one_way() -> None:
        here.send(frame)
        there.recv(1 << 16)

    def all_of_it() -> None:
        ends.send()
        ends.act()
        ends.collect()

    def without(part: Callable[[], None]) -> Callable[[], list[float]]:
        """Return how long ``part`` takes of all that an execution does."""

        def measured() -> list[float]:
            taken = 0
            for _ in range(options.calls):
                for each in (ends.send, ends.act, ends.collect):
                    started = time.thread_time_ns()
                    each()
                    taken += (time.thread_time_ns() - started) if each == part else 0
            return [taken / 1e3 / options.calls]

        return measured

    parts: dict[str, Callable[[], list[float]]] = {
        "beside the engine": lambda: microseconds(execute, options.calls),
        "the driver serialises and sends": without(ends.send),
        "the actor takes, calls and puts": without(ends.act),
        "the driver collects": without(ends.collect),
        "send, act and collect": lambda: microseconds(all_of_it, options.calls),
        "of which the kernel's, each way": lambda: microseconds(one_way, options.calls),
    }
    with harness.progress("hot path", options.rounds) as step:
        for _ in range(options.rounds):
            for name, part in parts.items():
                found.setdefault(name, []).append(part())
            step()
    best = {name: [min(turns)] for name, turns in found.items()}
    table = [row for name, turns in best.items() for row in harness.rows(name, "us", {"cgexec, socket": turns})]
    harness.show("CPU time of one execution, by part", table, options.json, "python -m benchmarks.hot_path")


if __name__ == "__main__":
    main()
