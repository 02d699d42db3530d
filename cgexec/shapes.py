"""Ready-made builders: the three shapes most graphs have.

All three treat hosts as interchangeable: after a loss the survivors carry on alone, each doing what it did. Where that
is wrong (stages of a pipeline that differ), use ``RebuildPolicy.replace``, ``min_hosts``, or a builder of your own that
looks at each ``HostInfo.host_id`` and raises when it cannot go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cgexec.errors import GraphSpecError
from cgexec.topology import HostInfo


@dataclass(frozen=True)
class Methods:
    """The method each host runs: one name for all, or one per host by its original position."""

    names: str | tuple[str, ...]

    def bind(self, actor: Any, info: HostInfo, argument: Any) -> Any:
        """Return the node of this host's method on ``argument``. Raises GraphSpecError if there is no such method."""
        name = self.names if isinstance(self.names, str) else self._name_of(info)
        method = getattr(actor, name, None)
        if method is None:
            there_are = ", ".join(each for each in dir(actor) if not each.startswith("_")) or "none"
            raise GraphSpecError(f"host {info.host_id} ({actor!r}) has no method {name!r}; it has: {there_are}")
        return method.bind(argument)

    def _name_of(self, info: HostInfo) -> str:
        if info.host_id >= len(self.names):
            raise GraphSpecError(
                f"host {info.host_id} has no method: {len(self.names)} were named ({', '.join(self.names)}); "
                "name one for all hosts, or one per host"
            )
        return self.names[info.host_id]


def _methods(method: str | Sequence[str]) -> Methods:
    names = method if isinstance(method, str) else tuple(method)
    if not names or not all(isinstance(name, str) and name for name in ([names] if isinstance(names, str) else names)):
        raise GraphSpecError(f"method={method!r} is not usable: expected a method's name, or one name per host")
    return Methods(names)


@dataclass(frozen=True)
class FanOut:
    """The builder ``fan_out`` returns."""

    methods: Methods

    def __call__(self, inp: Any, actors: Sequence[Any], infos: Sequence[HostInfo]) -> list[Any]:
        """Bind the whole input to every actor; one output each, in host order."""
        return [self.methods.bind(actor, info, inp) for actor, info in zip(actors, infos, strict=True)]


@dataclass(frozen=True)
class Scatter:
    """The builder ``scatter`` returns."""

    methods: Methods

    def __call__(self, inp: Any, actors: Sequence[Any], infos: Sequence[HostInfo]) -> list[Any]:
        """Bind the i-th positional input to the i-th actor; one output each, in host order."""
        pairs = zip(actors, infos, strict=True)
        return [self.methods.bind(actor, info, inp[index]) for index, (actor, info) in enumerate(pairs)]


@dataclass(frozen=True)
class Chain:
    """The builder ``chain`` returns."""

    methods: Methods

    def __call__(self, inp: Any, actors: Sequence[Any], infos: Sequence[HostInfo]) -> Any:
        """Bind each actor to what the one before returned, the first to the input; one output."""
        node = inp
        for actor, info in zip(actors, infos, strict=True):
            node = self.methods.bind(actor, info, node)
        return node


def fan_out(method: str | Sequence[str]) -> FanOut:
    """Return a builder that gives the same input to every actor: one output each, in host order.

    ::

        input ─┬─ host 0 ── output 0
               ├─ host 1 ── output 1
               └─ host 2 ── output 2

    ``method`` is the name of the method, or one name per host. After a loss there are fewer outputs.
    """
    return FanOut(_methods(method))


def scatter(method: str | Sequence[str]) -> Scatter:
    """Return a builder that gives the i-th positional argument to the i-th actor: one output each, in host order.

    ::

        argument 0 ── host 0 ── output 0
        argument 1 ── host 1 ── output 1

    ``method`` is the name of the method, or one name per host. After a loss it takes fewer arguments.
    """
    return Scatter(_methods(method))


def chain(method: str | Sequence[str]) -> Chain:
    """Return a builder that sends the input through every actor in turn: one output.

    ::

        input ── host 0 ── host 1 ── host 2 ── output

    ``method`` is the name of the method, or one name per host. After a loss the chain is shorter.
    """
    return Chain(_methods(method))
