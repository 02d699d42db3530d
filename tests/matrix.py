"""Every fault, in every phase, on every shape of graph: what is to come of each, and how to find out.

A cell of the matrix is one fault in one phase on one shape. It names the classes of status that the execution in
question may settle with, the generation afterwards, and the hosts that are lost; where there are several, each is
right, depending on whether the death or the answer came first. Every cell ends by proving that the graph answers
rightly, and that no method was given anything that it should not have been.
"""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
from conftest import eventually

from cgexec import (
    GraphConfig,
    GraphExecutor,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    RebuildPolicy,
)
from cgexec.engine import actor_calls, build, in_process
from cgexec.testing import MISBEHAVIOURS, SHAPES, Message, Shape, kill, kill_process, resume, stop
from cgexec.testing.recorder import each_message

VICTIM, BYSTANDER = 0, 1  # the first host has work in every shape
SETTLES_S = 30.0
SHORT_S = 0.2

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cell:
    """One fault in one phase on one shape, and what is to come of it."""

    fault: str
    phase: str
    shape: str
    statuses: tuple[type[JobStatus], ...]
    generations: tuple[int, ...]
    lost: tuple[int, ...]
    run: Callable[["Trial"], list[JobStatus]]
    replaces: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)  # where it differs
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.fault}-{self.phase}-{self.shape}"


@dataclass
class Trial:
    """A graph under trial; ``pids`` are empty where there are no processes."""

    shape: Shape
    actors: list[Any]
    pids: list[int | None]
    engine: str = "compiled"
    graph: GraphExecutor = field(init=False)
    on_rebuild: Callable[[], None] | None = None
    submitted: set[int] = field(default_factory=set)
    replaces: bool = False

    def message(self, *orders: str) -> Message:
        """Return the message of a new execution; ``orders`` are for the victim."""
        number = next(_numbers)
        self.submitted.add(number)
        return Message(number, {VICTIM: orders} if orders else {})

    def submit(self, message: Message) -> Any:
        return self.graph.submit(*self.shape.arguments(message, self.num_arguments()))

    def num_arguments(self) -> int:
        assert eventually(lambda: self.graph.state is GraphState.READY), (self.graph, self.graph.failure)
        return len(self.graph.actors)

    def settle(self, execution: Any, message: Message) -> JobStatus:
        """Wait until an execution has settled; hold its answer against its own question."""
        status = execution.status(SETTLES_S)
        assert status.info.state != "pending", f"it never settled: {status}"
        if isinstance(status, JobSucceeded):
            right = self.shape.answer(message, self.labels(status.info.generation))
            assert without_orders(status.result) == right, f"{status.result} is not {right}"
        return status

    def labels(self, generation: int) -> list[int]:
        """Return the labels of the workers that were in a generation."""
        gone = {lost.info.host_id for lost in self.graph.lost_hosts if lost.generation < generation}
        return [label for label in range(len(self.actors)) if self.replaces or label not in gone]

    def rebuilt(self, generation: int = 1) -> None:
        """Wait until the graph serves in a generation."""
        graph = self.graph
        assert eventually(lambda: graph.generation >= generation and graph.state is GraphState.READY), (
            graph,
            graph.failure,
        )

    def befall(self, fault: str, position: int = VICTIM) -> None:
        """Let something befall a host from outside."""
        doing: dict[str, Callable[..., None]] = {"killed": kill, "killed-process": kill_process, "stopped": stop}
        actor, pid = self.actors[position], self.pids[position]
        doing[fault](actor) if fault == "killed" else doing[fault](actor, pid)


def without_orders(answer: Any) -> Any:
    """Return an answer as if nothing had been ordered."""
    return each_message(answer, lambda message: replace(message, orders={}))


# -- what befalls a host from outside ----------------------------------------------------------------------------------


def _idle(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    befall(trial)
    trial.rebuilt()  # with nobody calling
    return []


def _before_submit(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    message = trial.message()
    trial.num_arguments()
    befall(trial)
    execution = trial.submit(message)
    status = trial.settle(execution, message)
    trial.rebuilt()
    return [status]


def _in_flight(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    message = trial.message("sleep:0.4")
    execution = trial.submit(message)
    time.sleep(0.1)  # into the method: a death before it would be the phase before
    befall(trial)
    status = trial.settle(execution, message)
    trial.rebuilt()
    return [status]


def _before_collect(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    messages = [trial.message() for _ in range(3)]
    executions = [trial.submit(message) for message in messages]
    befall(trial)
    trial.rebuilt()
    return [trial.settle(*each) for each in zip(executions, messages, strict=True)]


def _during_rebuild(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    """Another host dies first, and the hook of that rebuild meets the fault."""

    def once() -> None:
        trial.on_rebuild = None
        befall(trial)

    trial.on_rebuild = once
    trial.befall("killed-process", BYSTANDER)
    assert eventually(lambda: trial.on_rebuild is None), "no rebuild came to its hook"
    trial.rebuilt()
    return []


def _during_teardown(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    """A rebuild on request is about to tear the old graph down."""
    engine = trial.graph._core.current_engine()
    tear_down = engine.tear_down

    def meet_it(timeout_s: float) -> dict[int, Exception]:
        befall(trial)
        return tear_down(timeout_s)

    with mock.patch.object(engine, "tear_down", meet_it):
        trial.graph.rebuild()
    return []


_LAST_STEP = {  # of a build, when every host has answered already
    "compiled": (build, "compile_graph"),
    "actor_calls": (actor_calls, "call_all"),
    "in_process": (in_process, "plan_of"),
}


def _during_build(trial: Trial, befall: Callable[[Trial], None]) -> list[JobStatus]:
    """A rebuild on request has prepared every host, and is about to compile."""
    module, name = _LAST_STEP[trial.engine]
    take, met = getattr(module, name), []

    def meet_it(*args: Any, **kwargs: Any) -> Any:
        if not met:
            met.append(True)
            befall(trial)
        return take(*args, **kwargs)

    with mock.patch.object(module, name, meet_it):
        trial.graph.rebuild()
    assert met
    return []


OUTSIDE = {
    "idle": _idle,
    "before-submit": _before_submit,
    "in-flight": _in_flight,
    "before-collect": _before_collect,
    "during-teardown": _during_teardown,
    "during-build": _during_build,
    "during-rebuild": _during_rebuild,
}
NOTHING_ASKED = {"idle", "during-teardown", "during-build", "during-rebuild"}


def _one(fault: str, trial: Trial) -> None:
    trial.befall(fault)


def _two(trial: Trial) -> None:
    trial.befall("killed-process")
    trial.befall("killed-process", len(trial.actors) - 1)


def _all(trial: Trial) -> None:
    for position in range(len(trial.actors)):
        trial.befall("killed-process", position)


def _deaths(shape: Shape) -> list[Cell]:
    last = shape.num_hosts - 1
    kinds: list[tuple[str, Callable[[Trial], None], tuple[int, ...], bool]] = [
        ("killed", partial(_one, "killed"), (VICTIM,), False),
        ("killed-process", partial(_one, "killed-process"), (VICTIM,), False),
        ("two-die", _two, (VICTIM, last), False),
        ("all-die", _all, tuple(range(shape.num_hosts)), True),
    ]
    cells = []
    for fault, befall, lost, replaces in kinds:
        for phase, run in OUTSIDE.items():
            # A shape whose arguments are for its hosts one by one no longer fits the survivors: JobFailed, unsent.
            may: tuple[type[JobStatus], ...] = (JobPreempted, JobSucceeded)
            may += (JobFailed,) if shape.scatters and phase == "before-submit" else ()
            statuses = () if phase in NOTHING_ASKED else (JobPreempted,) if phase == "in-flight" else may
            also = (BYSTANDER,) if phase == "during-rebuild" else ()
            # Deaths that are not noticed at once take a rebuild each; and one may have been asked for.
            asked = phase in ("during-teardown", "during-build")
            generations = tuple(range(1, 1 + len(lost) + len(also) + asked))
            cells.append(
                Cell(
                    fault,
                    phase,
                    shape.name,
                    statuses,
                    generations,
                    tuple(sorted({*lost, *also})),
                    partial(run, befall=befall),
                    replaces or shape.num_hosts == len(lost) + len(also),
                )
            )
    return cells


# -- a host that is stopped, or stuck ----------------------------------------------------------------------------------


def _stop_for_good(trial: Trial) -> None:
    trial.befall("stopped")


def _stopped(trial: Trial, orders: Sequence[str]) -> list[JobStatus]:
    """A wait runs out, and the host, which gives no sign of life, is lost."""
    message = trial.message(*orders)
    execution = trial.submit(message) if orders else None
    trial.befall("stopped")
    execution = execution or trial.submit(message)
    assert execution.status(SHORT_S).info.state == "pending"
    return [trial.settle(execution, message)]


def _stopped_while_idle(trial: Trial) -> list[JobStatus]:
    """A rebuild on request gives it up."""
    trial.befall("stopped")
    trial.graph.rebuild()
    return []


def _stopped_for_a_while(trial: Trial, orders: Sequence[str]) -> list[JobStatus]:
    """It costs nothing but time."""
    message = trial.message(*orders)
    execution = trial.submit(message) if orders else None
    trial.befall("stopped")
    execution = execution or trial.submit(message)
    assert execution.status(SHORT_S).info.state == "pending"
    resume(trial.actors[VICTIM], trial.pids[VICTIM])
    return [trial.settle(execution, message)]


def _stuck(trial: Trial) -> list[JobStatus]:
    """The policy gives it up."""
    message = trial.message("never-return")
    return [trial.settle(trial.submit(message), message)]


def _stuck_and_rebuilt(trial: Trial) -> list[JobStatus]:
    """A rebuild on request gives it up."""
    message = trial.message("never-return")
    execution = trial.submit(message)
    assert execution.status(SHORT_S).info.state == "pending"
    trial.graph.rebuild()
    return [trial.settle(execution, message)]


def _slow(trial: Trial) -> list[JobStatus]:
    message = trial.message(f"sleep:{2 * SHORT_S}")
    execution = trial.submit(message)
    assert execution.status(SHORT_S / 4).info.state == "pending"
    later = [trial.message() for _ in range(2)]
    behind = [trial.submit(each) for each in later]
    return [trial.settle(*each) for each in zip([execution, *behind], [message, *later], strict=True)]


def _stops(shape: Shape) -> list[Cell]:
    lost, kept = ((1,), (VICTIM,)), ((0,), ())
    gives_up, waits = (JobPreempted,), (JobSucceeded,)
    first, busy = partial(_stopped_for_a_while, orders=()), partial(_stopped_for_a_while, orders=("sleep:1",))
    soon: dict[str, Any] = {"policy": {"probe_timeout_s": 0.5}}
    bounded: dict[str, Any] = {"config": {"build_timeout_s": 3.0}}
    tearing, building = (partial(each, befall=_stop_for_good) for each in (_during_teardown, _during_build))
    return [
        Cell("stopped", "idle", shape.name, (), *lost, _stopped_while_idle),
        Cell("stopped", "before-submit", shape.name, gives_up, *lost, partial(_stopped, orders=()), **soon),
        Cell("stopped", "in-flight", shape.name, gives_up, *lost, partial(_stopped, orders=("sleep:1",)), **soon),
        Cell("stopped", "during-teardown", shape.name, (), *lost, tearing),
        Cell("stopped", "during-build", shape.name, (), *lost, building, **bounded),
        Cell("stopped-for-a-while", "before-submit", shape.name, waits, *kept, first),
        Cell("stopped-for-a-while", "in-flight", shape.name, waits, *kept, busy),
        Cell("never-returns", "in-flight", shape.name, gives_up, *lost, _stuck, policy={"stuck_after_s": 0.5}),
        Cell("never-returns", "before-collect", shape.name, (JobError,), *lost, _stuck_and_rebuilt),
        Cell("slower-than-the-wait", "in-flight", shape.name, waits, *kept, _slow),
    ]


# -- what goes wrong in a method ---------------------------------------------------------------------------------------


def _misbehaves(trial: Trial, name: str, phase: str) -> list[JobStatus]:
    if phase == "during-rebuild":
        trial.befall("killed-process", BYSTANDER)
        trial.rebuilt()
    bad = trial.message(*(("sleep:0.1",) if phase == "in-flight" else ()), name)
    execution = trial.submit(bad)
    if phase == "before-collect":
        time.sleep(SHORT_S)  # what comes of it is there, or the graph has broken, before anybody looks
    return [trial.settle(execution, bad)]


def _misbehaviours(shape: Shape) -> list[Cell]:
    cells = []
    for each in MISBEHAVIOURS.values():
        for phase in ("in-flight", "before-collect", "during-rebuild"):
            bystander = phase == "during-rebuild"
            lost = (VICTIM,) * each.loses_host + (BYSTANDER,) * bystander
            run_it = partial(_misbehaves, name=each.name, phase=phase)
            cells.append(
                Cell(each.name, phase, shape.name, (each.outcome,), (each.rebuilds + bystander,), lost, run_it)
            )
    return cells


CELLS: list[Cell] = [
    cell for shape in SHAPES.values() for cell in (*_deaths(shape), *_stops(shape), *_misbehaviours(shape))
]


def covering(cells: Sequence[Cell], seed: int = 1) -> list[Cell]:
    """Return a subset in which every fault meets every phase that it has, every shape, and every phase every shape.

    Greedy: of the cells in an order drawn with ``seed``, again and again the one with most pairs that are still
    missing, until none is.
    """

    def pairs(cell: Cell) -> set[tuple[str, ...]]:
        return set(itertools.combinations((cell.fault, cell.phase, cell.shape), 2))

    left = random.Random(seed).sample(list(cells), len(cells))
    missing = set().union(*map(pairs, left))
    chosen = []
    while missing:
        best = max(left, key=lambda cell: len(pairs(cell) & missing))
        missing -= pairs(best)
        left.remove(best)
        chosen.append(best)
    return chosen


# -- running a cell ----------------------------------------------------------------------------------------------------


def run(
    cell: Cell,
    config: GraphConfig,
    actors: Sequence[Any],
    pids: Sequence[int | None],
    spawn_one: Callable[[int], Any],
    given_to: Callable[[Any], list[tuple[str, int]]],
) -> None:
    """Run a cell on ``actors``; ``spawn_one(label)`` starts another, ``given_to(actor)`` says what one was given."""
    trial = Trial(SHAPES[cell.shape], list(actors), list(pids), config.engine, replaces=cell.replaces)

    def on_rebuild(*_: Any) -> None:
        if trial.on_rebuild is not None:
            trial.on_rebuild()

    policy = RebuildPolicy(
        replace=(lambda info: spawn_one(info.host_id)) if cell.replaces else None,
        on_rebuild=on_rebuild,
        backoff_s=0.01,
        **{"probe_timeout_s": 2.0, **cell.policy},
    )
    config = replace(config, **cell.config)
    with GraphExecutor(actors, trial.shape.build, name=str(cell), config=config, policy=policy) as graph:
        trial.graph = graph
        first = trial.message()
        assert isinstance(trial.settle(trial.submit(first), first), JobSucceeded)
        statuses = cell.run(trial)
        if cell.statuses:
            assert statuses, "nothing was asked"
        for status in statuses:
            assert isinstance(status, cell.statuses), f"{type(status).__name__} instead of {cell.statuses}: {status}"
        assert eventually(lambda: lost_of(graph) == cell.lost), graph.lost_hosts  # of several, one after the other
        trial.rebuilt(min(cell.generations))
        answers = []
        for _ in range(3):
            message = trial.message()
            answers.append(trial.settle(trial.submit(message), message))
        assert [type(answer) for answer in answers] == [JobSucceeded] * 3, answers
        assert graph.generation in cell.generations, list(graph.history)
        assert lost_of(graph) == cell.lost, graph.lost_hosts
        for actor in graph.actors:
            given = given_to(actor)
            assert {number for _, number in given} <= trial.submitted
            for method in ("work", "join"):
                in_order = [number for name, number in given if name == method]
                assert in_order == sorted(in_order), f"{method} was given {in_order}"


def lost_of(graph: GraphExecutor) -> tuple[int, ...]:
    """Return the hosts that a graph has lost, each once."""
    return tuple(sorted({lost.info.host_id for lost in graph.lost_hosts}))


def ids(cells: Sequence[Cell]) -> list[Any]:
    """Return the cells as parameters with names."""
    return [pytest.param(cell, id=str(cell)) for cell in cells]
