"""Snapshots in the processes of the stages: taken there, kept there for others, and given back. *In the actor.*

Every function here runs in an actor, given its instance. What an actor is told about one state of the stages counts
until it is told about a later one, which a growing number says, the epoch: a call that was on its way while the stages
were brought back to another step would label one state with the number of another. So would one to a process that Ray
has started again in the place of a dead one: so an actor has to be told of a session, and be given a state, before it
keeps anything.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection
from contextlib import suppress
from pickle import loads
from typing import Any, NamedTuple

from ray import cloudpickle

from cgexec.pipeline.snapshot_format import Label, SnapshotError, labels_in, read, remove_of_host, seal, unseal, write


class Session(NamedTuple):
    """A run, and when it was begun or resumed: what stages are told in one of them says nothing to another."""

    run: str
    begun_ns: int


class Places(NamedTuple):
    """Where snapshots are kept, and of which steps beside the new one."""

    directory: str | None
    in_memory: bool
    retained: tuple[int, ...]


class _Shelf:
    """What one actor keeps of one session."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.epoch = -1
        self.snapshots: dict[Label, bytes] = {}

    def admit(self, epoch: int) -> None:
        """Refuse what was sent before the stages were brought back to another step."""
        if epoch < self.epoch:
            raise SnapshotError("a call came after the stages had been brought back to another step")
        self.epoch = epoch

    def put(self, label: Label, snapshot: bytes, retained: Collection[int]) -> None:
        """Keep a snapshot, and of those of the same host the ``retained`` steps."""
        kept = {label.step, *retained}
        for other in [each for each in self.snapshots if each.host == label.host and each.step not in kept]:
            del self.snapshots[other]
        self.snapshots[label] = snapshot


_shelves: dict[int, dict[Session, _Shelf | None]] = {}  # by the id of the instance, since its class may compare
_lock = threading.Lock()


def _shelves_of(instance: Any) -> dict[Session, _Shelf | None]:
    """Return the shelves of an actor; None for a session that is over. The lock is held."""
    if id(instance) not in _shelves:
        _shelves[id(instance)] = {}
        with suppress(TypeError):  # a class may do without weak references, and then lasts as long as its process
            weakref.finalize(instance, _shelves.pop, id(instance), None)
    return _shelves[id(instance)]


def _shelf(instance: Any, session: Session) -> _Shelf:
    with _lock:
        shelf = _shelves_of(instance).get(session)
    if shelf is None:
        raise SnapshotError(
            "the process of the actor knows nothing of this training: it is over, or the process is new"
        )
    return shelf


def _session_of(label: Label) -> Session:
    return Session(label.run, label.begun_ns)


def begin(instance: Any, session: Session) -> None:
    """Begin a session, and let go of whatever is kept of others: of trainers that were not closed."""
    with _lock:
        shelves = _shelves_of(instance)
        shelves.clear()
        shelves[session] = _Shelf()


def bar(instance: Any, session: Session, epoch: int) -> None:
    """From now on refuse what was sent before; waits for what is being done."""
    shelf = _shelf(instance, session)
    with shelf.lock:
        shelf.admit(epoch)


def take(instance: Any, epoch: int, label: Label, method: str, places: Places) -> bytes:
    """Keep the state of this actor; returns its snapshot, for another actor to keep."""
    shelf = _shelf(instance, _session_of(label))
    with shelf.lock:
        shelf.admit(epoch)
        snapshot = seal(label, state_of(instance, method))
        if places.in_memory:
            shelf.put(label, snapshot, places.retained)
        if places.directory is not None:
            write(places.directory, label, snapshot, places.retained)
        return snapshot if places.in_memory else b""


def keep(instance: Any, epoch: int, label: Label, snapshot: bytes, places: Places) -> None:
    """Keep the snapshot of another actor."""
    shelf = _shelf(instance, _session_of(label))
    with shelf.lock:
        shelf.admit(epoch)
        unseal(snapshot, label)
        shelf.put(label, snapshot, places.retained)


def in_memory(instance: Any, session: Session) -> set[Label]:
    """Return what this actor keeps of a session in memory."""
    with _lock:
        shelf = _shelves_of(instance).get(session)
    if shelf is None:
        return set()
    with shelf.lock:
        return set(shelf.snapshots)


def on_disk(_instance: Any, directory: str) -> set[Label]:
    """Return what this actor can read in a directory."""
    return labels_in(directory)


def give(instance: Any, label: Label) -> bytes:
    """Return a snapshot that is kept here."""
    shelf = _shelf(instance, _session_of(label))
    with shelf.lock:
        if label not in shelf.snapshots:
            raise SnapshotError(f"the snapshot of {label} is not here")
        return shelf.snapshots[label]


def set_back(
    instance: Any, session: Session, epoch: int, label: Label, method: str, places: Places, snapshot: bytes | None
) -> None:
    """Give this actor the state of a snapshot: the one that is handed over, or else the one on disk.

    One of this session is kept here from then on, as if it had been taken here. A process that knows nothing of the
    session does from now on.

    Raises:
        SnapshotError: it is not there, or not whole; the state is what it was.
    """
    with _lock:
        _shelves_of(instance).setdefault(session, _Shelf())  # it is the first to be told, in a process that is new
    shelf = _shelf(instance, session)
    with shelf.lock:
        shelf.admit(epoch)
        if snapshot is None:
            snapshot = read(places.directory or "", label)
        state = unseal(snapshot, label)
        try:
            value = loads(state)
        except Exception as error:
            raise SnapshotError(f"the snapshot of {label} cannot be loaded: {error!r}") from error
        if places.in_memory and _session_of(label) == session:
            shelf.put(label, snapshot, places.retained)
        getattr(instance, method)(value)


def forget(instance: Any, session: Session) -> None:
    """Let go of everything that is kept of a session in memory, and refuse what comes of it."""
    with _lock:
        _shelves_of(instance)[session] = None


def discard(_instance: Any, directory: str, label: Label) -> None:
    """Remove the files of a session that are this host's, whichever steps they are of."""
    remove_of_host(directory, label, lambda each: each.begun_ns == label.begun_ns)


def discard_older(_instance: Any, directory: str, label: Label) -> None:
    """Remove this host's files from before a session that was resumed from."""
    remove_of_host(directory, label, lambda each: each.begun_ns < label.begun_ns)


def state_of(instance: Any, method: str) -> bytes:
    """Return what the method that says the state returns, pickled: as it is now, also for who is in this process."""
    state: bytes = cloudpickle.dumps(getattr(instance, method)(), protocol=5)
    return state
