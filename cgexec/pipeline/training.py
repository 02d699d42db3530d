"""A training step as one graph: what each stage does with each microbatch, in the order that a schedule says.

::

    microbatch 0 ─┐                                      ┌─ target 0
                  v                                      v
               0F0 (host 0) ── activations ──> 1F0 (host 1) ── loss 0
                                                 │
               0B0 (host 0) <── gradient ───── 1B0 (host 1)
                  │                              │
               update (host 0)                 update (host 1)     after everything else that the host does

What the stages' methods are given and return (``StageMethods`` says what they are called):

- ``forward(stage, microbatch, inputs)`` returns activations: the inputs of the next stage. Those of the first stage are
  the microbatch itself.
- ``forward(stage, microbatch, inputs, target)``, of the last stage, returns the microbatch's loss.
- ``backward(stage, microbatch, gradient)`` returns the gradient of the stage's inputs. ``gradient`` is that of its
  activations, None for the last stage. What the first stage returns goes nowhere.
- ``backward_input``, likewise, and ``backward_weight(stage, microbatch)``, which returns nothing, in its place where
  the schedule splits the backward.
- ``update(step)``, once for each host, behind everything else that it does, is given the number of the step.

``stage`` and ``microbatch`` are numbers. A stage keeps by itself what it needs again for a microbatch. What depends on
an operation that has failed is not done: of the same microbatch, on whatever host, and any later backward of the same
host. The ``update`` of such a host is not called; that of other hosts may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple

from cgexec.engine.ordering import after
from cgexec.errors import GraphSpecError
from cgexec.pipeline.complete import check_complete
from cgexec.pipeline.operations import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Operation
from cgexec.pipeline.schedules import Schedule
from cgexec.pipeline.timeline import run
from cgexec.settings import check_kind
from cgexec.topology import HostInfo


@dataclass(frozen=True, kw_only=True)
class StageMethods:
    """What the methods of the stages are called. Raises ValueError for what is no name."""

    forward: str = "forward"
    backward: str = "backward"
    backward_input: str = "backward_input"
    backward_weight: str = "backward_weight"
    update: str = "update"

    def __post_init__(self) -> None:
        for name, method in vars(self).items():
            check_kind(name, method, "StageMethods", str)


class StepResult(NamedTuple):
    """What a training step gives: the loss of each microbatch, and what ``update`` returned on each host, in order."""

    losses: list[Any]
    updates: list[Any]


class TrainingStep:
    """A builder for ``GraphExecutor``: one execution of the graph is one training step.

    ::

        step = TrainingStep(Schedule1F1B(), num_stages=4, num_microbatches=8)
        with GraphExecutor(stages, step) as graph:
            status = graph.execute(*step.arguments(microbatches, targets, number))
            losses, updates = step.result(status.result)

    ``num_stages`` is the number of hosts, as for ``Schedule.order``. Host h has stage h, and with an interleaved
    schedule the stages h, S + h, ... of S hosts. It cannot go on with fewer hosts: without ``RebuildPolicy.replace``
    the graph fails when one is lost.

    Raises:
        ValueError: the schedule cannot be had with these numbers; says why.
    """

    def __init__(
        self, schedule: Schedule, num_stages: int, num_microbatches: int, methods: StageMethods | None = None
    ) -> None:
        check_kind("schedule", schedule, "TrainingStep", Schedule)
        check_kind("methods", methods, "TrainingStep", StageMethods, NoneType)
        self.schedule = schedule
        self.num_microbatches = num_microbatches
        self.methods = methods or StageMethods()
        order = schedule.order(num_stages, num_microbatches)
        self._turns = run(order).in_time()
        found = 1 + max(operation.microbatch for host in order for operation in host)
        if (len(order), found) != (num_stages, num_microbatches):
            raise ValueError(
                f"{schedule!r} has an order of {len(order)} hosts and {found} microbatches, where {num_stages} and "
                f"{num_microbatches} were asked for"
            )
        self._num_hosts = len(order)
        self._num_stages = 1 + max(operation.stage for host in order for operation in host)

    def __call__(self, inp: Any, actors: Sequence[Any], infos: Sequence[HostInfo]) -> list[Any]:
        """Bind every operation, each host's in the order that the schedule says, and the updates.

        Raises:
            GraphSpecError: there are not as many hosts, or one has not all the methods that it needs.
        """
        check_complete(infos, self._num_hosts)
        graph = _Binding(inp, self.methods, self.num_microbatches, self._num_stages)
        for host, operation in self._turns:
            graph.bind(host, actors[host], operation)
        return [*graph.losses(), *(graph.update(host, actor) for host, actor in enumerate(actors))]

    def arguments(self, microbatches: Sequence[Any], targets: Sequence[Any], step: int = 0) -> list[Any]:
        """Return the arguments of ``GraphExecutor.execute`` for one step; ``step`` is what ``update`` is given.

        Raises:
            ValueError: there are not as many microbatches or targets as the graph is for, or they are no sequence.
        """
        for what, values in (("microbatches", microbatches), ("targets", targets)):
            if isinstance(values, Mapping) or not hasattr(values, "__len__"):
                raise ValueError(f"{what} are to be a list or another sequence, not a {type(values).__name__}")
            if len(values) != self.num_microbatches:
                raise ValueError(f"{len(values)} {what} were given, and the graph is for {self.num_microbatches}")
        return [*microbatches, *targets, step]

    def result(self, outputs: Sequence[Any]) -> StepResult:
        """Return what the result of an execution, or the statuses of its outputs, say."""
        return StepResult(list(outputs[: self.num_microbatches]), list(outputs[self.num_microbatches :]))


class _Binding:
    """The nodes of a step, as they are bound.

    What a host does behind its forwards, it does only if it could do all that was before: so the last of it stands for
    all, and ``update`` waits for that alone.
    """

    def __init__(self, inp: Any, methods: StageMethods, num_microbatches: int, num_stages: int) -> None:
        self._inp = inp
        self._methods = methods
        self._num_microbatches = num_microbatches
        self._last = num_stages - 1
        self._nodes: dict[Operation, Any] = {}
        self._last_of_host: dict[int, Any] = {}  # of what is no forward

    def bind(self, host: int, actor: Any, operation: Operation) -> None:
        """Bind one operation, to nodes that have been bound before."""
        stage, kind, microbatch = operation
        if kind == FORWARD:
            method = _method(actor, self._methods.forward, f"stage {stage} needs for {operation}")
            self._nodes[operation] = method.bind(stage, microbatch, *self._inputs(stage, microbatch))
            return
        awaited = [self._last_of_host[host]] if host in self._last_of_host else []
        arguments: list[Any] = []
        if kind == BACKWARD_WEIGHT:
            name = self._methods.backward_weight
            awaited.append(self._nodes[Operation(stage, BACKWARD_INPUT, microbatch)])
        else:
            name = self._methods.backward if kind == FULL_BACKWARD else self._methods.backward_input
            if stage < self._last:
                arguments = [self._gradient_of(stage + 1, microbatch)]
            else:
                arguments = [None]
                awaited.append(self._nodes[Operation(stage, FORWARD, microbatch)])
        method = _method(actor, name, f"stage {stage} needs for {operation}")
        node = after(method.bind(stage, microbatch, *arguments), *awaited)
        self._nodes[operation] = self._last_of_host[host] = node

    def _inputs(self, stage: int, microbatch: int) -> list[Any]:
        before = self._nodes[Operation(stage - 1, FORWARD, microbatch)] if stage else self._inp[microbatch]
        target = [self._inp[self._num_microbatches + microbatch]] if stage == self._last else []
        return [before, *target]

    def _gradient_of(self, stage: int, microbatch: int) -> Any:
        whole, part = (Operation(stage, kind, microbatch) for kind in (FULL_BACKWARD, BACKWARD_INPUT))
        return self._nodes.get(whole) or self._nodes[part]

    def losses(self) -> list[Any]:
        """Return the nodes of the losses, by microbatch."""
        return [self._nodes[Operation(self._last, FORWARD, each)] for each in range(self._num_microbatches)]

    def update(self, host: int, actor: Any) -> Any:
        """Bind the update of a host, behind everything else."""
        method = _method(actor, self._methods.update, f"host {host} needs at the end of a step")
        return after(method.bind(self._inp[2 * self._num_microbatches]), self._last_of_host[host])


def _method(actor: Any, name: str, what_for: str) -> Any:
    method = getattr(actor, name, None)
    if method is None:
        raise GraphSpecError(
            f"{actor!r} has no method {name!r}, which {what_for}; StageMethods says what the methods are called"
        )
    return method
