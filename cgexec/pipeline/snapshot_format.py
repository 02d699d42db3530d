"""One host's state as bytes that say whose it is and of which step, and cannot be half there unnoticed.

::

    magic (16) │ run (16) │ begun_ns │ host │ num_hosts │ num_stages │ step │ length │ sha256 of all that and the
    state (32) │ state
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cgexec.errors import CgexecError

_MAGIC = b"cgexec-snapshot1"
_FIELDS = struct.Struct("<16s16sQQQQQQ")
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_BYTES = _FIELDS.size + _DIGEST_BYTES
_NAME = re.compile(r"([0-9a-f]{32})-begun-(\d+)-host-(\d+)-of-(\d+)-stages-(\d+)-step-(\d+)\.snapshot", re.ASCII)
_UNFINISHED = ".unfinished"


class SnapshotError(CgexecError):
    """A snapshot is corrupt, is not the one that was asked for, or is not there; or a state cannot be kept."""


class Label(NamedTuple):
    """What a snapshot is of: the state of host ``host`` of ``num_hosts`` when ``step`` steps of a run had been done.

    ``run`` tells one training from another, 32 hexadecimal digits, and ``begun_ns`` what was done of it before and
    after it was resumed, which may differ: it grows with each resumption. ``num_stages`` counts those of all hosts.
    """

    run: str
    begun_ns: int
    host: int
    num_hosts: int
    num_stages: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of host {self.host} of {self.num_hosts}"

    def at(self, step: int) -> Label:
        """Return the label of the same host at another step."""
        return self._replace(step=step)


def seal(label: Label, state: bytes) -> bytes:
    """Return the snapshot of a state."""
    run, *numbers = label
    fields = _FIELDS.pack(_MAGIC, bytes.fromhex(run), *numbers, len(state))
    return fields + _digest(fields, state) + state


def unseal(snapshot: bytes, label: Label) -> bytes:
    """Return the state in a snapshot. Raises SnapshotError unless it is whole, and of what ``label`` says."""
    if len(snapshot) < _HEADER_BYTES:
        raise SnapshotError(f"the snapshot of {label} is cut off: {len(snapshot)} bytes")
    fields, state = snapshot[: _FIELDS.size], snapshot[_HEADER_BYTES:]
    magic, run, *numbers, length = _FIELDS.unpack(fields)
    if magic != _MAGIC:
        raise SnapshotError(f"what is to be the snapshot of {label} is none")
    if len(state) != length:
        raise SnapshotError(f"the snapshot of {label} is cut off: {len(state)} of {length} bytes")
    if snapshot[_FIELDS.size : _HEADER_BYTES] != _digest(fields, state):
        raise SnapshotError(f"the snapshot of {label} is corrupt: its checksum does not match")
    found = Label(run.hex(), *numbers)
    if found != label:
        raise SnapshotError(f"what is to be the snapshot of {label} is that of {found}")
    return state


def _digest(fields: bytes, state: bytes) -> bytes:
    digest = hashlib.sha256(fields)
    digest.update(state)
    return digest.digest()


# -- on disk -----------------------------------------------------------------------------------------------------------


def path_of(directory: str, label: Label) -> Path:
    """Return where a snapshot lies."""
    run, begun_ns, host, num_hosts, num_stages, step = label
    whose = f"{run}-begun-{begun_ns:020d}-host-{host:04d}-of-{num_hosts}-stages-{num_stages}"
    return Path(directory) / f"{whose}-step-{step:012d}.snapshot"


def write(directory: str, label: Label, snapshot: bytes, retained: Collection[int]) -> None:
    """Write a snapshot: all of it, or nothing that could be taken for it. Removes the host's but of ``retained`` steps.

    Those from before a resumption are removed once there are steps to retain from behind it. One process at a time
    writes those of a host: what another one has left unfinished is removed.
    """
    path = path_of(directory, label)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SnapshotError(f"host {label.host} cannot make the directory of PipelineSnapshots: {error}") from error
    for left in path.parent.glob(f"{label.run}-*-host-{label.host:04d}-*{_UNFINISHED}"):
        _remove(left)
    unfinished = path.with_suffix(f".{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(snapshot)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        _remove(unfinished)
    _sync(path.parent)

    def is_unwanted(other: Label) -> bool:
        if other.begun_ns == label.begun_ns:
            return other.step not in {label.step, *retained}
        return bool(retained) and other.begun_ns < label.begun_ns

    remove_of_host(directory, label, is_unwanted)


def remove_of_host(directory: str, label: Label, is_unwanted: Callable[[Label], bool]) -> None:
    """Remove those snapshots of the run and the host of ``label`` that are unwanted."""
    for other in labels_in(directory):
        if (other.run, other.host) == (label.run, label.host) and is_unwanted(other):
            _remove(path_of(directory, other))


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def labels_in(directory: str) -> set[Label]:
    """Return of what a directory has snapshots, by their names; other files are passed over, and there may be none.

    Raises:
        SnapshotError: it is no directory, or cannot be read.
    """
    try:
        files = os.listdir(directory)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise SnapshotError(f"the snapshots in {directory} cannot be listed: {error}") from error
    names = (_NAME.fullmatch(file) for file in files)
    return {Label(name[1], *map(int, name.groups()[1:])) for name in names if name is not None}


def read(directory: str, label: Label) -> bytes:
    """Return a snapshot, unchecked. Raises SnapshotError if there is none."""
    try:
        return path_of(directory, label).read_bytes()
    except OSError as error:
        raise SnapshotError(f"the snapshot of {label} cannot be read: {error}") from error
