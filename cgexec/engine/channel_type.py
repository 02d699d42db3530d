"""The type hint that decides how a node's output travels: the public door into Ray's channels.

Every node of a graph has a type hint, and its ``create_channel`` makes the channel that carries the node's output, in
the process that writes it. Nodes with a hint of their own (``with_tensor_transport``, collectives) keep it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from ray.dag import DAGContext
from ray.experimental.channel.common import ChannelOutputType
from ray.experimental.channel.shared_memory_channel import SharedMemoryType

_creating = threading.Lock()


class SizedSharedMemory(SharedMemoryType):
    """Ray's shared-memory channels, with buffers of the size that was asked for.

    ``experimental_compile(_buffer_size_bytes=...)`` does not reach the buffers: they take the writer's ``DAGContext``.
    """

    def __init__(self, buffer_size_bytes: int, num_buffers: int) -> None:
        super().__init__(buffer_size_bytes=buffer_size_bytes, num_shm_buffers=num_buffers)

    def create_channel(self, *args: Any, **kwargs: Any) -> Any:
        """Return the channel that Ray would make, its buffers ``buffer_size_bytes`` long."""
        context = DAGContext.get_current()
        with _creating:
            before = context.buffer_size_bytes
            context.buffer_size_bytes = self.buffer_size_bytes
            try:
                return super().create_channel(*args, **kwargs)
            finally:
                context.buffer_size_bytes = before


def give_hints(nodes: Iterable[Any], hint: ChannelOutputType) -> None:
    """Set ``hint`` on every node that has none of its own."""
    for node in nodes:
        # Exactly this class, as Ray itself asks: a subclass is somebody's choice.
        if type(node.type_hint) is ChannelOutputType:
            node.type_hint = hint
