"""Having Ray compile a graph, of our channels and tasks.

Private names used here: on an object of ``ray.dag.CompiledDAG``, ``_dag_submitter`` and ``_dag_output_fetcher``, Ray's
own ends of the driver's channels, which its teardown closes before what has arrived is read; and ``_monitor``, its
thread that tears the graph down when a loop ends; ``_proxy_actor``, an actor of Ray's own, one for each compile, which
otherwise lives until garbage collection. On an actor's handle, ``_method_shells``: what a call is made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import ray
from ray.dag.compiled_dag_node import CompiledDAG
from ray.experimental.channel.common import ChannelOutputType

from cgexec.engine.edges import give_hints
from cgexec.engine.graph_spec import BoundGraph, actor_of
from cgexec.engine.hub import Hub
from cgexec.engine.protocol import Member, OutputPort
from cgexec.engine.tasks import framed_tasks
from cgexec.engine.teardown_noise import hush
from cgexec.settings import Settings


class _Closed:
    """In the place of the driver's ends as Ray made them."""

    def close(self) -> None:
        """Do nothing."""


def compile_graph(
    bound: BoundGraph, members: Sequence[Member], settings: Settings, hub: Hub, hint: ChannelOutputType
) -> Any:
    """Return Ray's compiled graph. Blocks without a bound if an actor is stopped meanwhile."""
    host_ids = {member.actor: member.info.host_id for member in members}

    def origin_of(node: Any) -> OutputPort:
        return OutputPort(host_ids[actor_of(node)], node.get_method_name())

    give_hints(bound.nodes, hint)
    with _loops_without_retries(bound), framed_tasks(hub.key, origin_of):
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
    compiled._dag_submitter = compiled._dag_output_fetcher = _Closed()
    hush(compiled._monitor)
    return compiled


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


def discard(compiled: CompiledDAG) -> None:
    """Undo a compile that ended when nobody wanted its graph any more."""
    compiled.teardown()
    kill_helper(compiled)


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
