"""Something of ours in the place of something of Ray's, for the threads that compile a graph of ours and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StandIn:
    """Stands for what ``owner`` has under ``name``, a function or class, while any thread wants another there."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._rays_own: Callable[..., Any] = getattr(owner, name)
        self._as_it_was = vars(owner).get(name, self._rays_own)  # a static method is to be one again
        self._wanted = threading.local()
        self._installing = threading.Lock()
        self._num_threads = 0

    @contextmanager
    def replaced_by(self, ours: Callable[..., Any]) -> Iterator[None]:
        """Have ``ours`` called instead, on this thread, for as long as the block lasts."""

        def either(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._wanted, "ours", self._rays_own)(*args, **kwargs)

        with self._installing:
            self._num_threads += 1
            setattr(self._owner, self._name, either)
        self._wanted.ours = ours
        try:
            yield
        finally:
            del self._wanted.ours
            with self._installing:
                self._num_threads -= 1
                if self._num_threads == 0:
                    setattr(self._owner, self._name, self._as_it_was)
