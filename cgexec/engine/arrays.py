"""Arrays of numbers to bytes and back, without a pickle: that takes numpy several times as long as a short execution.

::

    payload of a frame of kind ARRAY
    type code  dimensions  (6 bytes)  shape │ padding │ the numbers, of a short array; a longer one's are the buffer
    1 byte     1 byte                 8 each│  to 64  │
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from cgexec.engine.frames import SHORT_BYTES, Bytes, Encoded, Frame, Kind, aligned, made
from cgexec.engine.late_numpy import numpy

if TYPE_CHECKING:
    import numpy as np

_ARRAY = Kind.ARRAY
_HEAD_BYTES = 8

# The types that are nothing but their code. Others, in another byte order or with metadata, are other objects.
_CODES = "?bBhHiIlLqQefdgFDG"
_MOST_DIMENSIONS = 32
_SHAPES = [struct.Struct(f"<BB6x{number}Q") for number in range(_MOST_DIMENSIONS + 1)]


@cache
def _types() -> dict[int, np.dtype[Any]]:
    return {ord(code): numpy().dtype(code) for code in _CODES}


def encode_array(array: Any) -> Encoded | None:
    """Return an array, which is of numpy's own class, ready to be sent; None if it takes a pickle to say what it is.

    Its buffer is a view.
    """
    kind: np.dtype[Any] = array.dtype
    if _types().get(ord(kind.char)) is not kind or not array.flags.c_contiguous or array.ndim > _MOST_DIMENSIONS:
        return None
    num_bytes = array.nbytes
    if num_bytes == 0:
        return None  # there would be nothing to make it of
    head = _SHAPES[array.ndim].pack(ord(kind.char), array.ndim, *array.shape)
    if num_bytes > SHORT_BYTES:  # else it is copied into the payload: a frame without buffers is seen at a glance
        return made(Encoded, (_ARRAY, head, (PickleBuffer(array).raw(),)))
    return made(Encoded, (_ARRAY, head.ljust(aligned(len(head)), b"\0") + array.tobytes(), ()))


def made_ahead(frame: Frame) -> Frame:
    """Return ``frame`` with its array in the place of the buffer, if it is of one, whatever the buffer is to hold."""
    if frame.kind is not _ARRAY:
        return frame
    try:
        array = decode_array(frame.payload, frame.buffers)
    except Exception:  # noqa: BLE001 - whoever loads it meets the error
        return frame
    return made(Frame, (_ARRAY, frame.generation, frame.execution, frame.payload, (array,)))


def decode_array(payload: Bytes, buffers: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return the array, read-only, over the memory of ``payload``, or of the buffer; or the one that is there.

    Raises ArithmeticError, LookupError, ValueError or ``struct.error`` for what ``encode_array`` has not made.
    """
    if buffers and type(buffers[0]) is not memoryview:
        array: np.ndarray[Any, Any] = buffers[0]
        return array
    code, num_dimensions = payload[0], payload[1]
    _, _, *shape = _SHAPES[num_dimensions].unpack_from(payload)
    if buffers:
        (buffer,) = buffers
        memory: Any = buffer.toreadonly()
    else:
        start = aligned(_HEAD_BYTES * (num_dimensions + 1))
        memory = memoryview(payload)[start:].toreadonly()
    found: np.ndarray[Any, Any] = numpy().frombuffer(memory, _types()[code]).reshape(shape)
    return found
