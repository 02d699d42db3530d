"""Snapshots in the processes of the stages: taken there, kept there for others, and given back. *In the actor.*

Every function here runs in an actor, given its instance. What is told to an actor about one build of the graph counts
until it is told about a later one: a call that was on its way while the stages were brought back to another step would
label one state with the number of another.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from pickle import loads
from typing import Any, NamedTuple

from ray import cloudpickle

from cgexec.pipeline.snapshot_format import Label, SnapshotError, read, seal, steps_in, unseal, write


class Places(NamedTuple):
    """Where snapshots are kept, and how many of each host."""

    directory: str | None
    in_memory: bool
    num_kept: int


class _Shelf:
    """What one actor keeps."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.epoch = -1
        self.snapshots: dict[Label, bytes] = {}

    def admit(self, epoch: int) -> None:
        """Refuse what was sent before the stages were brought back to another step."""
        if epoch < self.epoch:
            raise SnapshotError(f"a call of generation {epoch} came after generation {self.epoch} had begun")
        self.epoch = epoch

    def put(self, label: Label, snapshot: bytes, num_kept: int) -> None:
        self.snapshots[label] = snapshot
        steps = sorted(each.step for each in self.snapshots if each.host == label.host)
        for step in steps[:-num_kept]:
            del self.snapshots[Label(label.host, label.num_hosts, step)]


_shelves: dict[int, _Shelf] = {}  # by the id of the instance: its class may have no attributes to spare, or compare
_lock = threading.Lock()


def _shelf(instance: Any) -> _Shelf:
    with _lock:
        if id(instance) not in _shelves:
            _shelves[id(instance)] = _Shelf()
            with suppress(TypeError):  # a class may do without weak references, and then lasts as long as its process
                weakref.finalize(instance, _shelves.pop, id(instance), None)
        return _shelves[id(instance)]


def take(instance: Any, epoch: int, label: Label, method: str, places: Places) -> bytes:
    """Keep the state of this actor; returns its snapshot, for another actor to keep."""
    shelf = _shelf(instance)
    with shelf.lock:
        shelf.admit(epoch)
        snapshot = seal(label, cloudpickle.dumps(getattr(instance, method)(), protocol=5))
        if places.directory is not None:
            write(places.directory, label, snapshot, places.num_kept)
        if not places.in_memory:
            return b""
        shelf.put(label, snapshot, places.num_kept)
        return snapshot


def keep(instance: Any, epoch: int, label: Label, snapshot: bytes, places: Places) -> None:
    """Keep the snapshot of another actor."""
    shelf = _shelf(instance)
    with shelf.lock:
        shelf.admit(epoch)
        unseal(snapshot, label)
        shelf.put(label, snapshot, places.num_kept)


def kept(instance: Any, host: int, num_hosts: int, directory: str | None) -> tuple[set[Label], set[Label]]:
    """Return what this actor keeps in memory, and what it can read of itself on disk."""
    shelf = _shelf(instance)
    with shelf.lock:
        in_memory = {label for label in shelf.snapshots if label.num_hosts == num_hosts}
    steps = steps_in(directory, host, num_hosts) if directory is not None else set()
    return in_memory, {Label(host, num_hosts, step) for step in steps}


def give(instance: Any, label: Label) -> bytes:
    """Return a snapshot that is kept here."""
    shelf = _shelf(instance)
    with shelf.lock:
        if label not in shelf.snapshots:
            raise SnapshotError(f"the snapshot of {label} is not here")
        return shelf.snapshots[label]


def set_back(
    instance: Any, epoch: int, label: Label, method: str, directory: str | None, snapshot: bytes | None
) -> None:
    """Give this actor the state of a snapshot: the one that is handed over, or else the one on disk.

    Raises:
        SnapshotError: it is not there, or not whole; the state is what it was.
    """
    shelf = _shelf(instance)
    with shelf.lock:
        shelf.admit(epoch)
        if snapshot is None:
            snapshot = read(directory or "", label)
        state = unseal(snapshot, label)
        try:
            value = loads(state)
        except Exception as error:
            raise SnapshotError(f"the snapshot of {label} cannot be loaded: {error!r}") from error
        getattr(instance, method)(value)
