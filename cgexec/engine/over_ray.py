"""What the engines over Ray's actors have in common: hosts that are leased, reached, asked, killed and left."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import ray
from ray.exceptions import ActorUnavailableError

from cgexec.engine.departure import Departure
from cgexec.engine.edges import actor_name
from cgexec.engine.hub import Hub
from cgexec.engine.preparation import ActorReport
from cgexec.engine.protocol import Member, Pulse
from cgexec.interruption import was_raised_by_a_handler

T = TypeVar("T")

_SHUTDOWN_TEARDOWN_S = 1.0


class SessionOverError(Exception):
    """Ray was shut down, before or meanwhile."""


class EngineOverRay(ABC):
    """See ``protocol.Engine``. ``_changed`` guards what a subclass notes of the hosts that have left."""

    def __init__(self, members: Sequence[Member], reports: Mapping[int, ActorReport], hub: Hub) -> None:
        self.broken = self.condemned = self.session_over = False
        self.incarnations = {host_id: report.incarnation for host_id, report in reports.items()}
        self.node_ids = {host_id: report.node_id for host_id, report in reports.items()}
        self._members = tuple(members)
        self._names = {member.info.host_id: actor_name(member.actor) for member in members}
        self._without_control = [member for member in members if reports[member.info.host_id].no_control]
        self._hub = hub
        self._changed = threading.Condition()
        self._num_asking = 0
        self._departure = Departure(self._changed)

    def _ask_ray(self, call: Callable[[], T]) -> T:
        """Return what a call of Ray's answers.

        Most of them start a new Ray where there is none, and end the process while one is shutting down; those that
        wait then end with SystemExit.

        Raises:
            SessionOverError: Ray was shut down, or is being.
        """
        with self._changed:
            if self.session_over or not ray.is_initialized():
                raise SessionOverError
            self._num_asking += 1
        try:
            return call()
        except SystemExit as error:
            if was_raised_by_a_handler(error):
                raise
            raise SessionOverError from None
        finally:
            with self._changed:
                self._num_asking -= 1
                self._changed.notify_all()

    def _end_with_ray(self, kill_actors: bool = False) -> None:
        """Leave at once: Ray is shutting down, if the actors are to be killed. Called by Ray, which still serves.

        Ray would wait for a stuck actor for ever. And without this the graph would look broken, and its rebuild would
        run into the shutdown, or start a new Ray behind it: calls to actors do that where there is none.
        """
        with self._changed:
            self.session_over = self.session_over or kill_actors
            self._changed.wait_for(lambda: self._num_asking == 0, _SHUTDOWN_TEARDOWN_S)
        self.hurry(_SHUTDOWN_TEARDOWN_S)
        self.tear_down(_SHUTDOWN_TEARDOWN_S)

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
        if ray.is_initialized():  # else the call would start a new Ray
            for member in self._members:
                if member.info.host_id in host_ids:
                    ray.kill(member.actor)

    def hurry(self, timeout_s: float) -> None:
        """Let a teardown under way wait no longer than ``timeout_s`` from now for the actors to leave."""
        self._departure.hurry(timeout_s)

    def tear_down(self, timeout_s: float) -> dict[int, Exception]:
        """Leave the actors, and kill those that have not left in time."""
        return self._departure.leave(partial(self._tear_down_once, timeout_s))

    @abstractmethod
    def _tear_down_once(self, timeout_s: float) -> dict[int, Exception]: ...
