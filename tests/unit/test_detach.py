"""Results own their memory: what stood on Ray's buffers stands on private ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cgexec.engine.detach import detached


def foreign(shape: tuple[int, ...] = (4, 6), dtype: str = "i8") -> tuple[bytearray, np.ndarray[Any, Any]]:
    """Return memory that somebody else may overwrite, and an array that is a view of it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = bytearray(index % 251 for index in range(size))
    return memory, np.frombuffer(memory, dtype).reshape(shape)


@dataclass
class Batch:
    data: Any
    names: list[str] = field(default_factory=list)


def arrays_in(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    match value:
        case np.ndarray():
            yield value
        case Batch(data):
            yield from arrays_in(data)
        case dict():
            for item in value.values():
                yield from arrays_in(item)
        case list() | tuple():
            for item in value:
                yield from arrays_in(item)


WRAPPINGS = {
    "array": lambda array: array,
    "fortran order": lambda array: array.T,
    "list": lambda array: [array, 1],
    "tuple": lambda array: (array, None),
    "dict": lambda array: {"a": array, "b": "text"},
    "deep": lambda array: {"a": [{"b": (array, [array[0]])}]},
    "object": lambda array: Batch(array, ["x"]),
    "rows": lambda array: list(array),
    "with gaps": lambda array: array[:, ::2],
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_arrays_get_private_memory_wherever_they_stand(wrap: Any) -> None:
    memory, array = foreign()
    value = wrap(array)
    result = detached(value)
    expected = [each.copy() for each in arrays_in(value)]
    memory[:] = bytes(len(memory))  # as Ray does with the ring slot

    found = list(arrays_in(result))
    assert type(result) is type(value)
    assert len(found) == len(expected) > 0
    for each, original in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, original)
        assert each.dtype == original.dtype
        assert not np.shares_memory(each, array)


@pytest.mark.parametrize("dtype", ["i1", "u2", "f4", "f8", "c16", "?", "S3", "U2", "i4,f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 4)], ids=str)
def test_arrays_of_any_type_and_shape_stay_equal(dtype: str, shape: tuple[int, ...]) -> None:
    _, array = foreign(shape, "u1") if dtype == "?" else (None, np.zeros(shape, dtype))
    array = (array % 2).astype("?") if dtype == "?" else array
    result = detached(array)
    np.testing.assert_array_equal(result, array)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)


def test_an_array_that_stands_twice_is_still_one() -> None:
    _, array = foreign()
    first, second = detached([array, array])
    assert first is second


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        2**100,
        0.5,
        1j,
        "text",
        b"bytes",
    ],
    ids=repr,
)
def test_a_plain_value_is_returned_as_it_is(value: Any) -> None:
    assert detached(value) is value


@pytest.mark.parametrize("value", [[], (1, (2, "a")), {"a": {"b": [1]}}, {1, 2}, Batch(1), np.float64(0.5)], ids=repr)
def test_a_value_without_buffers_stays_equal(value: Any) -> None:
    result = detached(value)
    assert result == value
    assert type(result) is type(value)


def test_a_whole_array_that_was_read_only_stays_read_only() -> None:
    array = np.frombuffer(bytes(range(48)), "i8")
    assert not detached(array).flags.writeable


def test_a_value_that_cannot_be_pickled_again_is_returned_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    value = [foreign()[1], threading.Lock()]
    assert detached(value) is value
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert type(value).__name__ in record.getMessage()


class LoadsOnlyOnce:
    """Can be pickled, and not loaded."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise OSError("not again")


def test_a_value_that_cannot_be_loaded_again_is_returned_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    value = LoadsOnlyOnce(foreign()[1])
    assert detached(value) is value
    assert "not again" in caplog.text
