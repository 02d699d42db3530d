"""Any interleaving of calls and faults, against a model.

After every step: what has settled stays so (C1), every answer belongs to its own question (C2), application errors
cost no generation (C3), and system errors cost one each at most, and exactly the hosts that died (C4).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from conftest import eventually
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from matrix import without_orders

from cgexec import (
    Execution,
    GraphConfig,
    GraphExecutor,
    GraphFailedError,
    GraphState,
    JobError,
    JobFailed,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    RebuildPolicy,
)
from cgexec.testing import MISBEHAVIOURS, SHAPES, Message, Shape, kill, kill_process, resume, stop

NUM_HOSTS = 4


class Calls(RuleBasedStateMachine):
    """One graph, and what the model knows of it. A subclass says over which actors."""

    executions = Bundle("executions")
    orders: ClassVar = list(MISBEHAVIOURS.values())
    config: ClassVar = GraphConfig()
    # Whether a stopped host is given up for the waits that run out, or waited for.
    gives_up_after_s: ClassVar = (2.0, 60.0)

    def start(self) -> tuple[list[Any], list[int | None]]:
        """Return the actors of a new graph, and their processes."""
        raise NotImplementedError

    @initialize(
        shape=st.sampled_from(list(SHAPES)),
        fail_fast=st.booleans(),
        max_inflight=st.integers(1, 4),
        patient=st.integers(0, 1),
        retries=st.integers(0, 1),
    )
    def build(self, shape: str, fail_fast: bool, max_inflight: int, patient: int, retries: int) -> None:
        self.shape: Shape = replace(SHAPES[shape], num_hosts=NUM_HOSTS)
        self.actors, self.pids = self.start()
        self.alive = set(range(NUM_HOSTS))
        self.stopped: set[int] = set()
        self.may_die: set[int] = set()  # of what a method did, or because it was stopped when the graph was torn down
        self.system_errors = 0
        self.settled: dict[int, JobStatus] = {}
        self.given: dict[int, tuple[Execution, Message]] = {}
        self.number = 0
        self.retries = retries
        self.to_be_told: list[Execution] = []
        self.told: list[Execution] = []
        config = replace(
            self.config,
            fail_fast=fail_fast,
            max_inflight=max_inflight,
            submit_timeout_s=0,
            get_timeout_s=0,
            retry_preempted=retries,
        )
        policy = RebuildPolicy(backoff_s=0, probe_timeout_s=self.gives_up_after_s[patient])
        self.graph = GraphExecutor(self.actors, self.shape.build, config=config, policy=policy)

    def labels(self, generation: int) -> list[int]:
        gone = {lost.info.host_id for lost in self.graph.lost_hosts if lost.generation < generation}
        return [label for label in range(NUM_HOSTS) if label not in gone]

    def dead(self) -> set[int]:
        """Return the hosts that were killed."""
        return set(range(NUM_HOSTS)) - self.alive

    def come_to_rest(self) -> None:
        down = (GraphState.BROKEN, GraphState.REBUILDING)

        def at_rest() -> bool:
            lost = {lost.info.host_id for lost in self.graph.lost_hosts}
            return self.graph.state not in down and (lost >= self.dead() or self.graph.state is GraphState.FAILED)

        assert eventually(at_rest), (self.graph, self.graph.lost_hosts, *map(str, self.graph.history))

    @rule(target=executions, data=st.data(), label=st.integers(0, NUM_HOSTS - 1))
    def submit(self, data: st.DataObject, label: int) -> int:
        submit = self.graph.submit if data.draw(st.booleans()) else self.graph.try_submit
        is_told = data.draw(st.integers(0, 3)) == 0
        order = data.draw(st.sampled_from([None, None, None, *self.orders]))
        self.number += 1
        message = Message(self.number, {} if order is None else {label: [order.name]})
        execution = submit(*self.shape.arguments(message, len(self.graph.actors)))
        if execution is None:  # the graph was full
            return self.number
        if is_told:
            self.to_be_told.append(execution)
            execution.add_done_callback(self.told.append)
        self.given[self.number] = execution, message
        if order is not None and order.rebuilds:
            self.system_errors += 1 + self.retries
        if order is not None and order.loses_host:
            self.may_die.add(label)
        return self.number

    @rule(number=executions)
    def look(self, number: int) -> None:
        for execution, message in self.handles(number):
            self.note(number, message, execution.status(0))

    @rule()
    def look_at_all(self) -> None:
        for number, (execution, message) in self.given.items():
            self.note(number, message, execution.status(0))

    @rule(number=executions)
    def look_at_each_output(self, number: int) -> None:
        for execution, message in self.handles(number):
            for status in execution.outputs(0):
                assert status.info.execution == execution.info.execution
                if isinstance(status, JobSucceeded) and isinstance(status.result, Message):
                    assert status.result.number == message.number

    def handles(self, *numbers: int) -> list[tuple[Execution, Message]]:
        """Return the handles of executions, and what they were given; none for one that was not submitted."""
        return [self.given[number] for number in numbers if number in self.given]

    def note(self, number: int, message: Message, status: JobStatus) -> None:
        if status.info.state == "pending":
            assert number not in self.settled, "it had settled, and is pending again"
            return
        before = self.settled.setdefault(number, status)
        assert before is status, f"it had settled with {before}, and now with {status}"
        if isinstance(status, JobSucceeded):
            right = self.shape.answer(message, self.labels(status.info.generation))
            assert without_orders(status.result) == right
        elif isinstance(status, JobFailed):
            told = any(not MISBEHAVIOURS[name].rebuilds for names in message.orders.values() for name in names)
            assert told or status.info.attempts == 0, f"nobody told it to fail: {status}"
        elif isinstance(status, JobPreempted):
            assert self.dead() or self.may_die, f"nobody died: {status}"

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data(), how=st.sampled_from([kill, kill_process]))
    def kill_one(self, data: st.DataObject, how: Any) -> None:
        label = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(label)
        self.stopped.discard(label)
        self.system_errors += 1
        how(self.actors[label], *((self.pids[label],) if how is kill_process else ()))

    @rule(data=st.data())
    def stop_one(self, data: st.DataObject) -> None:
        label = data.draw(st.sampled_from(sorted(self.alive)))
        self.stopped.add(label)
        self.may_die.add(label)
        stop(self.actors[label], self.pids[label])

    @precondition(lambda self: self.stopped)
    @rule()
    def resume_all(self) -> None:
        for label in self.stopped:
            resume(self.actors[label], self.pids[label])
        self.stopped.clear()

    @precondition(lambda self: not self.stopped)
    @rule()
    def rebuild(self) -> None:
        self.come_to_rest()
        if self.graph.state is GraphState.READY:
            self.system_errors += 1
            with suppress(GraphFailedError):  # what is in flight may end the last host
                self.graph.rebuild()

    @precondition(lambda self: not self.stopped)
    @rule(numbers=st.lists(consumes(executions), max_size=3))
    def settle(self, numbers: list[int]) -> None:
        for execution, message in self.handles(*numbers):
            status = execution.status(30)
            assert status.info.state != "pending", f"it never settled: {status}"
            self.note(message.number, message, status)

    @invariant()
    def no_more_generations_than_system_errors(self) -> None:
        if "graph" in self.__dict__:
            # A host that a method's exit or a stop has ended is a system error of its own.
            assert self.graph.generation <= self.system_errors + len(self.graph.lost_hosts)

    @invariant()
    def no_host_is_lost_for_nothing(self) -> None:
        if "graph" in self.__dict__ and not self.stopped:
            lost = {lost.info.host_id for lost in self.graph.lost_hosts}
            assert lost <= self.dead() | self.may_die, (lost, self.dead())

    def teardown(self) -> None:
        if "graph" not in self.__dict__:
            return
        self.resume_all()
        self.come_to_rest()
        for number, (execution, message) in self.given.items():
            status = execution.status(30)
            assert status.info.state != "pending", f"it never settled: {status}"
            self.note(number, message, status)
        assert eventually(lambda: len(self.told) >= len(self.to_be_told))
        assert sorted(map(id, self.told)) == sorted(map(id, self.to_be_told)), "not each was told of once"
        for execution, _ in self.given.values():
            assert execution.info.attempts <= 1 + self.retries
        self.come_to_rest()
        if self.graph.state is not GraphState.FAILED:
            self.answers_still()
        self.graph.close()

    def answers_still(self) -> None:
        """Have one more execution answered, unless the last host has gone.

        It may be refused for a while: what has settled by its first error keeps its slot until all of it has come, and
        the verdict on a host that was stopped, and has gone on since, may come only now. It may cost this execution,
        once for each such host at most.
        """
        for _ in range(1 + len(self.may_die)):
            self.number += 1
            message = Message(self.number)
            status = self.submitted_still(message).status(30)
            self.note(message.number, message, status)
            if isinstance(status, JobSucceeded):
                return
            self.come_to_rest()
            if self.graph.state is GraphState.FAILED:
                return
            assert not isinstance(status, JobError), (status, *map(str, self.graph.history))
        raise AssertionError((status, *map(str, self.graph.history)))

    def submitted_still(self, message: Message) -> Execution:
        """Submit one more execution as soon as there is room."""
        taken: list[Execution] = []

        def is_taken() -> bool:
            execution = self.graph.try_submit(*self.shape.arguments(message, len(self.graph.actors)))
            taken.extend([] if execution is None else [execution])
            return bool(taken)

        assert eventually(is_taken), (self.graph, *map(str, self.graph.history))
        return taken[0]
