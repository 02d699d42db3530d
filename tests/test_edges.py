"""Frames on every kind of edge, and every input read before an error counts: each answer against its own question, and
each argument that a method was given against the execution it was given it in."""

import random
import threading
from dataclasses import replace

import pytest
import ray
from ray.experimental.channel.shared_memory_channel import SharedMemoryType
from reference import Call, Failed, Part, Reference
from workers import Boxed, Stage

from cgexec import GraphExecutor, JobError, JobFailed, JobSucceeded, RefBox, TransferError
from cgexec.engine import framing

pytestmark = pytest.mark.num_ways(1)

NUM_ACTORS = 4


def fan(inp, actors):
    return [actor.f.bind(inp) for actor in actors]


def scattered(inp, actors):
    return [actor.f.bind(inp[k]) for k, actor in enumerate(actors)]


def chained(inp, actors):
    for actor in actors:
        inp = actor.f.bind(inp)
    return inp


def diamond(inp, actors):
    top = actors[0].f.bind(inp)
    return actors[3].m1.bind(actors[1].f.bind(top), actors[2].f.bind(top))


def by_position_and_name(inp, actors):
    return [
        actors[0].f.bind(inp[0]),
        actors[1].m1.bind(inp.extra, inp[1]),
        actors[2].f.bind(inp.extra),
        actors[1].m2.bind(inp[0], inp.extra),
    ]


def shared_inputs(inp, actors):
    """The recipe of Ray's stale inputs: two methods of one actor share the input and a failing upstream."""
    e = actors[0].f.bind(inp)
    return [actors[1].m1.bind(e, inp), actors[1].m2.bind(e, inp)]


def three_share(inp, actors):
    e, g = actors[0].f.bind(inp), actors[2].f.bind(inp)
    return [actors[1].m1.bind(e, inp), actors[1].m2.bind(inp, g, e), actors[1].m3.bind(g, inp)]


def errors_at_depths(inp, actors):
    one = actors[0].f.bind(inp)
    two = actors[1].f.bind(one, inp)
    three = actors[2].f.bind(two, one)
    return [actors[3].m1.bind(three, inp), actors[3].m2.bind(one, two), actors[3].m3.bind(inp, three, one)]


def own_output(inp, actors):
    first = actors[0].f.bind(inp)
    return [actors[0].m1.bind(first, inp), actors[0].m2.bind(first), actors[1].f.bind(first)]


def there_and_back(inp, actors):
    out = actors[0].f.bind(inp)
    back = actors[1].f.bind(out)
    return [actors[0].m1.bind(out, back), actors[1].m1.bind(out, back)]


def two_values(inp, actors):
    left, right = actors[0].two.options(num_returns=2).bind(inp)
    return [actors[1].m1.bind(left, right), left, actors[2].f.bind(right), actors[0].m1.bind(right, inp)]


def listed_twice(inp, actors):
    node = actors[0].f.bind(inp)
    return [node, actors[1].f.bind(node), node, node]


def constants(inp, actors):
    return [
        actors[0].tagged.bind("first", inp, suffix="a"),
        actors[1].tagged.bind(7, actors[0].f.bind(inp), suffix=("b", None)),
    ]


ONE_INPUT = [
    fan, chained, diamond, shared_inputs, three_share, errors_at_depths, own_output, there_and_back, two_values,
    listed_twice, constants,
]  # fmt: skip
BUILDERS = [*ONE_INPUT, scattered, by_position_and_name]
NAMES = [build.__name__ for build in BUILDERS]


def inputs_of(build, number, orders):
    """Return the inputs of one execution: every message its own number where there are several."""
    message = (number, orders, ())
    if build is scattered:
        return [message] * NUM_ACTORS, {}
    if build is by_position_and_name:
        return [message, message], {"extra": message}
    return [message], {}


def calls_of(build):
    """Return every call of the graph, as "label.method"."""
    found, queue = set(), list(Reference(build, NUM_ACTORS).outputs)
    while queue:
        node = queue.pop()
        if isinstance(node, Part):
            queue.append(node.call)
        elif isinstance(node, Call):
            found.add(f"{node.stage.label}.{node.method}")
            queue += node.args
    return sorted(found)


def check_arguments(actors):
    """Check that no method was ever given inputs of two executions, and each execution once and in order."""
    for actor in actors:
        given = ray.get(actor.what_was_given.remote())
        for method in {method for method, _ in given}:
            numbers = [numbers for each, numbers in given if each == method]
            assert all(len(set(each)) == 1 for each in numbers), (method, numbers)
            firsts = [each[0] for each in numbers]
            assert firsts == sorted(set(firsts)), (method, firsts)


def check_status(status, expected, returns_list):
    """Check a status, of the same execution, against what the reference says of each output."""
    failures = {failure for output in expected if isinstance(output, Failed) for failure in output.failures}
    if not failures:
        assert isinstance(status, JobSucceeded), status
        assert status.result == (expected if returns_list else expected[0])
        return
    assert isinstance(status, JobFailed), status
    assert isinstance(status.error, ValueError)
    assert status.error.cause.args in failures
    assert {failure.error.cause.args for failure in status.info.failures} <= failures
    for failure in status.info.failures:
        assert failure.error.cause.args[0] == f"{failure.host.host_id}.{failure.method}"


@pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
def test_every_execution_gets_its_own_answer_on_every_kind_of_edge(small, spawn, build):
    reference = Reference(build, NUM_ACTORS)
    actors = spawn(NUM_ACTORS, Stage)
    with GraphExecutor(actors, build, config=small) as graph:
        waiting = []
        for number in range(40):
            args, kwargs = inputs_of(build, number, {})
            waiting.append(graph.submit(*args, **kwargs))
            if len(waiting) == small.max_inflight:
                for older in waiting:
                    args, kwargs = inputs_of(build, older.info.execution, {})
                    check_status(older.status(), reference.answer(*args, **kwargs), graph_returns_list(build))
                waiting.clear()
        assert graph.generation == 0
    check_arguments(actors)


def graph_returns_list(build):
    return build not in (chained, diamond)


@pytest.mark.parametrize("build", BUILDERS, ids=NAMES)
def test_errors_anywhere_never_deliver_a_stale_argument(small, spawn, build):
    """Methods raise at every depth, some sleep past a wait; between them good executions answer for themselves."""
    reference = Reference(build, NUM_ACTORS)
    calls = calls_of(build)
    choose = random.Random(build.__name__)
    actors = spawn(NUM_ACTORS, Stage)
    with GraphExecutor(actors, build, config=small) as graph:
        late = []
        for number in range(60):
            picked = choose.sample(calls, choose.choice([0, 1, 1, 2]) if number % 2 else 0)
            orders = {call: choose.choice(["raise", "raise", "raise", "sleep"]) for call in picked}
            args, kwargs = inputs_of(build, number, orders)
            execution = graph.submit(*args, **kwargs)
            if choose.random() < 0.3:
                pending = execution.status(0.01)  # may run out, and costs nothing then
                assert pending.info.state == "pending" or pending is execution.status()
            late.append((execution, reference.answer(*args, **kwargs)))
            if len(late) == small.max_inflight or number == 59:
                for execution, expected in late:
                    check_status(execution.status(), expected, graph_returns_list(build))
                    for one, each in zip(execution.outputs(), expected, strict=True):
                        check_status(one, [each], returns_list=False)
                late.clear()
        assert graph.generation == 0
    check_arguments(actors)


def test_every_host_that_raised_is_reported_where_branches_meet(small, spawn):
    with GraphExecutor(spawn(NUM_ACTORS, Stage), diamond, config=small) as graph:
        for number in range(5):
            status = graph.execute((number, {"1.f": "raise", "2.f": "raise"}, ()))
            assert isinstance(status, JobFailed)
            assert [(failure.host.host_id, failure.method) for failure in status.info.failures] == [(1, "f"), (2, "f")]
            assert [failure.error.cause.args for failure in status.info.failures] == [("1.f", number), ("2.f", number)]
        assert graph.generation == 0


BAD_RETURNS = [
    (chained, "1.f", "return-a-lock", "cannot pickle", 1),
    (fan, "2.f", "return-a-lock", "cannot pickle", 2),
    (two_values, "0.two", "return-a-lock", "cannot pickle", 0),
    (two_values, "0.two", "too-few", "2 values were expected, and 1 values came", 0),
    (two_values, "0.two", "no-tuple", "2 values were expected, and one value came", 0),
    (fan, "3.f", "return-what-cannot-be-loaded", "not a number", 3),
    (chained, "1.f", "return-what-cannot-be-loaded", "not a number", 2),
    (shared_inputs, "0.f", "return-what-cannot-be-loaded", "not a number", 1),
]


@pytest.mark.parametrize(("build", "call", "order", "words", "host_id"), BAD_RETURNS)
def test_what_cannot_be_sent_or_loaded_is_an_error_of_its_execution_alone(
    small, spawn, build, call, order, words, host_id
):
    reference = Reference(build, NUM_ACTORS)
    actors = spawn(NUM_ACTORS, Stage)
    with GraphExecutor(actors, build, config=small) as graph:
        for number in range(12):
            orders = {call: order} if number % 3 == 1 else {}
            status = graph.execute((number, orders, ()))
            if not orders:
                check_status(status, reference.answer((number, {}, ())), graph_returns_list(build))
                continue
            assert isinstance(status, JobError)
            assert isinstance(status.error, TransferError)
            assert words in str(status.error)
            assert words in status.error.text
            assert status.error.type_name in ("TypeError", "ValueError", "cgexec.engine.steps._WrongNumberError")
            assert "Traceback" in status.error.traceback_text
            assert (status.info.host.host_id, status.info.state) == (host_id, "error")
        assert graph.generation == 0
    check_arguments(actors)


def test_values_between_methods_of_one_actor_are_handed_over_as_they_are(small, spawn):
    """As in Ray: what never leaves its process need not be pickled."""

    class Keeper(Stage):
        def make(self, message):
            return threading.Lock(), message

        def use(self, made):
            lock, message = made
            assert isinstance(lock, type(threading.Lock()))
            return message

    with GraphExecutor(
        spawn(1, Keeper), lambda inp, actors: actors[0].use.bind(actors[0].make.bind(inp)), config=small
    ) as graph:
        for number in range(10):
            assert graph.execute((number, {}, ())).result == (number, {}, ())


def test_a_limit_of_one_execution_recovers_from_errors_and_waits(small, spawn):
    with GraphExecutor(spawn(NUM_ACTORS, Stage), three_share, config=replace(small, max_inflight=1)) as graph:
        reference = Reference(three_share, NUM_ACTORS)
        for number in range(20):
            orders = {} if number % 2 else {"0.f": "raise", "2.f": "sleep"}
            execution = graph.submit((number, orders, ()))
            assert execution.status(0.005).info.execution == number
            check_status(execution.status(), reference.answer((number, orders, ())), returns_list=True)
        assert graph.generation == 0


def test_references_and_handles_cross_in_a_box(small, spawn):
    actors = spawn(2, Boxed)

    def build(inp, actors):
        return actors[1].unbox.bind(actors[0].forward.bind(inp))

    with GraphExecutor(actors, build, config=small) as graph:
        for number in range(5):
            number_back, value, box = graph.execute((number, RefBox(ray.put(("put", number))))).result
            assert (number_back, value, box.get()) == (number, ("put", number), ("put", number))


def without_the_hint(inp, actors):
    first = actors[0].f.bind(inp)
    second = actors[1].f.bind(first, inp)
    return [second, actors[2].m1.bind(second, first), actors[2].m2.bind(inp, second)]


def with_a_hint_of_its_own(inp, actors):
    """The second stage's value travels in Ray's channel, whatever the transport."""
    outputs = without_the_hint(inp, actors)
    outputs[0].type_hint = SharedMemoryType(num_shm_buffers=4)
    return outputs


def test_a_node_with_a_type_hint_of_its_own_keeps_it(small, spawn):
    """Its values carry no tag; errors there are still errors, and the graph goes on."""
    reference = Reference(without_the_hint, NUM_ACTORS)
    actors = spawn(NUM_ACTORS, Stage)
    orders_of = [{}, {"0.f": "raise"}, {}, {"1.f": "raise"}, {}, {"2.m1": "raise"}, {"1.f": "return-a-lock"}]
    with GraphExecutor(actors, with_a_hint_of_its_own, config=small) as graph:
        for number in range(21):
            orders = orders_of[number % len(orders_of)]
            status = graph.execute((number, orders, ()), timeout_s=30)
            if "return-a-lock" in orders.values():
                assert isinstance(status, (JobFailed, JobError))
                assert "pickle" in str(status.error)
                continue
            expected = reference.answer((number, orders, ()))
            if any(isinstance(each, Failed) for each in expected):
                assert isinstance(status, JobFailed), status
                assert isinstance(status.error, ValueError)
                assert status.error.cause.args[1] == number
            else:
                assert status.result == expected
        assert graph.generation == 0
    check_arguments(actors)


def through_rays_own(inp, actors):
    """The second stage, and two methods that share an input, are tasks of Ray's own."""
    first = actors[0].f.bind(inp)
    second = actors[1].m1.bind(first)
    return [actors[2].f.bind(second), actors[3].m2.bind(inp, first), actors[3].m3.bind(first), second]


def test_tasks_of_rays_own_work_among_ours(small, spawn, monkeypatch):
    """As collectives and tasks with tensors on an accelerator do, which cannot be had here."""

    monkeypatch.setattr(framing, "is_rays_own", lambda task: task.dag_node.get_method_name() in ("m1", "m2"))
    reference = Reference(through_rays_own, NUM_ACTORS)
    actors = spawn(NUM_ACTORS, Stage)
    with GraphExecutor(actors, through_rays_own, config=small) as graph:
        for number in range(12):
            orders = {"1.m1": "raise"} if number % 3 == 1 else {"2.f": "raise"} if number % 3 == 2 else {}
            status = graph.execute((number, orders, ()), timeout_s=30)
            expected = reference.answer((number, orders, ()))
            if orders:
                assert isinstance(status, JobFailed), status
                assert isinstance(status.error, ValueError)
                (failed, *_) = [each for each in expected if isinstance(each, Failed)]
                assert status.error.cause.args == failed.failures[0]
            else:
                assert status.result == expected
        graph.rebuild()
        assert graph.execute((99, {}, ())).result == reference.answer((99, {}, ()))
    check_arguments(actors)
