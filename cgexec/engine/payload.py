"""Values to bytes and back.

Arrays and other buffers stay out of the pickle (protocol 5), so that they are copied once. They are read-only where
they are loaded, whatever their size and however they travelled: they may lie in memory that other readers see. (What
numpy itself puts into the pickle is private and stays writable: arrays with gaps, of objects, of dates. So is what is
in a value of a million buffers and more, which travels as a pickle alone.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pickle import PickleBuffer, dumps, loads
from typing import Any

from ray import cloudpickle

from cgexec.engine.arrays import decode_array, encode_array
from cgexec.engine.frames import MOST_BUFFERS, SHORT_BYTES, Encoded, Frame, Kind, made
from cgexec.engine.late_numpy import is_array

# Looked up on an enum, a member takes several times as long.
_VALUE, _BYTES, _PLAIN_VALUE, _ARRAY = Kind.VALUE, Kind.BYTES, Kind.PLAIN, Kind.ARRAY
NOBODYS_CODE = frozenset({_BYTES, _PLAIN_VALUE, _ARRAY})  # to load it runs none

# From here on a buffer goes through shared memory where it can: there and back 35 us for an array, whether of 20 kB or
# of 90, where a pipe takes 33 for 20 kB, 41 for 40, 51 for 65 and 66 for 90. For bytes, which are copied once more, it
# is 29 to 35, and 17, 25, 34 and 57.
LARGE_BYTES = 3 << 14

# Types that run no code of anybody's as they are serialised: pickle does with them as cloudpickle, ten times as fast.
_SCALARS = frozenset({str, int, float, bool, type(None)})
_PLAIN = _SCALARS | {bytes}
_CONTAINERS = frozenset({dict, list, tuple})
_HEAD_BYTES = 512  # of a short array, at most
_MOST_PLAIN = 64  # items of a container that are worth a look at each


def encode(value: Any) -> Encoded:
    """Return ``value``, unless it is, ready to be sent. Its buffers are views: send them before the value changes.

    Raises whatever the value's own ``__reduce__`` raises, and TypeError or PicklingError for what has none.
    """
    return encode_plain(value) or (value if type(value) is Encoded else _encoded(value, _VALUE, cloudpickle.dumps))


def encode_plain(value: Any) -> Encoded | None:
    """Do as ``encode``, if nothing that belongs to the value has to be run for it; else return None."""
    kind = type(value)
    if kind is bytes:
        if len(value) < LARGE_BYTES:
            return made(Encoded, (_BYTES, value, ()))
        return Encoded(_BYTES, b"", (memoryview(value),))
    if kind in _SCALARS:
        return made(Encoded, (_PLAIN_VALUE, dumps(value, 5), ()))
    if is_array(value) and not _is_registered(kind) and (ready := encode_array(value)):
        return ready
    return _encoded(value, _PLAIN_VALUE, dumps) if _is_plain(value) else None


def _encoded(value: Any, kind: Kind, serialise: Callable[..., bytes]) -> Encoded:
    buffers: list[PickleBuffer] = []
    payload = serialise(value, protocol=5, buffer_callback=buffers.append)
    if len(buffers) > MOST_BUFFERS:
        return Encoded(_VALUE, cloudpickle.dumps(value, protocol=5))
    return made(Encoded, (kind, payload, [buffer.raw() for buffer in buffers] if buffers else ()))


def _is_plain(value: Any) -> bool:
    """Return whether a value is an array of numbers, or a short container of nothing but plain values and such."""
    kind = type(value)
    if kind is dict:
        return len(value) <= _MOST_PLAIN and _PLAIN.issuperset(map(type, value)) and _are_plain(value.values())
    if kind is list or kind is tuple:
        return len(value) <= _MOST_PLAIN and _are_plain(value)
    return _is_numbers(value)


def _are_plain(values: Collection[Any]) -> bool:
    return _PLAIN.issuperset(map(type, values)) or all(type(each) in _PLAIN or _is_numbers(each) for each in values)


def _is_numbers(value: Any) -> bool:
    if not is_array(value) or value.dtype.isbuiltin != 1 or value.dtype.hasobject:
        return False
    return not _is_registered(type(value))


def _is_registered(kind: type) -> bool:
    """Return whether a class has somebody's code to serialise it: here ray.util.register_serializer puts that."""
    for known in cloudpickle.CloudPickler.dispatch.maps:  # noqa: SIM110 - any(), as in a ChainMap's own, takes twice
        if kind in known:
            return True
    return False


def is_short(value: Any) -> bool:
    """Return whether a value is serialised, and sent, in no time to speak of, and by nobody's code."""
    kind = type(value)
    if kind in _PLAIN:
        return _num_bytes(value) <= SHORT_BYTES
    if kind not in _CONTAINERS:
        return _is_numbers(value) and value.nbytes <= SHORT_BYTES
    if len(value) > _MOST_PLAIN:
        return False
    parts = [*value, *value.values()] if kind is dict else value
    return _PLAIN.issuperset(map(type, parts)) and sum(map(_num_bytes, parts)) <= SHORT_BYTES


def _num_bytes(value: Any) -> int:
    """Return about how long a bytes object or a scalar is."""
    kind = type(value)
    if kind is bytes or kind is str:
        return len(value)
    return value.bit_length() // 8 if kind is int else 8


def loads_at_once(frame: Frame) -> bool:
    """Return whether the value of a frame is loaded in no time to speak of, and by nobody's code."""
    return frame.kind in NOBODYS_CODE and not frame.buffers and len(frame.payload) <= SHORT_BYTES + _HEAD_BYTES


def kept(encoded: Encoded) -> Encoded:
    """Return ``encoded`` with buffers of its own: it stays what it is, whatever becomes of the value."""
    return Encoded(encoded.kind, encoded.payload, [memoryview(bytes(buffer)) for buffer in encoded.buffers])


def decode(frame: Frame | Encoded) -> Any:
    """Return the value of a frame of kind VALUE, PLAIN, BYTES or ARRAY. Raises whatever loading it raises."""
    payload, buffers = frame.payload, frame.buffers
    if frame.kind is _BYTES:
        return bytes(buffers[0] if buffers else payload)
    if frame.kind is _ARRAY:
        return decode_array(payload, buffers)
    if not buffers:
        return loads(payload)
    return loads(payload, buffers=[buffer.toreadonly() for buffer in buffers])
