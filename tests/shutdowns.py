"""Run as a script: Ray goes away, again and again, while a graph is in the middle of something.

``python shutdowns.py ADDRESS WAY`` prints one line of JSON for each time: what was under way, and what came of it.
"""

import gc
import json
import logging
import sys
import threading
import time
from unittest import mock

import ray
from conftest import eventually, our_threads
from pool import WAYS

from cgexec import GraphClosedError, GraphExecutor, RebuildPolicy, fan_out
from cgexec.engine import actor_calls, build, compiled, leasing, over_ray
from cgexec.testing import Message, Recorder, kill

STEPS = {  # of a rebuild, where what asks Ray begins
    "probes": (over_ray, "probe"),
    "prepares": (leasing, "prepare"),
    "compiles": (build, "compile_graph"),
    "settles in": (compiled, "await_loops"),
    "hands out the plan": (actor_calls, "call_all"),
}
OF_COMPILED, OF_CALLS = {"compiles", "settles in"}, {"hands out the plan"}


class Round:
    """One Ray, one graph, and one thread that is in the middle of something when Ray goes."""

    def __init__(self, address, way):
        self.address = address
        self.starts_again = False
        self.start_ray()
        self.config = WAYS[way]
        self.reached = threading.Event()
        self.raised = None
        self.thread = None
        self.graph = self.execution = None

    def start_ray(self):
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def build(self, **policy):
        actors = [ray.remote(num_cpus=0)(Recorder).remote(label) for label in range(2)]
        graph = GraphExecutor(actors, fan_out("work"), config=self.config, policy=RebuildPolicy(**policy))
        assert len(graph.execute(Message(1)).result) == 2
        self.graph = graph

    def submit(self):
        self.execution = self.graph.submit(Message(2, {0: ["never-return"]}))

    def run(self, call):
        def attempt():
            try:
                call()
            except Exception as error:
                self.raised = f"{type(error).__name__}: {error}"

        self.thread = threading.Thread(target=attempt)
        self.thread.start()

    def gate(self, step):
        """Tell when a step is reached, which then goes on."""
        module, name = STEPS[step]
        take = getattr(module, name)

        def met(*args, **kwargs):
            self.reached.set()
            return take(*args, **kwargs)

        return mock.patch.object(module, name, met)

    def use(self):
        try:
            status = self.graph.execute(Message(3))
        except GraphClosedError as error:
            return type(error).__name__
        return f"{type(status).__name__}: {status.error}"

    def outcome(self):
        ray.shutdown()
        if self.starts_again:
            self.start_ray()
        if self.thread is not None:
            self.thread.join(10)
        found = {
            "stuck": self.thread is not None and self.thread.is_alive(),
            "another Ray": ray.is_initialized(),
            "raised": self.raised,
        }
        if self.execution is not None:
            found["settled"] = type(self.execution.status(5)).__name__
        if self.graph is not None:
            found["used"], found["state"] = self.use(), self.graph.state.value
            self.graph.close()
        self.graph = self.execution = None
        eventually(lambda: not our_threads(), 5)
        found |= {"threads": our_threads(), "another Ray later": ray.is_initialized()}
        ray.shutdown()
        return found


def is_idle(round_):
    round_.build()


def is_idle_and_starts_again(round_):
    round_.build()
    round_.starts_again = True


def waits(round_):
    round_.build()
    round_.submit()
    round_.run(lambda: round_.execution.status(-1))


def closes(round_):
    round_.build()
    round_.submit()
    round_.run(round_.graph.close)
    assert eventually(lambda: round_.graph.state.value == "closed")


def rebuilds(round_):
    round_.build()
    round_.submit()
    round_.run(round_.graph.rebuild)
    assert eventually(lambda: round_.graph.state.value == "rebuilding")


def has_forgotten_it(round_):
    round_.build()
    round_.submit()
    round_.graph = None
    gc.collect()


def is_at(step):
    def begin(round_):
        round_.build()
        with round_.gate(step):
            round_.run(round_.graph.rebuild)
            assert round_.reached.wait(10)

    return begin


def builds(round_):
    with round_.gate("prepares"):
        round_.run(round_.build)
        assert round_.reached.wait(10)


def asks_in_a_hook(round_):
    def hook(_generation, _infos, actors):  # one call after the other: plain Ray may crash if it ends under a long one
        round_.reached.set()
        for _ in range(100):
            ray.get([actor.__ray_call__.remote(lambda _: None) for actor in actors])

    round_.build(on_rebuild=hook)
    round_.run(round_.graph.rebuild)
    assert round_.reached.wait(10)


def starts_actors_in_a_hook(round_):
    def replace(_info):
        round_.reached.set()
        for _ in range(5):
            actor = ray.remote(num_cpus=0)(Recorder).remote(0)
            time.sleep(0.005)
        return actor

    round_.build(replace=replace)
    kill(round_.graph.actors[0])
    assert round_.reached.wait(10)


def main(address, way):
    logging.getLogger("cgexec").setLevel("CRITICAL")
    steps = STEPS.keys() - (OF_COMPILED if way == "calls" else OF_CALLS)
    beginnings = {
        "is idle": is_idle,
        "is idle, and starts Ray again": is_idle_and_starts_again,
        "waits": waits,
        "closes": closes,
        "rebuilds": rebuilds,
        "has forgotten it": has_forgotten_it,
        "builds": builds,
        "asks in a hook": asks_in_a_hook,
        "starts actors in a hook": starts_actors_in_a_hook,
        **{step: is_at(step) for step in sorted(steps)},
    }
    for name, begin in beginnings.items():
        round_ = Round(address, way)
        begin(round_)
        print(json.dumps({"meanwhile": name, **round_.outcome()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
