"""Standing in for Ray's tasks while one of our graphs compiles: what a driver does about ``tasks``.

Ray makes its tasks by the name ``ExecutableTask``, on the thread that compiles. Private names used here: that one, and
of a task its ``task_inputs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.dag import CollectiveOutputNode, compiled_dag_node

from cgexec.engine.edges import Edge, actor_name
from cgexec.engine.graph_spec import actor_of
from cgexec.engine.hub import GraphKey
from cgexec.engine.ordering import split_arguments
from cgexec.engine.reports import OutputPort
from cgexec.engine.stand_in import StandIn
from cgexec.engine.tasks import AdoptedTask, FramedTask, source_of

_task = StandIn(compiled_dag_node, "ExecutableTask")


def is_rays_own(task: Any) -> bool:
    """Return whether a task is to stay Ray's: a collective, or one that has to do with an accelerator."""
    hints = [task.dag_node.type_hint, *task.arg_type_hints]
    return isinstance(task.dag_node, CollectiveOutputNode) or any(hint.requires_accelerator() for hint in hints)


@contextmanager
def framed_tasks(key: GraphKey, origin_of: Callable[[Any], OutputPort], has_one_host: bool = False) -> Iterator[None]:
    """Let the graph that this thread compiles meanwhile be made of framed tasks; ``origin_of(node)`` names each.

    Collectives, and nodes whose values live on an accelerator, keep Ray's own.
    """

    def make(task: Any, args: Any, kwargs: Any) -> Any:
        if is_rays_own(task):
            for channel in args:  # before any task is pickled, so that all of the actor's know
                source = source_of(channel)
                if source is not channel and isinstance(source, Edge):
                    source.cached_by_ray.add(actor_name(actor_of(task.dag_node)))
            ours: Any = AdoptedTask(task, args, kwargs, key)
        else:
            ours = FramedTask(task, args, kwargs, key, origin_of(task.dag_node), has_one_host)
        given, _ = split_arguments(args)
        ours.task_inputs = ours.task_inputs[: len(given)]  # what is only waited for is read, and given to nobody
        return ours

    with _task.replaced_by(make):
        yield
