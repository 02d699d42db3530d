"""The engine over Ray's Compiled Graphs.

Ray compiles; cgexec runs. The driver does not use ``CompiledDAG.execute`` or its references: it writes the input
channels and reads the output channels itself, since Ray's own reading loses its place after a timeout and then returns
another execution's answer. An output that was read is kept by the caller until its execution is complete.

Private names used here, on an object of ``ray.dag.CompiledDAG``:

========================  ===================================================================================
``dag_input_channels``    the channels the driver writes, and ``idx_to_task[input_task_idx].output_idxs``, which
                          input goes into which
``dag_output_channels``   the channels the driver reads, one for each output; the same one twice for a node that
                          is listed twice
``worker_task_refs``      a reference to each actor's loop: it ends when, and as, the loop ends
``_channels``             of a channel: one for the readers on each side of a node's border
``teardown``              called by ``ray.shutdown()`` on every graph; replaced on the object
``_monitor``              Ray's thread that tears the graph down when a loop ends; its log is silenced
``_proxy_actor``          an actor of Ray's own, one for each compile, which otherwise lives until garbage collection
========================  ===================================================================================
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import (
    RayChannelError,
    RayChannelTimeoutError,
    RaySystemError,
    RayTaskError,
    UnserializableException,
)

from cgexec.deadline import Deadline
from cgexec.engine import bounded
from cgexec.engine.channel_type import SizedSharedMemory, give_hints
from cgexec.engine.detach import detached
from cgexec.engine.graph_spec import BoundGraph, actor_of
from cgexec.engine.preparation import ActorReport, await_loops, call_out, release
from cgexec.engine.protocol import (
    Break,
    EngineBrokenError,
    GraphSpec,
    Member,
    Output,
    OutputError,
    OutputPort,
    OutputValue,
    SendTimeoutError,
)
from cgexec.engine.teardown_noise import hush
from cgexec.settings import Settings

_logger = logging.getLogger(__name__)

_HEADING = re.compile(r"^\S*ray::.*\(pid=(?P<pid>\d+), ip=(?P<ip>[^,)]+)", re.MULTILINE)

_MIN_TEARDOWN_S = 0.2  # after the loops were told to end, even if no time is left: those that are idle end in 30 ms
_FIRST_CALL_PAUSE_S, _LONGEST_CALL_PAUSE_S = 0.1, 1.0  # between two calls to the actors to leave their loops
_SHUTDOWN_TEARDOWN_S = 1.0
_CLEAN_UP_S = 5.0  # for Ray's own part of a teardown, once every loop has ended or its actor was killed


def compile_graph(bound: BoundGraph, settings: Settings) -> Any:
    """Return Ray's compiled graph. Blocks without a bound if an actor is stopped meanwhile."""
    give_hints(bound.nodes, SizedSharedMemory(settings.buffer_size_bytes.value, settings.max_inflight.value))
    with _loops_without_retries(bound):
        compiled = bound.root.experimental_compile(
            _submit_timeout=settings.submit_timeout_s.value,
            _max_inflight_executions=settings.max_inflight.value,
            _max_buffered_results=settings.max_buffered_results.value,
            _overlap_gpu_communication=settings.overlap_gpu_communication.value,
        )
    hush(compiled._monitor)
    return compiled


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


def _process_of(error: RayTaskError) -> tuple[str, int]:
    """Return the address and the process id of where ``error`` was raised; ("", -1) if it cannot be known.

    An error that has passed through another stage is an instance of its cause and no longer says so but in the heading
    of its text, which Ray writes: ``ray::Worker.method() (pid=..., ip=...)``.
    """
    if "pid" in vars(error):
        return error.ip, error.pid
    heading = _HEADING.search(str(error))
    return (heading["ip"], int(heading["pid"])) if heading else ("", -1)


class CompiledEngine:
    """One compiled graph; see ``protocol.Engine`` for what each method promises."""

    def __init__(
        self,
        compiled: Any,
        bound: BoundGraph,
        members: Sequence[Member],
        reports: Mapping[int, ActorReport],
        settings: Settings,
        graph_id: str,
        on_loop_end: Callable[[CompiledEngine], None],
    ) -> None:
        self.spec: GraphSpec = bound.spec
        self.broken = False
        self.session_over = False
        self._compiled = compiled
        self._members = tuple(members)
        self.incarnations = {host_id: report.incarnation for host_id, report in reports.items()}
        self.node_ids = {host_id: report.node_id for host_id, report in reports.items()}
        self._graph_id = graph_id
        self._buffer_size_bytes = settings.buffer_size_bytes.value
        self._read_slice_s = settings.read_iteration_timeout_s.value
        self.capacity = self._depth(bound, reports, settings)
        self._serialization = ray._private.worker.global_worker.get_serialization_context()

        self._inputs = list(
            zip(
                compiled.dag_input_channels,
                compiled.idx_to_task[compiled.input_task_idx].output_idxs,
                strict=True,
            )
        )
        # One channel may serve several outputs; it is read once for each execution.
        self._outputs: list[tuple[Any, list[int]]] = []
        for place, channel in enumerate(compiled.dag_output_channels):
            known = next((places for other, places in self._outputs if other is channel), None)
            if known is not None:
                known.append(place)
            else:
                self._outputs.append((channel, [place]))

        # An application error names the process that raised it, not the actor.
        self._host_of_process = {(report.node_ip, report.pid): host_id for host_id, report in reports.items()}
        self._methods = bound.methods
        self._origins = bound.origins

        self._torn_down = False
        self._teardown_done = threading.Event()
        self._leave_by = Deadline.after(-1)
        self._ray_teardown = compiled.teardown
        compiled.teardown = self._when_ray_tears_down
        self._loops_changed = threading.Condition()
        self._ended: dict[int, BaseException | None] = {}  # in the order in which the loops ended
        self._loops: dict[int, ray.ObjectRef[Any]] = {}
        for member in self._members:
            loop = compiled.worker_task_refs.get(member.actor)
            if loop is not None:
                self._loops[member.info.host_id] = loop
        for host_id, loop in self._loops.items():
            loop.future().add_done_callback(partial(self._loop_ended, host_id, on_loop_end))

    @staticmethod
    def _depth(bound: BoundGraph, reports: Mapping[int, ActorReport], settings: Settings) -> int:
        """Return how many executions the channels hold.

        On one node every edge has ``max_inflight`` slots. Between nodes Ray's channels have one, and a teardown with
        two unread executions from another node aborts the head node's raylet.
        """
        here = ray.get_runtime_context().get_node_id()
        used = (host_id for host_id, methods in bound.methods.items() if methods)
        return settings.max_inflight.value if all(reports[host].node_id == here for host in used) else 1

    def _loop_ended(self, host_id: int, on_loop_end: Callable[[CompiledEngine], None], ended: Future[Any]) -> None:
        """Note that a loop has ended. Called on one of Ray's threads, where nothing may block."""
        with self._loops_changed:
            self._ended[host_id] = ended.exception()
            self._loops_changed.notify_all()
        self.broken = True
        on_loop_end(self)

    def settle_in(self, timeout_s: float) -> dict[int, Exception]:
        """Wait until every loop runs with its channels open; return the hosts where it does not, and why."""
        for channel, _ in self._outputs:
            channel.ensure_registered_as_reader()
        return await_loops([member for member in self._members if member.info.host_id in self._loops], timeout_s)

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        """Return (channel, serialised input) for each input channel; nothing is sent."""
        self.spec.inputs.check(args, kwargs)
        encoded = []
        for channel, key in self._inputs:
            value = args[key or 0] if key is None or isinstance(key, int) else kwargs[key]
            try:
                encoded.append((channel, self._serialization.serialize(value)))
            except Exception as error:
                name = "the input" if key is None else f"input {key!r}"
                raise TypeError(f"{name} cannot be serialised: {type(error).__name__}: {error}") from error
        return encoded

    def send(self, encoded: list[tuple[Any, Any]], timeout_s: float) -> None:
        """Write one execution's inputs to their channels."""
        if self.broken:
            raise EngineBrokenError(RayChannelError("Channel closed."))
        deadline = Deadline.after(timeout_s)
        for index, (channel, value) in enumerate(encoded):
            try:
                channel.write(value, None if timeout_s == -1 else deadline.remaining_s())
            except RayChannelTimeoutError as error:
                if index == 0 and self._writes_at_once(channel, value):
                    raise SendTimeoutError(f"no room in the input channel after {timeout_s:g} s") from error
                # Some readers have the input and some do not: every later execution would be answered with a mixture.
                self.broken = True
                raise EngineBrokenError(error, sent=True) from error
            except RayChannelError as error:
                self.broken = True
                raise EngineBrokenError(error, sent=index > 0 or self._num_writes(channel) > 1) from error

    def _writes_at_once(self, channel: Any, value: Any) -> bool:
        """Return whether a write that timed out has written nothing.

        Not so for readers on several nodes, which have a channel each, nor for a value that makes the buffers grow:
        the notice of their growth is a message of its own.
        """
        size = value.total_bytes + len(value.metadata)
        return self._num_writes(channel) == 1 and size <= self._buffer_size_bytes

    @staticmethod
    def _num_writes(channel: Any) -> int:
        """Return how many channels a write to ``channel`` goes to, one after the other."""
        return len(getattr(channel, "_channels", (channel,)))

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        """Read the output channels whose places are empty, in turn, a slice of time each."""
        deadline = Deadline.after(timeout_s)
        waiting = [(channel, places) for channel, places in self._outputs if outputs[places[0]] is None]
        while waiting:
            for channel, places in list(waiting):
                one_go = deadline.remaining_s() if len(waiting) == 1 else deadline.slice_s(self._read_slice_s)
                try:
                    output = self._output(channel.read(one_go), self._origins[places[0]])
                except RayChannelTimeoutError:
                    continue
                except RayChannelError as error:
                    self.broken = True
                    raise EngineBrokenError(error) from error
                waiting.remove((channel, places))
                for place in places:
                    outputs[place] = output
                if isinstance(output, OutputError):
                    return
            if deadline.remaining_s() == 0:
                return

    def _output(self, read: Any, origin: OutputPort | None) -> Output:
        """Return what was read from a channel as a value or as an error; ``origin`` is the only call it can be from.

        Ray returns an error as an instance. It does so too for an exception that cannot be loaded here, and for a
        result that cannot be loaded: those are no values either.
        """
        if isinstance(read, RayTaskError):
            error = read.as_instanceof_cause()
            if origin is None:
                host_id = self._host_of_process.get(_process_of(read))
                return OutputError(error, host_id, self._only_method(host_id))
            return OutputError(error, origin.host_id, origin.method)
        if isinstance(read, (UnserializableException, RaySystemError)):
            return OutputError(read, *((origin.host_id, origin.method) if origin is not None else (None, None)))
        return OutputValue(detached(read))

    def _only_method(self, host_id: int | None) -> str | None:
        methods = set(self._methods.get(host_id, ())) if host_id is not None else set()
        return methods.pop() if len(methods) == 1 else None

    def why_broken(self, seen: Exception, timeout_s: float) -> Break:
        """Return what the loops ended with, as soon as one of them ended with an error."""

        def culprits() -> tuple[tuple[int, Exception], ...]:
            return tuple((host_id, e) for host_id, e in self._ended.items() if isinstance(e, Exception))

        with self._loops_changed:
            self._loops_changed.wait_for(lambda: culprits() or len(self._ended) == len(self._loops), timeout_s)
            return Break(culprits(), seen)

    def tear_down(self, timeout_s: float) -> dict[int, Exception]:
        """Let Ray tear the graph down off to the side; kill the actors whose loop has not ended at the bound.

        Killing first what is stuck is what makes Ray's own teardown end: it waits for every actor in turn, 30 s for
        one that is stopped and for ever for one that is inside a method.
        """
        with self._loops_changed:
            first, self._torn_down = not self._torn_down, True
        if not first:
            self._teardown_done.wait(_CLEAN_UP_S)
            return {}
        try:
            return self._tear_down_once(timeout_s)
        finally:
            self._teardown_done.set()

    def hurry(self, timeout_s: float) -> None:
        """Let a teardown under way wait no longer than ``timeout_s`` from now for the actors to leave."""
        with self._loops_changed:
            sooner = Deadline.after(timeout_s)
            if sooner.at < self._leave_by.at:
                self._leave_by = sooner
                self._loops_changed.notify_all()

    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]:
        self.broken = True
        with self._loops_changed:
            leave_by = Deadline.after(timeout_s if timeout_s == -1 else max(_MIN_TEARDOWN_S, timeout_s))
            self._leave_by = min(self._leave_by, leave_by, key=lambda deadline: deadline.at)
        teardown = bounded.start(self._tear_down_ray, f"cgexec-teardown-{self._graph_id[:8]}")
        self._call_out()
        stuck = [member for member in self._members if self._is_running(member)]
        for member in stuck:
            ray.kill(member.actor)
        try:
            bounded.wait(teardown, _CLEAN_UP_S, "Ray's teardown")
        except Exception:
            _logger.exception("the teardown of a compiled graph did not end well")
        ray.kill(self._compiled._proxy_actor)
        release([member for member in self._members if member not in stuck], self._graph_id, _CLEAN_UP_S)
        reason = "was still in the graph when its teardown had to end, and was killed"
        return {m.info.host_id: RayChannelTimeoutError(f"host {m.info.host_id} {reason}") for m in stuck}

    def _tear_down_ray(self) -> None:
        hush(threading.current_thread())
        self._ray_teardown()

    def _when_ray_tears_down(self, kill_actors: bool = False) -> None:
        """Stand in for the graph's own ``teardown``, which Ray calls as it shuts down, the process's exit included.

        Ray would wait for a stuck actor for ever. And without this the graph would look broken, and its rebuild would
        run into the shutdown, or start a new Ray behind it: calls to actors do that where there is none.
        """
        self.session_over = self.session_over or kill_actors
        self.hurry(_SHUTDOWN_TEARDOWN_S)
        self.tear_down(_SHUTDOWN_TEARDOWN_S)

    def _call_out(self) -> None:
        """Tell the actors to leave their loops until all have, or until they must have.

        Once is not enough: a loop that has been submitted but not started yet does not hear it, and opens its channels
        afterwards, closed or not. Ray's own teardown waits for such a loop for ever.
        """
        pause_s = _FIRST_CALL_PAUSE_S
        while running := [member for member in self._members if self._is_running(member)]:
            call_out(running)
            with self._loops_changed:
                self._loops_changed.wait(self._leave_by.slice_s(pause_s))
                if self._leave_by.remaining_s() == 0:
                    return
            pause_s = min(_LONGEST_CALL_PAUSE_S, 2 * pause_s)

    def _is_running(self, member: Member) -> bool:
        host_id = member.info.host_id
        with self._loops_changed:
            return host_id in self._loops and host_id not in self._ended
