"""Large buffers between processes of one node: written once into anonymous shared memory, read where they lie.

::

    writer: SegmentPool                                      reader: Mappings
    take() ── free segment, or a new one ── descriptor ──>   map it, once
    copy the buffers into it ── frame that names it ──────>  arrays over it, read-only
    free again  <── its mark, in the last page ── the last of those arrays is gone

A segment is written again and again: fresh pages cost more than the copy. What is pinned by arrays that somebody keeps
is not written; beyond the pool's bound there is no segment to be had, and the data goes through the stream into memory
of the reader's own. Nothing has a name in the file system: the kernel frees a segment with its last user, whatever
becomes of the processes.

Behind the data there is a page of marks, a byte for each reader of a frame, which the reader sets and the writer looks
at: to tell and to hear of it takes no call of the system. (Nor a fence, on a processor that stores in order and behind
its loads, as x86 does. Elsewhere what was read last and the mark lie as far apart as it takes to let go of an array,
which is more than is in hand at a time.)
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import struct
import weakref
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cgexec.engine.frames import aligned
from cgexec.engine.late_numpy import numpy

if TYPE_CHECKING:
    import numpy as np

MOST_SEGMENTS = 64  # each costs its writer a descriptor
MOST_MARKS = mmap.PAGESIZE
_GRANULE_BYTES = 1 << 16
_BRIEF_BYTES = 1 << 20  # are copied within some 20 us
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

    def __init__(self, descriptor: int, start: int, size: int, protection: int) -> None:
        address = _libc().mmap(None, size, protection, mmap.MAP_SHARED, descriptor, start)
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


def _mapped(descriptor: int, start: int, size: int, protection: int) -> np.ndarray[Any, Any]:
    """Return the bytes of a mapping, which lives as long as anything that lies on them."""
    found: np.ndarray[Any, Any] = numpy().asarray(_Memory(descriptor, start, size, protection))
    return found


_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Segment:
    """A piece of shared memory that one process writes: ``size`` bytes, whole pages, for buffers."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self._num_lent = 0  # marks, from the first on
        self.descriptor = os.memfd_create("cgexec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size + MOST_MARKS)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = _mapped(self.descriptor, 0, size, _READ_AND_WRITE)
            self._bytes = self._memory.data
            self._marks = _mapped(self.descriptor, size, MOST_MARKS, _READ_AND_WRITE).data
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, buffers: Sequence[memoryview]) -> None:
        """Copy ``buffers`` into the segment, where ``frames.unpack_region`` looks for them."""
        start = 0
        for buffer in buffers:
            start = aligned(start)
            end = start + len(buffer)
            if end - start <= _BRIEF_BYTES:
                self._bytes[start:end] = buffer
            else:  # others run meanwhile
                self._memory[start:end] = numpy().frombuffer(buffer, "uint8")
            start = end

    def lend(self) -> int:
        """Return the mark that one more reader of what is written now is to set. Raises IndexError: all are lent."""
        mark = self._num_lent
        self._marks[mark] = 0
        self._num_lent = mark + 1
        return mark

    def is_free(self) -> bool:
        """Return whether every reader has set its mark: then the segment can be written again."""
        if self._num_lent and 0 not in self._marks[: self._num_lent]:
            self._num_lent = 0
        return not self._num_lent

    def __del__(self) -> None:
        if hasattr(self, "_marks"):
            os.close(self.descriptor)


class SegmentPool:
    """The segments that one process writes for one graph. For one thread at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._numbers = itertools.count(1)
        self._segments: dict[int, Segment] = {}

    def take(self, num_bytes: int) -> tuple[Segment | None, list[int]]:
        """Return a segment for ``num_bytes``, or None where the bound allows none; and those given up for it."""
        largest, found = 4 * max(num_bytes, _GRANULE_BYTES), None
        for segment in self._segments.values():
            size = segment.size
            if num_bytes <= size <= largest and segment.is_free():
                found, largest = segment, size - 1
        return (found, []) if found is not None else self._added(num_bytes)

    def _added(self, num_bytes: int) -> tuple[Segment | None, list[int]]:
        """Do as ``take``, where none that there is will do."""
        size = _rounded(num_bytes)
        room = self._limit_bytes - sum(segment.size for segment in self._segments.values())
        free = [segment for segment in self._segments.values() if segment.is_free()]
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


def _rounded(num_bytes: int) -> int:
    """Return a size for ``num_bytes`` such that values of like size share segments: at most an eighth more."""
    step = max(_GRANULE_BYTES, 1 << max(0, num_bytes.bit_length() - 4))
    return (aligned(num_bytes) + step - 1) // step * step


# What releases, and what forks have to do with that, is in C: no signal handler can run, and raise, within it.
_set_mark = struct.Struct("?").pack_into

# By mapping and mark. Kept here, since a weak reference calls nobody unless it is kept, and nowhere else.
_leases: dict[int, dict[int, weakref.ref[Any]]] = {}
_forks: list[None] = []  # those under way, of whichever thread

# Nothing that is there as this process forks ever sets its mark, in neither process: the child has it too, and nobody
# sees when it lets go. Before the fork others run on, for milliseconds: what they take meanwhile counts as well. (Of
# what is registered, what is to be called before is called in reverse order. A fork may have begun before this was.)
os.register_at_fork(before=_leases.clear, after_in_child=_leases.clear)
os.register_at_fork(
    before=partial(_forks.append, None),
    after_in_parent=partial(_forks.__delitem__, slice(-1, None)),
    after_in_child=_forks.clear,
)

_keys = itertools.count()


class _Mapping(NamedTuple):
    data: memoryview
    marks: memoryview
    key: int  # among the leases


class Mappings:
    """The segments of one writer, as one reader sees them."""

    def __init__(self) -> None:
        self._mapped: dict[int, _Mapping] = {}
        self._end_leases = _leases.pop  # which is to be had to the end, whatever becomes of this module

    def add(self, number: int, descriptor: int) -> None:
        """Map the segment behind ``descriptor``, which is closed. Raises OSError or ValueError if it is no segment."""
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("a segment that could still shrink")
            size = os.fstat(descriptor).st_size - MOST_MARKS
            if size <= 0 or size % mmap.PAGESIZE:
                raise ValueError(f"a segment of {size} bytes and a page of marks")
            data = _mapped(descriptor, 0, size, mmap.PROT_READ).data
            marks = _mapped(descriptor, size, MOST_MARKS, _READ_AND_WRITE).data
            self.forget(number)  # should it name another by now
            self._mapped[number] = _Mapping(data, marks, next(_keys))
        finally:
            os.close(descriptor)

    def view(self, number: int, mark: int) -> memoryview:
        """Return the memory of a segment for one frame; its ``mark`` is set when nothing lies on it any more.

        Raises KeyError if the segment was never added, IndexError if it has no such mark.
        """
        data, marks, key = self._mapped[number]
        marks[mark]  # there is one
        if key not in _leases:  # this is the first, or the first since a fork
            _leases[key] = {}
        # Over a memoryview, which is no array: numpy has a view of a view of an array hold that array alone, and what
        # somebody makes of this one, by np.ndarray(buffer=...) say, is to hold this one.
        array: np.ndarray[Any, Any] = numpy().frombuffer(data, "uint8")
        # It is called with the reference, for the third argument, which is true. The one that it takes the place of
        # has been called: a mark is lent again when it is set.
        lease = weakref.ref(array, partial(_set_mark, marks, mark))
        try:  # what leases there are is held by nothing else, a frame of this least of all: the child would keep that
            _leases[key][mark] = lease
        except KeyError:  # there was a fork since the array was made, by a signal handler say
            return array.data
        if _forks:  # looked at afterwards: what was kept before a fork began has been dropped by it
            _leases.pop(key, None)
        return array.data

    def forget(self, number: int) -> None:
        """Keep a segment that is not written any more no longer; what still lies on it stays readable."""
        mapping = self._mapped.get(number)
        if mapping is not None:  # in this order: what Ctrl-C leaves undone, the end does
            self._end_leases(mapping.key, None)
            self._mapped.pop(number, None)

    def __del__(self) -> None:
        if hasattr(self, "_end_leases"):
            for mapping in self._mapped.values():
                self._end_leases(mapping.key, None)
