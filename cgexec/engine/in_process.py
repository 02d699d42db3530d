"""The engine without Ray: a graph over actors of this process, for the tests of those who call graphs, and our own.

Values travel as they do between processes: serialised, loaded once for each host, refused where they could not be
sent. What is simulated are the processes (``local_actor``), and what goes wrong with them (``fault_plan``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayChannelError, RayTaskError

from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.departure import Departure, stuck_host
from cgexec.engine.fault_plan import Fault, FaultPlan, Phase, raising
from cgexec.engine.frames import Encoded, join, pack, unpack
from cgexec.engine.graph_spec import BoundGraph
from cgexec.engine.local_actor import Job, LocalProcess, process_of, world
from cgexec.engine.plan import FromInput, FromStep, Plan, PlannedStep, Source, plan_of, remote_parts
from cgexec.engine.protocol import AtOnce, Break, Engine, EngineBrokenError, Member, Output, OutputError
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.reports import HostReport, Pulse
from cgexec.engine.steps import LoopEndedError, Step, Taken
from cgexec.engine.values import encoded_inputs, output_of

_NODE_ID = "local"
_INLINE_PAUSE_S = 0.001  # while nothing can be done, until somebody else changes something


def meet_faults(member: Member, phase: Phase) -> None:
    """Let happen what is to befall a host now."""
    process = process_of(member.actor)
    for fault in process.faults.due(member.info.host_id, phase):
        _befall(process, fault)


def _befall(process: LocalProcess, fault: Fault) -> None:
    process.die() if fault.kind == "die" else process.stop()


def replies_of(members: Sequence[Member]) -> dict[int, HostReport | Exception]:
    """Return what the hosts answer when they are asked for a sign of life."""
    replies: dict[int, HostReport | Exception] = {}
    for member in members:
        process, host_id = process_of(member.actor), member.info.host_id
        if process.death is not None:
            replies[host_id] = process.death
        elif process.stopped:
            replies[host_id] = GetTimeoutError(f"host {host_id} did not answer")
        else:
            replies[host_id] = HostReport(_NODE_ID, process.incarnation)
    return replies


class _Run:
    """One execution: what went in, and what has come out of each step so far. Guarded by ``world``."""

    def __init__(
        self, number: int, counted: Mapping[FaultPlan, int], inputs: Mapping[Any, bytes], num_steps: int
    ) -> None:
        self.number = number
        self.counted = counted  # by each fault plan
        self.inputs = inputs
        self.results: list[list[tuple[bytes | None, Any]] | None] = [None] * num_steps
        self.taken: dict[tuple[Source, int | None], Taken] = {}


class InProcessEngine:
    """One generation of a graph over local actors; see ``protocol.Engine`` for what each method promises."""

    def __init__(
        self,
        recipe: GraphRecipe,
        bound: BoundGraph,
        members: Sequence[Member],
        generation: int,
        on_break: Callable[[Engine], None],
    ) -> None:
        self.spec = bound.spec
        self.capacity = recipe.settings.max_inflight.value
        self.broken = self.condemned = self.session_over = False
        self.at_once: AtOnce | None = None
        self.generation = generation
        self._processes = {member.info.host_id: process_of(member.actor) for member in members}
        self.incarnations = {host_id: process.incarnation for host_id, process in self._processes.items()}
        self.node_ids = dict.fromkeys(self._processes, _NODE_ID)
        self._members = tuple(members)
        self.plan: Plan = plan_of(bound, {member.actor: member.info.host_id for member in members})
        self.steps = self.plan.runnable()
        self.is_remote = remote_parts(self.plan)
        self._keys = self.plan.input_keys()
        self._places = self.plan.places()
        self._plans = {process.faults for process in self._processes.values()}
        self._runs: deque[_Run] = deque()
        self._num_sent = 0
        self._on_break = on_break
        self._departure = Departure(world)
        self._ended: dict[int, Exception] = {}
        self._mourners = {host_id: partial(self.end, host_id) for host_id in self._processes}
        with world:
            for host_id, process in self._processes.items():
                process.mourners.append(self._mourners[host_id])

    def end(self, host_id: int, error: Exception) -> None:
        """Note that a host has left the graph."""
        with world:
            if self._departure.begun:
                return
            self._ended[host_id] = error
            self.broken = True
            world.notify_all()
        self._on_break(self)

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, Encoded]:
        """Return the serialised inputs by their keys; nothing is sent."""
        encoded = encoded_inputs(self.spec, [(key, payload.encode) for key in self._keys], args, kwargs)
        return dict(zip(self._keys, encoded, strict=True))

    def send(self, encoded: Mapping[Any, Encoded], deadline: Deadline) -> None:  # noqa: ARG002 - there is always room
        """Put one execution's steps into the mailboxes."""
        number = self._num_sent
        frames = {key: join(pack(each, self.generation, number)) for key, each in encoded.items()}
        run = _Run(number, {plan: plan.number_of_next() for plan in self._plans}, frames, len(self.steps))
        with world:
            if self.broken:
                raise EngineBrokenError(RayChannelError("a host has left the graph"))
            self._num_sent += 1
            self._runs.append(run)
            # All at once: a teardown that took back only some of them would leave the others in front of what follows.
            for index, step in enumerate(self.plan.steps):
                self.process(step).post_locked(_StepJob(self, run, index))

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        """Fill the places of the outputs that have come."""
        deadline = Deadline.after(timeout_s)
        while True:
            worked = sum(process.do_next() for process in self._processes.values() if process.inline)
            with world:
                arrived = self._arrived_locked(outputs)
            failed = self._fill(outputs, arrived)
            if None not in outputs:
                self._runs.popleft()
                return
            if failed:
                return
            with world:
                if self._arrived_locked(outputs):
                    continue
                if self.broken:
                    raise EngineBrokenError(RayChannelError("a host has left the graph"))
                if worked:
                    continue
                if deadline.remaining_s() == 0:
                    return
                inline = any(process.inline for process in self._processes.values())
                wait_s = min(_INLINE_PAUSE_S, deadline.remaining_s()) if inline else deadline.wait_s()
                world.wait(wait_s)

    def _arrived_locked(self, outputs: Sequence[Output | None]) -> dict[FromStep, Taken]:
        """Return what has come and is in no place yet."""
        run = self._runs[0]
        return {
            source: self._take_locked(run, source, None)
            for source, places in self._places.items()
            if outputs[places[0]] is None and run.results[source.step] is not None
        }

    def _fill(self, outputs: list[Output | None], arrived: Mapping[FromStep, Taken]) -> bool:
        """Load what has arrived; returns whether an error is among it."""
        failed = False
        for source, taken in arrived.items():
            places = self._places[source]
            output = output_of(taken, self.spec.outputs[places[0]])
            for place in places:
                outputs[place] = output
            failed = failed or isinstance(output, OutputError)
        return failed

    def take(self, run: _Run, source: Source, host_id: int | None) -> Taken:
        """Return what has come from ``source`` to a host, None for the driver: loaded once for each."""
        with world:
            return self._take_locked(run, source, host_id)

    def postpone(self, process: LocalProcess, job: Job) -> bool:
        """Leave a job that was begun for when its process, which was stopped meanwhile, goes on; False if it was not.

        Unless the graph has been left by then: who takes its jobs back has taken this one back as well.
        """
        with world:
            if not process.stopped or process.death is not None:
                return False
            if not self._departure.begun:
                process.postpone_locked(job)
            return True

    def _take_locked(self, run: _Run, source: Source, host_id: int | None) -> Taken:
        if (source, host_id) not in run.taken:
            run.taken[source, host_id] = self._taken(run, source, host_id)
        return run.taken[source, host_id]

    def _taken(self, run: _Run, source: Source, host_id: int | None) -> Taken:
        if isinstance(source, FromInput):
            return Taken.from_frame(unpack(run.inputs[source.key]))
        results = run.results[source.step]
        frame, value = results[source.part] if results is not None else (None, None)
        if frame is not None and (host_id != self.plan.steps[source.step].origin.host_id or value is None):
            return Taken.from_frame(unpack(frame))
        return Taken(run.number, None, None, value)

    def process(self, step: PlannedStep) -> LocalProcess:
        """Return the process that runs a step."""
        return self._processes[step.origin.host_id]

    def why_broken(self, seen: Exception, timeout_s: float) -> Break:  # noqa: ARG002 - all is known already
        """Return which hosts have left, in order."""
        with world:
            return Break(tuple(self._ended.items()), seen)

    def pulses(self, timeout_s: float) -> dict[int, Pulse | None]:
        """Return what each host is doing; None for one that stays stopped."""
        for member in self._members:
            meet_faults(member, "probe")
        with world:
            world.wait_for(
                lambda: self._departure.begun or not any(process.stopped for process in self._processes.values()),
                timeout_s,
            )
            return {host_id: self._pulse(process) for host_id, process in self._processes.items()}

    def _pulse(self, process: LocalProcess) -> Pulse | None:
        if process.stopped:
            return None
        return process.at_work.pulse() if isinstance(process.at_work, _StepJob) else Pulse()

    def unavailable(self, host_id: int, why: str) -> Exception:
        """Say it as Ray does of an actor that cannot be reached."""
        return ActorUnavailableError(why, bytes.fromhex(self.incarnations[host_id]))

    def kill(self, host_ids: Collection[int]) -> None:
        """Let these hosts die."""
        for host_id in host_ids:
            self._processes[host_id].die()

    def hurry(self, timeout_s: float) -> None:
        """Shorten a teardown."""
        self._departure.hurry(timeout_s)

    def tear_down(self, timeout_s: float) -> dict[int, Exception]:
        """Take the steps back that have not begun, and wait for those that have; a stopped host never leaves."""
        return self._departure.leave(partial(self._tear_down_once, timeout_s))

    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]:
        with world:
            self.broken = True
            world.notify_all()
        self.hurry(timeout_s)
        for member in self._members:
            meet_faults(member, "teardown")
            process_of(member.actor).withdraw(self._is_ours)
        with world:
            while (stuck := self._at_work()) and not all(process_of(member.actor).inline for member in stuck):
                if self._departure.by.remaining_s() == 0:
                    break
                world.wait(self._departure.by.wait_s())
            for host_id, process in self._processes.items():
                process.leased_to = None
                with suppress(ValueError):  # it has died, and they were told
                    process.mourners.remove(self._mourners[host_id])
        for member in stuck:
            process_of(member.actor).die()
        return {member.info.host_id: stuck_host(member) for member in stuck}

    def _at_work(self) -> list[Member]:
        """Return the hosts that have not left the graph."""
        return [member for member in self._members if self._is_at_work(process_of(member.actor))]

    def _is_at_work(self, process: LocalProcess) -> bool:
        return process.death is None and (process.stopped or self._is_ours(process.at_work))

    def _is_ours(self, job: object) -> bool:
        return isinstance(job, _StepJob) and job.engine is self


class _StepJob:
    """One step of one execution, for the actor it belongs to."""

    def __init__(self, engine: InProcessEngine, run: _Run, index: int) -> None:
        self.engine = engine
        self._run = run
        self._index = index
        self._planned = engine.plan.steps[index]
        self._begun_at: float | None = None
        self._has_met_faults = False
        self._raised: BaseException | None = None  # by one of them, in the method's place

    def pulse(self) -> Pulse:
        """Return how long this has been going on, once it has begun."""
        return Pulse.since(self._planned.origin.method, self._begun_at)

    def is_ready(self) -> bool:
        return all(isinstance(each, FromInput) or self._run.results[each.step] for each in self._planned.sources)

    def run(self) -> bool:
        engine, process, step = self.engine, self.engine.process(self._planned), self.engine.steps[self._index]
        host_id, counted = step.origin.host_id, self._run.counted[process.faults]
        taken = [engine.take(self._run, source, host_id) for source in self._planned.sources]
        self._begun_at = time.monotonic()
        if not self._has_met_faults:
            self._has_met_faults = True
            for fault in process.faults.due(host_id, "before", counted):
                if fault.kind == "stick":
                    return False
                if fault.kind == "raise":
                    self._raised = fault.error
                else:
                    _befall(process, fault)
        if process.death is not None or engine.postpone(process, self):
            return True
        try:
            instance = process.instance if self._raised is None else raising(process.instance, self._raised)
            result, failed = step.call(instance, taken, self._run.number, self._planned.resolve)
            for fault in process.faults.due(host_id, "after", counted):
                if fault.kind == "stick":
                    return False
                if fault.error is not None:
                    result, failed = step.call(
                        raising(process.instance, fault.error), taken, self._run.number, self._planned.resolve
                    )
                else:
                    _befall(process, fault)
        except SystemExit:
            process.die()
            return True
        except LoopEndedError as error:
            engine.end(host_id, RayTaskError(step.origin.method, str(error), error))
            return True
        self._put(process, step, result, failed)
        return True

    def drop(self, _death: Exception) -> None:
        """Nothing: the engine is told of the death."""

    def _put(self, process: LocalProcess, step: Step, result: Any, failed: Encoded | None) -> None:
        parts = step.put(process.instance, result, failed, self.engine.is_remote[self._index])
        number, generation = self._run.number, self.engine.generation
        ready = [(None if each is None else join(pack(each, generation, number)), value) for each, value in parts]

        def deliver() -> None:
            self._run.results[self._index] = ready

        process.send(deliver)
