"""Who is in the next generation of a graph: who still answers, who takes a lost host's place, and the caller's say.

The caller's hooks run here, each on a thread of its own and within its bound: they may raise, exit or hang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cgexec.config import RebuildPolicy
from cgexec.engine import bounded
from cgexec.engine.protocol import Backend, Engine, HostsLostError, Member, losses_among
from cgexec.engine.reports import HostReport
from cgexec.errors import CgexecError
from cgexec.hosts import check_actors
from cgexec.isolation import apart
from cgexec.log import logger
from cgexec.topology import LostHost, as_lost

_logger = logger(__name__)


class Membership:
    """The hosts of one graph, as seen between two generations. Used by one thread."""

    def __init__(self, name: str, backend: Backend, policy: RebuildPolicy) -> None:
        self._name = name
        self._backend = backend
        self._policy = policy
        self._incarnations: Mapping[int, str] = {}

    def settle(self, engine: Engine, members: Sequence[Member]) -> list[Member]:
        """Remember which processes ``engine`` was built over; returns its members with the nodes they are on."""
        self._incarnations = engine.incarnations
        return [
            Member(replace(member.info, node_id=engine.node_ids[member.info.host_id]), member.actor)
            for member in members
        ]

    def probe(
        self,
        members: Sequence[Member],
        losses: Mapping[int, Exception],
        stuck: Mapping[int, Exception],
        generation: int,
    ) -> tuple[list[LostHost], set[int]]:
        """Return the hosts that ``generation`` has lost, and the ``host_id`` of those that are alive.

        ``losses`` say why hosts may be lost; those that are ``stuck`` are, and are not asked. An actor that Ray has
        restarted is alive and stays, but the host it was is lost: its state is gone.
        """
        asked = [member for member in members if member.info.host_id not in stuck]
        reports = self._backend.probe(asked, self._policy.probe_timeout_s)
        lost, alive = [], set()
        for member in members:
            host_id = member.info.host_id
            reply = reports.get(host_id) or stuck[host_id]
            cause: Exception | None = None
            if not isinstance(reply, HostReport):
                cause = stuck.get(host_id) or losses.get(host_id, reply)
            else:
                alive.add(host_id)
                if reply.incarnation != self._incarnations.get(host_id, reply.incarnation):
                    cause = losses.get(host_id, CgexecError(f"host {host_id} was restarted by Ray"))
                    self._incarnations = {**self._incarnations, host_id: reply.incarnation}
            if cause is not None:
                _logger.warning("graph %r lost host %d: %s", self._name, host_id, cause)
                lost.append(LostHost(as_lost(member.info), generation, cause))
        return lost, alive

    def choose(self, members: Sequence[Member], keep: Sequence[int], positions: Sequence[int]) -> list[Member]:
        """Return the hosts of the next generation, in their original order: those kept, and new ones.

        Raises whatever ``RebuildPolicy.replace`` does, and what ``check_actors`` does.
        """
        by_id = {member.info.host_id: member for member in members}
        chosen = {host_id: by_id[host_id] for host_id in keep}
        for host_id in positions:
            info = by_id[host_id].info
            actor = self._call_hook("replace", self._policy.replace, as_lost(info))
            chosen[host_id] = Member(replace(info, node_id=None, healthy=True, failed=False), actor)
            self._incarnations = {known: each for known, each in self._incarnations.items() if known != host_id}
        ordered = [chosen[host_id] for host_id in sorted(chosen)]
        check_actors([member.actor for member in ordered])
        return ordered

    def announce(self, engine: Engine, generation: int, members: Sequence[Member], teardown_timeout_s: float) -> None:
        """Run ``RebuildPolicy.on_rebuild`` on a generation that is not open yet; tears it down if that fails.

        Raises:
            HostsLostError: a host died meanwhile.
            Exception: whatever the hook raises, though every host is alive.
        """
        infos, actors = [member.info for member in members], [member.actor for member in members]
        _, failed = apart(lambda: self._call_hook("on_rebuild", self._policy.on_rebuild, generation, infos, actors))
        if failed is None and not engine.broken:
            return
        losses = losses_among(self._backend.probe(members, self._policy.probe_timeout_s))
        stuck = engine.tear_down(teardown_timeout_s)
        if losses or stuck or failed is None:
            raise HostsLostError({**losses, **stuck}) from failed
        raise failed

    def _call_hook(self, name: str, hook: Any, *args: Any) -> Any:
        if hook is None:
            return None
        return bounded.call_theirs(
            lambda: self._backend.ask(lambda: hook(*args)),
            self._policy.hook_timeout_s,
            f"cgexec-{name}",
            f"RebuildPolicy.{name}",
        )
