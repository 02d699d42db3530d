"""Values to bytes and back: nothing changes but that arrays come out read-only, over memory of their own."""

from __future__ import annotations

import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from cgexec.engine import arrays as arrays_module
from cgexec.engine import frames
from cgexec.engine import payload as payload_module
from cgexec.engine.frames import (
    HEADER,
    SHORT_BYTES,
    Encoded,
    Frame,
    Kind,
    join,
    offsets,
    pack,
    unpack,
    unpack_header,
    unpack_region,
)
from cgexec.engine.payload import LARGE_BYTES, decode, encode, is_short, loads_at_once

Array = np.ndarray[Any, Any]


def in_one_piece(encoded: Encoded) -> Frame:
    return unpack(join(pack(encoded, 1, 2)))


def through_a_segment(encoded: Encoded) -> Frame:
    if not encoded.buffers:  # it names none
        return in_one_piece(encoded)
    data = join(pack(encoded, 1, 2, 7))
    shared = bytearray(encoded.buffer_bytes())
    for buffer, start in zip(encoded.buffers, offsets(0, [b.nbytes for b in encoded.buffers]), strict=True):
        shared[start : start + buffer.nbytes] = buffer
    return unpack_region(unpack_header(data), memoryview(data)[HEADER.size :], memoryview(shared))


TRAVELS = pytest.mark.parametrize("travel", [in_one_piece, through_a_segment])
Travel = Callable[[Encoded], Frame]


@dataclass
class Batch:
    data: Any
    names: list[str] = field(default_factory=list)


class Text(str):
    """A plain type's subclass, which is none itself."""

    __slots__ = ()


class Number(int):
    __slots__ = ()


PLAIN = [None, True, 0, -(2**100), 0.5, 1j, "text", "\ud800", "x" * LARGE_BYTES, float("inf")]
BYTES = [b"", b"bytes", bytes(LARGE_BYTES - 1), bytes(LARGE_BYTES), bytes(range(256)) * 4096]
CONTAINERS = [
    {},
    (),
    {"a": 1, "b": b"x", None: 1.5},
    [1, "two", True],
    ("x",) * 100,
    {number: str(number) for number in range(100)},
    {"a": Batch(1, ["x"])},
    [{"deep": [Batch]}],
]
NESTED = [
    {"a": [1, (2, {3})], None: b"x" * LARGE_BYTES},
    [],
    bytearray(b"abc"),
    bytearray(LARGE_BYTES),
    Batch(1, ["x"]),
    Text("text"),
    Number(7),
    np.float64(0.5),
    range(3),
    Batch,
]


@TRAVELS
@pytest.mark.parametrize(
    "value", PLAIN + BYTES + CONTAINERS + NESTED, ids=lambda value: f"{type(value).__name__} {str(value)[:12]!r}"
)
def test_a_value_stays_equal_and_of_its_type(value: Any, travel: Travel) -> None:
    found = decode(travel(encode(value)))
    assert found == value
    assert type(found) is type(value)


def test_what_has_no_module_is_carried_inside_containers_too() -> None:
    def local() -> str:
        return "found"

    for value in ({"f": local}, [local], (1, local)):
        found = decode(in_one_piece(encode(value)))
        assert type(found) is type(value)
        assert (list(found.values()) if isinstance(found, dict) else list(found))[-1]() == "found"


def test_a_serialiser_of_the_callers_for_arrays_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cloudpickle.CloudPickler.dispatch, np.ndarray, lambda array: (list, (array.tolist(),)))
    for value in (np.arange(3), [np.arange(3)], {"a": np.arange(3)}):
        found = decode(in_one_piece(encode(value)))
        assert (found["a"] if isinstance(found, dict) else found) in ([0, 1, 2], [[0, 1, 2]])


def test_bytes_travel_as_they_are() -> None:
    small, large = encode(b"x" * (LARGE_BYTES - 1)), encode(b"x" * LARGE_BYTES)
    assert (small.kind, len(small.payload), len(small.buffers)) == (Kind.BYTES, LARGE_BYTES - 1, 0)
    assert (large.kind, large.payload, [buffer.nbytes for buffer in large.buffers]) == (Kind.BYTES, b"", [LARGE_BYTES])


class Number(int):
    """A number of one's own."""


PLAIN = [1, 2.5, True, None, "text", [1, "a"], (b"x", None), {"a": 1, 2: "b"}, [], {}]
NOT_PLAIN: list[Any] = [Number(1), {"a": Number(1)}, {Number(1): "a"}, [[1]], {"a": {}}, {1}, object, Fraction(1, 3)]


def test_what_runs_nobodys_code_as_it_is_loaded_says_so() -> None:
    assert {encode(value).kind for value in [*PLAIN, {"a": np.arange(3)}, np.arange(3)[::-1]]} == {Kind.PLAIN}
    assert {encode(value).kind for value in NOT_PLAIN} == {Kind.VALUE}


def frame_of(value: Any) -> Frame:
    encoded = encode(value)
    return Frame(encoded.kind, 1, 2, encoded.payload, encoded.buffers)


def test_what_takes_no_time_is_short_and_plain() -> None:
    long = ["x" * (SHORT_BYTES + 600), b"x" * (SHORT_BYTES + 600), 1 << 8 * (SHORT_BYTES + 600), ["x" * 1000] * 20]
    objects = np.array([object()])
    for value in [*PLAIN, "x" * SHORT_BYTES, b"x" * SHORT_BYTES, [1] * 64, np.zeros(SHORT_BYTES, "u1")]:
        assert is_short(value)
    for value in [*PLAIN, "x" * (SHORT_BYTES - 50), b"x" * SHORT_BYTES, np.zeros(SHORT_BYTES, "u1")]:
        assert loads_at_once(frame_of(value))
    for value in [*NOT_PLAIN, *long, [1] * 65, {"a": ["x"]}, np.zeros(SHORT_BYTES + 1, "u1"), objects]:
        assert not is_short(value)
    for value in [
        *NOT_PLAIN,
        *long[:3],
        ["x" * 1000 + str(number) for number in range(20)],
        np.zeros(1 << 15),
        objects,
    ]:
        assert not loads_at_once(frame_of(value))


def test_a_subclass_of_bytes_is_not_taken_for_bytes() -> None:
    class Named(bytes):
        name = "n"

    found = decode(in_one_piece(encode(Named(b"abc"))))
    assert (found, found.name, type(found).__name__) == (b"abc", "n", "Named")


def test_functions_and_classes_that_have_no_module_are_carried() -> None:
    class Local:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def times(self, value: int) -> int:
            return self.factor * value

    add: Callable[[int], int] = lambda value: value + 1  # noqa: E731 - a lambda is what is tested
    found_add, found_local = decode(in_one_piece(encode((add, Local(3)))))
    assert found_add(1) == 2
    assert found_local.times(5) == 15


# -- arrays ------------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, Array] = {
    "small": np.arange(3.0),
    "large": np.arange(LARGE_BYTES, dtype="f8"),
    "fortran order": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "axes swapped": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "no dimensions": np.array(3.5),
    "empty": np.zeros((0, 3)),
    "empty elements": np.zeros(3, "S0"),
    "structured": np.array([(1, 2.5), (3, 4.5)], "i4,f8"),
    "text": np.array(["a", "bc"]),
    "bool": np.array([True, False]),
    "long double": np.arange(3, dtype="g"),
    "read-only": np.frombuffer(bytes(range(48)), "i8"),
}
# numpy does not leave these out of the pickle:
ARRAYS_IN_THE_PICKLE: dict[str, Array] = {
    "with gaps": np.arange(20)[::2],
    "large with gaps": np.arange(2 * LARGE_BYTES)[::2],
    "backwards": np.arange(20)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "objects": np.array([1, "a", None], object),
}
OTHERWISE = {"i": -1, "M": np.datetime64("1999-12-31"), "O": "otherwise"}  # by kind: what none of them holds
EVERY_ARRAY = {**ARRAYS, **ARRAYS_IN_THE_PICKLE}
WRAPPINGS: dict[str, Callable[[Array], Any]] = {
    "alone": lambda array: array,
    "nested": lambda array: {"a": [(array, 1)], "b": "text"},
    "in an object": lambda array: Batch(array),
    "twice": lambda array: [array, array],
}


def leaves_the_pickle(array: Array) -> bool:
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(array, 5, buffer_callback=buffers.append)
    return bool(buffers)


def arrays_in(value: Any) -> Iterator[Array]:
    match value:
        case np.ndarray():
            yield value
        case Batch(data):
            yield from arrays_in(data)
        case dict():
            yield from arrays_in(list(value.values()))
        case list() | tuple():
            for item in value:
                yield from arrays_in(item)


@TRAVELS
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("array", EVERY_ARRAY.values(), ids=EVERY_ARRAY)
def test_arrays_stay_equal_and_get_memory_of_their_own(
    array: Array, wrap: Callable[[Array], Any], travel: Travel
) -> None:
    value = wrap(array)
    found = list(arrays_in(decode(travel(encode(value)))))
    assert len(found) == len(list(arrays_in(value)))
    for each in found:
        np.testing.assert_array_equal(each, array)
        assert (each.dtype, each.shape) == (array.dtype, array.shape)
        assert not np.shares_memory(each, array)


@TRAVELS
@pytest.mark.parametrize(("name", "array"), ARRAYS.items(), ids=ARRAYS)
def test_arrays_are_read_only(name: str, array: Array, travel: Travel) -> None:
    found = decode(travel(encode(array)))
    if not leaves_the_pickle(array):  # arrays with swapped axes, before numpy 2.3: private, and writable
        assert name == "axes swapped"
        return
    assert not found.flags.writeable
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        found[...] = found


@TRAVELS
@pytest.mark.parametrize("array", ARRAYS_IN_THE_PICKLE.values(), ids=ARRAYS_IN_THE_PICKLE)
def test_arrays_that_numpy_keeps_in_the_pickle_come_out_writable_and_private(array: Array, travel: Travel) -> None:
    before, encoded = array.copy(), encode({"one": array, "other": array[:]})
    payload, buffers = encoded.payload, [bytes(buffer) for buffer in encoded.buffers]
    frame = travel(encoded)
    first, second = decode(frame), decode(frame)
    changed = first["one"]
    np.testing.assert_array_equal(changed, before)
    assert changed.flags.writeable
    changed[...] = OTHERWISE[array.dtype.kind]
    assert set(changed.ravel().tolist()).isdisjoint(before.ravel().tolist())
    for unchanged in (array, first["other"], *second.values(), *decode(frame).values()):
        np.testing.assert_array_equal(unchanged, before)
    assert (encoded.payload, [bytes(buffer) for buffer in encoded.buffers]) == (payload, buffers)
    assert (bytes(frame.payload), [bytes(buffer) for buffer in frame.buffers]) == (payload, buffers)


SHAPES = [(), (1,), (3,), (2, 3), (1,) * 32, (5000,), (50, 70)]


@TRAVELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", sorted(arrays_module._CODES))
def test_arrays_of_numbers_need_no_pickle(code: str, shape: tuple[int, ...], travel: Travel) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 100).astype(code).reshape(shape)
    encoded = encode(array)
    assert encoded.kind is Kind.ARRAY
    if encoded.buffers or travel is in_one_piece:
        found = decode(travel(encoded))
        assert (type(found), found.dtype, found.shape) == (np.ndarray, array.dtype, array.shape)
        assert found.dtype.char == code
        assert found.flags.aligned
        assert not found.flags.writeable
        assert not np.shares_memory(found, array)
        np.testing.assert_array_equal(found, array)


class Named(np.ndarray):
    """An array of somebody's own."""


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3).astype(">i8"),
        np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        np.zeros((2, 0)),
        np.asfortranarray(np.ones((3, 4))),
        np.zeros(3, "M8[D]"),
        np.zeros(3, "U4"),
        np.zeros(3, "i4,f8"),
        np.arange(3).view(Named),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_what_is_more_than_its_numbers_is_pickled(array: Array) -> None:
    encoded = encode(array)
    assert encoded.kind in (Kind.PLAIN, Kind.VALUE)
    found = decode(in_one_piece(encoded))
    assert (type(found), found.dtype, found.shape) == (type(array), array.dtype, array.shape)
    assert found.flags.f_contiguous == array.flags.f_contiguous
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("payload", "buffers"),
    [
        (b"", ()),
        (b"d", ()),
        (b"d\x01" + bytes(6), ()),
        (b"d\xff" + bytes(6), ()),
        (b"Z\x00" + bytes(62) + bytes(8), ()),
        (b"O\x00" + bytes(62) + bytes(8), ()),
        (b"d\x01" + bytes(6) + b"\xff" * 8 + bytes(48) + bytes(8), ()),
        (b"d\x00" + bytes(62) + bytes(7), ()),
        (b"d\x00" + bytes(6), (memoryview(bytes(7)),)),
        (b"d\x00" + bytes(6), (memoryview(bytes(8)), memoryview(bytes(8)))),
    ],
)
def test_what_is_no_array_is_refused(payload: bytes, buffers: Any) -> None:
    with pytest.raises((ArithmeticError, LookupError, ValueError, struct.error)):
        decode(Frame(Kind.ARRAY, 1, 2, payload, buffers))


@TRAVELS
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_arrays_are_aligned(dtype: str, travel: Travel) -> None:
    found = decode(travel(encode([np.zeros(3, "i1"), np.zeros(5, dtype), np.zeros(1, dtype)])))
    assert all(each.flags.aligned for each in found)


def test_an_array_that_stands_twice_is_still_one() -> None:
    array = np.arange(4)
    first, second = decode(in_one_piece(encode([array, array])))
    assert first is second


def test_the_buffers_of_an_array_are_views_and_the_pickle_does_not_hold_them() -> None:
    array = np.arange(LARGE_BYTES, dtype="f8")
    encoded = encode({"a": array})
    (buffer,) = encoded.buffers
    assert np.shares_memory(np.frombuffer(buffer, "f8"), array)
    assert len(encoded.payload) < 1000
    assert encoded.buffer_bytes() == array.nbytes


@TRAVELS
@pytest.mark.parametrize("num_more", [0, 1])
def test_a_value_of_more_buffers_than_a_frame_holds_is_pickled_in_band(
    monkeypatch: pytest.MonkeyPatch, travel: Travel, num_more: int
) -> None:
    monkeypatch.setattr(payload_module, "MOST_BUFFERS", 8)
    monkeypatch.setattr(frames, "MOST_BUFFERS", 8)
    arrays = [np.arange(index, index + 5.0) for index in range(8 + num_more)]
    encoded = encode(arrays)
    assert (encoded.kind, len(encoded.buffers)) == ((Kind.VALUE, 0) if num_more else (Kind.PLAIN, 8))
    if not num_more or travel is in_one_piece:  # without buffers there is no segment to go through
        found = decode(travel(encoded))
        assert [each.tolist() for each in found] == [each.tolist() for each in arrays]
        assert not any(np.shares_memory(each, other) for each in found for other in arrays)


# -- what cannot be carried --------------------------------------------------------------------------------------------


class Refuses:
    """Raises as it is pickled."""

    def __reduce__(self) -> Any:
        raise ConnectionError("not me")


class RefusesToLoad:
    """Raises as it is loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (threading.Lock(), TypeError),
        ([threading.Lock()], TypeError),
        ((each for each in ()), TypeError),
        (Refuses(), ConnectionError),
        ({"a": Refuses()}, ConnectionError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_cannot_be_pickled_raises_what_pickling_it_raises(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encode(value)


def test_what_cannot_be_loaded_raises_what_loading_it_raises() -> None:
    with pytest.raises(ValueError, match="not a number"):
        decode(in_one_piece(encode(RefusesToLoad())))


def test_a_payload_that_is_no_pickle_raises() -> None:
    with pytest.raises(pickle.UnpicklingError):
        decode(Frame(Kind.VALUE, 1, 2, b"\xff\xff"))


def test_a_pickle_whose_buffers_are_missing_raises() -> None:
    encoded = encode(np.arange(4))
    with pytest.raises(pickle.UnpicklingError):
        decode(Frame(Kind.VALUE, 1, 2, encoded.payload))
