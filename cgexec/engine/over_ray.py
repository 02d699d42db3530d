"""What the engines over Ray's actors have in common: hosts that are leased, reached, asked, killed and left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import ray
from ray.exceptions import ActorUnavailableError

from cgexec.changed import Changed
from cgexec.deadline import Deadline
from cgexec.engine.departure import Departure
from cgexec.engine.edges import actor_name
from cgexec.engine.hub import Hub
from cgexec.engine.in_actor import ActorReport
from cgexec.engine.preparation import probe, release
from cgexec.engine.protocol import AtOnce, Engine, Member, SessionOverError
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.reports import HostReport, Pulse
from cgexec.engine.session import Session

T = TypeVar("T")

_SHUTDOWN_TEARDOWN_S = 1.0


class BackendOverRay(ABC):
    """See ``protocol.Backend``. All generations of a graph share one session."""

    def __init__(self, recipe: GraphRecipe) -> None:
        self._recipe = recipe
        self._session = Session()

    def build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> Engine:
        """See ``protocol.Backend``."""
        return self._session.ask(lambda: self._build(generation, members, on_break))

    @abstractmethod
    def _build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> Engine: ...

    def probe(self, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:
        """See ``protocol.Backend``."""
        return self._session.ask(lambda: probe(self._session, members, timeout_s))

    def ask(self, call: Callable[[], T]) -> T:
        """See ``protocol.Backend``."""
        return self._session.ask(call)


class EngineOverRay(ABC):
    """See ``protocol.Engine``. ``_changed`` guards what a subclass notes of the hosts that have left."""

    def __init__(
        self,
        session: Session,
        members: Sequence[Member],
        reports: Mapping[int, ActorReport],
        hub: Hub,
        on_break: Callable[[Engine], None],
    ) -> None:
        self.broken = self.condemned = False
        self.incarnations = {host_id: report.incarnation for host_id, report in reports.items()}
        self.node_ids = {host_id: report.node_id for host_id, report in reports.items()}
        self._session = session
        self._members = tuple(members)
        self._names = {member.info.host_id: actor_name(member.actor) for member in members}
        self._without_control = [member for member in members if reports[member.info.host_id].no_control]
        self._hub = hub
        self._on_break = on_break
        self._changed = Changed()
        self._departure = Departure(self._changed)
        session.told_to(self)

    @property
    def at_once(self) -> AtOnce | None:
        """Nothing, unless a subclass says otherwise."""
        return None

    @property
    def session_over(self) -> bool:
        """Whether Ray was shut down, or is being."""
        return self._session.over

    def _say_broken(self) -> None:
        self._on_break(cast("Engine", self))

    def leave_with_ray(self) -> None:
        """Leave at once. Without this the graph would look broken, and its rebuild would run into the shutdown."""
        try:
            self.hurry(_SHUTDOWN_TEARDOWN_S)
            self.tear_down(_SHUTDOWN_TEARDOWN_S)
        finally:
            self._say_broken()

    def pulses(self, timeout_s: float) -> dict[int, Pulse | None]:
        """Ask over the control connections; a host that has none cannot be asked."""
        by_actor = self._hub.controls.ask(timeout_s)
        return {host_id: by_actor[name] for host_id, name in self._names.items() if name in by_actor}

    def unavailable(self, host_id: int, why: str) -> Exception:
        """Say it as Ray does of an actor that cannot be reached."""
        return ActorUnavailableError(why, bytes.fromhex(self._names[host_id]))

    def _cut_off(self, actor_id: str) -> tuple[int, Exception]:
        """Return the host whose control connection, named by its actor, has ended, and how that is put."""
        (host_id,) = (host_id for host_id, name in self._names.items() if name == actor_id)
        return host_id, self.unavailable(host_id, f"the connection to host {host_id} has ended")

    def kill(self, host_ids: Collection[int]) -> None:
        """Kill the actors of these hosts; does not wait for it."""
        for member in self._members:
            if member.info.host_id in host_ids:
                with suppress(SessionOverError):
                    self._session.leave(partial(ray.kill, member.actor))

    def _release_all_but(self, stuck: Sequence[Member], by: Deadline) -> None:
        members = [member for member in self._members if member not in stuck]
        release(self._session, members, self._hub.key.graph_id, by.remaining_s())

    def hurry(self, timeout_s: float) -> None:
        """Let a teardown under way wait no longer than ``timeout_s`` from now for the actors to leave."""
        self._departure.hurry(timeout_s)

    def tear_down(self, timeout_s: float) -> dict[int, Exception]:
        """Leave the actors, and kill those that have not left in time."""
        return self._departure.leave(partial(self._tear_down_once, timeout_s))

    @abstractmethod
    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]: ...
