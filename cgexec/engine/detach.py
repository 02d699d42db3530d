"""Results that own their memory.

What Ray reads from a channel is not copied: an array is a view of the ring slot it arrived in. Holding it pins the
slot, so that the execution which wants the slot next looks hung; touching it after ``ray.shutdown()`` is a segmentation
fault. A result is therefore given memory of its own before it is handed out.
"""

from __future__ import annotations

import pickle
from typing import Any

from ray import cloudpickle

from cgexec.log import logger

_logger = logger(__name__)

_HOLDS_NO_BUFFER = frozenset({bytes, str, int, float, complex, bool, type(None)})


def detached(value: Any) -> Any:
    """Return an equal value on private memory; a buffer that was read-only stays so.

    A value that arrived but cannot be pickled again is returned as it is.
    """
    if type(value) in _HOLDS_NO_BUFFER:
        return value
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])
    except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything; the value itself is good
        _logger.warning("a result of type %s stays on Ray's memory: %s", type(value).__name__, error)
        return value
