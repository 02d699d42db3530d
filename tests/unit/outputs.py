"""A graph of which nothing is real but the driver's ends of its outputs, and the wires that they come over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cores import Graph, Script
from hubs import CHANNEL, DRIVER, FIRST, Site, soon
from ray.exceptions import ActorDiedError
from wires import send

from cgexec.engine.compiled import CompiledEngine
from cgexec.engine.driver_ends import SocketOutput, WireOutputs
from cgexec.engine.failures import capture, encode_failures
from cgexec.engine.payload import decode
from cgexec.engine.protocol import Break
from cgexec.engine.reports import OutputPort
from cgexec.engine.spinning import Spin
from cgexec.engine.wire import Wire
from cgexec.isolation import Apart

LONG_S = 30.0
CHANNELS = [CHANNEL, bytes(16)]


class Outputs:
    """Two outputs of the driver's, and the wires that an actor writes them to."""

    def __init__(self, site: Site) -> None:
        driver, actor = site.hub(DRIVER), site.hub(FIRST)
        self.ends = [SocketOutput(edge(channel), driver) for channel in CHANNELS]
        self.wires: list[Wire] = [actor.connect_edge(channel, driver.address, soon()) for channel in CHANNELS]
        for channel in CHANNELS:
            assert driver.inlet(channel).connected.wait(LONG_S)
        self.all = WireOutputs(self.ends, driver.alarm, Spin(False))

    def send(self, place: int, value: Any, execution: int) -> None:
        send(self.wires[place], value, execution)

    def read(self, *places: int, timeout_s: float = LONG_S) -> list[tuple[int, int, Any]]:
        """Return what has arrived: (place, execution, value)."""
        found, error = self.all.read([self.ends[place] for place in places], timeout_s)
        if error is not None:
            raise error
        return [(self.ends.index(end), frame.execution, decode(frame)) for end, frame in found]


def edge(channel: bytes) -> Any:
    return SimpleNamespace(channel_id=channel)


def engine_over(outputs: Outputs) -> CompiledEngine:
    """Return an engine that has nothing but these outputs."""
    engine = CompiledEngine.__new__(CompiledEngine)
    engine.spec, engine.capacity = Script.spec, 4
    engine._outputs, engine._over_wires = list(outputs.ends), outputs.all
    for place, end in enumerate(outputs.ends):
        end.places = [place]
    engine._inputs, engine._encoders, engine._may_wait_to_send = [], [], False
    engine._num_sent = engine._num_collected = 0
    engine._apart, engine.broken, engine.condemned = Apart(), False, False
    return engine


def graph_over(outputs: Outputs, **config: Any) -> Graph:
    """Return a graph over such an engine; when that breaks, host 0 has died."""
    return Graph(engine_over(outputs), Break(((0, ActorDiedError()),), ActorDiedError()), **config)


FAILED = encode_failures([capture(ValueError("as asked"), OutputPort(0, "step"), None)])
