"""One stage host's state as bytes that say whose it is and of which step, and cannot be half there unnoticed.

::

    magic (16) │ host │ num_hosts │ step │ length │ sha256 of all that and the state (32) │ state
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cgexec.errors import CgexecError

_MAGIC = b"cgexec-snapshot1"
_FIELDS = struct.Struct("<16sQQQQ")
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_BYTES = _FIELDS.size + _DIGEST_BYTES


class SnapshotError(CgexecError):
    """A snapshot is corrupt, is not the one that was asked for, or is not there; or a state cannot be kept."""


class Label(NamedTuple):
    """What a snapshot is of: the state of host ``host`` of ``num_hosts`` when ``step`` steps had been done."""

    host: int
    num_hosts: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of host {self.host} of {self.num_hosts}"


def seal(label: Label, state: bytes) -> bytes:
    """Return the snapshot of a state."""
    fields = _FIELDS.pack(_MAGIC, *label, len(state))
    return fields + _digest(fields, state) + state


def unseal(snapshot: bytes, label: Label) -> bytes:
    """Return the state in a snapshot. Raises SnapshotError unless it is whole, and of what ``label`` says."""
    if len(snapshot) < _HEADER_BYTES:
        raise SnapshotError(f"the snapshot of {label} is cut off: {len(snapshot)} bytes")
    fields, state = snapshot[: _FIELDS.size], snapshot[_HEADER_BYTES:]
    magic, host, num_hosts, step, length = _FIELDS.unpack(fields)
    if magic != _MAGIC:
        raise SnapshotError(f"what is to be the snapshot of {label} is none")
    if len(state) != length:
        raise SnapshotError(f"the snapshot of {label} is cut off: {len(state)} of {length} bytes")
    if snapshot[_FIELDS.size : _HEADER_BYTES] != _digest(fields, state):
        raise SnapshotError(f"the snapshot of {label} is corrupt: its checksum does not match")
    if Label(host, num_hosts, step) != label:
        raise SnapshotError(f"what is to be the snapshot of {label} is that of {Label(host, num_hosts, step)}")
    return state


def _digest(fields: bytes, state: bytes) -> bytes:
    digest = hashlib.sha256(fields)
    digest.update(state)
    return digest.digest()


# -- on disk -----------------------------------------------------------------------------------------------------------


def path_of(directory: str, label: Label) -> Path:
    """Return where a snapshot lies."""
    return Path(directory) / f"host-{label.host:04d}-of-{label.num_hosts:04d}-step-{label.step:012d}.snapshot"


def write(directory: str, label: Label, snapshot: bytes, num_kept: int) -> None:
    """Write a snapshot: all of it, or nothing that could be taken for it. Removes older ones beyond ``num_kept``."""
    path = path_of(directory, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(snapshot)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()
    _sync(path.parent)
    for step in sorted(steps_in(directory, label.host, label.num_hosts))[:-num_kept]:
        with suppress(FileNotFoundError):
            path_of(directory, Label(label.host, label.num_hosts, step)).unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps_in(directory: str, host: int, num_hosts: int) -> set[int]:
    """Return the steps of which a directory has a snapshot of this host."""
    found = Path(directory).glob(f"host-{host:04d}-of-{num_hosts:04d}-step-*.snapshot")
    return {int(path.stem.rpartition("-")[2]) for path in found}


def read(directory: str, label: Label) -> bytes:
    """Return a snapshot, unchecked. Raises SnapshotError if there is none."""
    try:
        return path_of(directory, label).read_bytes()
    except OSError as error:
        raise SnapshotError(f"the snapshot of {label} cannot be read: {error}") from error
