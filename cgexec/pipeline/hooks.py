"""Hooks of a graph's policy that belong to an object which owns the graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cgexec.topology import HostInfo


def weakly(method: Callable[..., object]) -> Callable[[int, Sequence[HostInfo], Sequence[Any]], None]:
    """Return a hook that does not keep its object alive: one that is forgotten is closed, with its graph."""
    weak = weakref.WeakMethod(method)

    def hook(generation: int, infos: Sequence[HostInfo], actors: Sequence[Any]) -> None:
        strong = weak()
        if strong is not None:
            strong(generation, infos, actors)

    return hook
