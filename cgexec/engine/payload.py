"""Values to bytes and back.

Arrays and other buffers stay out of the pickle (protocol 5), so that they are copied once. They are read-only where
they are loaded, whatever their size and however they travelled: they may lie in memory that other readers see. (What
numpy itself puts into the pickle is private and stays writable: arrays with gaps, of objects, of dates. So is what is
in a value of a million buffers and more, which travels as a pickle alone.)
"""

from __future__ import annotations

import pickle
from typing import Any, cast

from ray import cloudpickle

from cgexec.engine.frames import MOST_BUFFERS, Encoded, Frame, Kind

LARGE_BYTES = 1 << 17  # from here on a buffer goes through shared memory where it can

# Types that run no code of anybody's as they are serialised: pickle does with them as cloudpickle, and sooner.
_SCALARS = frozenset({str, int, float, complex, bool, type(None)})
PLAIN = _SCALARS | {bytes}
_CONTAINERS = frozenset({dict, list, tuple})
_MOST_PLAIN = 64  # items of a dict, list or tuple that are worth a look at each


def encode(value: Any) -> Encoded:
    """Return ``value``, unless it is, ready to be sent. Its buffers are views: send them before the value changes.

    Raises whatever the value's own ``__reduce__`` raises, and TypeError or PicklingError for what has none.
    """
    kind = type(value)
    if kind is bytes:
        if len(value) < LARGE_BYTES:
            return Encoded(Kind.BYTES, value)
        return Encoded(Kind.BYTES, b"", (memoryview(value),))
    if kind in _SCALARS or (kind in _CONTAINERS and _is_plain(value)):
        return Encoded(Kind.VALUE, pickle.dumps(value, 5))
    if kind is Encoded:
        return cast("Encoded", value)
    buffers: list[pickle.PickleBuffer] = []
    payload = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    if len(buffers) > MOST_BUFFERS:
        return Encoded(Kind.VALUE, cloudpickle.dumps(value, protocol=5))
    return Encoded(Kind.VALUE, payload, [buffer.raw() for buffer in buffers])


def _is_plain(value: Any) -> bool:
    """Return whether a dict, list or tuple is a short one of nothing but plain values."""
    if len(value) > _MOST_PLAIN or not PLAIN.issuperset(map(type, value)):
        return False
    return type(value) is not dict or PLAIN.issuperset(map(type, value.values()))


def kept(encoded: Encoded) -> Encoded:
    """Return ``encoded`` with buffers of its own: it stays what it is, whatever becomes of the value."""
    return Encoded(encoded.kind, encoded.payload, [memoryview(bytes(buffer)) for buffer in encoded.buffers])


def decode(frame: Frame | Encoded) -> Any:
    """Return the value of a frame of kind VALUE or BYTES. Raises whatever loading it raises."""
    if frame.kind is Kind.BYTES:
        return bytes(frame.buffers[0] if frame.buffers else frame.payload)
    return pickle.loads(frame.payload, buffers=[buffer.toreadonly() for buffer in frame.buffers])
