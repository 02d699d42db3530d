"""Carries out what ``recovery`` decides: one thread per graph that waits for a break and rebuilds.

::

    break ── why? ── settle what was in flight ── tear down ──> probe ── plan ──> give up: FAILED
                                                                ^         │
                                                                │         v
                                                                └─ host lost, or: bind, lease, compile, hook ──> open

Everything that changes the state of a graph after its first build happens here, so the steps cannot overtake each
other. Each of them is bounded.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType

from ray.exceptions import RayChannelError

from cgexec.config import RebuildPolicy
from cgexec.core import GraphCore
from cgexec.deadline import Deadline
from cgexec.engine.protocol import Backend, Break, Engine, HostsLostError, Member, SessionOverError
from cgexec.errors import CgexecError, GraphClosedError, GraphFailedError
from cgexec.isolation import copy_of, without_our_frames
from cgexec.lifecycle import GraphEvent, GraphState
from cgexec.log import logger
from cgexec.membership import Membership
from cgexec.recovery import GiveUp, backoff_delay_s, plan_rebuild
from cgexec.status import ExecutionInfo, JobStatus
from cgexec.texts import text_of, told
from cgexec.topology import LostHost, as_lost
from cgexec.watch import Watch

_logger = logger(__name__)

_MOST_FRUITLESS_BUILDS = 5  # in a row, that failed though every host answers
_STOP_THREADS_S = 1.0
_CULPRIT_TIMEOUT_S = 1.0  # a dead actor's loop is reported within 90 ms of its channels closing
_COINCIDENCE_TIMEOUT_S = 0.1  # where it was this process that broke the generation, by an interruption, say


@dataclass(frozen=True)
class _Broke:
    engine: Engine
    seen: Exception


@dataclass(frozen=True)
class _GivenUp:
    engine: Engine
    why: Break


@dataclass(frozen=True)
class _Requested:
    done: Future[None]
    num_started: int  # rebuilds that were being built, or had been, when this was asked for: any later one will do


@dataclass(frozen=True)
class _NeverCollected:
    status: JobStatus


class _Forgotten:
    pass


class _Stop:
    pass


_Event = _Broke | _GivenUp | _Requested | _NeverCollected | _Forgotten | _Stop


class Supervisor:
    """Rebuilds one graph, as often as its policy allows, until it is stopped."""

    def __init__(self, name: str, backend: Backend, policy: RebuildPolicy, teardown_timeout_s: float) -> None:
        self._name = name
        self._backend = backend
        self._policy = policy
        self._membership = Membership(name, backend, policy)
        self._watch = Watch(name, policy, lambda engine, why: self._events.put(_GivenUp(engine, why)))
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"cgexec-supervisor-{name}", daemon=True)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._leaving: Engine | None = None  # the engine that a rebuild is tearing down
        self._teardown_timeout_s = teardown_timeout_s
        self._rebuilds_started = 0
        self._core: GraphCore | None = None

    # -- called from other threads ------------------------------------------------------------------------------------

    def broke(self, engine: Engine, seen: Exception) -> None:
        """Say that ``engine`` has broken. Never blocks: Ray calls this on a thread of its own."""
        if not self._stopping.is_set():  # an event that nobody takes would keep the engine, and what it has open
            self._events.put(_Broke(engine, seen))

    def wait_ran_out(self, engine: Engine) -> None:
        """Say that ``engine`` has kept somebody waiting for longer than they would."""
        self._watch.wait_ran_out(engine)

    def start(self, core: GraphCore, members: Sequence[Member]) -> None:
        """Build the first generation, on this thread, and go on watching over it.

        Raises:
            GraphSpecError, HostsLostError, SessionOverError: see ``Backend.build``.
            RuntimeError: the system has no thread left.
        """
        self._core = core
        engine = self._backend.build(0, members, self._on_break)
        try:
            self._open(core, engine, members)
            self._thread.start()
        except BaseException:  # the system has no thread left, or Ctrl-C
            self._watch.end()
            core.close()
            core.abandon(GraphClosedError(f"graph {self._name!r} could not be opened"))
            self.tear_down(core, engine, Deadline.after(self._teardown_timeout_s))
            raise

    def request_rebuild(self) -> Future[None]:
        """Ask for a rebuild; the future tells when it is done, and raises if the graph failed or was closed.

        A rebuild for any other reason will do, if it binds the actors after this was asked for.
        """
        done: Future[None] = Future()
        self._events.put(_Requested(done, self._rebuilds_started))
        if self._ended.is_set():  # else the thread will see it
            self._answer_what_is_left()
        return done

    def never_collected(self, status: JobStatus) -> None:
        """Report an execution whose outcome nobody has asked for. For a finaliser, as ``forgotten``."""
        self._events.put(_NeverCollected(status))
        if self._ended.is_set():  # else the thread will see it
            self._answer_what_is_left()

    def forgotten(self) -> None:
        """Close the graph, to which nobody refers any more. For a finaliser: it takes no lock, and does not wait."""
        self._events.put(_Forgotten())

    def stop(self, timeout_s: float) -> None:
        """Stop after the step under way; returns when the thread has ended, or after ``timeout_s``."""
        self._stopping.set()
        self._watch.end()
        self._events.put(_Stop())
        leaving = self._leaving
        if leaving is not None:
            leaving.hurry(timeout_s)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _on_break(self, engine: Engine) -> None:
        self.broke(engine, _unexplained(engine))

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        core = self._core
        if core is None:
            return
        try:
            while not self._stopping.is_set():
                self._handle_next(core)
        finally:
            self._ended.set()
            self._answer_what_is_left()

    def _handle_next(self, core: GraphCore) -> None:
        """Wait for an event and handle it; its locals keep engines, hence they do not outlive it."""
        event = self._events.get()
        try:
            match event:
                case _Broke(engine, seen) if core.current_engine() is engine:
                    self._handle_break(core, engine, seen)
                case _GivenUp(engine, why) if core.current_engine() is engine and not engine.session_over:
                    self._break_off(core, engine, why, given_up=dict(why.errors))
                case _Requested(done, num_started):
                    self._handle_request(core, done, num_started)
                case _NeverCollected(status):
                    self._report(core, status)
                case _Forgotten():
                    self._close(core)
        except BaseException as error:
            _logger.exception("graph %r: the rebuild itself failed", self._name)
            left = core.current_engine()
            reason = GraphFailedError(f"the rebuild itself failed: {told(error)}", error)
            if left is not None and core.break_off(left, Break((), reason)):
                left.tear_down(self._teardown_timeout_s)
            self._fail(core, reason, ())
            if isinstance(event, _Requested) and not event.done.done():
                event.done.set_exception(copy_of(reason))

    def _answer_what_is_left(self) -> None:
        """Answer what nobody will serve any more. Any thread may do it, also several at once."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            match event:
                case _Requested(done, _):
                    done.set_exception(GraphClosedError(f"graph {self._name!r} is closed"))
                case _NeverCollected(status) if self._core is not None:
                    self._report(self._core, status)

    def _handle_break(self, core: GraphCore, engine: Engine, seen: Exception) -> None:
        if engine.session_over:
            self._end_with_ray(core, engine)
            return
        self._break_off(core, engine, _why_broken(engine, seen))

    def _break_off(
        self, core: GraphCore, engine: Engine, why: Break, given_up: Mapping[int, Exception] = MappingProxyType({})
    ) -> None:
        """End a generation that has broken, or whose hosts were ``given_up``, and go on with the next one."""
        self._watch.rest(engine)
        if not core.break_off(engine, why):
            return
        engine.kill(given_up.keys())
        hosts = ", ".join(f"host {host_id}" for host_id, _ in why.errors) or "no host in particular"
        _logger.warning(
            "graph %r, generation %d, broke at %s: %s",
            core.name,
            core.generation,
            hosts,
            type(why.error).__name__,
        )
        if core.happened(GraphEvent.REBUILD, "after a system error"):
            self._rebuild(core, engine, why, given_up)
        else:
            self.tear_down(core, engine, Deadline.after(self._teardown_timeout_s))

    def _close(self, core: GraphCore) -> None:
        """Close a graph that was forgotten, as its ``close()`` would."""
        self._stopping.set()
        self._watch.end()
        if not core.close():
            return
        _logger.warning("graph %r was not closed, and nothing refers to it any more: it is closed now", core.name)
        deadline, engine = Deadline.after(self._teardown_timeout_s), core.current_engine()
        if engine is not None:
            core.drain(deadline, unless=lambda: engine.broken)
            if engine.broken:
                self._handle_break(core, engine, _unexplained(engine))
        error = GraphClosedError(f"graph {core.name!r} was forgotten while this was in flight; it may have run")
        left = core.abandon(error)
        if left is not None:
            self.tear_down(core, left, deadline)
            core.let_go()
        core.stop_threads(_STOP_THREADS_S)

    def _report(self, core: GraphCore, status: JobStatus) -> None:
        """Say of an execution that it did not succeed, as nobody else will."""
        number = status.info.execution if isinstance(status.info, ExecutionInfo) else "?"
        error = getattr(status, "error", None)
        what = told(error) if isinstance(error, Exception) else "no error"
        _logger.warning("graph %r: nobody asked what became of execution %s: %s", core.name, number, what)
        core.note_never_collected()

    def tear_down(self, core: GraphCore, engine: Engine, deadline: Deadline) -> None:
        """Tear down the last generation of a closed graph; names the hosts that did not leave. Any thread."""
        infos = {member.info.host_id: member.info for member in core.members}
        for host_id, cause in engine.tear_down(deadline.slice_s(threading.TIMEOUT_MAX)).items():
            _logger.warning("graph %r: %s", core.name, cause)
            core.note_lost([LostHost(as_lost(infos[host_id]), core.generation, cause)])

    def _end_with_ray(self, core: GraphCore, engine: Engine) -> None:
        """Ray was shut down under the graph: say so, let go of what is left here, and ask Ray for nothing."""
        reason = _ended_with_ray()
        if core.break_off(engine, Break((), reason)):
            core.fail(reason, ())
            engine.tear_down(0)

    def _handle_request(self, core: GraphCore, done: Future[None], num_started: int) -> None:
        runs = (GraphState.READY, GraphState.BROKEN)  # the latter by a break that has not been handled yet
        is_to_do = self._rebuilds_started == num_started and core.state in runs
        if is_to_do and core.happened(GraphEvent.REBUILD, "on request"):
            engine = core.current_engine()
            if engine is not None:
                self._end_on_request(core, engine)
        if core.state in runs:
            done.set_result(None)
        elif core.state is GraphState.CLOSED:
            done.set_exception(GraphClosedError(f"graph {core.name!r} is closed"))
        else:
            done.set_exception(core.failure or GraphFailedError(f"graph {core.name!r} has failed"))

    def _end_on_request(self, core: GraphCore, engine: Engine) -> None:
        """Settle what is in flight and go on with the next generation; a host may leave meanwhile."""
        core.drain(Deadline.after(self._teardown_timeout_s), unless=lambda: engine.broken)
        why = Break((), CgexecError("the graph was rebuilt on request while this was in flight; it may have run"))
        if engine.session_over:
            self._end_with_ray(core, engine)
            return
        if engine.broken:
            why = _why_broken(engine, _unexplained(engine))
            core.happened(GraphEvent.SYSTEM_ERROR, f"before the rebuild: {_named(why.error)}")
        self._watch.rest(engine)
        if core.break_off(engine, why):
            self._rebuild(core, engine, why)

    def _rebuild(
        self, core: GraphCore, old: Engine, why: Break, given_up: Mapping[int, Exception] = MappingProxyType({})
    ) -> None:
        started = time.monotonic()
        self._leaving = old
        stuck = {**old.tear_down(self._teardown_timeout_s), **given_up}
        self._leaving = None
        try:
            self._build_next(core, old, why, stuck, started)
        except SessionOverError:
            core.fail(_ended_with_ray(), ())

    def _build_next(
        self, core: GraphCore, old: Engine, why: Break, stuck: Mapping[int, Exception], started: float
    ) -> None:
        """Build until a generation is open, or the policy gives up. Raises SessionOverError."""
        members = list(core.members)
        losses: dict[int, Exception] = dict(why.errors)
        fruitless = 0
        for attempt in itertools.count():
            if self._stopping.wait(backoff_delay_s(self._policy, attempt)):
                return
            lost, alive = self._membership.probe(members, {**losses, **stuck}, stuck, core.generation)
            plan = plan_rebuild(
                [member.info for member in members], alive, self._policy, rebuilds_started=self._rebuilds_started
            )
            if isinstance(plan, GiveUp):
                self._fail(core, _because(plan.reason, why.error), lost)
                return
            core.note_lost(lost)
            try:
                members = self._membership.choose(members, plan.keep, plan.replace)
                self._rebuilds_started += 1
                engine = self._backend.build(core.generation + 1, members, self._on_break)
                self._membership.announce(engine, core.generation + 1, members, self._teardown_timeout_s)
            except Exception as error:  # a builder or a hook may raise anything; it is the reason
                if old.session_over:
                    raise SessionOverError from error
                losses, stuck = error.losses if isinstance(error, HostsLostError) else {}, {}
                fruitless = fruitless + 1 if not losses else 0
                if not isinstance(error, HostsLostError) or fruitless > _MOST_FRUITLESS_BUILDS:
                    self._fail(core, GraphFailedError(f"the graph cannot be rebuilt: {_named(error)}", error), ())
                    return
                if not core.happened(GraphEvent.SYSTEM_ERROR, f"while it was rebuilt: {text_of(error)}"):
                    return
            else:
                if self._open(core, engine, members):
                    took_s = time.monotonic() - started
                    hosts = ", ".join(str(member.info.host_id) for member in members)
                    _logger.info(
                        "graph %r: generation %d on host %s after %.3f s", core.name, core.generation, hosts, took_s
                    )
                return

    def _open(self, core: GraphCore, engine: Engine, members: Sequence[Member]) -> bool:
        if core.open(engine, self._membership.settle(engine, members)):
            self._watch.begin(engine)
            return True
        self.tear_down(core, engine, Deadline.after(self._teardown_timeout_s))
        return False

    def _fail(self, core: GraphCore, reason: GraphFailedError, lost: Sequence[LostHost]) -> None:
        without_our_frames(reason)  # it is kept, and they would keep the engines
        core.fail(reason, lost)
        if core.state is GraphState.FAILED:
            _logger.error("graph %r has failed for good: %s", core.name, reason)


def _why_broken(engine: Engine, seen: Exception) -> Break:
    """Return what accounts for a break. For one of this process's own making no host is waited for long."""
    return engine.why_broken(seen, _COINCIDENCE_TIMEOUT_S if engine.condemned else _CULPRIT_TIMEOUT_S)


def _unexplained(engine: Engine) -> RayChannelError:
    """Return what is known of an engine that has broken, when nobody has said more yet."""
    what = "a read or a write went wrong in this process" if engine.condemned else "an actor left the graph"
    return RayChannelError(what)


def _ended_with_ray() -> GraphFailedError:
    return GraphFailedError("Ray was shut down under the graph")


def _named(error: Exception) -> str:
    """Return the text of ``error``, with the name of its class unless it is one of ours and says enough."""
    return str(error) if isinstance(error, (CgexecError, HostsLostError)) else told(error)


def _because(reason: GraphFailedError, first: Exception) -> GraphFailedError:
    """Return ``reason`` with the break that led to it."""
    reason.reason = reason.__cause__ = first
    return reason
