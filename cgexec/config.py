"""What a caller may ask of a graph: how it runs, and what happens after the loss of a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cgexec.settings import (
    FROM_CONFIG,
    FROM_POLICY,
    SOURCES,
    check_count,
    check_duration,
    check_flag,
    check_limit,
    check_pause,
)
from cgexec.topology import HostInfo

Transport = Literal["socket", "ray"]
EngineName = Literal["compiled", "actor_calls", "in_process"]


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """How a graph runs. None means Ray's own setting (``cgexec.settings``); times are in seconds and take fractions.

    Attributes:
        submit_timeout_s: how long ``submit`` waits for room. -1 for ever, 0 not at all.
        get_timeout_s: how long a wait for an outcome lasts. -1 for ever, 0 looks once.
        teardown_timeout_s: how long an actor may take to leave the graph before it counts as stuck and is killed.
        build_timeout_s: how long preparing the actors and compiling may take, the constructors of the actors included.
        max_inflight: how many executions may be sent and not yet settled.
        buffer_size_bytes: with the "ray" transport, the first size of each of Ray's shared-memory buffers; they grow by
            themselves.
        read_iteration_timeout_s: while several outputs are awaited, each is looked at for this long in turn.
        max_buffered_results: handed to Ray; cgexec keeps no results on Ray's side.
        overlap_gpu_communication: handed to Ray.
        retry_preempted: how often an execution that was lost to a system error is sent again, on the next generation
            and in the original order, before it settles as JobPreempted. Only for work that may run twice. A copy of
            each input is kept for it until then, at the cost of serialising it once more.
        fail_fast: whether the first application error settles an execution while other outputs are outstanding.
        transport: how values travel. "socket": over our own connections, pipes and Unix sockets on a node, TCP between
            nodes; "ray": in Ray's own channels, where sockets cannot be had.
        pool_bytes: how much shared memory each process of the graph may use for large values on their way to other
            processes of its node, with the "socket" transport. Beyond it, and with 0, they are copied once more.
        engine: what the graph runs on. "compiled": Ray's Compiled Graphs. "actor_calls": ordinary calls of the same
            actors, slower, without Ray's compile. "in_process": no Ray at all, over ``cgexec.testing.LocalActor``.

    Raises:
        ValueError: names the setting, its value, and what is expected.
    """

    submit_timeout_s: float | None = None
    get_timeout_s: float | None = None
    teardown_timeout_s: float | None = None
    build_timeout_s: float = 60.0
    max_inflight: int | None = None
    buffer_size_bytes: int | None = None
    read_iteration_timeout_s: float | None = None
    max_buffered_results: int | None = None
    overlap_gpu_communication: bool | None = None
    retry_preempted: int = 0
    fail_fast: bool = True
    transport: Transport = "socket"
    pool_bytes: int = 1 << 29
    engine: EngineName = "compiled"

    def __post_init__(self) -> None:
        for source in SOURCES:
            value = getattr(self, source.name)
            if value is not None:
                source.check(source.name, value, FROM_CONFIG)
        check_duration("build_timeout_s", self.build_timeout_s, FROM_CONFIG)
        check_flag("fail_fast", self.fail_fast, FROM_CONFIG)
        check_limit("retry_preempted", self.retry_preempted, FROM_CONFIG)
        check_limit("pool_bytes", self.pool_bytes, FROM_CONFIG)
        for name, names in (("transport", get_args(Transport)), ("engine", get_args(EngineName))):
            value = getattr(self, name)
            if value not in names:
                expected = " or ".join(repr(each) for each in names)
                raise ValueError(f"{name}={value!r} (from {FROM_CONFIG}) is not usable: expected {expected}")


@dataclass(frozen=True, kw_only=True)
class RebuildPolicy:
    """What happens after a system error. By default the graph shrinks to the survivors as often as it must.

    Attributes:
        min_hosts: with fewer hosts than this the graph fails instead of going on.
        max_rebuilds: how many builds may be started after the first, over the graph's life; None for no limit.
        replace: ``replace(host_info) -> actor handle`` is called once for each lost host; the new actor takes its
            position and ``host_id``. What it raises fails the graph.
        on_rebuild: ``on_rebuild(generation, infos, actors)`` runs after a new graph is built and before its first
            execution, on a thread of its own: the place to restore state with ordinary calls on the actors. What it
            raises fails the graph, unless a further host died meanwhile: then the rebuild starts over.
        hook_timeout_s: how long ``replace`` or ``on_rebuild`` may take before the graph fails.
        probe_timeout_s: a host that does not answer an ordinary call within this time, after the graph broke, is lost.
            An actor that is busy with an ordinary call does not answer: choose it longer than those take. After a wait
            that ran out the hosts are asked in another way, which a busy one answers at once, and one that gives no
            sign of life within this time is lost: it is stopped, or cut off, or holds on to Python's interpreter lock.
        stuck_after_s: a host one of whose methods has not returned for this long is given up: it is killed, whoever
            spawned it, and lost. None, the default: a method may take as long as it will.
        backoff_s: the pause before the second build of one rebuild; it doubles with each further one, to 5 seconds.
    """

    min_hosts: int = 1
    max_rebuilds: int | None = None
    replace: Callable[[HostInfo], Any] | None = None
    on_rebuild: Callable[[int, Sequence[HostInfo], Sequence[Any]], object] | None = None
    hook_timeout_s: float = 60.0
    probe_timeout_s: float = 5.0
    stuck_after_s: float | None = None
    backoff_s: float = 0.1

    def __post_init__(self) -> None:
        check_count("min_hosts", self.min_hosts, FROM_POLICY)
        if self.max_rebuilds is not None:
            check_limit("max_rebuilds", self.max_rebuilds, FROM_POLICY)
        check_duration("hook_timeout_s", self.hook_timeout_s, FROM_POLICY)
        check_duration("probe_timeout_s", self.probe_timeout_s, FROM_POLICY)
        if self.stuck_after_s is not None:
            check_duration("stuck_after_s", self.stuck_after_s, FROM_POLICY)
        check_pause("backoff_s", self.backoff_s, FROM_POLICY)
        for name in ("replace", "on_rebuild"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise ValueError(f"{name}={hook!r} (from {FROM_POLICY}) is not usable: expected a function or None")
