"""What an actor does for one node of the graph, execution after execution: take the inputs, call the method, put.

::

    take ── every input, before an error counts ──> call ──> put ── to every channel, a value or an error
      │ executions differ: error                      │ raises: error          │ cannot be sent: error

Ray's own task reads until the first error and leaves the rest to the next execution, which is then given inputs of the
one before; and what it cannot send ends the actor's loop. So ours stand in for them (``framing``). They are pickled to
the actors with the loop, which asks nothing of them but ``prepare``, ``exec_operation``, ``cancel`` and
``destroy_cuda_event``.

Private names used here: ``ExecutableTask`` and its attributes (``input_channels``, ``output_channels``,
``output_idxs``, ``task_inputs``, ``resolved_kwargs``, ``method_name``), ``_DAGNodeOperationType``, and of a
``CachedChannel`` its ``_inner_channel`` and ``_num_reads``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ray.dag.compiled_dag_node import ExecutableTask
from ray.dag.dag_node_operation import _DAGNodeOperationType
from ray.exceptions import RayChannelError, RayTaskError
from ray.experimental.channel.cached_channel import CachedChannel

from cgexec.engine.cores import cores
from cgexec.engine.edges import Edge, Outlet, ending_as_ray_says
from cgexec.engine.failures import as_task_error, decode_failures, encode_failures, from_ray
from cgexec.engine.frames import Encoded
from cgexec.engine.hub import GraphKey, Hub, find_hub
from cgexec.engine.reports import OutputPort
from cgexec.engine.socket_edges import FromWire, SocketEdge, SocketOutlet
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Arguments, Step, Taken

_READ, _COMPUTE = _DAGNodeOperationType.READ, _DAGNodeOperationType.COMPUTE


class _Foreign:
    """What comes over a channel that is not ours: values without a tag, taken to be of the execution that is due."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._num_taken = 0

    def next(self) -> Taken:
        value = self._channel.read()
        index, self._num_taken = self._num_taken, self._num_taken + 1
        if isinstance(value, RayTaskError):
            return Taken(index, encode_failures([from_ray(value)]).payload)
        return Taken(index, None, None, value)


def source_of(channel: Any) -> Any:
    """Return the channel that is read, behind Ray's cache for several tasks of one actor if it has one."""
    return channel._inner_channel if isinstance(channel, CachedChannel) else channel


def _reader(channel: Any, hub: Hub) -> Callable[[], Taken]:
    """Return what to call for a task's next input; other tasks of the actor may take the same."""
    source = source_of(channel)
    if isinstance(source, Edge):
        if hub.identity in source.cached_by_ray:
            return _Foreign(channel).next
        return source.open_reader(hub).reader(1 if source is channel else channel._num_reads)
    channel.ensure_registered_as_reader()
    hub.close_with(channel.close)
    return _Foreign(channel).next


class _Lone(NamedTuple):
    """What a task needs that may be the only one of its actor: one input, one result, over wires."""

    hub: Hub
    incoming: FromWire
    outlet: SocketOutlet

    @classmethod
    def found(cls, hub: Hub, channels: Sequence[Any], outlets: Sequence[Outlet]) -> _Lone | None:
        """Return it if there is one channel in and one out, which nobody here reads."""
        if not (len(channels) == len(outlets) == 1 and isinstance(channels[0], SocketEdge)):
            return None
        incoming, outlet = channels[0].open_reader(hub).incoming, outlets[0]
        if isinstance(incoming, FromWire) and isinstance(outlet, SocketOutlet) and not outlet.has_local:
            return cls(hub, incoming, outlet)
        return None


class _OurTask(ExecutableTask):
    """A task of one of our graphs. ``in_a_loop``: Ray has prepared it, in an actor, for a loop that runs there."""

    def __init__(self, task: Any, args: Any, kwargs: Any, key: GraphKey) -> None:
        super().__init__(task, args, kwargs)
        self.key = key
        self.in_a_loop = False

    def prepare(self, overlap_gpu_communication: bool = False) -> None:
        """Open every channel. Called by Ray as the actor's loop starts."""
        self.in_a_loop = True
        with ending_as_ray_says():
            self._open(find_hub(self.key), overlap_gpu_communication)

    def _open(self, hub: Hub, overlap: bool) -> None:
        raise NotImplementedError


class AdoptedTask(_OurTask):
    """A task that stays Ray's own, among ours: opens its channels as the loop starts, not when it first uses them."""

    def _open(self, hub: Hub, overlap: bool) -> None:
        hub.close_with(self.cancel)
        for channel in self.output_channels:
            if isinstance(channel, Edge):
                channel.kept_outlet(hub)
        for channel in self.input_channels:
            source = source_of(channel)
            if isinstance(source, Edge):
                source.open_reader(hub)
        ExecutableTask.prepare(self, overlap)
        hub.task_started()


class FramedTask(_OurTask):
    """One method of one actor in the graph. ``is_only_host``: no other actor is in it."""

    def __init__(
        self, task: Any, args: Any, kwargs: Any, key: GraphKey, origin: OutputPort, is_only_host: bool = False
    ) -> None:
        super().__init__(task, args, kwargs, key)
        self._is_only_host = is_only_host
        self._outgoing: list[Any] = self.output_channels
        self._step = Step(origin, task.dag_node.num_returns, self.output_idxs)
        self._outlets: list[Outlet] = []
        self._is_remote: list[bool] = []  # whether another process reads each of them
        self._readers: list[Callable[[], Taken]] = []
        self._takes_inputs_alone = False  # as its arguments, in their order: there are no constants among them
        self._lone: _Lone | None = None
        self._index = 0
        self._taken: list[Taken] = []
        self._execution = 0
        self._failed: Encoded | None = None
        self._result: Any = None

    def _open(self, hub: Hub, overlap: bool) -> None:  # noqa: ARG002
        for channel in self._outgoing:
            if isinstance(channel, Edge):
                self._outlets.append(channel.open_writer(hub))
                self._is_remote.append(channel.has_remote)
            else:
                channel.ensure_registered_as_writer()
                hub.close_with(channel.close)
        self._readers = [_reader(channel, hub) for channel in self.input_channels]
        marks = [object() for _ in self._readers]
        self._takes_inputs_alone = [task_input.resolve(marks) for task_input in self.task_inputs] == marks
        if self._takes_inputs_alone and not self.resolved_kwargs and self._step.num_returns == 1:
            self._lone = _Lone.found(hub, self.input_channels, self._outlets)
        hub.task_started(self._step)

    def cancel(self) -> None:
        """Do nothing: Ray cancels copies, and as soon as an actor has died. The hub ends the real channels."""

    def exec_operation(
        self,
        class_handle: Any,
        op_type: Any,
        overlap_gpu_communication: bool = False,  # noqa: ARG002
    ) -> bool:
        """Do one step of one execution. Returns True when the graph has ended: Ray then leaves the loop.

        Ray's schedule keeps to the order in which an actor's calls were bound, but may have one read before those in
        front of it are called, which would wait for what they need not: inputs are taken when the method is due.
        """
        if op_type is _READ:
            lone, self._lone = self._lone, None
            return lone is not None and lone.hub.num_tasks_started == 1 and self._serve(class_handle, lone)
        if op_type is _COMPUTE:
            if self._take():
                return True
            self._call(class_handle)
            return False
        return self._put(class_handle)

    def _serve(self, instance: Any, lone: _Lone) -> bool:
        """Do all three, for one execution after the other, until the graph has ended; returns True."""
        try:
            if self._is_only_host and cores() > 1:
                lone.incoming.look_first(Spin(True))
                lone.outlet.tell_first()
            self._step.serve(instance, lone.incoming.next_frame, lone.outlet.put)
        except RayChannelError:
            return True

    def _take(self) -> bool:
        try:
            self._taken = [take_next() for take_next in self._readers]
        except RayChannelError:
            return True
        self._index += 1
        return False

    def _call(self, instance: Any) -> None:
        taken, self._taken = self._taken, []
        self._execution = taken[0].execution if len(taken) == 1 else max(each.execution for each in taken)
        self._result, self._failed = self._step.call(instance, taken, self._index - 1, self._arguments)

    def _arguments(self, values: list[Any]) -> Arguments:
        if not self._takes_inputs_alone:
            values = [task_input.resolve(values) for task_input in self.task_inputs]
        return values, self.resolved_kwargs

    def _put(self, instance: Any) -> bool:
        result, self._result = self._result, None
        failed, self._failed = self._failed, None
        try:
            if not self._outlets:
                self._put_foreign(result, failed)
                return False
            ready = self._step.put(instance, result, failed, self._is_remote)
            for outlet, (encoded, value) in zip(self._outlets, ready, strict=True):
                outlet.put(encoded, value, self._execution)
        except RayChannelError:
            return True
        return False

    def _put_foreign(self, result: Any, failed: Encoded | None) -> None:
        """Write to channels that are not ours: a value, or an error as Ray's own tasks write it."""
        if failed is None:
            try:
                self.output_writer.write(result)
            except RayChannelError:
                raise
            except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
                failed = self._step.failure(error, None, f"what {self._step.name} returned cannot be sent")
            else:
                return
        self.output_writer.write(as_task_error(decode_failures(failed.payload)[0]))


def loops_here() -> set[GraphKey | None]:
    """Return the graphs whose loops run in this process; None stands for one that is none of ours.

    The tasks of a loop are alive for as long as it runs, and prepared: those that a driver keeps are not. Private: that
    this gives a task of Ray's own a ``_send_stream``.
    """
    found: set[GraphKey | None] = set()
    for each in gc.get_referrers(ExecutableTask, AdoptedTask, FramedTask):
        if type(each) is ExecutableTask and hasattr(each, "_send_stream"):
            found.add(None)
        elif type(each) in (AdoptedTask, FramedTask) and getattr(each, "in_a_loop", False):
            found.add(each.key)
    return found
