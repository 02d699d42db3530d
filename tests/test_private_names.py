"""The private names of Ray that cgexec stands on: a new release that changes one of them fails here, by name."""

import inspect
import re
import weakref
from dataclasses import replace

import pytest
import ray
from conftest import eventually, live_actors
from ray.dag import ClassMethodNode, InputAttributeNode, InputNode, MultiOutputNode, compiled_dag_node
from ray.dag import context as dag_context
from ray.dag.dag_node_operation import _DAGNodeOperationType
from ray.experimental.channel import IntraProcessChannel, SynchronousWriter
from ray.experimental.channel.cached_channel import CachedChannel
from ray.experimental.channel.common import ChannelOutputType
from ray.experimental.channel.shared_memory_channel import CompositeChannel, SharedMemoryType
from workers import Asynchronous, AsyncWorker, Worker, is_in_a_graph, request

from cgexec import GraphExecutor, fan_out
from cgexec.engine import actor_calls, in_actor, ray_context, tasks


@pytest.mark.parametrize(("attribute", "constant"), ray_context._DEFAULTS.items())
def test_dagcontext_attributes_have_a_default_of_this_name(attribute, constant):
    assert attribute in dag_context.DAGContext.__dataclass_fields__
    assert dag_context.DAGContext.__dataclass_fields__[attribute].default == getattr(dag_context, constant)


def test_a_shared_memory_buffer_takes_its_size_from_dagcontext():
    assert "buffer_size_bytes" in inspect.signature(SharedMemoryType).parameters
    assert "ctx.buffer_size_bytes" in inspect.getsource(SharedMemoryType.__init__)


@pytest.mark.parametrize("hint", [ChannelOutputType, SharedMemoryType])
def test_a_hint_is_asked_for_a_channel_by_writer_and_readers(hint):
    parameters = list(inspect.signature(hint.create_channel).parameters)
    assert parameters == ["self", "writer", "reader_and_node_list", "driver_actor_id"]


def test_ray_makes_and_uses_a_task_as_ours_expects():
    made = inspect.getsource(compiled_dag_node.CompiledDAG._get_or_compile)
    assert re.search(r"= ExecutableTask\(\s*task,\s*resolved_args,\s*task\.kwargs,?\s*\)", made)
    assert list(inspect.signature(compiled_dag_node.ExecutableTask.__init__).parameters) == [
        "self", "task", "resolved_args", "resolved_kwargs"
    ]  # fmt: skip
    for loop in (compiled_dag_node.do_exec_tasks, compiled_dag_node.do_profile_tasks):
        used = set(re.findall(r"task\w*(?:\[[^]]*\])?\.(\w+)\(", inspect.getsource(loop)))
        assert used == {"prepare", "exec_operation"}
    cancelled = inspect.getsource(compiled_dag_node.do_cancel_executable_tasks)
    assert set(re.findall(r"task\.(\w+)\(", cancelled)) == {"destroy_cuda_event", "cancel"}
    assert {each.name for each in _DAGNodeOperationType} == {"READ", "COMPUTE", "WRITE"}
    assert list(inspect.signature(compiled_dag_node.ExecutableTask.exec_operation).parameters) == [
        "self", "class_handle", "op_type", "overlap_gpu_communication"
    ]  # fmt: skip


def test_a_channel_that_several_tasks_read_wraps_the_real_one():
    inner = IntraProcessChannel(1)
    cached = CachedChannel(3, inner)
    assert (cached._inner_channel, cached._num_reads) == (inner, 3)


def test_ray_asks_where_an_actor_is_and_what_it_has_by_names_that_can_be_stood_in_for(spawn, monkeypatch):
    actors = spawn(2)
    has = ray.get(actors[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_accelerator_ids()))
    assert compiled_dag_node.CompiledDAG._get_gpu_ids(actors[0]) == has.get("GPU", [])
    asked = []
    monkeypatch.setattr(compiled_dag_node.CompiledDAG, "_get_gpu_ids", lambda actor: asked.append(("has", actor)) or [])
    here = ray.get_runtime_context().get_node_id()
    node_id = lambda _compiled, actor: asked.append(("is", actor)) or here  # noqa: E731
    monkeypatch.setattr(compiled_dag_node.CompiledDAG, "_get_node_id", node_id)
    with InputNode() as inp:
        compiled = actors[1].work.bind(actors[0].work.bind(inp)).experimental_compile()
    try:
        assert {(what, actor) for what in ("has", "is") for actor in actors} <= set(asked)
    finally:
        compiled.teardown()


def test_a_graph_that_is_said_to_be_torn_down_is_left_alone_by_ray(spawn):
    """Neither a caller nor garbage collection tears it down: its loop goes on."""
    (actor,) = spawn(1)
    with InputNode() as inp:
        compiled = actor.work.bind(inp).experimental_compile()
    loops = list(compiled.worker_task_refs.values())
    compiled._is_teardown = True
    compiled.teardown(kill_actors=True)
    ray.get(compiled.execute(request(1)))
    assert ray.wait(loops, timeout=0.2)[0] == []
    compiled._is_teardown = False
    compiled.teardown()
    assert ray.wait(loops, timeout=10)[0] == loops


@pytest.mark.parametrize("kind", [Worker, Asynchronous])
def test_the_tasks_of_a_loop_are_alive_and_prepared_while_it_runs(local_ray, kind):
    actor, other = [ray.remote(num_cpus=0)(kind).remote(0) for _ in range(2)]
    try:
        assert not is_in_a_graph(actor)
        with InputNode() as inp:
            compiled = actor.work.bind(inp).experimental_compile()
        assert eventually(lambda: is_in_a_graph(actor)), "the loop does not start"
        assert not is_in_a_graph(other)
        assert tasks.loops_here() == set(), "a driver has tasks, but no loop"
        compiled.teardown()
        assert eventually(lambda: not is_in_a_graph(actor))
    finally:
        ray.kill(actor)
        ray.kill(other)


def test_a_graph_without_a_monitor_runs_and_is_torn_down(spawn, monkeypatch):
    (actor,) = spawn(1)
    monkeypatch.setattr(compiled_dag_node.CompiledDAG, "_monitor_failures", lambda _compiled: None)
    with InputNode() as inp:
        compiled = actor.work.bind(inp).experimental_compile()
    assert compiled._monitor is None
    assert ray.get(compiled.execute(request(1)))[0] == 1
    compiled._dag_submitter.close()
    compiled._dag_output_fetcher.close()
    for tasks_of_one in compiled.actor_to_executable_tasks.values():
        ray.get(actor.__ray_call__.remote(compiled_dag_node.do_cancel_executable_tasks, tasks_of_one))
    compiled.teardown()
    assert compiled.is_teardown
    assert ray.wait(list(compiled.worker_task_refs.values()), timeout=10)[0]


def test_a_group_of_accelerators_is_ended_by_its_name():
    assert list(inspect.signature(compiled_dag_node._destroy_communicator).parameters) == ["group_id"]
    compiled_dag_node._destroy_communicator("one that is not there")


def test_a_node_may_be_given_arguments_that_its_method_does_not_take(spawn):
    (actor,) = spawn(1)
    with InputNode() as inp:
        first = actor.work.bind(inp)
        with pytest.raises(TypeError, match="too many positional arguments"):
            actor.work.bind(inp, first)
        second = actor.work.bind(inp)
    second._bound_args = (*second._bound_args, first)
    second._upstream_nodes.append(first)
    first._downstream_nodes.append(second)
    assert second.get_args() == (inp, first)
    compiled = second.experimental_compile()
    try:
        (task,) = [task for task in compiled.idx_to_task.values() if task.dag_node is second]
        assert task.args == (inp, first)
        (made,) = [
            each for each in compiled.actor_to_executable_tasks[actor] if each.bind_index == second._get_bind_index()
        ]
        assert len(made.task_inputs) == 2
    finally:
        compiled.teardown()


def test_nodes_know_their_neighbours_and_their_actor(spawn):
    (actor,) = spawn(1)
    with InputNode() as inp:
        part = inp[0]
        node = actor.work.bind(part)
        output = MultiOutputNode([node])
    assert isinstance(node, ClassMethodNode)
    assert isinstance(part, InputAttributeNode)
    assert node._upstream_nodes == [part]
    assert node._downstream_nodes == [output]
    assert inp._downstream_nodes == [part]
    assert node._get_actor_handle() == actor
    assert node.is_class_method_call
    assert type(node.type_hint) is ChannelOutputType
    assert inp.input_attribute_nodes == {0: part}
    assert actor._ray_method_is_generator["generator"] is True
    assert actor._method_shells["__ray_call__"]._max_task_retries == 0
    assert actor._actor_id.hex() in ray._private.state.actors()


def test_a_compiled_graph_shows_its_channels_its_tasks_its_loops_and_its_monitor(spawn):
    actors = spawn(2)
    with InputNode() as inp:
        compiled = MultiOutputNode([actor.work.bind(inp) for actor in actors]).experimental_compile()
    (channel,) = compiled.dag_input_channels
    assert isinstance(channel, CompositeChannel)
    assert len(channel._channels) == 1
    assert compiled.idx_to_task[compiled.input_task_idx].output_idxs == [None]
    assert len(compiled.dag_output_channels) == 2
    assert set(compiled.worker_task_refs) == set(compiled.actor_to_executable_tasks) == set(actors)
    for (task,) in compiled.actor_to_executable_tasks.values():
        assert type(task) is compiled_dag_node.ExecutableTask
        assert task.input_channels == [channel]
        assert (len(task.output_channels), task.output_idxs) == (1, [None])
        assert [each.resolve([7]) for each in task.task_inputs] == [7]
        assert (task.method_name, task.resolved_kwargs) == ("work", {})
        assert isinstance(task.output_writer, SynchronousWriter)
        assert inspect.signature(task.cancel).parameters == {}
    assert compiled._monitor.is_alive()
    assert compiled._is_teardown is False
    assert compiled._actors_to_created_communicator_id == {}
    assert compiled._proxy_actor._actor_id.hex() in ray._private.state.actors()
    serialised = ray._private.worker.global_worker.get_serialization_context().serialize(request(1))
    assert serialised.total_bytes + len(serialised.metadata) > 0
    channel.write(serialised, 1.0)
    assert [output.read(10.0)[0] for output in compiled.dag_output_channels] == [1, 1]
    compiled.teardown()


def test_ray_makes_an_actor_for_a_compile_where_channels_of_its_own_need_it_and_only_there(small, spawn):
    made = inspect.getsource(compiled_dag_node.CompiledDAG.__init__)
    assert re.search(r"= _create_proxy_actor\(\)", made)
    assert re.search(
        r"return CompiledDAG\.DAGDriverProxyActor\.options\(\s*\w+=.{1,200}?\)\.remote\(\)\n", made, re.DOTALL
    )
    actors = spawn(2)

    def with_a_channel_of_rays(inp, hosts):
        first = hosts[0].work.bind(inp)
        first.type_hint = SharedMemoryType()
        return [first, hosts[1].work.bind(inp)]

    for build, transport, num_made in [
        (fan_out("work"), "socket", 0),
        (fan_out("work"), "ray", 1),
        (with_a_channel_of_rays, "socket", 1),
        (fan_out("work"), "socket", 0),
    ]:
        before = live_actors().keys()
        with GraphExecutor(actors, build, config=replace(small, transport=transport)) as graph:
            assert [each[0] for each in graph.execute(request(7)).result] == [7, 7]
            assert len(live_actors().keys() - before) == num_made


def test_a_node_knows_how_many_values_its_method_returns(spawn):
    (actor,) = spawn(1)
    with InputNode() as inp:
        assert actor.work.bind(inp).num_returns == 1
        left, right = actor.two.options(num_returns=2).bind(inp)
    assert left.class_method_call.num_returns == 2
    assert (left.output_idx, right.output_idx) == (0, 1)


def test_an_actor_knows_how_many_calls_it_does_side_by_side(spawn):
    actors = [*spawn(1), *spawn(1, max_concurrency=3), *spawn(1, AsyncWorker)]
    found = ray.get([actor.__ray_call__.remote(lambda _: in_actor._max_concurrency()) for actor in actors])
    assert found == [1, 3, 1]


def test_a_handle_knows_how_many_calls_may_wait(spawn):
    actors = [*spawn(1), *spawn(1, max_pending_calls=3)]
    assert [actor_calls.max_pending_calls(actor) for actor in actors] == [-1, 3]


def test_ray_tells_every_graph_it_knows_that_it_shuts_down(local_ray, monkeypatch):
    told = []

    class Graph:
        def teardown(self, kill_actors):
            told.append(kill_actors)

    graph = Graph()
    monkeypatch.setattr(compiled_dag_node, "_compiled_dags", weakref.WeakValueDictionary({"a graph": graph}))
    compiled_dag_node._shutdown_all_compiled_dags()
    assert told == [True]
    assert "_shutdown_all_compiled_dags()" in inspect.getsource(ray.shutdown.__wrapped__)
