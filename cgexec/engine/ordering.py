"""What one call in a graph waits for without being given it.

Ray knows no such thing: a node depends on its arguments. So what is only waited for is an argument, behind a marker,
and every engine gives the method what stands before it. ``bind`` checks a call against the method's signature, hence
they are added when it has been bound. Private names used here: of a node its ``_bound_args``, ``_upstream_nodes`` and
``_downstream_nodes``, which its constructor sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.dag import ClassMethodNode, InputAttributeNode, InputNode

from cgexec.errors import GraphSpecError


class _Marker:
    def __reduce__(self) -> str:
        return "_AFTER"  # the global of that name: Ray copies the arguments of nodes

    def __repr__(self) -> str:
        return "after"


_AFTER = _Marker()


def after(node: Any, *awaited: Any) -> Any:
    """Let a node that was just bound wait for others, and return it: ``after(actor.update.bind(step), a, b)``.

    What they return is not given to the method; but if one of them fails the method is not called, and the node's
    output is that failure. Nodes of the same actor cost nothing; those of another send it what they return. An actor's
    calls are made in the order in which they were bound; one that waits, directly or not, for a call of its own actor
    that was bound after it is not compiled by Ray, and comes later on engines without it. What nothing depends on, and
    is no output, cannot be part of a graph.

    Raises:
        GraphSpecError: one of them is no node, or waits for this one; or ``node`` is no call of a method.
    """
    if not isinstance(node, ClassMethodNode) or not node.is_class_method_call:
        raise GraphSpecError(f"after() is given {node!r}: expected what actor.method.bind(...) returns, of one value")
    for each in awaited:
        if not isinstance(each, (ClassMethodNode, InputNode, InputAttributeNode)):
            raise GraphSpecError(
                f"{node.get_method_name()}() is to wait for {each!r}: expected a node of a method, or an input"
            )
        if each is node or (node._downstream_nodes and node in leading_to([each])):
            raise GraphSpecError(f"{node.get_method_name()}() is to wait for {_named(each)}, which waits for it")
    if awaited:
        marker = () if any(argument is _AFTER for argument in node._bound_args) else (_AFTER,)
        node._bound_args = (*node._bound_args, *marker, *awaited)
        for each in awaited:
            node._upstream_nodes.append(each)
            each._downstream_nodes.append(node)
    return node


def _named(node: Any) -> str:
    """Return what a node is called in an error: Ray's own description is a page long."""
    return f"{node.get_method_name()}()" if isinstance(node, ClassMethodNode) else repr(node)


def leading_to(nodes: Iterable[Any]) -> set[Any]:
    """Return nodes and all that they depend on."""
    found: set[Any] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += node._upstream_nodes
    return found


def split_arguments(arguments: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return what a method is given, and what is only waited for."""
    arguments = list(arguments)
    for place, argument in enumerate(arguments):
        if argument is _AFTER:
            return arguments[:place], arguments[place + 1 :]
    return arguments, []
