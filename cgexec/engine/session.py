"""The Ray that one graph lives in, and how it ends.

A thread that asks Ray for anything while Ray shuts down may end the process; a wait that was under way ends with
SystemExit; and where there is no Ray, most calls start a new one. So whatever a graph asks of Ray, or has the caller's
code ask, goes through its session::

    Ray is to shut down ── nothing more is begun ── what is under way ends ── engines leave ──> Ray is asked no more

Private name used here: ``compiled_dag_node._compiled_dags``, the graphs whose ``teardown(kill_actors=True)`` Ray calls
first of all as it shuts down, while it still serves, one after the other; then it begins a new collection.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import ray
from ray.dag import compiled_dag_node

from cgexec.changed import Changed
from cgexec.engine.protocol import SessionOverError
from cgexec.interruption import was_raised_by_a_handler
from cgexec.isolation import apart

T = TypeVar("T")

_PATIENCE_S = 3.0  # a shutdown's, with what is being asked: a hook of the caller's may be, or Ray's compile
_LEAVING_S = 1.0  # and with what the engines ask to leave


class Leaver(Protocol):
    """What has to be told: an engine."""

    def leave_with_ray(self) -> None:
        """Leave at once."""


class Session:
    """See the module. One for each graph, from before its first build; any thread."""

    def __init__(self) -> None:
        self._changed = Changed()
        self._asking: list[object] = []  # what is under way
        self._leaving: list[object] = []
        self._ending = self._ended = False
        self._leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()
        compiled_dag_node._compiled_dags[object()] = self

    @property
    def over(self) -> bool:
        """Whether Ray was shut down, or is being; one that was started since is another."""
        return self._ending or not ray.is_initialized()

    def told_to(self, leaver: Leaver) -> None:
        """Have ``leaver`` told, once, that Ray is to shut down. Raises SessionOverError if that is so already."""
        with self._changed:
            if self._ending:
                raise SessionOverError
            self._leavers.add(leaver)

    def ask(self, call: Callable[[], T]) -> T:
        """Return what ``call`` does, which asks Ray for something.

        Raises:
            SessionOverError: Ray was shut down, before or meanwhile.
        """
        return self._count(self._asking, call, lambda: self.over)

    def leave(self, call: Callable[[], T]) -> T:
        """Do as ``ask`` with what has to be asked on the way out, also while a shutdown waits for that."""
        return self._count(self._leaving, call, lambda: self._ended or not ray.is_initialized())

    def _count(self, under_way: list[object], call: Callable[[], T], too_late: Callable[[], bool]) -> T:
        with self._changed:
            if too_late():
                raise SessionOverError
            under_way.append(call)
        try:
            return call()
        except SystemExit as error:
            if not self.over or was_raised_by_a_handler(error):
                raise
            raise SessionOverError from None
        finally:
            with self._changed:
                under_way.remove(call)
                self._changed.notify_all()

    def teardown(self, kill_actors: bool = False) -> None:  # noqa: ARG002 - Ray passes it to every graph
        """End: Ray calls this as it shuts down. Ray itself would wait for a stuck actor for ever."""
        with self._changed:
            self._ending = True
            # Ray is going through them, and cannot bear that a compile which is under way adds another.
            compiled_dag_node._compiled_dags = weakref.WeakValueDictionary()
            self._changed.wait_for(lambda: not self._asking, _PATIENCE_S)
        for leaver in list(self._leavers):
            leaver.leave_with_ray()
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._leaving, _LEAVING_S)


def hear_out(refs: Iterable[ray.ObjectRef[Any]]) -> None:
    """Fetch what has come and nobody has asked for: Ray reports on stderr every error that nobody has fetched."""
    for ref in refs:
        _, error = apart(partial(ray.get, ref, timeout=0))
        if isinstance(error, SystemExit):  # Ray shuts down
            raise error
