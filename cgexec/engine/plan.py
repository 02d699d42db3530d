"""A bound graph as a list of steps: what an engine needs that does not leave the graph to Ray's compile.

A step is one call of one method. The steps stand in an order in which each comes after those that it depends on, and in
which those of one actor come in the order in which they were bound.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ray.dag import DAGNode, InputAttributeNode, InputNode

from cgexec.engine.graph_spec import BoundGraph, actor_of
from cgexec.engine.ordering import split_arguments
from cgexec.engine.reports import OutputPort
from cgexec.engine.steps import Step


@dataclass(frozen=True)
class FromInput:
    """An input of the graph: its position or its keyword, None for the whole input."""

    key: int | str | None


@dataclass(frozen=True)
class FromStep:
    """What a step returned; ``part`` counts among the parts that the graph uses of it."""

    step: int
    part: int


@dataclass(frozen=True)
class Constant:
    """A value that was bound into the graph."""

    value: Any


Source = FromInput | FromStep
Argument = FromInput | FromStep | Constant


@dataclass(frozen=True)
class PlannedStep:
    """One call. ``parts``: which of the values it returns the graph uses, (None,) for the whole of a single one.

    ``awaited``: what is taken, and not given to the method.
    """

    origin: OutputPort
    num_returns: int
    parts: tuple[int | None, ...]
    arguments: tuple[Argument, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    awaited: tuple[Source, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """What has to be taken for it, in the order of its arguments."""
        return (*(each for each in self.arguments if not isinstance(each, Constant)), *self.awaited)

    def resolve(self, values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the method's arguments, given the values of ``sources``."""
        rest = iter(values)
        return [each.value if isinstance(each, Constant) else next(rest) for each in self.arguments], dict(self.kwargs)


@dataclass(frozen=True)
class Plan:
    """The steps of a graph, and which of what they return are its outputs, in order."""

    steps: tuple[PlannedStep, ...]
    outputs: tuple[FromStep, ...]

    def input_keys(self) -> list[int | str | None]:
        """Return the inputs that the steps take, each once."""
        sources = (source for step in self.steps for source in step.sources)
        return sorted({source.key for source in sources if isinstance(source, FromInput)}, key=str)

    def places(self) -> dict[FromStep, list[int]]:
        """Return where each output stands in the result: several times if its node was listed so."""
        found: dict[FromStep, list[int]] = {}
        for place, source in enumerate(self.outputs):
            found.setdefault(source, []).append(place)
        return found

    def runnable(self) -> list[Step]:
        """Return the steps as they are run."""
        return [Step(each.origin, each.num_returns, each.parts) for each in self.steps]


def plan_of(bound: BoundGraph, host_ids: Mapping[Any, int]) -> Plan:
    """Return the plan of ``bound``; ``host_ids`` names each actor's host."""
    calls = list(_in_order([node for node in bound.nodes if actor_of(node) is not None]))
    number = {call: index for index, call in enumerate(calls)}
    outputs = list(bound.outputs)
    parts: dict[Any, list[int | None]] = {call: [] for call in calls}
    for node in [argument for call in calls for argument in call.get_args()] + outputs:
        if isinstance(node, DAGNode) and not _is_input(node):
            call, part = _call_and_part(node)
            if part not in parts[call]:
                parts[call].append(part)

    def source(node: Any) -> Source:
        if isinstance(node, InputAttributeNode):
            return FromInput(node.key)
        if isinstance(node, InputNode):
            return FromInput(None)
        return step(node)

    def step(node: Any) -> FromStep:
        call, part = _call_and_part(node)
        return FromStep(number[call], parts[call].index(part))

    def planned(call: Any) -> PlannedStep:
        arguments, awaited = split_arguments(call.get_args())
        return PlannedStep(
            OutputPort(host_ids[actor_of(call)], call.get_method_name()),
            call.num_returns,
            tuple(parts[call]),
            tuple(source(each) if isinstance(each, DAGNode) else Constant(each) for each in arguments),
            dict(call.get_kwargs()),
            tuple(source(each) for each in awaited),
        )

    return Plan(tuple(planned(call) for call in calls), tuple(step(node) for node in outputs))


def _is_input(node: Any) -> bool:
    return isinstance(node, (InputNode, InputAttributeNode))


def _call_and_part(node: Any) -> tuple[Any, int | None]:
    """Return the call behind a node, and which of its values the node is; None for the only one."""
    return (node, None) if actor_of(node) is not None else (node.class_method_call, node.output_idx)


def _in_order(calls: Sequence[Any]) -> Iterator[Any]:
    # Private: the order in which the nodes of one actor were bound. Every handle counts for itself, so that the numbers
    # of nodes bound through two handles of one actor say nothing.
    by_actor: dict[Any, list[Any]] = {}
    for call in sorted(calls, key=lambda call: call._get_bind_index()):
        by_actor.setdefault(actor_of(call), []).append(call)
    needed = {
        call: {_call_and_part(node)[0] for node in call.get_args() if isinstance(node, DAGNode) and not _is_input(node)}
        for call in calls
    }
    bound_before = {later: earlier for bound in by_actor.values() for earlier, later in pairwise(bound)}
    in_turn = {call: needed[call] | {bound_before[call]} if call in bound_before else needed[call] for call in calls}
    try:
        yield from graphlib.TopologicalSorter(in_turn).static_order()
    except graphlib.CycleError:
        yield from graphlib.TopologicalSorter(needed).static_order()


def remote_parts(plan: Plan) -> list[list[bool]]:
    """Return, for each part of what each step returns, whether another host takes it, or the driver as an output."""
    found = [[False] * len(step.parts) for step in plan.steps]
    for output in plan.outputs:
        found[output.step][output.part] = True
    for reader in plan.steps:
        for source in reader.sources:
            if isinstance(source, FromStep) and plan.steps[source.step].origin.host_id != reader.origin.host_id:
                found[source.step][source.part] = True
    return found


def local_readers(plan: Plan) -> Counter[FromStep]:
    """Return how many arguments of steps of the same host each part of each step becomes."""
    return Counter(
        source
        for reader in plan.steps
        for source in reader.sources
        if isinstance(source, FromStep) and plan.steps[source.step].origin.host_id == reader.origin.host_id
    )
