"""Workers of real clusters that serve one test after another, and what is to be left of each test: nothing."""

import os
from collections.abc import Iterable
from typing import Any

import ray
from conftest import CLEAN_UP_S, WAY_NAMES, eventually, live_actors, our_threads

from cgexec import GraphConfig
from cgexec.testing import Recorder, pid_of, resume
from cgexec.testing.leftovers import is_running, left_open

WAYS = {
    "socket": GraphConfig(max_inflight=4, teardown_timeout_s=2.0),
    "ray": GraphConfig(max_inflight=4, teardown_timeout_s=2.0, transport="ray", buffer_size_bytes=10_000),
    "calls": GraphConfig(max_inflight=4, teardown_timeout_s=2.0, engine="actor_calls"),
}
LOCAL = GraphConfig(engine="in_process", max_inflight=4, teardown_timeout_s=0.5)
MOST_SPARE = 3
assert tuple(WAYS) == WAY_NAMES


class Pool:
    """Workers that have survived one cell serve in the next: starting one takes longer than most cells."""

    def __init__(self) -> None:
        self.actors: dict[Any, int] = {}  # and their process ids
        self.starting: list[Any] = []

    def start(self, label: int = 0) -> Any:
        actor = ray.remote(Recorder).options(num_cpus=0).remote(label)
        self.starting.append(actor)
        return actor

    def take(self, num: int) -> list[Any]:
        """Return ``num`` workers labelled 0, 1, 2, ..., as good as new."""
        while len(self.actors) + len(self.starting) < num + MOST_SPARE:
            self.start()
        while len(self.actors) < num:
            actor = self.starting.pop(0)
            self.actors[actor] = pid_of(actor)
        chosen = list(self.actors)[:num]
        ray.get([actor.start_over.remote(label) for label, actor in enumerate(chosen)])
        return chosen

    def take_one(self, label: int) -> Any:
        """Return a worker of this label that is in nobody's hands, and see to it that the next one is starting."""
        while len(self.starting) < MOST_SPARE:
            self.start()
        actor = self.starting.pop(0)
        self.actors[actor] = pid_of(actor)
        ray.get(actor.start_over.remote(label))
        return actor

    def sort_out(self) -> None:
        """Let go of the workers that are not usable any more."""
        for actor in self.starting[:]:
            if actor._actor_id.hex() not in live_actors():
                self.starting.remove(actor)
        for actor in list(self.actors):
            try:
                ray.get(actor.start_over.remote(0), timeout=5)
            except Exception:
                self.bury(actor)

    def bury(self, actor: Any) -> None:
        """Let go of a worker that is dead, or is to be: one that was killed may still answer for a moment."""
        pid = self.actors.pop(actor)
        ray.kill(actor)
        resume(actor, pid)  # Ray takes 5 s to kill a process that is stopped
        assert eventually(lambda: not is_running(pid), CLEAN_UP_S), "the process of a lost host goes on"


def check_that_nothing_is_left(pool: Pool) -> None:
    """Fail if a graph has left threads or actors."""
    pool.sort_out()
    assert eventually(lambda: not our_threads(), CLEAN_UP_S), f"threads were left: {our_threads()}"
    ours = {actor._actor_id.hex() for actor in [*pool.actors, *pool.starting]}
    assert eventually(lambda: live_actors().keys() <= ours, CLEAN_UP_S), f"actors were left: {live_actors()}"


def check_that_nothing_is_open(pool: Pool, actors: Iterable[Any]) -> None:
    """Fail if a graph has left descriptors, here or in its actors."""
    pids = [os.getpid(), *(pool.actors[actor] for actor in actors if is_running(pool.actors[actor]))]
    assert eventually(lambda: not left_open(pids), CLEAN_UP_S), f"descriptors were left: {left_open(pids)}"
