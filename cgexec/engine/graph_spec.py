"""What a builder may build: bind its nodes, and refuse by name what Ray would refuse late or get wrong in silence.

What Ray 2.60 does with each, without this: extra keyword inputs and gaps between ``inp[0]`` and ``inp[2]`` are ignored;
a node inside a list is passed to the method as a node; an ``async def`` method returns a coroutine that cannot be sent;
an actor of another graph compiles and then hangs; two InputNodes fail an assertion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.dag import ClassMethodNode, DAGNode, InputAttributeNode, InputNode, MultiOutputNode

from cgexec.engine.ordering import leading_to
from cgexec.engine.protocol import GraphSpec, InputSpec, Member
from cgexec.engine.reports import OutputPort
from cgexec.errors import GraphSpecError
from cgexec.texts import told

RESERVED_INPUTS = frozenset({"timeout_s"})


@dataclass(frozen=True)
class BoundGraph:
    """Fresh nodes of one generation: the node to compile, the graph's outside, and the methods each host runs.

    ``is_chain``: whether each node's value goes to one other node, so that one execution has one method run at a time.
    """

    root: Any
    spec: GraphSpec
    nodes: tuple[Any, ...]
    methods: dict[int, tuple[str, ...]]
    outputs: tuple[Any, ...]
    is_chain: bool

    @property
    def has_one_host(self) -> bool:
        """Whether one host does everything."""
        return sum(map(bool, self.methods.values())) == 1

    @property
    def is_one_call(self) -> bool:
        """Whether an execution is one call of one method."""
        return sum(map(len, self.methods.values())) == 1


def takes_infos(build: Callable[..., Any]) -> bool:
    """Return whether a builder is to be called with a third argument, ``infos``.

    It is if it takes a third positional argument that has no default, or one that is called ``infos``. A third
    argument with a default is the builder's own: ``lambda inp, actors, method="echo": ...``.
    """
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "infos")


def bind_graph(build: Callable[..., Any], members: Sequence[Member]) -> BoundGraph:
    """Call ``build`` and return its graph, bound to fresh nodes.

    Raises:
        GraphSpecError: the builder raised, or what it returned cannot be a graph over ``members``; nothing has run.
    """
    actors = [member.actor for member in members]
    infos = [member.info for member in members]
    with InputNode() as inp:
        try:
            built = build(inp, actors, infos) if takes_infos(build) else build(inp, actors)
        except GraphSpecError:
            raise
        except Exception as error:
            hint = _generator_hint(members) if isinstance(error, TypeError) else ""
            raise GraphSpecError(f"the builder raised {told(error)}{hint}") from error

    outputs, returns_list = _outputs(built)
    nodes = _component(outputs)
    host_ids = {member.actor: member.info.host_id for member in members}
    for node in nodes:
        _check_node(node, inp, host_ids)
    _check_all_used(outputs, nodes)
    spec = GraphSpec(
        inputs=_input_spec(inp, nodes),
        outputs=tuple(_port(node, host_ids) for node in outputs),
        returns_list=returns_list,
    )
    methods: dict[int, tuple[str, ...]] = {member.info.host_id: () for member in members}
    for node in nodes:
        if _is_call(node):
            methods[host_ids[node._get_actor_handle()]] += (node.get_method_name(),)
    # Private: there is no public way from a node to those that use it.
    is_chain = len(outputs) == 1 and all(len(node._downstream_nodes) <= 1 for node in nodes)
    root = built if isinstance(built, MultiOutputNode) else MultiOutputNode(list(outputs)) if returns_list else built
    return BoundGraph(root, spec, tuple(nodes), methods, tuple(outputs), is_chain)


def _generator_hint(members: Sequence[Member]) -> str:
    """Return what to say of generators: Ray fails to bind them, with a TypeError that names nothing."""
    for member in members:
        # Private: which methods are generators, by name.
        names = [name for name, is_one in getattr(member.actor, "_ray_method_is_generator", {}).items() if is_one]
        if names:
            return f" (if it binds {', '.join(names)}(): a generator cannot be part of a graph; return a list)"
    return ""


def _outputs(built: Any) -> tuple[list[Any], bool]:
    """Return the output nodes of what a builder returned, and whether there is a list of them."""
    if isinstance(built, MultiOutputNode):
        built = list(built.get_args())
    returns_list = isinstance(built, (list, tuple))
    outputs = list(built) if returns_list else [built]
    if not outputs:
        raise GraphSpecError("the builder returned an empty list: return at least one node")
    for index, node in enumerate(outputs):
        if isinstance(node, (InputNode, InputAttributeNode)):
            raise GraphSpecError(f"output {index} is the graph's input itself: bind it to a method of an actor")
        if not isinstance(node, ClassMethodNode):
            what = f"output {index}" if returns_list else "what the builder returned"
            raise GraphSpecError(
                f"{what} is no node of an actor's method but {type(node).__name__}: {node!r}; return actor.method.bind"
                "(...) or a list of such nodes (a method with num_returns > 1 gives a tuple: unpack it)"
            )
    return outputs, returns_list


def _upstream(node: Any) -> list[Any]:
    # Private: the public accessors leave out nodes that are nested in an argument, and those are what is looked for.
    return list(node._upstream_nodes)


def _component(outputs: Iterable[Any]) -> list[Any]:
    """Return every node connected with ``outputs``, as Ray's compile will find them."""
    seen: dict[Any, None] = {}
    queue = list(outputs)
    while queue:
        node = queue.pop()
        if node not in seen:
            seen[node] = None
            # Private: there is no public way from a node to those that use it.
            queue += [*_upstream(node), *node._downstream_nodes]
    return list(seen)


def _is_call(node: Any) -> bool:
    """Return whether ``node`` is a call of an actor's method, and not one of several outputs of such a call."""
    return isinstance(node, ClassMethodNode) and bool(node.is_class_method_call)


def _name(node: Any) -> str:
    """Return how an error names a node."""
    if isinstance(node, InputAttributeNode):
        return f"input {node.key!r}"
    if not isinstance(node, ClassMethodNode):
        return type(node).__name__
    if not _is_call(node):
        return f"output {node.output_idx} of {_name(node.class_method_call)}"
    return f"{node.get_method_name()}() of {node._get_actor_handle()!r}"


def _check_node(node: Any, inp: Any, host_ids: dict[Any, int]) -> None:
    if isinstance(node, InputNode):
        if node is not inp:
            raise GraphSpecError(
                "the graph hangs on an InputNode that is not the one given to the builder: bind fresh nodes from `inp` "
                "on every call, and keep none from an earlier one"
            )
        return
    if isinstance(node, InputAttributeNode):
        if node.key in RESERVED_INPUTS:
            raise GraphSpecError(f"{_name(node)} is a name that execute() keeps for itself: call the input otherwise")
        return
    if isinstance(node, MultiOutputNode):
        return
    if not isinstance(node, ClassMethodNode):
        raise GraphSpecError(f"{node!r} is no method of an actor: a compiled graph takes nothing else")
    actor = node._get_actor_handle()
    if actor is None:
        raise GraphSpecError(f"{_name(node)} belongs to a class, not to a running actor: start it with .remote() first")
    if actor not in host_ids:
        raise GraphSpecError(f"{_name(node)}: this actor is not one of the graph's hosts; pass it to GraphExecutor")
    _check_arguments(node)


def _check_arguments(node: Any) -> None:
    arguments = list(node.get_args())
    for key, value in node.get_kwargs().items():
        if isinstance(value, DAGNode):
            raise GraphSpecError(
                f"{_name(node)} takes a node as keyword argument {key!r}: Compiled Graphs take nodes by position only"
            )
    direct = [argument for argument in arguments if isinstance(argument, DAGNode)]
    nested = [other for other in _upstream(node) if not any(other is argument for argument in direct)]
    if nested:
        raise GraphSpecError(
            f"{_name(node)} takes {_name(nested[0])} inside a container: Compiled Graphs replace a node only where it "
            "is an argument by itself"
        )
    if _is_call(node) and not direct:
        raise GraphSpecError(
            f"{_name(node)} takes no node at all: bind it to the input, or to something that depends on the input"
        )


def _check_all_used(outputs: Sequence[Any], nodes: Sequence[Any]) -> None:
    """Refuse a node from which no output is reached: its errors would be lost, and Ray does not compile it."""
    used = leading_to(outputs)
    for node in nodes:
        if node not in used and not isinstance(node, (InputNode, MultiOutputNode)):
            raise GraphSpecError(f"{_name(node)} does not lead to any output: use its value, or leave it out")


def _input_spec(inp: Any, nodes: Sequence[Any]) -> InputSpec:
    taken = [node.key for node in nodes if isinstance(node, InputAttributeNode)]
    whole = [node for node in nodes if _is_call(node) and any(argument is inp for argument in node.get_args())]
    if whole and taken:
        raise GraphSpecError(
            f"{_name(whole[0])} takes the whole input while {taken[0]!r} is taken from it elsewhere: use either `inp` "
            "or `inp[...]` throughout"
        )
    if whole:
        return InputSpec(1, frozenset())
    if not taken:
        raise GraphSpecError("the graph does not use its input: bind at least one method to `inp`")
    positions = {key for key in taken if isinstance(key, int)}
    if min(positions, default=0) < 0:
        raise GraphSpecError(f"input {min(positions)} is counted from the end: number inputs from 0")
    for position in range(max(positions, default=-1)):
        if position not in positions:
            raise GraphSpecError(
                f"input {position} is never used, though input {max(positions)} is: number them from 0"
            )
    return InputSpec(len(positions), frozenset(key for key in taken if isinstance(key, str)))


def _port(node: Any, host_ids: dict[Any, int]) -> OutputPort:
    call = node if _is_call(node) else node.class_method_call
    return OutputPort(host_ids[call._get_actor_handle()], call.get_method_name())


def actor_of(node: Any) -> Any | None:
    """Return the actor handle of a call of a method, None for any other node."""
    return node._get_actor_handle() if _is_call(node) else None
