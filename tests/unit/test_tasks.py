"""What an actor does for one node: every input taken, every channel written, and no error that ends the loop."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hubs import FIRST, LONG_S, SECOND, Site, a_site
from leaks import nothing_left
from ray.dag import compiled_dag_node
from ray.dag.compiled_dag_node import ExecutableTask
from ray.dag.dag_node_operation import _DAGNodeOperationType
from ray.exceptions import RayChannelError, RayTaskError
from ray.experimental.channel.common import ChannelInterface, ChannelOutputType

from cgexec import TransferError
from cgexec.deadline import Deadline
from cgexec.engine import payload
from cgexec.engine.edges import Edge
from cgexec.engine.failures import Failure, as_exception, capture, decode_failures, encode_failures
from cgexec.engine.frames import Encoded, Frame, Kind
from cgexec.engine.framing import framed_tasks
from cgexec.engine.hub import GraphKey, Hub
from cgexec.engine.reports import OutputPort
from cgexec.engine.socket_edges import SocketEdge
from cgexec.engine.steps import LoopEndedError, Taken
from cgexec.engine.tasks import AdoptedTask, FramedTask, _reader, loops_here

KEY = GraphKey("graph", 3)
ORIGIN = OutputPort(2, "step")
READ, COMPUTE, WRITE = _DAGNodeOperationType.READ, _DAGNodeOperationType.COMPUTE, _DAGNodeOperationType.WRITE


class OutEdge(Edge):
    """Notes what is put, and is its own outlet."""

    def __init__(self, *, remote: bool = True, ended: bool = False) -> None:
        super().__init__(KEY, b"out", FIRST, not remote)
        self.remote = remote
        self.ended = ended
        self.put_there: list[tuple[Encoded | None, Any, int]] = []

    @property
    def has_remote(self) -> bool:
        return self.remote

    def open_writer(self, hub: Any) -> OutEdge:
        return self

    def put(self, encoded: Encoded | None, value: Any, execution: int) -> None:
        if self.ended:
            raise RayChannelError("Channel closed")
        self.put_there.append((encoded, value, execution))

    def values(self) -> list[Any]:
        """Return every value that was put for another process."""
        return [
            payload.decode(Frame(e.kind, 3, x, e.payload, e.buffers)) for e, _, x in self.put_there if e is not None
        ]

    def failures(self) -> list[Failure]:
        """Return the failures of the last put, which is an error."""
        encoded = self.put_there[-1][0]
        assert encoded is not None
        assert encoded.kind is Kind.ERROR
        return decode_failures(encoded.payload)


class InEdge(Edge):
    """Is read through the tap that it was made with."""

    def __init__(self, tap: FakeTap) -> None:
        super().__init__(KEY, b"in", FIRST, False)
        self.tap = tap

    def open_reader(self, hub: Any) -> Any:
        return self.tap


class ForeignChannel(ChannelInterface):
    """A channel of Ray's own: values without a tag. ``asked``: what it was asked for beside them."""

    def __init__(self, values: Sequence[Any] = ()) -> None:
        self.values = list(values)
        self.written: list[Any] = []
        self.asked: list[str] = []

    def ensure_registered_as_reader(self) -> None:
        self.asked.append("reader")

    def ensure_registered_as_writer(self) -> None:
        self.asked.append("writer")

    def close(self) -> None:
        self.asked.append("close")

    def read(self, timeout: float | None = None) -> Any:
        return self.values.pop(0)

    def write(self, value: Any, timeout: float | None = None) -> None:
        if isinstance(value, threading.Lock().__class__):
            raise TypeError("cannot pickle a lock")
        self.written.append(value)


class FakeTap:
    """Hands out what it was given, and notes when it is asked."""

    def __init__(self, *taken: Taken | Exception) -> None:
        self.left = list(taken)

    def reader(self, num_readers: int) -> Any:
        assert num_readers == 1
        return self.next

    def next(self) -> Taken:
        found = self.left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class FakeHub:
    """What a task asks of its process's hub."""

    identity = "an actor"

    def __init__(self) -> None:
        self.closers: list[Any] = []
        self.num_started = 0

    def close_with(self, closer: Any) -> None:
        self.closers.append(closer)

    def task_started(self, step: Any) -> None:
        self.num_started += 1


class Worker:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return args if len(args) > 1 else args[0]


def value(execution: int, what: Any) -> Taken:
    return Taken(execution, None, None, what)


def failure_of(text: str, host: int = 0) -> Failure:
    return capture(ValueError(text), OutputPort(host, "before"), None)


def failed(execution: int, *failures: Failure) -> Taken:
    return Taken(execution, encode_failures(failures).payload)


@dataclass
class Bench:
    """A task with its taps and channels, and the instance that it calls."""

    task: FramedTask
    instance: Any
    outputs: list[Any]

    def run(self, times: int = 1) -> None:
        """Run whole executions, none of which ends the loop."""
        for _ in range(times):
            assert [self.task.exec_operation(self.instance, op) for op in (READ, COMPUTE, WRITE)] == [False] * 3


def bench(
    taps: Sequence[FakeTap],
    outputs: Sequence[Any] | None = None,
    instance: Any = None,
    *,
    num_returns: int = 1,
    indices: Sequence[int | None] = (None,),
    method: str = "step",
) -> Bench:
    outputs = [OutEdge()] if outputs is None else list(outputs)
    node = SimpleNamespace(
        get_method_name=lambda: method,
        _get_bind_index=lambda: 0,
        type_hint=ChannelOutputType(),
        num_returns=num_returns,
    )
    spec = SimpleNamespace(
        dag_node=node, idx=1, output_channels=outputs, output_idxs=list(indices) * len(outputs), arg_type_hints=[]
    )
    spec.output_idxs = spec.output_idxs[: len(outputs)]
    task = FramedTask(spec, [InEdge(tap) for tap in taps], {}, KEY, OutputPort(ORIGIN.host_id, method))
    hub: Any = FakeHub()
    task._open(hub, False)
    assert hub.num_started == 1
    assert task._readers == [tap.next for tap in taps]
    assert task._outlets == [output for output in outputs if isinstance(output, Edge)]
    return Bench(task, Worker() if instance is None else instance, outputs)


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_a_task_calls_its_method_with_its_inputs_and_tags_what_it_puts() -> None:
    made = bench([FakeTap(*(value(n, n) for n in range(3))), FakeTap(*(value(n, -n) for n in range(3)))])
    made.run(3)
    assert made.instance.calls == [(0, 0), (1, -1), (2, -2)]
    assert made.outputs[0].values() == [(0, 0), (1, -1), (2, -2)]
    assert [execution for _, _, execution in made.outputs[0].put_there] == [0, 1, 2]


@pytest.mark.parametrize("place", range(3))
def test_every_input_is_taken_before_an_error_counts(place: int) -> None:
    error = failed(0, failure_of("first"))
    taps = [FakeTap(error if place == index else value(0, "stale"), value(1, index)) for index in range(3)]
    made = bench(taps)
    made.run(2)
    assert made.instance.calls == [(0, 1, 2)]
    assert made.outputs[0].put_there[0][0].payload == error.failures
    assert [execution for _, _, execution in made.outputs[0].put_there] == [0, 1]


def test_failures_are_merged_and_stand_once_each() -> None:
    one, two = failure_of("one", 0), failure_of("two", 1)
    made = bench([FakeTap(failed(0, one)), FakeTap(value(0, 1)), FakeTap(failed(0, two, one))])
    made.run()
    assert made.instance.calls == []
    assert made.outputs[0].failures() == [one, two]


@pytest.mark.parametrize(("executions", "met"), [((0, 1), "[0, 1]"), ((1, 1), "[1]"), ((7, 0), "[0, 7]")])
def test_inputs_of_another_execution_are_an_error_and_never_a_call(executions: tuple[int, ...], met: str) -> None:
    made = bench([FakeTap(value(each, "x")) for each in executions])
    made.run()
    assert made.instance.calls == []
    (failure,) = made.outputs[0].failures()
    assert met in failure.text
    assert isinstance(as_exception(failure), TransferError)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("executions", "met"), [((0, 1), "[0, 1]"), ((1, 1), "[1]"), ((7, 0), "[0, 7]")])
def test_a_mixture_of_executions_is_an_error_even_where_an_input_carries_failures(
    executions: tuple[int, ...], met: str, place: int
) -> None:
    taken = [value(each, "x") for each in executions]
    taken[place] = failed(executions[place], failure_of("of another execution"))
    made = bench([FakeTap(each) for each in taken])
    made.run()
    assert made.instance.calls == []
    (failure,) = made.outputs[0].failures()
    assert failure.origin == ORIGIN
    assert met in failure.text
    assert "of another execution" not in failure.text
    assert isinstance(as_exception(failure), TransferError)


def test_an_input_that_cannot_be_loaded_is_an_error_of_that_execution_alone() -> None:
    made = bench([FakeTap(Taken(0, None, Frame(Kind.VALUE, 3, 0, b"no pickle")), value(1, "fine"))])
    made.run(2)
    assert made.instance.calls == [("fine",)]
    (failure,) = decode_failures(made.outputs[0].put_there[0][0].payload)
    assert "what step() of host 2 was to be given cannot be used" in failure.transfer


def test_the_end_of_the_graph_ends_the_loop_as_it_reads_and_as_it_writes() -> None:
    ended = bench([FakeTap(RayChannelError("closed"))])
    assert [ended.task.exec_operation(Worker(), op) for op in (READ, COMPUTE)] == [False, True]
    made = bench([FakeTap(value(0, 1))], [OutEdge(ended=True)])
    assert not made.task.exec_operation(made.instance, READ)
    made.task.exec_operation(made.instance, COMPUTE)
    assert made.task.exec_operation(made.instance, WRITE)


# -- what the method does ----------------------------------------------------------------------------------------------


class StubbornError(Exception):
    """Does not let its traceback be changed."""

    def with_traceback(self, tb: Any) -> Any:
        raise RuntimeError("hands off")


class HiddenError(Exception):
    """Does not let its traceback be seen."""

    __traceback__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


class DisguisedError(Exception):
    """Ends the process of whoever asks what it is."""

    @property
    def __class__(self) -> Any:
        raise SystemExit(5)

    @__class__.setter
    def __class__(self, kind: Any) -> None: ...


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def step(self, _value: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ValueError("the text"), FrozenError(7), StubbornError("stubborn"), StopIteration(1), AttributeError("x")],
    ids=lambda e: type(e).__name__,
)
def test_what_the_method_raises_is_an_error_on_every_channel(error: Exception) -> None:
    made = bench([FakeTap(value(0, 1), value(1, 2))], [OutEdge(), OutEdge()], Raises(error))
    made.run(2)
    for output in made.outputs:
        assert [execution for _, _, execution in output.put_there] == [0, 1]
        (failure,) = output.failures()
        assert (failure.origin, failure.transfer, failure.actor_class) == (ORIGIN, "", "Raises")
        assert isinstance(as_exception(failure), RayTaskError)
        assert "cgexec/engine" not in failure.traceback_text, "a frame of ours is in it"


@pytest.mark.parametrize("kind", [HiddenError, DisguisedError])
def test_an_error_that_does_not_like_to_be_looked_at_is_an_error_as_any_other(kind: type[Exception]) -> None:
    made = bench([FakeTap(value(0, 1), value(1, 2))], None, Raises(kind("the text")))
    made.run(2)
    (failure,) = made.outputs[0].failures()
    assert failure.type_name.endswith(kind.__name__)
    assert isinstance(as_exception(failure), RayTaskError)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("x"), SystemExit(1), GeneratorExit()], ids=lambda e: type(e).__name__
)
def test_what_is_no_exception_ends_the_loop(error: BaseException) -> None:
    made = bench([FakeTap(value(0, 1))], None, Raises(error))
    made.task.exec_operation(made.instance, READ)
    with pytest.raises((LoopEndedError, SystemExit)) as caught:
        made.task.exec_operation(made.instance, COMPUTE)
    if isinstance(error, SystemExit):
        assert caught.value is error
    else:
        assert str(caught.value).startswith(f"{type(error).__name__}: {error}\n\n")
        assert "in step\n" in str(caught.value), "the user's own frames are not in it"


def test_a_method_that_is_missing_is_an_error_and_not_the_end() -> None:
    made = bench([FakeTap(value(0, 1))], method="missing")
    made.run()
    assert "missing" in made.outputs[0].failures()[0].text


# -- outputs -----------------------------------------------------------------------------------------------------------


class Returns:
    def __init__(self, *results: Any) -> None:
        self.results = list(results)

    def step(self, _value: Any) -> Any:
        return self.results.pop(0)


def test_a_result_that_cannot_be_sent_is_an_error_on_every_channel_and_the_next_one_is_sent() -> None:
    outputs = [OutEdge(), OutEdge(remote=False), OutEdge()]
    made = bench([FakeTap(value(0, 1), value(1, 2))], outputs, Returns(threading.Lock(), "fine"))
    made.run()
    for output in outputs:
        (failure,) = output.failures()
        assert "what step() of host 2 returned, a lock, cannot be sent" in failure.transfer
    made.run()
    assert [output.put_there[-1][1] for output in outputs] == ["fine"] * 3
    assert all(len(output.put_there) == 2 for output in outputs)


def test_a_result_for_this_process_alone_is_handed_over_as_it_is() -> None:
    lock, output = threading.Lock(), OutEdge(remote=False)
    bench([FakeTap(value(0, 1))], [output], Returns(lock)).run()
    assert output.put_there == [(None, lock, 0)]


def test_each_part_of_a_result_goes_to_its_channel() -> None:
    outputs = [OutEdge(), OutEdge(), OutEdge()]
    made = bench([FakeTap(value(0, 1))], outputs, Returns(["a", "b"]), num_returns=2, indices=(1, 0, 1))
    made.run()
    assert [output.values() for output in outputs] == [["b"], ["a"], ["b"]]


@pytest.mark.parametrize("result", [(1,), (1, 2, 3), [], 7, "ab", None, {1: 2, 3: 4}, np.zeros(2)], ids=repr)
def test_the_wrong_number_of_values_is_an_error_on_every_channel(result: Any) -> None:
    outputs = [OutEdge(), OutEdge()]
    made = bench([FakeTap(value(0, 1), value(1, 1))], outputs, Returns(result, (1, 2)), num_returns=2, indices=(0, 1))
    made.run()
    for output in outputs:
        assert "2 values were expected" in output.failures()[0].text
    made.run()
    assert [output.values()[-1:] for output in outputs if output.put_there[-1][2] == 1] == [[1], [2]]


# -- channels that are not ours ----------------------------------------------------------------------------------------


def test_a_foreign_channel_is_given_values_and_rays_errors() -> None:
    channel = ForeignChannel()
    taps = [FakeTap(value(0, 1), value(1, 1), failed(2, failure_of("before")))]
    made = bench(taps, [channel], Returns("fine", threading.Lock()))
    made.run(3)
    fine, unsent, passed_on = channel.written
    assert fine == "fine"
    assert isinstance(unsent, RayTaskError)
    assert isinstance(unsent.cause, TransferError)
    assert isinstance(passed_on, RayTaskError)
    assert isinstance(passed_on, ValueError)


def test_a_foreign_channels_errors_and_values_are_taken() -> None:
    error = RayTaskError("f", "Traceback ...", KeyError("missing"), proctitle="ray::W.f", pid=1, ip="127.0.0.1")
    channel, hub = ForeignChannel(["value", error]), FakeHub()
    take_next = _reader(channel, hub)  # type: ignore[arg-type]
    assert channel.asked == ["reader"]
    for close in hub.closers:
        close()
    assert channel.asked == ["reader", "close"]
    first, second = take_next(), take_next()
    assert (first.execution, first.failures, first.value()) == (0, None, "value")
    assert second.execution == 1
    assert second.failures is not None
    (failure,) = decode_failures(second.failures)
    assert isinstance(as_exception(failure), KeyError)
    assert failure.traceback_text == str(error)


# -- as the loop starts ------------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Site]:
    with nothing_left(), a_site() as made:
        yield made


def real_task(hub: Hub, reader: Hub) -> FramedTask:
    """Return a task of ``hub``'s actor that takes from within the actor and puts where ``reader`` reads."""
    key = hub.key
    node = SimpleNamespace(
        get_method_name=lambda: "step", _get_bind_index=lambda: 0, type_hint=ChannelOutputType(), num_returns=1
    )
    outgoing = SocketEdge(key, b"out" + bytes(13), hub.identity, False, (reader.address,))
    spec = SimpleNamespace(dag_node=node, idx=1, output_channels=[outgoing], output_idxs=[None], arg_type_hints=[])
    return FramedTask(spec, [SocketEdge(key, b"in" + bytes(14), hub.identity, True, ())], {}, key, ORIGIN)


def test_a_task_opens_its_channels_in_the_hub_of_its_graph_as_the_loop_starts(site: Site) -> None:
    hub, reader = site.hub(FIRST), site.hub(SECOND)
    task = real_task(hub, reader)
    task.prepare()
    assert not hub.missing_after(1, Deadline.after(0))
    task.input_channels[0].open_writer(hub).put(None, "value", 0)
    made = Bench(task, Worker(), task.output_channels)
    made.run()
    taken = task.output_channels[0].open_reader(reader).take(0, 1)
    assert (taken.execution, taken.failures, taken.value()) == (0, None, "value")
    hub.shut()
    assert [task.exec_operation(made.instance, op) for op in (READ, COMPUTE)] == [False, True]
    assert made.instance.calls == [("value",)]
    task.cancel()


def wired_task(hub: Hub, writer: Hub, reader: Hub, name: bytes) -> FramedTask:
    """Return a task of ``hub``'s actor that takes from ``writer`` and puts where ``reader`` reads, over wires."""
    task = real_task(hub, reader)
    task.input_channels = [SocketEdge(hub.key, name.ljust(16), writer.identity, False, (hub.address,))]
    task.output_channels[0].channel_id = task._outgoing[0].channel_id = (name + b"out").ljust(16)
    return task


def test_a_task_that_is_alone_in_its_actor_answers_until_the_graph_ends(site: Site) -> None:
    hub, driver = site.hub(FIRST), site.hub(SECOND)
    task = wired_task(hub, driver, driver, b"one")
    instance, ended = Worker(), Future[bool]()
    task.prepare()
    loop = threading.Thread(target=lambda: ended.set_result(task.exec_operation(instance, READ)))
    loop.start()
    outlet = task.input_channels[0].open_writer(driver)
    for execution in range(3):
        outlet.put(payload.encode(("value", execution)), None, execution)
        taken = task.output_channels[0].open_reader(driver).take(execution, 1)
        assert (taken.execution, taken.value()) == (execution, ("value", execution))
    assert len(instance.calls) == 3
    hub.shut()
    assert ended.result(LONG_S)
    loop.join(LONG_S)


def test_tasks_of_one_actor_do_one_operation_at_a_time(site: Site) -> None:
    hub, driver = site.hub(FIRST), site.hub(SECOND)
    tasks = [wired_task(hub, driver, driver, name) for name in (b"one", b"two")]
    for task in tasks:
        task.prepare()
    for place, task in enumerate(tasks):
        task.input_channels[0].open_writer(driver).put(payload.encode(place), None, 0)
        instance = Worker()
        assert not task.exec_operation(instance, READ)
        assert instance.calls == []
        task.exec_operation(instance, COMPUTE)
        assert instance.calls == [(place,)]
        assert not task.exec_operation(instance, WRITE)
        assert task.output_channels[0].open_reader(driver).take(0, 1).value() == place


def test_a_task_of_a_graph_that_has_ended_in_its_process_does_not_start(site: Site) -> None:
    hub, reader = site.hub(FIRST), site.hub(SECOND)
    tasks = [real_task(hub, reader) for _ in range(2)]
    reader.shut()
    assert reader.has_ended(LONG_S)
    with pytest.raises(RayChannelError):  # nobody listens where it writes
        tasks[0].prepare()
    hub.shut()
    with pytest.raises(RayChannelError, match="has ended in this process"):
        tasks[1].prepare()


def test_channels_that_are_not_ours_are_registered_as_the_loop_starts_and_closed_with_the_hub() -> None:
    channel = ForeignChannel()
    made = bench([FakeTap(value(0, 1))], [channel])
    assert channel.asked == ["writer"]
    assert made.task._outlets == []
    hub: Any = FakeHub()
    made.task._open(hub, False)
    for close in hub.closers:
        close()
    assert channel.asked == ["writer", "writer", "close"]


def test_the_loops_of_a_process_are_those_of_the_tasks_that_are_prepared_and_alive() -> None:
    assert loops_here() == set()
    tasks: list[Any] = [kind.__new__(kind) for kind in (ExecutableTask, FramedTask, AdoptedTask)]
    assert loops_here() == set(), "tasks that are not prepared are a driver's"
    tasks[0]._send_stream = None
    assert loops_here() == {None}
    for task in tasks[1:]:
        task.key, task.in_a_loop = KEY, True
    assert loops_here() == {None, KEY}
    tasks.clear()
    del task
    assert loops_here() == set()


# -- standing in for Ray's task ----------------------------------------------------------------------------------------


def compiled_task(node: Any = None) -> Any:
    """Make a task as Ray does while it compiles: by its name in the module."""
    node = node or SimpleNamespace(
        get_method_name=lambda: "step", _get_bind_index=lambda: 0, type_hint=ChannelOutputType(), num_returns=1
    )
    spec = SimpleNamespace(dag_node=node, idx=1, output_channels=[OutEdge()], output_idxs=[None], arg_type_hints=[])
    return compiled_dag_node.ExecutableTask(spec, [OutEdge()], {})


def test_our_tasks_stand_in_while_a_graph_of_ours_compiles_and_rays_name_is_put_back() -> None:
    with framed_tasks(KEY, lambda _node: ORIGIN):
        assert type(compiled_task()) is FramedTask
    assert compiled_dag_node.ExecutableTask is ExecutableTask
    assert type(compiled_task()) is ExecutableTask
    with pytest.raises(ZeroDivisionError), framed_tasks(KEY, lambda _node: ORIGIN):
        raise ZeroDivisionError
    assert compiled_dag_node.ExecutableTask is ExecutableTask


def test_tasks_that_hold_tensors_on_an_accelerator_run_as_rays_own_do() -> None:
    hint = SimpleNamespace(requires_accelerator=lambda: True)
    node = SimpleNamespace(get_method_name=lambda: "step", _get_bind_index=lambda: 0, type_hint=hint, num_returns=1)
    with framed_tasks(KEY, lambda _node: ORIGIN):
        adopted = compiled_task(node)
    assert type(adopted) is AdoptedTask
    assert AdoptedTask.exec_operation is ExecutableTask.exec_operation
    assert {name for name, each in vars(AdoptedTask).items() if inspect.isfunction(each)} == {"_open"}


def test_each_thread_gets_the_tasks_of_its_own_graph_and_others_get_rays() -> None:
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]
    made: dict[int, list[Any]] = {}

    def compile_graph(number: int) -> None:
        with framed_tasks(GraphKey(f"graph {number}", number), lambda _node: OutputPort(number, "step")):
            inside.wait(30)
            made[number] = [compiled_task() for _ in range(3)]
            inside.wait(30)
            leave[number].wait(30)

    threads = [threading.Thread(target=compile_graph, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    assert type(compiled_task()) is ExecutableTask
    inside.wait(30)
    for number, each in made.items():
        assert {(type(task), task.key, task._step.origin) for task in each} == {
            (FramedTask, GraphKey(f"graph {number}", number), OutputPort(number, "step"))
        }
    for thread, event in zip(threads, leave, strict=True):
        assert compiled_dag_node.ExecutableTask is not ExecutableTask
        event.set()
        thread.join(30)
    assert compiled_dag_node.ExecutableTask is ExecutableTask
