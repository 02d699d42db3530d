"""A graph's core over an engine that does what a script says: nothing waits for real."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import RayChannelError

from cgexec import GraphConfig, HostInfo, JobStatus
from cgexec.core import GraphCore
from cgexec.engine import payload
from cgexec.engine.frames import Encoded
from cgexec.engine.protocol import Break, GraphSpec, InputSpec, Member, Output, OutputValue
from cgexec.engine.ray_context import effective_settings
from cgexec.engine.reports import OutputPort
from cgexec.lifecycle import GraphEvent

HOSTS = [HostInfo(host_id, "slice-0", None, healthy=True, failed=False) for host_id in range(2)]
MEMBERS = [Member(info, f"actor {info.host_id}") for info in HOSTS]
CLOSED = RayChannelError("Channel closed.")


def plain(value: Any) -> Any:
    """Return an input, loaded if it was kept to be sent again."""
    return payload.decode(value) if isinstance(value, Encoded) else value


class Script:
    """Stands where an engine would: sending and collecting do what the script says, one entry for each call."""

    spec = GraphSpec(InputSpec(1, frozenset()), (OutputPort(0, "step"), OutputPort(1, "step")), returns_list=True)
    capacity = 2
    at_once: Any = None

    def __init__(self, *, send: Sequence[object] = (), collect: Sequence[object] = ()) -> None:
        self.broken = False
        self.condemned = False
        self.sending, self.collecting = list(send), list(collect)
        self.sent: list[Any] = []

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return plain(args[0])

    def send(self, encoded: Any, deadline: Any) -> None:
        step = self.sending.pop(0) if self.sending else None
        if isinstance(step, BaseException):
            raise step
        self.sent.append(encoded)

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        step = self.collecting.pop(0) if self.collecting else {}
        if isinstance(step, BaseException):
            raise step
        for place, output in step.items():  # type: ignore[attr-defined]
            outputs[place] = output


class Graph:
    """A core whose breaks are noted and handled at once, as the supervisor would."""

    def __init__(self, engine: Any, why: Break | None = None, retry_preempted: int = 0, **config: Any) -> None:
        self.breaks: list[Exception] = []
        self.why = why or Break((), CLOSED)
        self.ran_out: list[Any] = []
        self.unasked: list[JobStatus] = []
        self.next: Any = None
        self.may_recover: threading.Event | None = None
        settings = effective_settings(GraphConfig(**{"get_timeout_s": 5, "submit_timeout_s": 5, **config}))
        self.core = GraphCore("echo", "test", settings, self, fail_fast=True, retry_preempted=retry_preempted)
        self.core.open(engine, MEMBERS)

    def broke(self, engine: Any, seen: Exception) -> None:
        engine.broken = True
        self.breaks.append(seen)
        threading.Thread(target=self.recover, args=(engine,)).start()

    def wait_ran_out(self, engine: Any) -> None:
        self.ran_out.append(engine)

    def never_collected(self, status: JobStatus) -> None:
        self.unasked.append(status)

    def recover(self, engine: Any) -> None:
        if self.may_recover is not None:
            assert self.may_recover.wait(30)
        if self.core.break_off(engine, self.why) and self.next is not None:
            self.core.happened(GraphEvent.REBUILD, "")
            self.core.open(self.next, MEMBERS)


def value(number: int) -> dict[int, Output]:
    return {0: OutputValue(number), 1: OutputValue(number)}
