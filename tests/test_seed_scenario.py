"""The scenario the project was made for: lose a host, before, during and between executions, and go on.

``ray.kill`` returns before the actor is dead, so a test waits for the generation, never for a duration. Each case kills
one host after another of a graph of eight until one is left: every size from 8 to 2 loses a host. The default run takes
one order of kills for each shape; the campaign takes every position at every size in every phase.
"""

import itertools

import pytest
import ray
from conftest import eventually
from workers import request

from cgexec import GraphExecutor, GraphState, JobPreempted, JobSucceeded, chain, fan_out, scatter

NUM_HOSTS = 8
PHASES = ("before", "during", "between")
SHAPES = {"fan": fan_out("work"), "scatter": scatter("work"), "chain": chain("work")}
numbers = itertools.count(1)


def inputs_and_answer(shape, labels, actions=None):
    """Return the arguments of one execution with fresh numbers, and the result it must have on hosts ``labels``."""
    if shape == "scatter":
        args = tuple(request(next(numbers), actions) for _ in labels)
        return args, [(number, done, (label,)) for (number, done, _), label in zip(args, labels, strict=True)]
    number = next(numbers)
    args = (request(number, actions),)
    if shape == "chain":
        return args, (number, actions or {}, tuple(labels))
    return args, [(number, actions or {}, (label,)) for label in labels]


def check_executes(graph, shape, labels):
    """Run one execution and check its answer."""
    args, answer = inputs_and_answer(shape, labels)
    status = graph.execute(*args)
    assert isinstance(status, JobSucceeded), status
    assert status.result == answer


def lose(graph, shape, labels, victim, phase):
    """Kill the host ``victim`` in ``phase`` and check what the executions around it answer."""
    actor = graph.actors[labels.index(victim)]
    check_executes(graph, shape, labels)
    generation = graph.generation
    if phase == "during":  # the victim is inside its method, and would stay there
        args, _ = inputs_and_answer(shape, labels, {victim: ("sleep", 600.0)})
        execution = graph.submit(*args)
        assert not execution.done()
        ray.kill(actor)
        status = execution.status(60.0)
        assert isinstance(status, JobPreempted), status
        assert [lost.info.host_id for lost in status.info.lost_hosts] == [victim]
        assert isinstance(status.error, ray.exceptions.ActorDiedError)
    else:
        ray.kill(actor)
    survivors = [label for label in labels if label != victim]
    if phase == "before":  # executions go on, whether or not the death has been noticed
        while graph.generation == generation:
            args, answer = inputs_and_answer(shape, labels)
            status = graph.execute(*args, timeout_s=60.0)
            on_survivors = inputs_with(args, shape, survivors)
            assert (
                (isinstance(status, JobSucceeded) and status.result in (answer, on_survivors))
                or (isinstance(status, JobPreempted) and status.info.lost_hosts[0].info.host_id == victim)
                or (shape == "scatter" and graph.generation > generation)  # eight inputs no longer fit seven hosts
            ), status
    assert eventually(lambda: graph.generation == generation + 1), graph.history
    assert eventually(lambda: graph.state is GraphState.READY), graph.history


def inputs_with(args, shape, labels):
    """Return the answer to ``args`` on hosts ``labels``; None where the number of arguments does not fit."""
    if shape == "scatter":
        return None
    ((number, actions, _),) = args
    return (number, actions, tuple(labels)) if shape == "chain" else [(number, actions, (label,)) for label in labels]


def run_down(spawn, small, shape, choose):
    """Kill one host after another until one is left: ``choose(size)`` gives the position and the phase."""
    actors = spawn(NUM_HOSTS)
    pids = ray.get([actor.pid.remote() for actor in actors])
    labels = list(range(NUM_HOSTS))
    with GraphExecutor(actors, SHAPES[shape], name=shape, config=small) as graph:
        while len(labels) > 1:
            position, phase = choose(len(labels))
            victim = labels[position]
            lose(graph, shape, labels, victim, phase)
            labels.remove(victim)
            assert graph.actors == [actors[label] for label in labels]
            assert [host.host_id for host in graph.hosts] == labels
            assert graph.lost_hosts[-1].info.host_id == victim
            assert graph.lost_hosts[-1].generation == graph.generation - 1
            check_executes(graph, shape, labels)
        assert graph.generation == NUM_HOSTS - 1
        (survivor,) = labels
        assert ray.get(graph.actors[0].pid.remote()) == pids[survivor]
        seen = ray.get(graph.actors[0].what_was_seen.remote())
        assert seen == sorted(set(seen)), "an execution reached the survivor twice, or out of order"


@pytest.mark.num_ways(1)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_graph_outlives_its_hosts_one_after_another(small, spawn, shape):
    offset = list(SHAPES).index(shape)
    run_down(spawn, small, shape, lambda size: ((size * 3 + offset) % size, PHASES[(size + offset) % len(PHASES)]))


@pytest.mark.campaign
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("position", range(NUM_HOSTS))
@pytest.mark.parametrize("shape", SHAPES)
def test_any_host_of_any_size_in_any_phase(small, spawn, shape, position, phase):
    run_down(spawn, small, shape, lambda size: (position % size, phase))
