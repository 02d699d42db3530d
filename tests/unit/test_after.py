"""``after``: what a call in a graph waits for without being given it."""

from __future__ import annotations

from typing import Any

import pytest

from cgexec import GraphConfig, GraphExecutor, GraphSpecError, JobFailed, after
from cgexec.testing import LocalActor

IN_PROCESS = GraphConfig(engine="in_process")


class Worker:
    def __init__(self) -> None:
        self.done: list[Any] = []

    def note(self, *what: Any) -> Any:
        self.done.append(what)
        if what == ("raise",):
            raise ValueError("as asked")
        return what

    def all(self) -> list[Any]:
        return self.done


def run(build: Any, *arguments: Any, num: int = 2) -> tuple[Any, list[list[Any]]]:
    actors = [LocalActor(Worker) for _ in range(num)]
    with GraphExecutor(actors, build, config=IN_PROCESS) as graph:
        status = graph.execute(*arguments)
    return status, [actor.all.remote().result(10) for actor in actors]


def test_a_call_is_not_given_what_it_waits_for() -> None:
    def build(inp: Any, actors: Any) -> Any:
        first = actors[0].note.bind(inp)
        return after(actors[1].note.bind("constant"), first, inp)

    status, done = run(build, 7)
    assert status.result == ("constant",)
    assert done == [[(7,)], [("constant",)]]


def test_a_call_that_waits_for_one_that_raises_is_not_made() -> None:
    def build(inp: Any, actors: Any) -> Any:
        return after(actors[1].note.bind(), actors[0].note.bind(inp))

    status, done = run(build, "raise")
    assert isinstance(status, JobFailed)
    assert status.info.host is not None
    assert status.info.host.host_id == 0
    assert done == [[("raise",)], []]


def test_calls_of_one_actor_are_made_in_the_order_in_which_they_were_bound() -> None:
    def build(inp: Any, actors: Any) -> Any:
        first = actors[0].note.bind(inp, 0)
        there = actors[1].note.bind(first)
        back = after(actors[0].note.bind(), there)  # could be made last, as the others need the input alone
        return [back, actors[0].note.bind(inp, 1), actors[0].note.bind(inp, 2)]

    _, done = run(build, "x")
    assert done[0] == [("x", 0), (), ("x", 1), ("x", 2)]


def test_one_call_may_be_told_twice_what_it_waits_for() -> None:
    def build(inp: Any, actors: Any) -> Any:
        firsts = [actors[0].note.bind(inp, number) for number in range(2)]
        last = after(actors[1].note.bind())
        for first in firsts:
            assert after(last, first) is last
        return last

    status, done = run(build, 7)
    assert status.result == ()
    assert done == [[(7, 0), (7, 1)], [()]]


def test_nodes_that_would_wait_for_each_other_are_refused() -> None:
    def itself(inp: Any, actors: Any) -> Any:
        node = actors[0].note.bind(inp)
        return after(node, node)

    def each_other(inp: Any, actors: Any) -> Any:
        first = actors[0].note.bind(inp)
        return after(first, actors[1].note.bind(first))

    for build in (itself, each_other):
        with pytest.raises(GraphSpecError, match=r"note\(\) is to wait for note\(\), which waits for it"):
            run(build, 1)


def test_a_call_that_waits_for_a_later_one_of_its_actor_comes_behind_it_in_process() -> None:
    def build(inp: Any, actors: Any) -> Any:
        first, second = (actors[0].note.bind(inp, number) for number in range(2))
        return [after(first, second), second]

    status, done = run(build, 5)
    assert status.result == [(5, 0), (5, 1)]
    assert done[0] == [(5, 1), (5, 0)]


def test_nothing_but_nodes_can_be_waited_for() -> None:
    with pytest.raises(GraphSpecError, match=r"note\(\) is to wait for 3: expected a node"):
        run(lambda inp, actors: after(actors[0].note.bind(inp), 3), 1)
    with pytest.raises(GraphSpecError, match=r"after\(\) is given 3: expected what actor.method.bind"):
        run(lambda inp, actors: after(3, actors[0].note.bind(inp)), 1)
