"""The engine over ordinary actor calls: the same graph, slower, without Ray's compile.

Each step of each execution is one call of its actor, submitted when the execution is sent; Ray carries what one returns
to the next. What is carried are the same frames as in a compiled graph, and a step does the same with them
(``steps``). The actors are prepared as for a compiled graph: a lease, and a control connection that tells of a death.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.core.generated.core_worker_pb2 import ActorHandle  # type: ignore[attr-defined] # made as it is imported
from ray.exceptions import ActorUnavailableError, RayChannelError, RaySystemError

from cgexec.classify import Place, Verdict, classify
from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.departure import stuck_host
from cgexec.engine.frames import Encoded, Kind, join, pack, unpack
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.hub import GraphKey, Hub, HubClosedError, find_hub
from cgexec.engine.in_actor import ActorReport
from cgexec.engine.leasing import leased_actors
from cgexec.engine.over_ray import BackendOverRay, EngineOverRay
from cgexec.engine.plan import FromInput, FromStep, Plan, Source, local_readers, plan_of, remote_parts
from cgexec.engine.preparation import call_all, obstacles_among, probe, release
from cgexec.engine.protocol import (
    Break,
    Engine,
    EngineBrokenError,
    HostsLostError,
    Member,
    Output,
    OutputError,
    SessionOverError,
    losses_among,
)
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.session import Session, hear_out
from cgexec.engine.steps import Taken
from cgexec.engine.values import encoded_inputs, output_of
from cgexec.errors import GraphSpecError
from cgexec.interruption import is_interruption
from cgexec.isolation import bare

_LOOK_S = 0.1  # in one go, so that hurry() is heard, and a shutdown of Ray
_PLAN = b"plan"  # what the actor keeps its steps under, in its hub
_ENDED = b"ended"  # returned in the place of a frame by an actor that has no part in the graph any more


class _ActorsPart:
    """What one actor needs of a graph, and the values that its methods hand to each other. *In the actor.*"""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.steps = plan.runnable()
        self.is_remote = remote_parts(plan)
        self._readers = local_readers(plan)
        self._kept: dict[tuple[int, FromStep], tuple[Any, int]] = {}

    def keep(self, execution: int, source: FromStep, value: Any) -> None:
        """Keep a value for the steps of this actor that take it."""
        if source in self._readers:
            self._kept[execution, source] = value, self._readers[source]

    def take(self, execution: int, source: Source, frame: bytes) -> Taken:
        """Return what is kept of ``source``, or else what came with the call."""
        kept = self._kept.pop((execution, source), None) if isinstance(source, FromStep) else None
        if kept is None or not isinstance(source, FromStep):
            return Taken.from_frame(unpack(frame))
        value, left = kept
        if left > 1:
            self._kept[execution, source] = value, left - 1
        return Taken(execution, None, None, value)


def take_plan(_instance: Any, key: GraphKey, plan: Plan) -> str:
    """Keep the plan for the calls to come; returns what is in the way, nothing as a rule. *In the actor.*"""
    try:
        hub = find_hub(key)
        part: _ActorsPart = hub.shared(_PLAN, lambda: _ActorsPart(plan))
    except HubClosedError as error:
        return str(error)
    for step in part.steps:
        hub.task_started(step)
    hub.stop_listening()  # nobody connects here
    return ""


def run_step(instance: Any, key: GraphKey, index: int, num_parts: int, execution: int, *frames: bytes) -> Any:
    """Do one step of one execution, and return a frame for each part of what it returns. *In the actor.*

    The frame of a part that only this actor takes is empty. Where the graph has ended ``_ENDED`` stands for each: no
    exception, since the driver may be past fetching it, and then Ray would report it.
    """
    try:
        part: _ActorsPart = find_hub(key).shared(_PLAN, _no_plan)
    except (HubClosedError, RayChannelError):
        return [_ENDED] * num_parts if num_parts > 1 else _ENDED
    planned, step = part.plan.steps[index], part.steps[index]
    taken = [part.take(execution, source, frame) for source, frame in zip(planned.sources, frames, strict=True)]
    result, failed = step.call(instance, taken, execution, planned.resolve)
    parts = step.put(instance, result, failed, part.is_remote[index])
    packed = []
    for place, (encoded, value) in enumerate(parts):
        if encoded is None or encoded.kind is not Kind.ERROR:
            part.keep(execution, FromStep(index, place), value)
        packed.append(b"" if encoded is None else join(pack(encoded, key.generation, execution)))
    return packed if len(packed) > 1 else packed[0]


def _returned(ref: ray.ObjectRef[Any]) -> bytes:
    """Return a frame that has come. Raises HubClosedError if the graph had ended in the actor, or what the call did."""
    data: bytes = ray.get(ref)
    if data == _ENDED:
        raise HubClosedError("the graph has ended in the process of the actor")
    return data


def _no_plan() -> _ActorsPart:
    raise RayChannelError("the actor has no part in this generation of the graph")


class ActorCallsBackend(BackendOverRay):
    """Builds graphs of ordinary actor calls."""

    def _build(
        self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]
    ) -> ActorCallsEngine:
        deadline = Deadline.after(self._recipe.build_timeout_s)
        bound = self._recipe.bind(members)
        _check_that_calls_may_wait(members)
        plan = plan_of(bound, {member.actor: member.info.host_id for member in members})
        with leased_actors(self._session, self._recipe, generation, members, bound.methods, deadline) as (hub, reports):
            _check_that_calls_keep_their_order(reports)
            replies = call_all(
                self._session,
                members,
                deadline.remaining_s(),
                lambda member: member.actor.__ray_call__.remote(take_plan, hub.key, plan),
            )
            missing = obstacles_among(replies)
            if missing:
                raise HostsLostError(losses_among(replies), RayChannelError(missing))
            hub.stop_listening()
            return ActorCallsEngine(self._session, self._recipe, bound, plan, members, reports, hub, on_break)


def _check_that_calls_keep_their_order(reports: Mapping[int, ActorReport]) -> None:
    for host_id, report in reports.items():
        if report.max_concurrency > 1:
            raise GraphSpecError(
                f"host {host_id} does {report.max_concurrency} calls side by side (max_concurrency), in no settled "
                "order; engine='actor_calls' needs actors that do one at a time"
            )


def _check_that_calls_may_wait(members: Sequence[Member]) -> None:
    for member in members:
        most = max_pending_calls(member.actor)
        if most > 0:
            raise GraphSpecError(
                f"host {member.info.host_id} ({member.actor!r}) lets no more than {most} calls wait "
                "(max_pending_calls), and refuses others; engine='actor_calls' needs actors without such a limit: "
                "max_inflight limits the executions"
            )


def max_pending_calls(actor: Any) -> int:
    """Return how many calls to an actor may wait, those of this process together; -1: any number.

    Private, since nothing public says it: what a handle becomes on its way to another process, and the form of that.
    """
    worker: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined] # made by its connect()
    handle, _ = worker.serialize_actor_handle(actor._ray_actor_id)
    return int(ActorHandle.FromString(handle).max_pending_calls)


class _Run:
    """One execution: a reference to each part of what each step returns, in the order of the steps."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.refs: list[list[ray.ObjectRef[Any]]] = []

    def ref(self, source: FromStep) -> ray.ObjectRef[Any]:
        """Return the reference to one part of what one step returns."""
        return self.refs[source.step][source.part]


class ActorCallsEngine(EngineOverRay):
    """One generation of a graph; see ``protocol.Engine`` for what each method promises."""

    def __init__(
        self,
        session: Session,
        recipe: GraphRecipe,
        bound: BoundGraph,
        plan: Plan,
        members: Sequence[Member],
        reports: Mapping[int, ActorReport],
        hub: Hub,
        on_break: Callable[[Engine], None],
    ) -> None:
        super().__init__(session, members, reports, hub, on_break)
        self.spec = bound.spec
        self.capacity = recipe.settings.max_inflight.value
        self._plan = plan
        self._keys = plan.input_keys()
        self._places = plan.places()
        self._actors = {member.info.host_id: member.actor for member in members}
        self._runs: deque[_Run] = deque()
        self._cut_short: list[_Run] = []  # of which not all calls were submitted
        self._num_sent = 0
        self._ended: dict[int, Exception] = {}
        hub.tell_losses(self._connection_ended)

    def _connection_ended(self, actor_id: str) -> None:
        self._end(*self._cut_off(actor_id))
        self._say_broken()

    def _end(self, host_id: int, error: Exception) -> None:
        with self._changed:
            # What Ray says of a death says more than that a connection has ended.
            if host_id not in self._ended or isinstance(self._ended[host_id], ActorUnavailableError):
                self._ended[host_id] = bare(error)
            self.broken = True

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Encoded]:
        """Return the serialised inputs; nothing is sent."""
        return encoded_inputs(self.spec, [(key, payload.encode) for key in self._keys], args, kwargs)

    def send(self, encoded: Sequence[Encoded], deadline: Deadline) -> None:  # noqa: ARG002 - a call does not wait
        """Submit the calls of one execution."""
        if self.broken:
            raise EngineBrokenError(RayChannelError("a host has left the graph"))
        run = _Run(self._num_sent)
        frames = [join(pack(each, self._hub.key.generation, run.number)) for each in encoded]
        try:
            self._session.ask(partial(self._submit, run, frames))
        except SessionOverError:
            raise self._session_over() from None
        except Exception as error:
            if is_interruption(error):
                raise
            self.broken = True
            self._cut_short.append(run)
            raise EngineBrokenError(bare(error), sent=bool(run.refs)) from None
        self._num_sent += 1
        self._runs.append(run)

    def _submit(self, run: _Run, frames: Sequence[bytes]) -> None:
        inputs = {key: ray.put(frame) for key, frame in zip(self._keys, frames, strict=True)}
        for index, step in enumerate(self._plan.steps):
            sources = [inputs[s.key] if isinstance(s, FromInput) else run.ref(s) for s in step.sources]
            call = self._actors[step.origin.host_id].__ray_call__.options(
                num_returns=len(step.parts), max_task_retries=0
            )
            refs = call.remote(run_step, self._hub.key, index, len(step.parts), run.number, *sources)
            run.refs.append(refs if len(step.parts) > 1 else [refs])

    def _session_over(self) -> EngineBrokenError:
        self.broken = True
        return EngineBrokenError(RaySystemError(str(SessionOverError())))

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        """Get the outputs that have come."""
        try:
            self._collect(outputs, Deadline.after(timeout_s))
        except SessionOverError:
            raise self._session_over() from None

    def _collect(self, outputs: list[Output | None], deadline: Deadline) -> None:
        run = self._runs[0]
        while None in outputs:
            missing = {run.ref(source): source for source, places in self._places.items() if outputs[places[0]] is None}
            ready, _ = self._session.ask(
                partial(ray.wait, list(missing), timeout=deadline.slice_s(_LOOK_S), fetch_local=True)
            )
            failed = False
            for ref in ready:
                output = self._output(run, missing[ref], ref)
                for place in self._places[missing[ref]]:
                    outputs[place] = output
                failed = failed or isinstance(output, OutputError)
            if None in outputs and (failed or (not ready and (self.broken or deadline.remaining_s() == 0))):
                return
        self._runs.popleft()

    def _output(self, run: _Run, source: FromStep, ref: ray.ObjectRef[Any]) -> Output:
        """Return an output that has come. Raises EngineBrokenError if it is none of a method's making."""
        origin = self._plan.steps[source.step].origin
        try:
            frame = unpack(self._session.ask(partial(_returned, ref)))
        except SessionOverError:
            raise
        except Exception as error:
            if is_interruption(error):
                raise
            self._end(*self._culprit(run) or (origin.host_id, error))
            raise EngineBrokenError(bare(error)) from None
        return output_of(frame, origin)

    def _culprit(self, run: _Run) -> tuple[int, Exception] | None:
        """Return the first step's host of those that came to nothing, and why: Ray hands its error on to the others."""
        for step, (ref, *_) in zip(self._plan.steps, run.refs, strict=False):
            if self._wait([ref], 0)[0]:
                try:
                    self._session.ask(partial(_returned, ref))
                except SessionOverError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
                    return step.origin.host_id, error
        return None

    def why_broken(self, seen: Exception, timeout_s: float) -> Break:
        """Return which hosts have left; asks those that have not said so."""
        found: dict[int, Exception] = {}
        with suppress(SessionOverError):
            found = losses_among(probe(self._session, self._members, timeout_s))
        for host_id, error in found.items():
            if classify(error, Place.LOOP) is Verdict.PREEMPTED:
                self._end(host_id, error)
        with self._changed:
            return Break(tuple(self._ended.items()), seen)

    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]:
        """Wait for the calls that were submitted; an actor that is inside of one at the bound is killed."""
        self.broken = True
        self.hurry(timeout_s)
        graph_id = self._hub.key.graph_id
        self._hub.shut()
        stuck = self._stuck_members(graph_id)
        with suppress(SessionOverError):
            refs = [ref for run in [*self._runs, *self._cut_short] for parts in run.refs for ref in parts]
            self._session.leave(partial(hear_out, refs))
        self._runs.clear()
        self._cut_short.clear()
        self.kill({member.info.host_id for member in stuck})
        self._release_all_but(stuck, self._departure.clean_up_by())
        return {member.info.host_id: stuck_host(member) for member in stuck}

    def _stuck_members(self, graph_id: str) -> list[Member]:
        """Wait for all hosts, and return those that have not left."""
        release(self._session, self._without_control, graph_id, 0)
        try:
            # All are looked at before one is killed: that ends the calls of others which wait for what it is to return.
            return [member for member in self._members if self._stays(member.info.host_id)]
        except SessionOverError:
            return []

    def _stays(self, host_id: int) -> bool:
        """Wait for the calls of one host; returns whether it is inside one of them when the time is up.

        Only executions whose outputs have not all come can have such calls: every step leads to an output. What waits
        for an argument has not begun, and never will: either its turn does not come, or the host that is to return the
        argument is killed.
        """
        calls = [
            (refs[0], [run.ref(source) for source in step.sources if isinstance(source, FromStep)])
            for run in [*self._runs, *self._cut_short]
            for step, refs in zip(self._plan.steps, run.refs, strict=False)
            if step.origin.host_id == host_id
        ]
        while True:
            slice_s = self._departure.by.slice_s(_LOOK_S)
            _, left = self._wait([ref for ref, _ in calls], slice_s)
            calls = [(ref, sources) for ref, sources in calls if ref in left]
            inside = any(not self._wait(sources, 0)[1] for _, sources in calls)
            if not inside or slice_s == 0:
                return inside

    def _wait(self, refs: Sequence[ray.ObjectRef[Any]], timeout_s: float) -> tuple[set[Any], set[Any]]:
        """Return which of ``refs`` have come within ``timeout_s``, and which have not."""
        unique = list(dict.fromkeys(refs))
        if not unique:
            return set(), set()
        look = partial(ray.wait, unique, num_returns=len(unique), timeout=timeout_s, fetch_local=False)
        come, left = self._session.ask(look)
        return set(come), set(left)
