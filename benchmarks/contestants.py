"""Who is measured: ordinary actor calls, the raw Compiled Graph, cgexec on each transport, and bare processes.

Each is opened over the same actors and yields a function that runs one execution; the input is fixed as it is opened.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.dag import InputNode, MultiOutputNode

from cgexec import GraphConfig, GraphExecutor

Call = Callable[[], object]
_LENGTH = struct.Struct("<Q")


@ray.remote(num_cpus=0)
class Echo:
    """The actor that is called."""

    def echo(self, message: Any) -> Any:
        return message

    def pid(self) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Shape:
    """A graph over ``num_actors``: ``kind`` is "fan", "chain", or "arguments", an argument of its own for each."""

    kind: str
    num_actors: int

    @property
    def name(self) -> str:
        if self.num_actors == 1:
            return "1 actor"
        return f"{self.num_actors} {self.kind}" if self.kind == "arguments" else f"{self.kind} of {self.num_actors}"

    def bind(self, inp: Any, actors: Sequence[Any]) -> Any:
        """Bind the nodes; a list for several outputs."""
        if self.kind == "arguments":
            return [actor.echo.bind(inp[place]) for place, actor in enumerate(actors)]
        if self.kind == "fan":
            return [actor.echo.bind(inp) for actor in actors]
        for actor in actors:
            inp = actor.echo.bind(inp)
        return inp

    def arguments(self, message: Any) -> list[Any]:
        """Return the arguments of one execution."""
        return [message] * (self.num_actors if self.kind == "arguments" else 1)


@contextmanager
def classic(shape: Shape, actors: Sequence[Any], message: Any) -> Iterator[Call]:
    """Ordinary actor calls."""

    def through() -> Any:
        ref = message
        for actor in actors:
            ref = actor.echo.remote(ref)
        return ray.get(ref)

    yield through if shape.kind == "chain" else lambda: ray.get([actor.echo.remote(message) for actor in actors])


@contextmanager
def compiled(shape: Shape, actors: Sequence[Any], **options: Any) -> Iterator[Any]:
    """Yield a raw Compiled Graph."""
    with compiled_of(lambda inp: shape.bind(inp, actors), **options) as graph:
        yield graph


@contextmanager
def compiled_of(build: Callable[[Any], Any], **options: Any) -> Iterator[Any]:
    """Yield a raw Compiled Graph of what ``build(inp)`` binds: a node, or a list of several."""
    with InputNode() as inp:
        built = build(inp)
    graph = (MultiOutputNode(built) if isinstance(built, list) else built).experimental_compile(**options)
    try:
        yield graph
    finally:
        graph.teardown()


@contextmanager
def raw(shape: Shape, actors: Sequence[Any], message: Any, **options: Any) -> Iterator[Call]:
    """The raw Compiled Graph."""
    arguments = shape.arguments(message)
    with compiled(shape, actors, **options) as graph:
        yield lambda: ray.get(graph.execute(*arguments))


def executor(shape: Shape, actors: Sequence[Any], **config: Any) -> GraphExecutor:
    """Return a graph of cgexec over the actors."""
    return GraphExecutor(list(actors), lambda inp, hosts: shape.bind(inp, hosts), config=GraphConfig(**config))


@contextmanager
def ours(shape: Shape, actors: Sequence[Any], message: Any, **config: Any) -> Iterator[Call]:
    """cgexec, through its public API."""
    arguments = shape.arguments(message)
    with executor(shape, actors, **config) as graph:
        yield lambda: graph.execute(*arguments)


# -- the floor: processes that do nothing but pass bytes on ------------------------------------------------------------

_PASS_ON = """
import os, struct, sys
length = struct.Struct("<Q")
def read(size):
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
while True:
    head = read(8)
    write(head + read(length.unpack(head)[0]))
"""


@contextmanager
def floor(shape: Shape, message: Any) -> Iterator[Call]:
    """Yield a call of bare processes over pipes: nothing is serialised, no two executions can be told apart."""
    data = bytes(message) if isinstance(message, (bytes, memoryview)) else b"x"
    frame = _LENGTH.pack(len(data)) + data
    with ExitStack() as stack:
        if shape.kind == "chain":
            first_in, first_out = os.pipe()
            ends = [(first_out, _through(stack, shape.num_actors, first_in))]
        else:
            ends = []
            for _ in range(shape.num_actors):
                begin, end = os.pipe()
                ends.append((end, _through(stack, 1, begin)))
        for write_end, read_end in ends:
            stack.callback(os.close, write_end)
            stack.callback(os.close, read_end)

        def call() -> None:
            for write_end, _ in ends:
                os.write(write_end, frame)
            for _, read_end in ends:
                left = len(frame)
                while left:
                    left -= len(os.read(read_end, left))

        yield call


def _through(stack: ExitStack, num_processes: int, source: int) -> int:
    """Start processes one behind the other; return where the last one writes."""
    for _ in range(num_processes):
        read_end, write_end = os.pipe()
        process = subprocess.Popen([sys.executable, "-c", _PASS_ON], stdin=source, stdout=write_end)
        stack.callback(partial(process.wait, 30))
        stack.callback(process.terminate)
        os.close(source)
        os.close(write_end)
        source = read_end
    return source
