"""One actor per host: starting them, or adopting them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorClass, ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cgexec.topology import HostInfo

DEFAULT_SLICE = "slice-0"
_DEVICE_RESOURCES = ("TPU", "GPU")


class LocalHandle:
    """The base of handles to actors that are no process of Ray's."""


def adopted_info(host_id: int) -> HostInfo:
    """Return what is known of an actor that somebody else started: its position."""
    return HostInfo(host_id, DEFAULT_SLICE, num_devices=None, healthy=True, failed=False)


def check_actors(actors: Sequence[Any]) -> None:
    """Raise ValueError unless ``actors`` are one or more different actor handles; names the first that is not."""
    if not actors:
        raise ValueError("no hosts were given: pass one actor handle per host")
    for position, actor in enumerate(actors):
        if not isinstance(actor, (ActorHandle, LocalHandle)):
            raise ValueError(  # noqa: TRY004 - one class of error for everything that is wrong with the hosts
                f"host {position} is not an actor handle but a {type(actor).__name__}: {actor!r}"
            )
        if actor in actors[:position]:
            raise ValueError(f"host {position} is the same actor as host {actors.index(actor)}: {actor!r}")


class HostGroup:
    """Actors, one per host, and a ``HostInfo`` for each, in the same order. Also a context manager.

    Make one with ``spawn`` or ``from_actors``. ``close()`` ends what the group spawned and leaves alone what it
    adopted.
    """

    def __init__(self, actors: Sequence[Any], infos: Sequence[HostInfo], *, spawned: bool) -> None:
        self._actors = tuple(actors)
        self._infos = tuple(infos)
        self._spawned = spawned

    @classmethod
    def spawn(
        cls,
        worker: Any,
        *args: Any,
        num_hosts: int | None = None,
        actor_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> HostGroup:
        """Start one actor of ``worker`` on each live node and return them in the order of the nodes.

        ``worker`` is a class, decorated with ``@ray.remote`` or not; ``args`` and ``kwargs`` go to its constructor,
        ``actor_options`` to ``.options()``. With ``num_hosts``, that many actors are spread over the nodes as evenly as
        can be, several on one node where there are fewer nodes.

        The actors may still be starting when this returns; a constructor that raises is reported by the graph.

        Raises:
            ValueError: ``num_hosts`` is not a whole number of 1 or more, or ``actor_options`` would place the actors.
            TypeError: ``worker`` is not a class.
        """
        nodes = [node for node in ray.nodes() if node["Alive"]]
        count = len(nodes) if num_hosts is None else num_hosts
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"num_hosts={num_hosts!r} is not usable: expected a whole number, 1 or more")
        options = dict(actor_options or {})
        if "scheduling_strategy" in options:
            raise ValueError("actor_options must not hold a scheduling_strategy: spawn places one actor on each node")
        if not isinstance(worker, ActorClass):
            if not inspect.isclass(worker):
                raise TypeError(f"worker must be a class, decorated with @ray.remote or not; got {worker!r}")
            worker = ray.remote(worker)

        actors, infos = [], []
        for host_id in range(count):
            node = nodes[host_id % len(nodes)]
            placed = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actors.append(worker.options(**options, scheduling_strategy=placed).remote(*args, **kwargs))
            infos.append(_spawned_info(host_id, node))
        return cls(actors, infos, spawned=True)

    @classmethod
    def from_actors(cls, actors: Sequence[Any]) -> HostGroup:
        """Adopt ``actors``, handles of actors that exist, in their order.

        Raises:
            ValueError: there are none, one is no actor handle, or one stands there twice.
        """
        check_actors(actors)
        return cls(actors, [adopted_info(host_id) for host_id in range(len(actors))], spawned=False)

    @property
    def actors(self) -> list[Any]:
        """The actor handles, in host order."""
        return list(self._actors)

    @property
    def infos(self) -> list[HostInfo]:
        """A ``HostInfo`` for each actor, in the same order; ``host_id`` is the position."""
        return list(self._infos)

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._actors)

    def close(self) -> None:
        """Kill what the group spawned; idempotent. Returns before the processes have ended."""
        if self._spawned and ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
        self._spawned = False

    def __enter__(self) -> HostGroup:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HostGroup({len(self)} hosts, {'spawned' if self._spawned else 'adopted'})"


def _spawned_info(host_id: int, node: Mapping[str, Any]) -> HostInfo:
    resources = node["Resources"]
    num_devices = next((int(resources[name]) for name in _DEVICE_RESOURCES if name in resources), 0)
    return HostInfo(host_id, DEFAULT_SLICE, num_devices, healthy=True, failed=False, node_id=node["NodeID"])
