"""The engine over Ray's Compiled Graphs.

Ray compiles; cgexec runs. The channels, the tasks in the actors and the driver's ends are ours (``edges``, ``tasks``,
``driver_ends``). Every frame says which execution it belongs to, and every output is checked against the execution that
is due; an output that was read is kept by the caller until its execution is complete.

Private names used here, on an object of ``ray.dag.CompiledDAG``:

===============================  ============================================================================
``dag_input_channels``           the channels the driver writes, and ``idx_to_task[input_task_idx].output_idxs``,
                                 which input goes into which
``dag_output_channels``          the channels the driver reads, one for each output; the same one twice for a node
                                 that is listed twice
``actor_to_executable_tasks``    the tasks of each actor's loop
``worker_task_refs``             a reference to each actor's loop: it ends when, and as, the loop ends
===============================  ============================================================================
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import RayChannelError, RayChannelTimeoutError

from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.compilation import end_groups, groups_of, let_go
from cgexec.engine.cores import cores
from cgexec.engine.departure import stuck_host
from cgexec.engine.driver_ends import (
    ANY_EXECUTION,
    InputEnd,
    NothingWrittenError,
    OutputEnd,
    SocketInput,
    SocketOutput,
    WireOutputs,
    input_end,
    output_end,
    read_in_turn,
)
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.hub import Hub
from cgexec.engine.in_actor import ActorReport
from cgexec.engine.over_ray import EngineOverRay
from cgexec.engine.payload import is_short
from cgexec.engine.preparation import await_loops, obstacles_among, release
from cgexec.engine.protocol import (
    AtOnce,
    Break,
    Engine,
    EngineBrokenError,
    GraphSpec,
    Member,
    Output,
    OutputError,
    SendTimeoutError,
    SessionOverError,
)
from cgexec.engine.reports import OutputPort
from cgexec.engine.session import Session
from cgexec.engine.spinning import Spin
from cgexec.engine.steps import Arrived
from cgexec.engine.values import encoded_inputs, output_of
from cgexec.isolation import Apart, bare
from cgexec.log import logger
from cgexec.settings import Settings

_logger = logger(__name__)

_MIN_TEARDOWN_S = 0.2  # after the loops were told to end, even if no time is left: those that are idle end in 30 ms
_UNREACHABLE_S = 5.0  # for Ray to notice that a process has gone, and to begin to restart it: else it is killed


class CompiledEngine(EngineOverRay):
    """One compiled graph; see ``protocol.Engine`` for what each method promises."""

    def __init__(
        self,
        session: Session,
        compiled: Any,
        bound: BoundGraph,
        members: Sequence[Member],
        reports: Mapping[int, ActorReport],
        settings: Settings,
        hub: Hub,
        on_break: Callable[[Engine], None],
    ) -> None:
        super().__init__(session, members, reports, hub, on_break)
        self.spec: GraphSpec = bound.spec
        self._compiled = compiled
        self._read_slice_s = settings.read_iteration_timeout_s.value
        self._spin = Spin(bound.is_chain and cores() > 1, may_move=True)
        self._is_one_call = bound.is_one_call
        self._settled_in = False
        self._settings = settings
        self._inputs: list[InputEnd] = []
        self._encoders: list[tuple[int | str | None, Callable[[Any], Any]]] = []
        self._outputs: list[OutputEnd] = []
        self._over_wires: WireOutputs | None = None  # if all outputs come so
        self._may_wait_to_send = True
        self._apart = Apart()
        self._num_sent = 0
        self._num_collected = 0
        self.capacity = 1
        here = ray.get_runtime_context().get_node_id()
        used = [host_id for host_id, methods in bound.methods.items() if methods]
        self._on_one_node = all(reports[host_id].node_id == here for host_id in used)
        self._num_tasks = {
            member.info.host_id: len(compiled.actor_to_executable_tasks[member.actor])
            for member in self._members
            if member.actor in compiled.actor_to_executable_tasks
        }

        self._ended: dict[int, BaseException | None] = {}  # in the order in which the loops ended
        self._unreachable: dict[int, Exception] = {}  # the hosts whose control connection has ended
        self._loops: dict[int, ray.ObjectRef[Any]] = {}
        for member in self._members:
            loop = compiled.worker_task_refs.get(member.actor)
            if loop is not None:
                self._loops[member.info.host_id] = loop
        for host_id, loop in self._loops.items():
            loop.future().add_done_callback(partial(self._loop_ended, host_id))
        hub.tell_losses(self._connection_ended)

    def _loop_ended(self, host_id: int, ended: Future[Any]) -> None:
        """Note that a loop has ended. Called on one of Ray's threads, where nothing may block."""
        with self._changed:
            self._ended[host_id] = ended.exception()
            self._changed.notify_all()
        self._note_break()

    def _connection_ended(self, actor_id: str) -> None:
        """Note that a host can no longer be reached. Called on the hub's thread, sooner than Ray sees a death."""
        host_id, error = self._cut_off(actor_id)
        with self._changed:
            self._unreachable[host_id] = error
        self._note_break()

    def _note_break(self) -> None:
        self.broken = True
        if not self._settled_in:  # nobody runs on it yet: let those who wait for the others go
            self._hub.shut()
        self._say_broken()

    def settle_in(self, timeout_s: float) -> Break | None:
        """Wait until every channel is open, here and in the actors.

        Returns what is in the way, if anything: which actors died or kept silent, or what is missing.
        """
        deadline = Deadline.after(timeout_s)
        try:
            self._open_ends()
            members = [member for member in self._members if member.info.host_id in self._loops]
            replies = await_loops(self._session, members, self._hub.key, self._num_tasks, deadline.remaining_s())
            losses = tuple((host_id, reply) for host_id, reply in replies.items() if isinstance(reply, Exception))
            missing = obstacles_among(replies) or self._hub.missing_after(0, deadline)
            if not missing and self._all_over_wires():
                ends = cast("Sequence[SocketOutput]", self._outputs)
                self._over_wires = WireOutputs(ends, self._hub.alarm, self._spin)
        except RayChannelError as error:
            missing, losses = str(error), ()
        self._settled_in = not missing
        if not missing and not self.broken:
            return None
        with self._changed:
            ended = [f"the loop of host {host_id} ended with {error!r}" for host_id, error in self._ended.items()]
        what = "; ".join([missing or "a host left it", *ended])
        return Break(losses, RayChannelError(f"its channels could not be opened: {what}"))

    def _open_ends(self) -> None:
        """Open the driver's ends of the channels; one that serves several outputs is read once.

        Every edge has room for ``max_inflight`` values; but Ray's own channels between nodes have one slot, and a
        teardown with two unread executions from another node aborts the head node's raylet.
        """
        outputs: dict[int, OutputEnd] = {}
        for place, channel in enumerate(self._compiled.dag_output_channels):
            if id(channel) not in outputs:
                outputs[id(channel)] = output_end(channel, self._hub)
            outputs[id(channel)].places.append(place)
        self._outputs = list(outputs.values())
        self.capacity = self._settings.max_inflight.value if self._all_over_wires() or self._on_one_node else 1
        channels = self._compiled.dag_input_channels
        keys = self._compiled.idx_to_task[self._compiled.input_task_idx].output_idxs
        buffer_size_bytes = self._settings.buffer_size_bytes.value
        self._inputs = [
            input_end(key, channel, self._hub, buffer_size_bytes) for key, channel in zip(keys, channels, strict=True)
        ]
        match self._inputs:
            case [SocketInput() as only] if self._spin.may_pay and self._is_one_call:  # whose host looks for its input
                only.tell_first()
        self._encoders = [(end.key, end.encode) for end in self._inputs]
        self._may_wait_to_send = not all(isinstance(end, SocketInput) for end in self._inputs)

    def _all_over_wires(self) -> bool:
        return all(isinstance(end, SocketOutput) for end in self._outputs)

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the serialised value for each input channel; nothing is sent."""
        return encoded_inputs(self.spec, self._encoders, args, kwargs)

    def send(self, encoded: Sequence[Any], deadline: Deadline) -> None:
        """Write one execution's inputs to their channels."""
        if self.broken:
            raise EngineBrokenError(RayChannelError("Channel closed."))
        first = True
        for end, value in zip(self._inputs, encoded, strict=True):
            try:
                end.write(value, self._num_sent, deadline, first)
                first = False
            except NothingWrittenError as error:
                raise SendTimeoutError(f"there was no room in the input channel in time: {error}") from error
            except (RayChannelError, RayChannelTimeoutError) as error:
                # Some readers have the input and some may not.
                self.broken = True
                raise EngineBrokenError(bare(error), sent=True) from None
        self._num_sent += 1

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        """Read the output channels whose places are empty."""
        over_wires = self._over_wires
        if over_wires is not None and timeout_s > 0 and self._num_sent == self._num_collected + 1:
            frame = over_wires.look()
            if frame is not None:
                self._fill_in(outputs, self._outputs[0], frame)
                self._num_collected += 1
                return
        waiting = self._waiting_for(outputs)
        left_s, ends_at = timeout_s, time.monotonic() + timeout_s
        failed = False
        while waiting:
            found: Sequence[tuple[OutputEnd, Arrived]]
            if over_wires is not None:
                found, error = over_wires.read(waiting, left_s)
            else:
                found, error = read_in_turn(waiting, Deadline.after(left_s), self._read_slice_s)
            looked_further = failed
            failed |= self._fill(outputs, waiting, found)
            if error is not None:
                if looked_further:
                    return  # the failure is an answer, and whoever asks again meets the error again
                self.broken = True
                raise EngineBrokenError(bare(error))
            if waiting:
                # A failure is an answer; but what else has arrived by now belongs to it, and to whatever comes behind.
                left_s = 0.0 if failed else max(0.0, ends_at - time.monotonic())
                if not found and (self.broken or left_s == 0):
                    return
        self._num_collected += 1

    def _fill(
        self, outputs: list[Output | None], waiting: list[OutputEnd], found: Sequence[tuple[OutputEnd, Arrived]]
    ) -> bool:
        """Fill in what was found, which is not waited for any more; return whether any of it is an error."""
        failed = False
        for end, arrived in found:
            output = self._fill_in(outputs, end, arrived)
            waiting.remove(end)
            failed = failed or type(output) is OutputError
        return failed

    def _fill_in(self, outputs: list[Output | None], end: OutputEnd, arrived: Arrived) -> Output:
        """Fill in what has come from an end, and return it."""
        port = self.spec.outputs[end.places[0]]
        if arrived.execution not in (self._num_collected, ANY_EXECUTION):
            raise self._misplaced(arrived, port)
        output = output_of(arrived, port, self._apart)
        for place in end.places:
            outputs[place] = output
        return output

    # -- what takes no thread: see ``protocol.AtOnce`` ---------------------------------------------------------------

    @property
    def at_once(self) -> AtOnce | None:
        """See ``protocol.Engine``: where everything goes over wires."""
        return None if self._over_wires is None or self._may_wait_to_send else self

    def can_send_at_once(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether the inputs are short and plain, and go out at once."""
        if not all(map(is_short, args)) or (kwargs and not all(map(is_short, kwargs.values()))):
            return False
        return not any(cast("SocketInput", end).has_backlog() for end in self._inputs)

    def readiness(self) -> select.epoll:
        """Return an epoll of the outputs' wires."""
        return self._wires().readiness()

    def has_arrived(self) -> bool:
        """Return whether a frame was received ahead of its turn, or by somebody who has gone."""
        return self._wires().has_arrived()

    def collect_at_once(self, outputs: list[Output | None]) -> None:
        """Read the wires whose places are empty, each once."""
        waiting = self._waiting_for(outputs)
        self._fill(outputs, waiting, self._wires().read_at_once(waiting))
        if not waiting:
            self._num_collected += 1

    def takes_a_thread(self, outputs: Sequence[Output | None]) -> bool:
        """Return whether a wire has something long, of somebody's classes, failed, or ended."""
        return self._wires().takes_a_thread(self._waiting_for(outputs))

    def _wires(self) -> WireOutputs:
        if (wires := self._over_wires) is None:
            raise EngineBrokenError(RayChannelError("Channel closed."))
        return wires

    def _waiting_for(self, outputs: Sequence[Output | None]) -> list[OutputEnd]:
        return [end for end in self._outputs if outputs[end.places[0]] is None]

    def _misplaced(self, arrived: Arrived, port: OutputPort) -> EngineBrokenError:
        """Give up a generation that answers with what belongs to another execution than the one that is due."""
        self.condemned = self.broken = True
        what = f"execution {self._num_collected} of this generation met what belongs to {arrived.execution}"
        return EngineBrokenError(RayChannelError(f"{what}, from {port.method}() of host {port.host_id}"))

    def why_broken(self, seen: Exception, timeout_s: float) -> Break:
        """Return what the loops ended with, as soon as one of them ended with an error.

        Where Ray does not say so in time, a host whose connection has ended accounts for the break.
        """

        def culprits() -> tuple[tuple[int, Exception], ...]:
            return tuple((host_id, e) for host_id, e in self._ended.items() if isinstance(e, Exception))

        with self._changed:
            self._changed.wait_for(lambda: culprits() or len(self._ended) == len(self._loops), timeout_s)
            return Break(culprits() or tuple(self._unreachable.items()), seen)

    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]:
        """End the loops; kill the actors whose loop has not ended at the bound."""
        self.broken = True
        self.hurry(timeout_s if timeout_s == -1 else max(_MIN_TEARDOWN_S, timeout_s))
        graph_id = self._hub.key.graph_id
        self._hub.shut()
        release(self._session, self._without_control, graph_id, 0)
        self._await_loops_end()
        stuck = [member for member in self._members if self._is_running(member)]
        self.kill({member.info.host_id for member in stuck})
        clean_up_by = self._departure.clean_up_by()
        with suppress(SessionOverError):
            self._session.leave(partial(let_go, self._compiled, clean_up_by.remaining_s()))
        self._end_groups(clean_up_by)
        self._inputs, self._encoders, self._outputs = [], [], []
        self._over_wires = None  # the last to hold their connections
        self._release_all_but(stuck, clean_up_by)
        return {
            member.info.host_id: self._unreachable.get(member.info.host_id) or stuck_host(member) for member in stuck
        }

    def _end_groups(self, by: Deadline) -> None:
        """End the groups of accelerators, on a thread, which is left to itself if that takes long."""
        groups, name = groups_of(self._compiled), f"cgexec-groups-{self._hub.key.graph_id[:8]}"
        if not groups:
            return
        ending = bounded.start(lambda: self._session.leave(partial(end_groups, groups)), name)
        try:
            bounded.wait(ending, by.remaining_s(), "the end of a group of accelerators")
        except SessionOverError:
            pass
        except Exception:
            _logger.exception("a group of accelerators did not end well")

    def _await_loops_end(self) -> None:
        """Wait for every loop to end, as long as it may take; but not long for one whose process has gone already.

        Ray may not see that for as long as a child that the process forked lives.
        """
        unreachable_by = Deadline.after(_UNREACHABLE_S)
        with self._changed:
            while (running := self._loops.keys() - self._ended.keys()) and self._departure.by.remaining_s() > 0:
                if running <= self._unreachable.keys():
                    if unreachable_by.remaining_s() == 0:
                        return
                    self._changed.wait(min(unreachable_by.remaining_s(), self._departure.by.remaining_s()))
                else:
                    self._changed.wait(self._departure.by.slice_s(threading.TIMEOUT_MAX))

    def _is_running(self, member: Member) -> bool:
        host_id = member.info.host_id
        with self._changed:
            return host_id in self._loops and host_id not in self._ended
