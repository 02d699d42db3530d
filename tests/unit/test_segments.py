"""Shared memory: written again when its readers have let go, and never before; nothing stays open."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from forks import ended_well, fork
from leaks import nothing_left, num_descriptors

from cgexec.engine import segments
from cgexec.engine.frames import offsets
from cgexec.engine.segments import MOST_SEGMENTS, Mappings, Segment, SegmentPool

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


def taken(pool: SegmentPool, num_bytes: int = SIZE, holders: int = 1) -> Segment:
    """Return a segment of ``pool`` that so many readers hold."""
    segment, _ = pool.take(num_bytes)
    assert segment is not None
    segment.holders += holders
    return segment


# -- the writer's pool -------------------------------------------------------------------------------------------------


def test_a_segment_is_used_again_when_it_has_been_released_and_not_before() -> None:
    pool = SegmentPool(4 * SIZE)
    first = taken(pool)
    second = taken(pool)
    assert second is not first
    pool.released(first.number)
    assert taken(pool) is first


def test_a_segment_is_held_until_every_reader_has_released_it() -> None:
    pool = SegmentPool(2 * SIZE)
    segment = taken(pool, holders=3)
    for _ in range(2):
        pool.released(segment.number)
        assert taken(pool, SIZE // 2, holders=0) is not segment
    pool.released(segment.number)
    assert taken(pool) is segment


def test_a_release_too_many_counts_for_nothing() -> None:
    pool = SegmentPool(SIZE)
    segment = taken(pool)
    for _ in range(3):
        pool.released(segment.number)
    pool.released(12345)
    assert segment.holders == 0
    assert taken(pool) is segment
    assert pool.take(SIZE) == (None, [])


@pytest.mark.parametrize("limit", [0, SIZE - 1])
def test_a_pool_without_room_gives_nothing(limit: int) -> None:
    assert SegmentPool(limit).take(SIZE) == (None, [])


def test_the_pool_is_bounded_in_bytes() -> None:
    pool = SegmentPool(3 * SIZE)
    held = [taken(pool) for _ in range(3)]
    assert pool.take(1) == (None, [])
    assert sum(segment.size for segment in held) == 3 * SIZE


def test_the_pool_is_bounded_in_number() -> None:
    pool = SegmentPool(1 << 30)
    held = [taken(pool, 1) for _ in range(MOST_SEGMENTS)]
    assert pool.take(1) == (None, [])
    pool.released(held[5].number)
    assert pool.take(1) == (held[5], [])


def test_free_segments_that_do_not_fit_are_given_up_for_one_that_does() -> None:
    pool = SegmentPool(3 * SIZE)
    free = [taken(pool) for _ in range(2)]
    held = taken(pool)
    for segment in free:
        pool.released(segment.number)
    large, given_up = pool.take(2 * SIZE)
    assert large is not None
    assert large.size == 2 * SIZE
    assert sorted(given_up) == [segment.number for segment in free]
    assert held.number not in given_up


def test_no_more_is_given_up_than_the_room_asked_for_takes() -> None:
    pool = SegmentPool(4 * SIZE)
    for segment in [taken(pool, SIZE) for _ in range(3)]:
        pool.released(segment.number)
    _, given_up = pool.take(2 * SIZE)
    assert len(given_up) == 1


def test_a_segment_far_too_large_is_not_spent_on_a_small_value() -> None:
    pool = SegmentPool(1 << 30)
    large = taken(pool, 64 * SIZE)
    pool.released(large.number)
    assert taken(pool, SIZE) is not large


@pytest.mark.parametrize("num_bytes", [1, 64, 1 << 16, (1 << 16) + 1, SIZE - 1, SIZE, 3 * SIZE + 7, 1 << 33])
def test_a_size_is_rounded_up_by_an_eighth_or_a_granule_at_most(num_bytes: int) -> None:
    rounded = segments._rounded(num_bytes)
    assert num_bytes <= rounded <= max(num_bytes * 9 // 8, num_bytes + (1 << 16))


def test_what_the_system_refuses_is_no_segment_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> int:
        raise OSError("no descriptors left")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert SegmentPool(SIZE).take(SIZE) == (None, [])


def test_a_segment_that_cannot_be_made_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError("no memory left")

    before = num_descriptors()
    monkeypatch.setattr(os, "ftruncate", refuse)
    assert SegmentPool(SIZE).take(SIZE) == (None, [])
    assert num_descriptors() == before


# -- the reader's mappings ---------------------------------------------------------------------------------------------


class Reader:
    """Mappings, and what they tell the writer. They hold it weakly: it lives as long as the test's own reference."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.mappings = Mappings(self)

    def tell_released(self, number: int) -> None:
        self.told.append(number)

    def add(self, segment: Segment) -> None:
        self.mappings.add(segment.number, os.dup(segment.descriptor))


def written(number: int = 1, size: int = SIZE) -> tuple[Segment, np.ndarray[Any, Any]]:
    """Return a segment, and the array that has been written to it."""
    segment = Segment(number, size)
    array = np.arange(size // 8, dtype="i8")
    segment.write([memoryview(array).cast("B")])
    return segment, array


def test_what_is_written_is_read_and_seen_to_change() -> None:
    segment, array = written()
    reader = Reader()
    reader.add(segment)
    view = reader.mappings.view(1)
    np.testing.assert_array_equal(np.frombuffer(view, "i8"), array)
    segment.write([memoryview(array[::-1].copy()).cast("B")])
    np.testing.assert_array_equal(np.frombuffer(view, "i8"), array[::-1])


def test_several_buffers_lie_where_they_are_looked_for() -> None:
    segment, reader = Segment(1, SIZE), Reader()
    contents = [b"abc", b"", bytes(range(100)), b"z"]
    segment.write([memoryview(content) for content in contents])
    reader.add(segment)
    view = reader.mappings.view(1)
    starts = offsets(0, [len(content) for content in contents])
    assert [bytes(view[start : start + len(c)]) for start, c in zip(starts, contents, strict=True)] == contents


def unpickled(view: memoryview) -> Any:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps({"a": np.zeros(SIZE // 8)}, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[view.toreadonly()])["a"]


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "view": lambda view: view,
    "slice": lambda view: view[10:20][1:2],
    "array": lambda view: np.frombuffer(view, "i8"),
    "view of a view of an array": lambda view: np.frombuffer(view, "i8").reshape(-1, 8)[::2].T,
    "unpickled array": unpickled,
    "one row of an unpickled array": lambda view: unpickled(view).reshape(8, -1)[3],
    "list of rows": lambda view: list(np.frombuffer(view, "i8").reshape(8, -1)),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_frame_is_released_once_when_the_last_that_lies_on_it_is_gone(holder: Callable[[memoryview], Any]) -> None:
    segment, _ = written()
    reader = Reader()
    reader.add(segment)
    held = holder(reader.mappings.view(1))
    gc.collect()
    assert reader.told == []
    del held
    assert reader.told == [1]
    gc.collect()
    assert reader.told == [1]


def test_every_frame_over_one_segment_is_released_by_itself() -> None:
    segment, _ = written(7)
    reader = Reader()
    reader.add(segment)
    views = [reader.mappings.view(7) for _ in range(3)]
    while views:
        views.pop()
        assert reader.told == [7] * (3 - len(views))


def test_no_answer_is_kept_for_what_is_gone() -> None:
    segment, _ = written()
    reader = Reader()
    reader.add(segment)
    before = len(segments._waiting)
    views = [reader.mappings.view(1) for _ in range(5)]
    assert len(segments._waiting) == before + 5
    views.clear()
    assert len(segments._waiting) == before


def test_what_lies_on_a_segment_that_was_forgotten_stays_readable_and_is_released() -> None:
    segment, array = written()
    reader = Reader()
    reader.add(segment)
    kept = np.frombuffer(reader.mappings.view(1), "i8")
    reader.mappings.forget(1)
    reader.mappings.forget(1)
    del segment
    gc.collect()
    np.testing.assert_array_equal(kept, array)
    with pytest.raises(KeyError):
        reader.mappings.view(1)
    del kept
    assert reader.told == [1]


def test_a_kept_array_does_not_keep_alive_who_is_to_be_told_and_outlives_it() -> None:
    segment, array = written()
    reader = Reader()
    reader.add(segment)
    kept = np.frombuffer(reader.mappings.view(1), "i8")
    another = reader.mappings.view(1)
    told, gone = reader.told, weakref.ref(reader)
    before = len(segments._waiting)
    gc.disable()  # nor does it take the collector
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()
    del segment
    gc.collect()
    np.testing.assert_array_equal(kept, array)
    del kept, another  # an error in here would be a warning, and warnings are errors
    gc.collect()
    assert told == []
    assert len(segments._waiting) == before - 2


def test_mappings_that_outlive_who_is_to_be_told_still_show_what_is_written() -> None:
    segment, array = written()
    reader = Reader()
    mappings = reader.mappings
    reader.add(segment)
    del reader
    kept = np.frombuffer(mappings.view(1), "i8")
    np.testing.assert_array_equal(kept, array)
    before = len(segments._waiting)
    del kept
    assert len(segments._waiting) == before - 1


def test_a_mapping_cannot_be_written_to() -> None:
    segment, _ = written()
    reader = Reader()
    reader.add(segment)
    view = reader.mappings.view(1)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def half_sealed() -> int:
    descriptor = os.memfd_create("half", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def sealed_and_empty() -> int:
    descriptor = os.memfd_create("empty", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


def plain_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        return os.dup(file.fileno())


@pytest.mark.parametrize(
    "open_one",
    [
        half_sealed,
        sealed_and_empty,
        plain_file,
        lambda: os.memfd_create("unsealed", os.MFD_CLOEXEC),
        lambda: os.eventfd(0),
        lambda: os.open("/dev/zero", os.O_RDONLY),
    ],
    ids=["half sealed", "empty", "file", "unsealed", "eventfd", "device"],
)
def test_a_descriptor_that_is_no_segment_is_refused_and_closed(open_one: Callable[[], int]) -> None:
    reader = Reader()
    descriptor = open_one()
    with pytest.raises((OSError, ValueError)):
        reader.mappings.add(1, descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(KeyError):
        reader.mappings.view(1)


def test_what_is_held_at_a_fork_is_never_released() -> None:
    """Nobody can tell when the child, which holds it too, lets go of it."""
    segment, _ = written()
    reader = Reader()
    reader.add(segment)
    held = [np.frombuffer(reader.mappings.view(1), "i8")]

    def drop() -> None:
        held.clear()
        gc.collect()
        assert reader.told == []
        assert not segments._waiting

    assert ended_well(fork(drop))
    assert reader.told == []
    held.clear()
    assert reader.told == []
    np.frombuffer(reader.mappings.view(1), "i8")  # held by nobody, and not at the fork
    assert reader.told == [1]


def test_an_array_that_lives_until_the_interpreter_exits_makes_no_noise() -> None:
    script = """
import os
import numpy as np
from cgexec.engine.segments import Mappings, Segment
segment = Segment(1, 1 << 20)
class Teller:
    def tell_released(self, number):
        print(number)
teller = Teller()
mappings = Mappings(teller)
mappings.add(1, os.dup(segment.descriptor))
mappings.view(1)
kept = np.frombuffer(mappings.view(1), "i8")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "1")
