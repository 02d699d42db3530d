"""A pipeline has a place for every host, and cannot do without one."""

from __future__ import annotations

from collections.abc import Sequence

from cgexec.errors import GraphSpecError
from cgexec.topology import HostInfo


def check_complete(infos: Sequence[HostInfo], num_hosts: int) -> None:
    """Raise GraphSpecError if there are not so many hosts: one was lost and not replaced, or others were given."""
    places = [info.host_id for info in infos]
    if len(places) > num_hosts or (len(places) < num_hosts and places == list(range(len(places)))):
        what = f"the pipeline is for {num_hosts} hosts, and has {len(places)}"
    elif places != list(range(num_hosts)):
        what = f"a pipeline cannot go on without some of its stages (left: hosts {', '.join(map(str, places))})"
    else:
        return
    raise GraphSpecError(f"{what}; RebuildPolicy(replace=...) says where a host comes from in the place of a lost one")
