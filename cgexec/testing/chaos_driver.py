"""Faults drawn by lot, one after another, under callers that hold every answer against its own question.

::

    callers ──unique messages──> graph <──faults── the driver, by a seeded lot
       │ wrong? lost? late?                            │ how long until the next good answer?
       └───────────────────────> ChaosReport <─────────┘ and at the end: what is left?
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.errors import GraphClosedError, GraphFailedError
from cgexec.execution import Execution
from cgexec.executor import GraphExecutor
from cgexec.lifecycle import GraphState
from cgexec.settings import FROM_CALL, check_count
from cgexec.status import JobFailed, JobStatus, JobSucceeded
from cgexec.testing.leftovers import is_running, left_open
from cgexec.testing.misbehaviour import MISBEHAVIOURS
from cgexec.testing.processes import kill, kill_process, pid_of, resume, stop
from cgexec.testing.recorder import SHAPES, Message, MixedUpError, Recorder, Shape, each_message

_NUM_CALLERS = 3
_FAULTS_PER_GRAPH = 10
_WAIT_S = 1.0  # of a caller for one answer
_MARGIN_S = 5.0  # what a call may take beyond its timeout on a machine that is short of processors
_RECOVERY_S = 60.0
_SETTLES_S = 60.0
_CLEAN_UP_S = 20.0

_NEVER_RETURNS = ("never-returns", "never-returns-and-rebuilt")
_VICTIMS = {"two-die": 2, "killed-during-rebuild": 2}  # of the others: one, or all
_KINDS = {  # and how often each is drawn
    "killed": 2,
    "process-killed": 3,
    "two-die": 2,
    "all-die": 1,
    "killed-during-rebuild": 3,
    "stopped-for-a-while": 2,
    "stopped-for-good": 1,
    "stopped-and-rebuilt": 1,
    "rebuilt-on-request": 1,
    "input-that-cannot-be-sent": 1,
    **dict.fromkeys((*_NEVER_RETURNS, *MISBEHAVIOURS), 1),
}


@dataclass
class ChaosReport:
    """What came of it. ``recoveries_s``: for each fault, the time from it to the next good answer."""

    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    wrong_answers: list[str] = field(default_factory=list)
    lost_executions: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, list[str]]:
        """What was wrong, lost, late or left, by what it is called."""
        return {
            "wrong answers": self.wrong_answers,
            "lost executions": self.lost_executions,
            "hangs": self.hangs,
            "leaked things": self.leaked,
        }

    @property
    def passed(self) -> bool:
        """Whether there was none of that."""
        return not any(self.problems.values())

    def recovery_s(self, percent: int) -> float:
        """Return a percentile of the times to recover, in seconds; 0 if there was no fault."""
        ordered = sorted(self.recoveries_s)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


class Chaos:
    """See the module. Ray must be running; the hosts are actors of this machine.

    ``on_fault(number)`` is called after each of ``num_faults`` faults has been recovered from.

    Raises:
        ValueError: ``num_faults`` is no count, or ``config`` is for graphs without processes of their own.
        TypeError: ``on_fault`` cannot be called.
    """

    def __init__(
        self,
        num_faults: int,
        seed: int,
        config: GraphConfig = GraphConfig(),  # noqa: B008 - a frozen value
        on_fault: Callable[[int], object] | None = None,
    ) -> None:
        self._num_faults = check_count("num_faults", num_faults, FROM_CALL)
        if not isinstance(config, GraphConfig) or config.engine == "in_process":
            raise ValueError(f"chaos is for graphs over Ray's actors: config={config!r} is not usable")
        if on_fault is not None and not callable(on_fault):
            raise TypeError(f"on_fault is to be called after each fault: {on_fault!r} cannot be")
        self._lot = random.Random(seed)
        self._config = replace(config, teardown_timeout_s=2.0, max_inflight=8)
        self._on_fault = on_fault
        self._report = ChaosReport()
        self._lock = threading.Lock()
        self._number = 0
        self._pids: dict[Any, int] = {}

    def run(self) -> ChaosReport:
        """Do it, and return what came of it.

        Raises:
            RuntimeError: Ray is not running.
        """
        if not ray.is_initialized():
            raise RuntimeError("Ray is not running: call ray.init() first; the hosts are actors of this machine")
        done = 0
        shapes = list(SHAPES.values())
        self._lot.shuffle(shapes)
        while done < self._num_faults:
            shape = shapes[done // _FAULTS_PER_GRAPH % len(shapes)]
            count = min(_FAULTS_PER_GRAPH, self._num_faults - done)
            _Round(self, shape).run(count, done)
            done += count
        for actor, pid in self._pids.items():
            ray.kill(actor)
            resume(actor, pid)  # Ray 2.51 does not end a process that is stopped
        self._look_for_leaks()
        return self._report

    # -- for the rounds ------------------------------------------------------------------------------------------------

    @property
    def config(self) -> GraphConfig:
        """How the graphs run."""
        return self._config

    @property
    def lot(self) -> random.Random:
        """What everything is drawn with."""
        return self._lot

    @property
    def report(self) -> ChaosReport:
        """What has come of it so far. Lists may be added to from any thread."""
        return self._report

    def count(self, status: str) -> None:
        """Count a status, from any thread."""
        with self._lock:
            self._report.statuses[status] += 1

    def next_number(self) -> int:
        """Return a number that no other execution has."""
        with self._lock:
            self._number += 1
            return self._number

    def spawn(self, label: int) -> Any:
        """Start a host."""
        return ray.remote(Recorder).options(num_cpus=0).remote(label)

    def pid(self, actor: Any) -> int:
        """Return an actor's process id, asked for once, while it was well."""
        if actor not in self._pids:
            self._pids[actor] = pid_of(actor)
        return self._pids[actor]

    def fault_done(self, number: int) -> None:
        """Say that one more fault has been recovered from."""
        if self._on_fault is not None:
            self._on_fault(number)

    def _look_for_leaks(self) -> None:
        deadline = time.monotonic() + _CLEAN_UP_S
        while (found := _left_over(self._pids.values())) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._report.leaked += found


class _Round:
    """One graph, and the faults that it meets."""

    def __init__(self, chaos: Chaos, shape: Shape) -> None:
        self._chaos = chaos
        self._shape = shape
        self._template = shape.answer(Message(0), range(shape.num_hosts))
        self._ended = threading.Event()
        self._submitted: set[int] = set()
        self._graph: GraphExecutor = self._open()

    def _open(self) -> GraphExecutor:
        actors = [self._chaos.spawn(label) for label in range(self._shape.num_hosts)]
        policy = RebuildPolicy(
            replace=lambda info: self._chaos.spawn(info.host_id),
            probe_timeout_s=3.0,
            stuck_after_s=3.0,
            backoff_s=0.01,
        )
        return GraphExecutor(actors, self._shape.build, name="chaos", config=self._chaos.config, policy=policy)

    def run(self, num_faults: int, first: int) -> None:
        """Meet so many faults, the first of them numbered ``first``; fewer if the graph does not recover from one."""
        callers = [threading.Thread(target=self._call, args=(seed,)) for seed in range(_NUM_CALLERS)]
        with self._graph:
            for caller in callers:
                caller.start()
            try:
                for number in range(first, first + num_faults):
                    well = self._meet_one()
                    self._chaos.fault_done(number)
                    if not well:
                        break
            finally:
                self._ended.set()
                for caller in callers:
                    caller.join()
                self._check_what_was_given()
        for actor in self._graph.actors:
            ray.kill(actor)

    # -- callers -------------------------------------------------------------------------------------------------------

    def _message(self, orders: dict[int, Sequence[str]] | None = None) -> Message:
        number = self._chaos.next_number()
        self._submitted.add(number)
        return Message(number, orders or {})

    def _submit(self, message: Message) -> Execution:
        return self._graph.submit(*self._shape.arguments(message, self._shape.num_hosts))

    def _call(self, seed: int) -> None:
        """Keep a few executions in flight, and collect them in whatever order."""
        lot = random.Random(seed)
        waiting: list[tuple[Execution, Message]] = []
        while not self._ended.is_set():
            with suppress(GraphClosedError):
                message = self._message()
                waiting.append((self._submit(message), message))
            if len(waiting) > 2:
                execution, message = waiting.pop(lot.randrange(len(waiting)))
                if self._ask(execution, message, _WAIT_S).info.state == "pending":
                    waiting.append((execution, message))
            time.sleep(lot.random() * 0.02)
        for execution, message in waiting:
            if self._ask(execution, message, _SETTLES_S).info.state == "pending":
                self._chaos.report.lost_executions.append(f"{message}")

    def _ask(self, execution: Execution, message: Message, wait_s: float) -> JobStatus:
        started = time.monotonic()
        status = execution.status(wait_s)
        took_s = time.monotonic() - started
        if took_s > wait_s + _MARGIN_S:
            self._chaos.report.hangs.append(f"a wait of {wait_s} s took {took_s:.1f} s")
        self._judge(status, message)
        return status

    def _judge(self, status: JobStatus, message: Message) -> None:
        pending = status.info.state == "pending"
        self._chaos.count("pending" if pending else type(status).__name__)
        if isinstance(status, JobSucceeded) and not self._is_right(message, status.result):
            self._chaos.report.wrong_answers.append(f"{message} was answered {status.result}")
        if isinstance(status, JobFailed) and isinstance(getattr(status.error, "cause", None), MixedUpError):
            self._chaos.report.wrong_answers.append(f"{message}: {status.error}")

    def _is_right(self, message: Message, result: Any) -> bool:
        right = each_message(self._template, lambda each: replace(each, number=message.number))
        return bool(each_message(result, partial(_relabelled, message)) == right)

    # -- faults --------------------------------------------------------------------------------------------------------

    def _meet_one(self) -> bool:
        """Meet a fault; returns whether the graph has recovered from it."""
        lot = self._chaos.lot
        (kind,) = lot.choices(list(_KINDS), list(_KINDS.values()))
        actors = self._graph.actors
        for actor in actors:
            with suppress(RayError):
                self._chaos.pid(actor)
        time.sleep(lot.random() * 0.05)
        self._chaos.report.faults[kind] += 1
        started = time.monotonic()
        victims = lot.sample(actors, len(actors) if kind == "all-die" else _VICTIMS.get(kind, 1))
        self._befall(kind, victims)
        return self._recover(kind, started)

    def _befall(self, kind: str, victims: Sequence[Any]) -> None:
        victim, pid = victims[0], self._chaos.pid(victims[0])
        if kind == "killed":
            kill(victim)
        elif kind in ("process-killed", "two-die", "all-die"):
            for each in victims:
                kill_process(each, self._chaos.pid(each))
        elif kind == "killed-during-rebuild":
            kill_process(victim, pid)
            time.sleep(self._chaos.lot.random() * 0.3)  # settling, teardown, probe, preparation or compile
            kill_process(victims[1], self._chaos.pid(victims[1]))
        elif kind == "stopped-for-a-while":
            stop(victim, pid)
            time.sleep(self._chaos.lot.random() * 0.3)
            resume(victim, pid)
        elif kind == "stopped-for-good":
            stop(victim, pid)
        elif kind == "stopped-and-rebuilt":
            stop(victim, pid)
            self._rebuild()
        elif kind == "rebuilt-on-request":
            self._rebuild()
        elif kind == "input-that-cannot-be-sent":
            self._send_what_cannot_be_sent()
        else:
            self._order("never-return" if kind in _NEVER_RETURNS else kind, rebuild=kind == "never-returns-and-rebuilt")

    def _send_what_cannot_be_sent(self) -> None:
        arguments: list[Any] = list(self._shape.arguments(self._message(), self._shape.num_hosts))
        arguments[self._chaos.lot.randrange(len(arguments))] = threading.Lock()
        execution = self._graph.submit(*arguments)
        status = execution.status(_SETTLES_S)
        self._chaos.count(type(status).__name__)
        if not isinstance(status, JobFailed) or execution.info.attempts:
            self._chaos.report.wrong_answers.append(f"an input that cannot be sent was answered {status}")

    def _order(self, order: str, *, rebuild: bool) -> None:
        """Have a method do something wrong, in an execution of its own."""
        message = self._message({self._chaos.lot.randrange(self._shape.num_hosts): [order]})
        execution = self._submit(message)
        if rebuild:
            execution.status(0.1)
            self._rebuild()
        if self._ask(execution, message, _SETTLES_S).info.state == "pending":
            self._chaos.report.lost_executions.append(f"{message}")

    def _rebuild(self) -> None:
        with suppress(GraphFailedError):
            self._graph.rebuild()

    def _recover(self, kind: str, started: float) -> bool:
        """Execute until it succeeds; a graph that has failed, which it has no reason to, counts as a hang."""
        while time.monotonic() < started + _RECOVERY_S and self._graph.state is not GraphState.FAILED:
            message = self._message()
            if isinstance(self._ask(self._submit(message), message, _WAIT_S), JobSucceeded):
                took_s = time.monotonic() - started
                self._chaos.report.recoveries_s.append(took_s)
                return True
        self._chaos.report.hangs.append(f"no good answer after {kind!r}: {self._graph}, {self._graph.failure}")
        return False

    def _check_what_was_given(self) -> None:
        """Look through what every method was given: nothing but what was submitted."""
        for actor in self._graph.actors:
            with suppress(RayError):
                given = ray.get(actor.what_was_given.remote(), timeout=_SETTLES_S)
                if not {number for _, number in given} <= self._submitted:
                    self._chaos.report.wrong_answers.append(f"{actor} was given {given}")


def _relabelled(message: Message, result: Any) -> Any:
    """Return a message of an answer without its orders; as it is if they are others than were given."""
    same = isinstance(result, Message) and result.orders == message.orders
    return replace(result, orders={}) if same else result


def _left_over(pids: Collection[int]) -> list[str]:
    """Return what graphs and their hosts have left behind: threads, processes, sockets and shared memory."""
    threads = [f"thread {each.name}" for each in threading.enumerate() if each.name.startswith("cgexec-")]
    return threads + [f"process {pid}" for pid in pids if is_running(pid)] + left_open([os.getpid()])
