"""Shared memory: written again when its readers have let go, and never before; nothing stays open."""

from __future__ import annotations

import _thread
import fcntl
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from forks import ended_well, fork
from leaks import nothing_left, num_descriptors

from cgexec.engine import segments
from cgexec.engine.frames import offsets
from cgexec.engine.segments import MOST_MARKS, MOST_SEGMENTS, Mappings, Segment, SegmentPool

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


def mapped(segment: Segment) -> Mappings:
    """Return a reader's mappings of ``segment``."""
    mappings = Mappings()
    mappings.add(segment.number, os.dup(segment.descriptor))
    return mappings


def taken(pool: SegmentPool, num_bytes: int = SIZE, num_readers: int = 1) -> Segment:
    """Return a segment of ``pool`` that so many readers hold."""
    segment, _ = pool.take(num_bytes)
    assert segment is not None
    assert [segment.lend() for _ in range(num_readers)] == list(range(num_readers))
    return segment


def release(segment: Segment, mark: int = 0) -> None:
    """Take a frame that lies on ``segment``, and let go of it."""
    reader = mapped(segment)
    reader.view(segment.number, mark)


# -- the writer's pool -------------------------------------------------------------------------------------------------


def test_a_segment_is_used_again_when_it_has_been_released_and_not_before() -> None:
    pool = SegmentPool(4 * SIZE)
    first = taken(pool)
    second = taken(pool)
    assert second is not first
    release(first)
    assert taken(pool) is first


def test_a_segment_is_held_until_every_reader_has_released_it() -> None:
    pool = SegmentPool(2 * SIZE)
    segment = taken(pool, num_readers=3)
    for mark in (2, 0, 0):
        release(segment, mark)
        assert taken(pool, SIZE // 2, num_readers=0) is not segment
    release(segment, 1)
    assert taken(pool) is segment


def test_a_segment_that_nobody_was_lent_is_free() -> None:
    pool = SegmentPool(SIZE)
    segment = taken(pool, num_readers=0)
    assert taken(pool) is segment
    assert pool.take(SIZE) == (None, [])


def test_who_reads_it_now_is_not_mistaken_for_who_read_it_before() -> None:
    segment = Segment(1, SIZE)
    for num_readers in (3, 1, 2, 3):
        for mark in [segment.lend() for _ in range(num_readers)]:
            assert not segment.is_free()
            release(segment, mark)
        assert segment.is_free()


def test_no_more_is_lent_than_there_are_marks() -> None:
    segment = Segment(1, SIZE)
    assert [segment.lend() for _ in range(MOST_MARKS)][-1] == MOST_MARKS - 1
    with pytest.raises(IndexError):
        segment.lend()
    with pytest.raises(IndexError):
        mapped(segment).view(1, MOST_MARKS)
    for mark in range(MOST_MARKS):
        assert not segment.is_free()
        release(segment, mark)
    assert segment.is_free()


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
    release(held[5])
    assert pool.take(1) == (held[5], [])


def test_of_those_that_fit_the_smallest_is_taken() -> None:
    pool = SegmentPool(1 << 30)
    sizes = [3 * SIZE, SIZE, 2 * SIZE, 4 * SIZE]
    segments = [taken(pool, size) for size in sizes]
    for segment in segments:
        release(segment)
    assert [taken(pool, SIZE).size for _ in sizes] == sorted(sizes)


def test_free_segments_that_do_not_fit_are_given_up_for_one_that_does() -> None:
    pool = SegmentPool(3 * SIZE)
    free = [taken(pool) for _ in range(2)]
    held = taken(pool)
    for segment in free:
        release(segment)
    large, given_up = pool.take(2 * SIZE)
    assert large is not None
    assert large.size == 2 * SIZE
    assert sorted(given_up) == [segment.number for segment in free]
    assert held.number not in given_up


def test_no_more_is_given_up_than_the_room_asked_for_takes() -> None:
    pool = SegmentPool(4 * SIZE)
    for segment in [taken(pool, SIZE) for _ in range(3)]:
        release(segment)
    _, given_up = pool.take(2 * SIZE)
    assert len(given_up) == 1


def test_a_segment_far_too_large_is_not_spent_on_a_small_value() -> None:
    pool = SegmentPool(1 << 30)
    large = taken(pool, 64 * SIZE)
    release(large)
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
    """A reader of one segment, which is told how many of its frames have been released."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.mappings = mapped(segment)
        self.num_lent = 0

    def view(self) -> memoryview:
        """Return what the next frame lies on."""
        self.num_lent += 1
        return self.mappings.view(self.segment.number, self.segment.lend())

    @property
    def released(self) -> list[int]:
        """The marks that are set, as the writer sees them."""
        return [mark for mark in range(self.num_lent) if self.segment._marks[mark]]


def written(number: int = 1, size: int = SIZE) -> tuple[Segment, np.ndarray[Any, Any]]:
    """Return a segment, and the array that has been written to it."""
    segment = Segment(number, size)
    array = np.arange(size // 8, dtype="i8")
    segment.write([memoryview(array).cast("B")])
    return segment, array


def test_what_is_written_is_read_and_seen_to_change() -> None:
    segment, array = written()
    view = Reader(segment).view()
    np.testing.assert_array_equal(np.frombuffer(view, "i8"), array)
    segment.write([memoryview(array[::-1].copy()).cast("B")])
    np.testing.assert_array_equal(np.frombuffer(view, "i8"), array[::-1])


def test_several_buffers_lie_where_they_are_looked_for() -> None:
    segment = Segment(1, SIZE)
    contents = [b"abc", b"", bytes(range(100)), b"z"]
    segment.write([memoryview(content) for content in contents])
    view = Reader(segment).view()
    starts = offsets(0, [len(content) for content in contents])
    assert [bytes(view[start : start + len(c)]) for start, c in zip(starts, contents, strict=True)] == contents


def unpickled(view: memoryview) -> Any:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps({"a": np.zeros(SIZE // 8)}, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[view.toreadonly()])["a"]


class Image:
    """Serialises its array by itself, and makes it anew over the buffer that it is given."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.pixels = pixels

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return remade, (self.pixels.shape, pickle.PickleBuffer(self.pixels))


def remade(shape: tuple[int, ...], buffer: Any) -> Image:
    return Image(np.ndarray(shape, "f8", buffer=buffer))


def unpickled_image(view: memoryview) -> Any:
    data = pickle.dumps(Image(np.zeros(SIZE // 8)), 5, buffer_callback=lambda _buffer: None)
    return pickle.loads(data, buffers=[view.toreadonly()]).pixels


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "view": lambda view: view,
    "slice": lambda view: view[10:20][1:2],
    "array": lambda view: np.frombuffer(view, "i8"),
    "view of a view of an array": lambda view: np.frombuffer(view, "i8").reshape(-1, 8)[::2].T,
    "unpickled array": unpickled,
    "one row of an unpickled array": lambda view: unpickled(view).reshape(8, -1)[3],
    "list of rows": lambda view: list(np.frombuffer(view, "i8").reshape(8, -1)),
    "array by its constructor": lambda view: np.ndarray((SIZE // 8,), "i8", buffer=view),
    "array by its constructor over a cast": lambda view: np.ndarray((SIZE // 8,), "i8", buffer=view.cast("q")),
    "slice of what the view is of": lambda view: view.obj[1:],
    "array over what an array is over": lambda view: np.ndarray((9,), "u1", buffer=np.frombuffer(view, "i8").base),
    "array over an array": lambda view: np.ndarray((9,), "u1", buffer=np.frombuffer(view, "i8")),
    "view of an array over an array": lambda view: np.asarray(np.frombuffer(view, "i8").view(np.recarray))[::2],
    "by a class of somebody's own": unpickled_image,
    "record array": lambda view: np.rec.array(np.frombuffer(view, "i8,i8"), copy=False),
    "masked array": lambda view: np.ma.MaskedArray(np.frombuffer(view, "i8"), copy=False),
    "iterator": lambda view: iter(np.frombuffer(view, "i8").flat),
    "buffer": pickle.PickleBuffer,
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_frame_is_released_when_the_last_that_lies_on_it_is_gone(holder: Callable[[memoryview], Any]) -> None:
    reader = Reader(written()[0])
    held = holder(reader.view())
    gc.collect()
    assert reader.released == []
    del held
    assert reader.released == [0]


def test_every_frame_over_one_segment_is_released_by_itself() -> None:
    reader = Reader(written(7)[0])
    views = [reader.view() for _ in range(3)]
    while views:
        assert not reader.segment.is_free()
        views.pop()
        assert reader.released == [0, 1, 2][len(views) :]
    assert reader.segment.is_free()


def test_no_answer_is_kept_but_one_for_each_mark() -> None:
    reader = Reader(written()[0])
    for _ in range(5):
        for view in [reader.view() for _ in range(3)]:
            del view
        assert reader.segment.is_free()
    (key,) = [mapping.key for mapping in reader.mappings._mapped.values()]
    assert len(segments._leases[key]) == 3
    reader.mappings.add(1, os.dup(reader.segment.descriptor))
    assert key not in segments._leases


def test_ctrl_c_as_the_last_array_goes_comes_behind_its_release() -> None:
    reader = Reader(written()[0])
    held = [np.frombuffer(reader.view(), "i8")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            # No step of Python's lies in between.
            list(map(partial.__call__, [partial(_thread.interrupt_main), partial(held.clear)]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert reader.released == [0]


def test_what_lies_on_a_segment_that_was_forgotten_stays_readable() -> None:
    segment, array = written()
    reader = Reader(segment)
    kept = np.frombuffer(reader.view(), "i8")
    reader.mappings.forget(1)
    reader.mappings.forget(1)
    np.testing.assert_array_equal(kept, array)
    with pytest.raises(KeyError):
        reader.view()


def test_a_kept_array_outlives_everybody() -> None:
    segment, array = written()
    reader = Reader(segment)
    kept = np.frombuffer(reader.view(), "i8")
    gone = weakref.ref(segment), weakref.ref(reader.mappings)
    (key,) = [mapping.key for mapping in reader.mappings._mapped.values()]
    assert key in segments._leases
    del segment, reader
    assert key not in segments._leases
    assert [each() for each in gone] == [None, None]
    np.testing.assert_array_equal(kept, array)
    del kept  # an error in here would be a warning, and warnings are errors


def test_a_mapping_cannot_be_written_to() -> None:
    view = Reader(written()[0]).view()
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def half_sealed() -> int:
    descriptor = os.memfd_create("half", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def sealed(size: int) -> int:
    descriptor = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
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
        lambda: sealed(0),
        lambda: sealed(MOST_MARKS),
        lambda: sealed(MOST_MARKS + SIZE - 1),
        plain_file,
        lambda: os.memfd_create("unsealed", os.MFD_CLOEXEC),
        lambda: os.eventfd(0),
        lambda: os.open("/dev/zero", os.O_RDONLY),
    ],
    ids=["half sealed", "empty", "marks alone", "no whole pages", "file", "unsealed", "eventfd", "device"],
)
def test_a_descriptor_that_is_no_segment_is_refused_and_closed(open_one: Callable[[], int]) -> None:
    mappings = Mappings()
    descriptor = open_one()
    with pytest.raises((OSError, ValueError)):
        mappings.add(1, descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(KeyError):
        mappings.view(1, 0)


def test_what_is_held_at_a_fork_is_never_released() -> None:
    """Nobody can tell when the child, which holds it too, lets go of it."""
    reader = Reader(written()[0])
    held = [np.frombuffer(reader.view(), "i8")]

    def drop() -> None:
        held.clear()
        gc.collect()
        assert reader.released == []

    assert ended_well(fork(drop))
    assert reader.released == []
    held.clear()
    assert reader.released == []
    np.frombuffer(reader.view(), "i8")  # held by nobody, and not at the fork
    assert reader.released == [1]
    assert not reader.segment.is_free()


AMID_A_FORK = """
import os, sys, threading
import numpy as np

def before():
    if is_armed:
        begun.set()
        assert taken.wait(30)

def after():
    if is_armed:
        forked.set()
        assert dropped.wait(30)

is_armed = False
begun, taken, forked, dropped = [threading.Event() for _ in range(4)]
os.register_at_fork(before=before, after_in_parent=after)  # around those of what is imported later

from cgexec.engine.segments import Mappings, Segment

segment = Segment(1, 1 << 20)
mappings = Mappings()
mappings.add(1, os.dup(segment.descriptor))
segment.write([memoryview(bytes([7]) * 1000)])

def read():
    assert begun.wait(30)
    HOLD(np.frombuffer(mappings.view(1, segment.lend()), "u1"))
    taken.set()
    assert forked.wait(30)
    DROP
    dropped.set()

held, of_thread = [], threading.local()
reading = threading.Thread(target=read)
reading.start()
is_armed = True
child = os.fork()
if child == 0:
    os._exit(0)
reading.join()
os.waitpid(child, 0)
print(segment.is_free())
mappings.view(1, segment.lend())
print([segment._marks[mark] for mark in range(2)])
"""


@pytest.mark.parametrize(
    ("hold", "drop"),
    [("held.append", "held.clear()"), ("(lambda array: setattr(of_thread, 'kept', array))", "pass")],
    ids=["the parent lets go", "the child's copy goes with the thread's state"],
)
def test_what_another_thread_takes_amid_a_fork_is_never_released(hold: str, drop: str) -> None:
    script = AMID_A_FORK.replace("HOLD", hold).replace("DROP", drop)
    python = [sys.executable, "-W", "ignore::DeprecationWarning", "-c"]  # of forks beside threads, as of 3.12
    done = subprocess.run([*python, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.split("\n")[:2]) == (0, "", ["False", "[0, 1]"])


def test_what_is_received_as_a_signal_handler_forks_is_never_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes go on with it."""
    reader = Reader(written()[0])
    make = np.frombuffer

    def forks_behind(data: memoryview, kind: str) -> np.ndarray[Any, Any]:
        found = make(data, kind)
        assert ended_well(fork(lambda: None))
        return found

    monkeypatch.setattr(np, "frombuffer", forks_behind)
    reader.view()
    monkeypatch.undo()
    assert reader.released == []
    reader.view()
    assert reader.released == [1]


def test_an_array_that_lives_until_the_interpreter_exits_makes_no_noise() -> None:
    script = """
import os
import numpy as np
from cgexec.engine.segments import Mappings, Segment
segment = Segment(1, 1 << 20)
mappings = Mappings()
mappings.add(1, os.dup(segment.descriptor))
mappings.view(1, segment.lend())
print(segment.is_free())
kept = np.frombuffer(mappings.view(1, segment.lend()), "i8")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "True")
