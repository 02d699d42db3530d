"""Where a job runs: hosts, slices of hosts, and several slices together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class HostInfo:
    """One host of a slice.

    ``host_id`` is the host's original position among the hosts of its graph; it stays with the host for life, so the
    survivors of a loss keep theirs. ``num_devices`` is None where it is not known. ``healthy`` means that the host
    answered when it was last asked; ``failed`` that it is lost. ``node_id`` is Ray's hexadecimal node id.
    """

    host_id: int
    slice_name: str
    num_devices: int | None
    healthy: bool
    failed: bool
    node_id: str | None = None


@dataclass(frozen=True)
class SliceInfo:
    """One slice: a named set of hosts, its head's address, and the accelerators of each host."""

    slice_name: str
    num_hosts: int
    ip_address: str
    num_accelerators_per_host: int
    node_ids: list[str] | None = None
    host_infos: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class MultisliceInfo:
    """What one slice of several must know to find the others: the coordinator's address and its own place."""

    coordinator_ip: str
    slice_id: int
    num_slices: int
    port: int = 8081


@dataclass(frozen=True)
class LostHost:
    """A host that a graph has lost: which, in which generation, and the exception that told."""

    info: HostInfo
    generation: int
    cause: BaseException


def as_lost(info: HostInfo) -> HostInfo:
    """Return what is said of a host once it is lost."""
    return replace(info, healthy=False, failed=True)
