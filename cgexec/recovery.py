"""What to do after a graph broke: a pure decision.

``plan_rebuild`` is told who was planned and who is alive, and answers with a plan or with the reason to give up. It
knows no Ray, no clock and no threads; ``supervisor.py`` carries the plan out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cgexec.config import RebuildPolicy
from cgexec.errors import GraphFailedError, NotEnoughHostsError
from cgexec.topology import HostInfo

LONGEST_BACKOFF_S = 5.0


@dataclass(frozen=True)
class RebuildPlan:
    """Who stays and who is to be replaced, by ``host_id``, in the order of the new graph."""

    keep: tuple[int, ...]
    replace: tuple[int, ...]

    @property
    def hosts(self) -> tuple[int, ...]:
        """All hosts of the new graph, in their original order."""
        return tuple(sorted(self.keep + self.replace))


@dataclass(frozen=True)
class GiveUp:
    """The policy does not allow another build; ``reason`` says why."""

    reason: GraphFailedError


def plan_rebuild(
    planned: Sequence[HostInfo], alive: Collection[int], policy: RebuildPolicy, *, rebuilds_started: int = 0
) -> RebuildPlan | GiveUp:
    """Return how to go on with the hosts of ``planned`` whose ``host_id`` is in ``alive``, or why not to.

    ``rebuilds_started`` counts the builds already started after the first one, over the graph's life.
    """
    keep = tuple(host.host_id for host in planned if host.host_id in alive)
    lost = tuple(host.host_id for host in planned if host.host_id not in alive)
    if policy.max_rebuilds is not None and rebuilds_started >= policy.max_rebuilds:
        return GiveUp(GraphFailedError(f"the policy allows {policy.max_rebuilds} rebuilds, and all have been used"))
    replace = lost if policy.replace is not None else ()
    if len(keep) + len(replace) < policy.min_hosts:
        names = ", ".join(str(host_id) for host_id in lost)
        return GiveUp(
            NotEnoughHostsError(
                f"{len(keep)} of {len(planned)} hosts are left and the policy asks for {policy.min_hosts}; "
                f"lost: host {names or 'none'}"
            )
        )
    return RebuildPlan(keep, replace)


def backoff_delay_s(policy: RebuildPolicy, attempt: int) -> float:
    """Return the pause before build number ``attempt`` (from 0) of one rebuild: none before the first."""
    return 0.0 if attempt == 0 else min(LONGEST_BACKOFF_S, policy.backoff_s * 2.0 ** min(attempt - 1, 60))
