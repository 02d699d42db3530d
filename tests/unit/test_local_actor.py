"""What a local actor does with its jobs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import eventually
from ray.exceptions import ActorDiedError

from cgexec import GraphConfig, GraphExecutor, GraphSpecError, chain
from cgexec.engine.local_actor import LocalActor, process_of
from cgexec.testing import kill, kill_process, pid_of, resume, stop

LONG_S = 30.0


class Job:
    """Is ready when it is told, and notes that it was done."""

    def __init__(self, *, ready: bool) -> None:
        self.ready = ready
        self.done = threading.Event()

    def is_ready(self) -> bool:
        return self.ready

    def run(self) -> bool:
        self.done.set()
        return True


def test_a_job_that_is_ready_is_done_though_its_thread_waited_for_one_that_was_withdrawn() -> None:
    process = process_of(LocalActor(object))
    never, now = Job(ready=False), Job(ready=True)
    process.post(never)
    assert eventually(lambda: any(thread.name == "local-actor" for thread in threading.enumerate()))
    process.withdraw(lambda job: job is never)
    process.post(now)
    assert now.done.wait(LONG_S)
    assert not never.done.is_set()


def test_jobs_are_done_in_order_and_the_thread_ends_with_them() -> None:
    order: list[int] = []

    class Noting(Job):
        def __init__(self, number: int) -> None:
            super().__init__(ready=True)
            self.number = number

        def run(self) -> bool:
            order.append(self.number)
            return super().run()

    jobs: list[Any] = [Noting(number) for number in range(20)]
    process = process_of(LocalActor(object))
    for job in jobs:
        process.post(job)
    assert jobs[-1].done.wait(LONG_S)
    assert order == list(range(20))
    assert eventually(lambda: not process._serving)


def test_a_method_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(GraphSpecError, match=r"has no method 'nope'; it has: step\b"):
        GraphExecutor([LocalActor(Named)], chain("nope"), config=GraphConfig(engine="in_process"))


@pytest.mark.parametrize("befall", [stop, resume, kill_process, pid_of])
def test_what_befalls_an_actor_cannot_befall_anything_else(befall: Any) -> None:
    with pytest.raises(TypeError, match="is no actor"):
        befall("host 3")


class Named:
    attribute = 3

    def step(self, x: int) -> int:
        return x

    def _hidden(self) -> None:
        """Not be named."""


def test_who_has_called_may_cancel_and_the_actor_goes_on() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def wait(self) -> bool:
            begun.set()
            return go_on.wait(30)

        def number(self) -> int:
            return 7

    actor = LocalActor(Slow)
    running, waiting = actor.wait.remote(), actor.number.remote()
    assert begun.wait(30)
    assert running.cancel()
    assert waiting.cancel()
    go_on.set()
    assert actor.number.remote().result(30) == 7
    begun.clear()
    go_on.clear()
    actor.wait.remote()
    assert begun.wait(30)
    assert actor.number.remote().cancel()
    last = actor.number.remote()
    kill(actor)
    with pytest.raises(ActorDiedError):
        last.result(30)
    go_on.set()
