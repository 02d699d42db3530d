"""Large buffers between processes of one node: written once into anonymous shared memory, read where they lie.

::

    writer: SegmentPool                                      reader: Mappings
    take() ── free segment, or a new one ── descriptor ──>   map it, once
    copy the buffers into it ── frame that names it ──────>  arrays over it, read-only
    free again  <── "released" ── the last of those arrays is gone

A segment is written again and again: fresh pages cost more than the copy. What is pinned by arrays that somebody keeps
is not written; beyond the pool's bound there is no segment to be had, and the data goes through the stream into memory
of the reader's own. Nothing has a name in the file system: the kernel frees a segment with its last user, whatever
becomes of the processes.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from cgexec.engine.frames import aligned, offsets
from cgexec.engine.late_numpy import numpy

MOST_SEGMENTS = 64  # each costs its writer a descriptor
_GRANULE_BYTES = 1 << 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # a mapping that cannot lose its pages


@cache
def _libc() -> ctypes.CDLL:
    """Return the C library, which takes a while to look up."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


_FAILED = ctypes.c_void_p(-1).value


class _Memory:
    """A mapping of shared memory that costs no descriptor: Python's own keeps a copy of it, before 3.13."""

    def __init__(self, descriptor: int, size: int, protection: int) -> None:
        address = _libc().mmap(None, size, protection, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._address = address
        self._size = size
        self._unmap = _libc().munmap  # which is to be had to the end, whatever becomes of this module
        # What numpy asks an object for that has memory: (address, read-only).
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, not protection & mmap.PROT_WRITE),
        }

    def __del__(self) -> None:
        if hasattr(self, "_unmap"):
            self._unmap(self._address, self._size)


class Segment:
    """A piece of shared memory that one process writes. ``holders``: the readers that have not released it yet."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.holders = 0
        self.descriptor = os.memfd_create("cgexec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = numpy().asarray(_Memory(self.descriptor, size, mmap.PROT_READ | mmap.PROT_WRITE))
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, buffers: Sequence[memoryview]) -> None:
        """Copy ``buffers`` into the segment, where ``frames.unpack_region`` looks for them."""
        lengths = [buffer.nbytes for buffer in buffers]
        for buffer, start in zip(buffers, offsets(0, lengths), strict=True):
            self._memory[start : start + buffer.nbytes] = numpy().frombuffer(buffer, "uint8")

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            os.close(self.descriptor)


class SegmentPool:
    """The segments that one process writes for one graph. For one thread at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._numbers = itertools.count(1)
        self._segments: dict[int, Segment] = {}

    def take(self, num_bytes: int) -> tuple[Segment | None, list[int]]:
        """Return a segment for ``num_bytes``, or None where the bound allows none; and those given up for it."""
        free = [segment for segment in self._segments.values() if segment.holders == 0]
        fitting = [segment for segment in free if num_bytes <= segment.size <= 4 * _rounded(num_bytes)]
        if fitting:
            return min(fitting, key=lambda segment: segment.size), []
        size = _rounded(num_bytes)
        room = self._limit_bytes - sum(segment.size for segment in self._segments.values())
        given_up: list[int] = []
        while free and (room < size or len(self._segments) >= MOST_SEGMENTS):
            segment = free.pop()
            del self._segments[segment.number]
            given_up.append(segment.number)
            room += segment.size
        if room < size or len(self._segments) >= MOST_SEGMENTS:
            return None, given_up
        try:
            segment = Segment(next(self._numbers), size)
        except OSError:  # no descriptors or no memory left: the stream does without
            return None, given_up
        self._segments[segment.number] = segment
        return segment, given_up

    def released(self, number: int) -> None:
        """Note that one of its readers has released a segment."""
        segment = self._segments.get(number)
        if segment is not None and segment.holders > 0:
            segment.holders -= 1


def _rounded(num_bytes: int) -> int:
    """Return a size for ``num_bytes`` such that values of like size share segments: at most an eighth more."""
    step = max(_GRANULE_BYTES, 1 << max(0, num_bytes.bit_length() - 4))
    return (aligned(num_bytes) + step - 1) // step * step


class Teller(Protocol):
    """Who can tell the writer of a segment that a frame's buffers are not used any more."""

    def tell_released(self, number: int) -> None:
        """Do so, without locks and without waiting."""


class _Release(weakref.ref[Any]):
    """Tells the writer when the last array over one frame's buffers has gone, if there still is a way to tell."""

    __slots__ = ("key", "number", "pid", "teller")

    key: int
    number: int
    pid: int
    teller: weakref.ref[Teller]


_keys = itertools.count()
_waiting: dict[int, _Release] = {}  # a weak reference calls nobody unless it is kept itself


def _gone(release: weakref.ref[Any]) -> None:
    """Answer for an array that has gone. Called wherever and whenever that is: takes no locks, and never blocks."""
    if isinstance(release, _Release):
        _waiting.pop(release.key, None)
        teller = release.teller()
        if teller is not None and release.pid == os.getpid():  # not in a forked child: its parent has the array still
            teller.tell_released(release.number)


# A forked child has the mappings too, and arrays over them, and cannot tell when it lets go of them: what its parent
# holds at that moment is never said to be free, so that it is never written again under the child.
os.register_at_fork(before=_waiting.clear)


class Mappings:
    """The segments of one writer, as one reader sees them. ``teller`` is told of each frame that is gone.

    It is not kept alive: arrays that somebody keeps must not keep a connection open.
    """

    def __init__(self, teller: Teller) -> None:
        self._teller = weakref.ref(teller)
        self._mapped: dict[int, _Memory] = {}

    def add(self, number: int, descriptor: int) -> None:
        """Map the segment behind ``descriptor``, which is closed. Raises OSError or ValueError if it is no segment."""
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("a segment that could still shrink")
            size = os.fstat(descriptor).st_size
            self._mapped[number] = _Memory(descriptor, size, mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def view(self, number: int) -> memoryview:
        """Return the memory of a segment for one frame. Raises KeyError if it was never added."""
        lease: Any = numpy().asarray(self._mapped[number])
        release = _Release(lease, _gone)
        release.key, release.number, release.pid, release.teller = next(_keys), number, os.getpid(), self._teller
        _waiting[release.key] = release
        return memoryview(lease)

    def forget(self, number: int) -> None:
        """Keep a segment no longer; what still lies on it stays readable."""
        self._mapped.pop(number, None)
