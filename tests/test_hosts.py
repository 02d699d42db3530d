"""One actor per host: on one machine, and on a cluster of several nodes that loses one."""

import os

import numpy as np
import pytest
import ray
from conftest import eventually, live_actors
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from workers import Labelled, Worker, request

from cgexec import GraphExecutor, GraphState, HostGroup, JobFailed, JobPreempted, JobSucceeded, chain, fan_out

NO_CPUS = {"num_cpus": 0}


def node_id():
    return ray.get_runtime_context().get_node_id()


def test_spawn_starts_as_many_as_asked_and_close_kills_them(small, local_ray):
    before = live_actors().keys()
    with HostGroup.spawn(Labelled, 5, num_hosts=3, actor_options=NO_CPUS, extra="x") as hosts:
        assert len(hosts) == len(list(hosts)) == len(hosts.actors) == 3
        assert ray.get([actor.what_extra.remote() for actor in hosts]) == ["x"] * 3
        assert [info.host_id for info in hosts.infos] == [0, 1, 2]
        assert {info.node_id for info in hosts.infos} == {node_id()}
        assert all(info.healthy and not info.failed for info in hosts.infos)
        with GraphExecutor(hosts, chain("work"), config=small) as graph:
            assert graph.execute(request(1)).result == (1, {}, (5, 5, 5))
    assert eventually(lambda: live_actors().keys() == before)


def test_spawn_takes_a_decorated_class_and_defaults_to_one_for_each_node(local_ray):
    with HostGroup.spawn(ray.remote(Labelled), actor_options=NO_CPUS) as hosts:
        assert len(hosts) == 1
        assert ray.get(hosts.actors[0].node.remote()) == node_id()


def test_from_actors_adopts_and_never_kills(spawn):
    actors = spawn(2)
    with HostGroup.from_actors(actors) as hosts:
        assert hosts.actors == actors
        assert [(info.host_id, info.num_devices, info.node_id) for info in hosts.infos] == [
            (0, None, None),
            (1, None, None),
        ]
    hosts.close()
    assert ray.get([actor.what_was_seen.remote() for actor in actors]) == [[], []]


@pytest.mark.parametrize("num_hosts", [0, -1, 1.5, "2", True])
def test_a_bad_number_of_hosts_is_refused(local_ray, num_hosts):
    with pytest.raises(ValueError, match="num_hosts="):
        HostGroup.spawn(Labelled, num_hosts=num_hosts)


def test_a_worker_that_is_no_class_is_refused(local_ray):
    with pytest.raises(TypeError, match="must be a class"):
        HostGroup.spawn(lambda: None)
    with pytest.raises(ValueError, match="scheduling_strategy"):
        HostGroup.spawn(Labelled, actor_options={"scheduling_strategy": "SPREAD"})


@pytest.mark.parametrize(
    ("actors", "words"), [([], "no hosts"), ([1], "host 0 is not an actor handle"), ("ab", "not an actor handle")]
)
def test_what_is_no_actor_is_not_adopted(local_ray, actors, words):
    with pytest.raises(ValueError, match=words):
        HostGroup.from_actors(actors)


@pytest.fixture(scope="module")
def nodes():
    """A head node, and this process its driver."""
    ray.shutdown()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 150_000_000},
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture
def cluster(nodes):
    """Three Ray nodes on this machine."""
    while len(nodes.list_all_nodes()) < 3:
        nodes.add_node(num_cpus=1, object_store_memory=150_000_000)
    nodes.wait_for_nodes()
    assert eventually(lambda: len(alive_nodes()) == 3), alive_nodes()
    return nodes


def alive_nodes():
    """Return the ids of the nodes that are not lost."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def test_a_cluster_gets_one_actor_on_each_node_and_a_lost_node_is_a_preemption(small, cluster):
    with HostGroup.spawn(Labelled, actor_options=NO_CPUS) as hosts:
        assert len(hosts) == 3
        nodes = ray.get([actor.node.remote() for actor in hosts])
        assert len(set(nodes)) == 3
        assert [info.node_id for info in hosts.infos] == nodes
        with GraphExecutor(hosts, fan_out("work"), config=small) as graph:
            for number in range(20):
                assert graph.execute(request(number)).result == [(number, {}, (0,))] * 3
            for number, status in enumerate(graph.map(request(n) for n in range(20))):
                assert status.result == [(number, {}, (0,))] * 3

            (lost_node,) = [
                node for node in cluster.list_all_nodes() if node.node_id == nodes[1] and not node.head
            ] or [node for node in cluster.list_all_nodes() if node.node_id == nodes[2]]
            lost_host = nodes.index(lost_node.node_id)
            cluster.remove_node(lost_node, allow_graceful=False)
            number = 100
            while graph.generation == 0 and graph.state is not GraphState.FAILED:
                status = graph.execute(request(number), timeout_s=60)
                assert isinstance(status, (JobSucceeded, JobPreempted)), status
                if isinstance(status, JobSucceeded):
                    assert status.result in ([(number, {}, (0,))] * 3, [(number, {}, (0,))] * 2)
                number += 1
            assert [lost.info.host_id for lost in graph.lost_hosts] == [lost_host]
            assert graph.lost_hosts[0].info.node_id == lost_node.node_id
            assert len(graph.execute(request(999)).result) == 2
            assert [host.failed for host in graph.check_health(5)] == [host == lost_host for host in range(3)]


def several_readers(inp, actors):
    """One value read by two methods of one actor, by an actor on each other node, and by the driver."""
    made = actors[0].work.bind(inp)
    return [made, actors[1].work.bind(made), actors[1].join.bind(made, inp), actors[2].join.bind(inp, made)]


def test_every_execution_gets_its_own_large_answer_across_nodes(small, cluster):
    """A reader on each node, values that no socket takes at once, and errors in between."""
    actors = one_on_each_node()
    contents = [np.random.default_rng(number).integers(0, 256, 3_000_000, np.uint8) for number in range(8)]
    with GraphExecutor(actors, several_readers, config=small) as graph:
        messages = [
            (number, {1: ("raise", number)} if number % 3 == 1 else {}, (content,))
            for number, content in enumerate(contents)
        ]
        for number, status in enumerate(graph.map(messages, timeout_s=60)):
            if number % 3 == 1:
                assert isinstance(status, JobFailed)
                assert status.error.cause.args == (number,)
                assert {failure.host.host_id for failure in status.info.failures} == {1}
                continue
            assert isinstance(status, JobSucceeded), status
            made, one, two, three = (output[2] for output in status.result)
            assert [output[0] for output in status.result] == [number] * 4
            for path in (made, one, two[0], two[1], three[0], three[1]):
                assert (path[0] == contents[number]).all()
        assert graph.generation == 0


def one_on_each_node():
    return [
        ray.remote(Worker)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(label)
        for label, node_id in enumerate(alive_nodes())
    ]


def test_chains_and_scatters_cross_nodes(small, cluster):
    actors = one_on_each_node()
    with GraphExecutor(actors, chain("work"), config=small) as graph:
        for number, status in enumerate(graph.map(request(n) for n in range(20))):
            assert status.result == (number, {}, (0, 1, 2))
        big = b"x" * 100_000
        assert graph.execute((1, {}, (big,))).result == (1, {}, (big, 0, 1, 2))
    two_inputs = lambda inp, actors: [actors[k].work.bind(inp[k]) for k in range(3)]  # noqa: E731
    with GraphExecutor(actors, two_inputs, config=small) as graph:
        for number in range(20):
            result = graph.execute(*(request(3 * number + k) for k in range(3))).result
            assert result == [(3 * number + k, {}, (k,)) for k in range(3)]
