"""Having Ray compile a graph, of our channels and tasks.

Ray tears none of them down, and no thread of Ray's watches over them. It would begin a teardown when a loop ends, the
graph being compiled by then or not: that closes channels before what has arrived in them is read, waits for actors one
after the other, 30 s for one that is busy and for ever for one that is inside a method, and goes on asking them while
Ray shuts down, which ends the process. Our loops end with their hubs, and so do channels of Ray's own between them.

Ray also makes an actor for each compile, on the driver's node, so that those who write to channels of its own can make
buffers there. Sockets need none, and it is not cheap: it takes a worker from Ray's pool, which then starts another, and
what that one imports has a core to itself for the first half second of the new graph.

And Ray asks one actor after the other where it is, and which accelerators it has: all have just said so, side by side.

Private names used here: of ``ray.dag.CompiledDAG``, ``_get_node_id`` and ``_get_gpu_ids``, by which it asks;
``DAGDriverProxyActor``, the class of that actor, which is under ``_proxy_actor`` in the graph and otherwise lives until
garbage collection; ``_monitor_failures``, which starts that thread, and ``_is_teardown``, which says that the graph has
been torn down; ``_actors_to_created_communicator_id``, the groups of accelerators that it has set up, and
``_destroy_communicator``, which ends one. On an actor's handle, ``_method_shells``: what a call is made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import ray
from ray.dag.compiled_dag_node import (  # type: ignore[attr-defined] # imported there
    CompiledDAG,
    _destroy_communicator,
)
from ray.experimental.channel.common import ChannelOutputType

from cgexec.engine.edges import give_hints
from cgexec.engine.framing import framed_tasks
from cgexec.engine.graph_spec import BoundGraph, actor_of
from cgexec.engine.hub import Hub
from cgexec.engine.in_actor import ActorReport
from cgexec.engine.protocol import Member
from cgexec.engine.reports import OutputPort
from cgexec.engine.session import hear_out
from cgexec.engine.socket_edges import SocketHint
from cgexec.engine.stand_in import StandIn
from cgexec.settings import Settings

_monitor = StandIn(CompiledDAG, "_monitor_failures")
_node_id = StandIn(CompiledDAG, "_get_node_id")
_gpu_ids = StandIn(CompiledDAG, "_get_gpu_ids")
_helper = StandIn(CompiledDAG.DAGDriverProxyActor, "options")


_rays_node_id = CompiledDAG._get_node_id


def compile_graph(
    bound: BoundGraph,
    members: Sequence[Member],
    reports: Mapping[int, ActorReport],
    settings: Settings,
    hub: Hub,
    hint: ChannelOutputType,
) -> Any:
    """Return Ray's compiled graph. Blocks without a bound if an actor is stopped meanwhile."""
    host_ids = {member.actor: member.info.host_id for member in members}

    def node_id_of(compiled: CompiledDAG, actor: Any) -> str:
        known = actor in host_ids  # and not the driver, or Ray's own actor
        return reports[host_ids[actor]].node_id if known else _rays_node_id(compiled, actor)

    def gpu_ids_of(actor: Any) -> list[str]:
        return list(reports[host_ids[actor]].gpu_ids)

    def origin_of(node: Any) -> OutputPort:
        return OutputPort(host_ids[actor_of(node)], node.get_method_name())

    give_hints(bound.nodes, hint)
    with ExitStack() as changes:
        changes.enter_context(_loops_without_retries(bound))
        changes.enter_context(framed_tasks(hub.key, origin_of, bound.has_one_host))
        changes.enter_context(_monitor.replaced_by(_unwatched))
        changes.enter_context(_node_id.replaced_by(node_id_of))
        changes.enter_context(_gpu_ids.replaced_by(gpu_ids_of))
        if all(isinstance(node.type_hint, SocketHint) for node in bound.nodes):
            changes.enter_context(_helper.replaced_by(_NoHelper))
        try:
            compiled = bound.root.experimental_compile(
                _submit_timeout=settings.submit_timeout_s.value,
                _max_inflight_executions=settings.max_inflight.value,
                _max_buffered_results=settings.max_buffered_results.value,
                _overlap_gpu_communication=settings.overlap_gpu_communication.value,
            )
        except Exception as error:
            for unfinished in _compiled_in(error.__traceback__):
                kill_helper(unfinished)
            raise
    compiled._is_teardown = True
    return compiled


def _unwatched(_compiled: CompiledDAG) -> None:
    """Start no thread: Ray makes do with no monitor."""


class _NoHelper:
    """No actor: Ray takes None for the driver."""

    def __init__(self, **_options: Any) -> None:
        """Take the options of the actor that would have been made."""

    def remote(self) -> None:
        """Make none."""


def _compiled_in(tb: TracebackType | None) -> list[CompiledDAG]:
    """Return the graph whose compile ended in an exception: nobody else has it."""
    found: dict[int, CompiledDAG] = {}
    while tb is not None:
        values = tb.tb_frame.f_locals.values()
        found.update((id(value), value) for value in values if isinstance(value, CompiledDAG))
        tb = tb.tb_next
    return list(found.values())


def kill_helper(compiled: CompiledDAG) -> None:
    """End the actor that Ray made for this compile, if it came to that."""
    helper = getattr(compiled, "_proxy_actor", None)
    if helper is not None:
        ray.kill(helper)


def groups_of(compiled: CompiledDAG) -> list[str]:
    """Return the groups of accelerators that Ray has set up for this graph."""
    return list(compiled._actors_to_created_communicator_id.values())


def end_groups(groups: Sequence[str]) -> None:
    """End groups of accelerators; blocks, for 30 s at most for each."""
    for group in groups:
        _destroy_communicator(group)


def let_go(compiled: CompiledDAG, timeout_s: float) -> None:
    """End Ray's own actor of a graph whose hubs have ended, and hear its loops out, or Ray would report their ends."""
    kill_helper(compiled)
    loops = list(compiled.worker_task_refs.values())
    if loops:
        ray.wait(loops, num_returns=len(loops), timeout=timeout_s, fetch_local=False)
    hear_out(loops)


@contextmanager
def _loops_without_retries(bound: BoundGraph) -> Iterator[None]:
    """Let no loop that is submitted meanwhile be retried.

    Ray retries the tasks of an actor with ``max_task_retries`` after a restart, the loop included: in a process that
    never opened its channels, with nobody told of the death.
    """
    handles = {id(handle): handle for node in bound.nodes if (handle := actor_of(node)) is not None}
    shells = [handle._method_shells["__ray_call__"] for handle in handles.values()]
    before = [shell._max_task_retries for shell in shells]
    for shell in shells:
        shell._max_task_retries = 0
    try:
        yield
    finally:
        for shell, retries in zip(shells, before, strict=True):
            shell._max_task_retries = retries
