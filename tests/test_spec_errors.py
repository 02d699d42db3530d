"""What a builder or its actors cannot be is refused by name, before anything runs; every actor is usable afterwards."""

import gc
import re
from dataclasses import replace

import pytest
import ray
from ray.dag import InputNode
from workers import Asynchronous, AsyncWorker, Driver, Unborn, WithoutCgexec, Worker, request

from cgexec import GraphExecutor, GraphSpecError, HostInfo, RebuildPolicy, chain, fan_out, scatter
from cgexec.engine.graph_spec import bind_graph
from cgexec.engine.protocol import Member
from cgexec.testing import SHAPES, Recorder

pytestmark = pytest.mark.num_ways(1)

kept_nodes = []


def reuses_nodes(inp, actors):
    if not kept_nodes:
        with InputNode() as other:
            kept_nodes.append(actors[0].work.bind(other))
    return kept_nodes[0]


def leaves_a_node_out(inp, actors):
    actors[1].work.bind(inp)
    return actors[0].work.bind(inp)


def takes_an_input_and_drops_it(inp, actors):
    _ = inp.unused
    return actors[0].work.bind(inp[0])


def one_of_two_outputs(inp, actors):
    left, _ = actors[0].two.options(num_returns=2).bind(inp)
    return left


@ray.remote
def function(message):
    return message


BAD_BUILDERS = {
    "nothing": (lambda inp, actors: None, "NoneType"),
    "a number": (lambda inp, actors: [actors[0].work.bind(inp), 7], "output 1 is no node"),
    "an empty list": (lambda inp, actors: [], "empty list"),
    "the input itself": (lambda inp, actors: inp, "the graph's input itself"),
    "a function": (lambda inp, actors: function.bind(inp), "no node of an actor's method"),
    "through a function": (lambda inp, actors: actors[0].work.bind(function.bind(inp)), "no method of an actor"),
    "a tuple of outputs": (
        lambda inp, actors: [actors[0].two.options(num_returns=2).bind(inp)],
        "num_returns > 1 gives a tuple",
    ),
    "a node as keyword": (lambda inp, actors: actors[0].work.bind(message=inp), "keyword argument 'message'"),
    "a node in a list": (lambda inp, actors: actors[0].join.bind([inp], 1), "inside a container"),
    "a node in a list, then a node": (
        lambda inp, actors: actors[0].join.bind([actors[1].work.bind(inp)], inp),
        "inside a container",
    ),
    "no input": (lambda inp, actors: actors[0].work.bind(1), "takes no node at all"),
    "an input never used": (
        lambda inp, actors: [actors[0].work.bind(inp[0]), actors[1].work.bind(inp[2])],
        "input 1 is never used",
    ),
    "an input taken and dropped": (takes_an_input_and_drops_it, "input 'unused' does not lead to any output"),
    "an input from the end": (lambda inp, actors: actors[0].work.bind(inp[-1]), "input -1"),
    "the whole input and a part": (
        lambda inp, actors: [actors[0].work.bind(inp), actors[1].work.bind(inp[0])],
        "takes the whole input",
    ),
    "a reserved name": (lambda inp, actors: actors[0].work.bind(inp.timeout_s), "'timeout_s'"),
    "a node left out": (leaves_a_node_out, "work().*does not lead to any output"),
    "one of two outputs": (one_of_two_outputs, "output 1 of two().*does not lead to any output"),
    "nodes of another input": (reuses_nodes, "not the one given to the builder"),
    "a method that is not there": (lambda inp, actors: actors[0].nowhere.bind(inp), "AttributeError.*nowhere"),
    "too many arguments": (lambda inp, actors: actors[0].work.bind(inp, inp), "TypeError"),
    "a generator": (lambda inp, actors: actors[0].generator.bind(inp), "generator(): a generator cannot be"),
    "an exception": (lambda inp, actors: 1 / 0, "ZeroDivisionError"),
    "fan_out of no method": (fan_out("nowhere"), r"host 0 .* has no method 'nowhere'; it has: .*work"),
    "fewer methods than hosts": (chain(["work"]), "host 1 has no method: 1 were named"),
}


@pytest.fixture(scope="module")
def pair(local_ray):
    """Two actors that every refused graph leaves usable."""
    actors = [ray.remote(Worker).options(num_cpus=0).remote(label) for label in range(2)]
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize("case", BAD_BUILDERS)
def test_a_graph_that_cannot_be_is_refused_by_name(small, pair, case):
    build, words = BAD_BUILDERS[case]
    with pytest.raises(GraphSpecError) as caught:
        GraphExecutor(pair, build, config=small)
    assert re.search(words.replace("()", r"\(\)"), str(caught.value), re.DOTALL), caught.value


def test_actors_are_usable_after_all_those_refusals(small, pair):
    with GraphExecutor(pair, chain("work"), config=small) as graph:
        assert graph.execute(request(1)).result == (1, {}, (0, 1))


@pytest.mark.parametrize("bad", [[], "", None, [1], ["actor"]], ids=repr)
def test_hosts_that_are_no_actors_are_refused(local_ray, bad):
    with pytest.raises(GraphSpecError, match=r"no hosts|not an actor handle|not iterable"):
        GraphExecutor(bad, fan_out("work"))


def test_the_same_actor_twice_is_refused(pair):
    with pytest.raises(GraphSpecError, match="host 1 is the same actor as host 0"):
        GraphExecutor([pair[0], pair[0]], fan_out("work"))


def test_a_builder_that_is_not_callable_is_refused(pair):
    with pytest.raises(GraphSpecError, match="not callable"):
        GraphExecutor(pair, "work")


def test_fewer_hosts_than_the_policy_asks_for_are_refused(pair):
    with pytest.raises(GraphSpecError, match="min_hosts asks for 3"):
        GraphExecutor(pair, fan_out("work"), policy=RebuildPolicy(min_hosts=3))


@pytest.mark.parametrize("shape", [fan_out, scatter, chain])
@pytest.mark.parametrize("method", ["", [], [""], [1]], ids=repr)
def test_a_method_without_a_name_is_refused(shape, method):
    with pytest.raises(GraphSpecError, match="method="):
        shape(method)


def test_one_method_for_each_host_stays_with_its_host(small, spawn):
    class Two(Worker):
        def left(self, message):
            return "left", *self.work(message)

        def right(self, message):
            return "right", *self.work(message)

    with GraphExecutor(spawn(3, Two), fan_out(["left", "work", "right"]), config=small) as graph:
        assert [output[0] for output in graph.execute(request(1)).result] == ["left", 1, "right"]
        ray.kill(graph.actors[0])
        while graph.generation == 0:
            graph.execute(request(2))
        assert [output[0] for output in graph.execute(request(3)).result] == [3, "right"]


def test_a_third_argument_of_the_builder_is_infos_only_without_a_default(small, spawn):
    with GraphExecutor(spawn(2), lambda inp, actors, m="work": actors[0].work.bind(inp), config=small) as graph:
        assert graph.execute(request(1)).result[0] == 1

    def with_infos(inp, actors, infos=None):
        assert [info.host_id for info in infos] == [0, 1]
        return actors[1].work.bind(inp)

    with GraphExecutor(spawn(2), with_infos, config=small) as graph:
        assert graph.execute(request(1)).result == (1, {}, (1,))


def test_an_async_method_is_refused_by_name(small, spawn):
    actors = spawn(1, AsyncWorker)
    with pytest.raises(GraphSpecError, match=r"work\(\) of host 0 .* `async def`"):
        GraphExecutor(actors, chain("work"), config=small)


def test_a_dead_actor_is_refused_by_name_and_the_others_are_usable(small, spawn):
    actors = spawn(3)
    ray.kill(actors[1])
    with pytest.raises(GraphSpecError, match=r"host 1 .* cannot be used: The actor died"):
        GraphExecutor(actors, fan_out("work"), config=small)
    with GraphExecutor([actors[0], actors[2]], fan_out("work"), config=small) as graph:
        assert graph.execute(request(1)).result == [(1, {}, (0,)), (1, {}, (2,))]


def test_an_actor_whose_constructor_raises_is_refused_with_its_error(small, spawn):
    actor = ray.remote(Unborn).options(num_cpus=0).remote(0)
    with pytest.raises(GraphSpecError, match=r"host 0: the actor's constructor raised(.|\n)*no state for 0"):
        GraphExecutor([actor], chain("work"), config=small)


def test_an_actor_that_does_not_answer_in_time_is_refused_by_name(small, spawn):
    actors = spawn(2)
    busy = actors[1].work.remote(request(1, {1: ("sleep", 6.0)}))
    with pytest.raises(GraphSpecError, match=r"host 1 .* did not answer within"):
        GraphExecutor(actors, fan_out("work"), config=replace(small, build_timeout_s=2.0))
    ray.get(busy)
    with GraphExecutor(actors, fan_out("work"), config=small) as graph:
        assert graph.execute(request(2)).result[1] == (2, {}, (1,))


def test_an_actor_in_another_live_graph_is_refused_by_that_graphs_name(small, spawn):
    actors = spawn(3)
    with GraphExecutor(actors[:2], fan_out("work"), name="first", config=small) as graph:
        with pytest.raises(GraphSpecError, match=r"host 1 .* is in graph 'first' .*close that graph first"):
            GraphExecutor([actors[2], actors[1]], fan_out("work"), name="second", config=small)
        assert graph.execute(request(1)).result[0] == (1, {}, (0,))
        with GraphExecutor(actors[2:], chain("work"), name="third", config=small) as other:
            assert other.execute(request(2)).result == (2, {}, (2,))
    for number in range(5):
        with GraphExecutor(actors, fan_out("work"), name="after", config=small) as graph:
            assert graph.execute(request(number)).result[2] == (number, {}, (2,))


@pytest.mark.parametrize("kind", [Worker, Asynchronous])
def test_an_actor_in_a_graph_that_cgexec_did_not_build_is_refused(small, spawn, kind):
    actors = spawn(1, kind)
    with InputNode() as inp:
        compiled = actors[0].work.bind(inp).experimental_compile()
    assert ray.get(compiled.execute(request(1)))[0] == 1
    with pytest.raises(GraphSpecError, match="a compiled graph that cgexec did not build"):
        GraphExecutor(actors, chain("work"), config=small)
    assert ray.get(actors[0].pid.remote(), timeout=10)  # it goes on as before
    assert ray.get(compiled.execute(request(2)))[0] == 2
    compiled.teardown()
    for number in range(3):
        with GraphExecutor(actors, chain("work"), config=small) as graph:
            assert graph.execute(request(number)).result[0] == number
    del compiled
    gc.collect()  # Ray's helper actor lives as long as the graph


def test_an_actor_drives_a_graph_and_cannot_be_part_of_it(small, spawn):
    others = spawn(2)
    (driver,) = spawn(1, Driver)
    refused, results = ray.get(driver.drive.remote(driver, others, small), timeout=60)
    assert "host 2 is the actor that drives the graph" in refused
    assert results == [(number, {}, (0, 1)) for number in range(5)]


def test_an_actor_that_does_several_calls_at_once_is_refused_where_calls_are_what_the_graph_is_made_of(small, spawn):
    actors = spawn(2, max_concurrency=3)
    with pytest.raises(GraphSpecError, match=r"host 0 does 3 calls side by side .*max_concurrency"):
        GraphExecutor(actors, fan_out("work"), config=replace(small, engine="actor_calls"))
    with GraphExecutor(actors, fan_out("work"), config=small) as graph:
        for number in range(10):
            assert [each[0] for each in graph.execute(request(number)).result] == [number, number]


def test_an_actor_that_refuses_calls_is_refused_where_calls_are_what_the_graph_is_made_of(small, spawn):
    actors = [*spawn(1), *spawn(1, max_pending_calls=8)]
    with pytest.raises(GraphSpecError, match=r"host 1 .* no more than 8 calls wait .*max_pending_calls"):
        GraphExecutor(actors, fan_out("work"), config=replace(small, engine="actor_calls"))
    with GraphExecutor(actors, fan_out("work"), config=small) as graph:
        for number in range(10):
            assert [each[0] for each in graph.execute(request(number)).result] == [number, number]


def test_a_host_without_cgexec_is_refused_with_the_way_to_ship_it(small, spawn):
    actors = [*spawn(1), *spawn(1, WithoutCgexec)]
    with pytest.raises(GraphSpecError, match=r"cgexec cannot be imported on host 1 .*runtime_env"):
        GraphExecutor(actors, fan_out("work"), config=small)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_chain_is_told_from_what_has_several_at_work_at_a_time(spawn, shape):
    about = {"node_id": "node", "slice_name": None, "num_devices": 0, "healthy": True, "failed": False}
    actors = spawn(shape.num_hosts, Recorder)
    members = [Member(HostInfo(host_id=host_id, **about), actor) for host_id, actor in enumerate(actors)]
    assert bind_graph(shape.build, members).is_chain is (shape.name in ("single", "chain"))
    assert bind_graph(shape.build, members[:1]).is_chain is (shape.name != "shared")
