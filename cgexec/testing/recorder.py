"""A worker that notes what it is given, messages that say what is to happen, and the shapes of graph to try them on.

Every execution carries a number of its own; a worker refuses to mix two, and adds itself to the way that a message has
come. So every answer can be held against its own question, on any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cgexec.config import GraphConfig
from cgexec.engine.local_actor import LocalActor
from cgexec.executor import GraphExecutor
from cgexec.shapes import chain, fan_out, scatter
from cgexec.testing.misbehaviour import misbehave

Builder = Callable[..., Any]


@dataclass(frozen=True)
class Message:
    """One execution's input, and output.

    ``orders`` says what is to go wrong where: for each label of a worker a name as ``misbehave`` takes it, several one
    after the other. ``path`` is the way it has come: labels, nested where ways met.
    """

    number: int
    orders: Mapping[int, Sequence[str]] = field(default_factory=dict)
    path: tuple[Any, ...] = ()


def each_message(answer: Any, change: Callable[[Any], Any]) -> Any:
    """Return an answer with ``change`` made to each of its messages: it is one, or a list of them."""
    return [change(message) for message in answer] if isinstance(answer, list) else change(answer)


class MixedUpError(AssertionError):
    """A method was given arguments of different executions."""


class Recorder:
    """The worker. Each of its methods obeys the orders of the message it is given, and returns it, one step further."""

    def __init__(self, label: int) -> None:
        self.label = label
        self.given: list[tuple[str, int]] = []

    def _pass_on(self, method: str, messages: Sequence[Message]) -> Any:
        numbers = {message.number for message in messages}
        self.given += [(method, message.number) for message in messages]
        if len(numbers) != 1:
            raise MixedUpError(f"{method} of {self.label} was given executions {sorted(numbers)}")
        first = messages[0]
        for order in first.orders.get(self.label, ()):
            instead = misbehave(order)
            if instead is not None:
                return instead
        return replace(first, path=(self.label, *(message.path for message in messages)))

    def start_over(self, label: int) -> None:
        """Be a new worker of this label."""
        self.__init__(label)  # type: ignore[misc]

    def work(self, message: Message) -> Any:
        """Take one message."""
        return self._pass_on("work", [message])

    def join(self, *messages: Message) -> Any:
        """Take several messages of one execution."""
        return self._pass_on("join", messages)

    def what_was_given(self) -> list[tuple[str, int]]:
        """Return (method, number) for every message that arrived, in order."""
        return self.given


def single(inp: Any, actors: Sequence[Any]) -> Any:
    """Bind the first actor alone."""
    return actors[0].work.bind(inp)


def diamond(inp: Any, actors: Sequence[Any]) -> Any:
    """Bind the first actor, behind it all others side by side, and the last behind those again."""
    head = actors[0].work.bind(inp)
    arms = [actor.work.bind(head) for actor in actors[1:]] or [head]
    return actors[-1].join.bind(*arms)


def shared(inp: Any, actors: Sequence[Any]) -> Any:
    """Bind every actor twice: both methods take the input, and the second what its neighbour's first returned."""
    firsts = [actor.work.bind(inp) for actor in actors]
    seconds = [actor.join.bind(inp, firsts[(place + 1) % len(actors)]) for place, actor in enumerate(actors)]
    return [*seconds, firsts[0]]


@dataclass(frozen=True)
class Shape:
    """A shape of graph: its builder, the number of hosts it is tried on, and whether each has its own input."""

    name: str
    build: Builder
    num_hosts: int
    scatters: bool = False

    def arguments(self, message: Message, num_hosts: int) -> tuple[Message, ...]:
        """Return the arguments of an execution that carries ``message``, on so many hosts."""
        return (message,) * (num_hosts if self.scatters else 1)

    def answer(self, message: Message, labels: Sequence[int]) -> Any:
        """Return what the graph over workers of these labels answers if nothing goes wrong."""
        workers = [LocalActor(Recorder, label, inline=True) for label in labels]
        with GraphExecutor(workers, self.build, config=GraphConfig(engine="in_process")) as graph:
            return graph.submit(*self.arguments(replace(message, orders={}), len(labels))).result()


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("single", single, 3),
        Shape("fan", fan_out("work"), 4),
        Shape("scatter", scatter("work"), 3, scatters=True),
        Shape("chain", chain("work"), 3),
        Shape("diamond", diamond, 4),
        Shape("shared", shared, 3),
    )
}
