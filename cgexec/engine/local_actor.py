"""Actors in this process: what stands in for Ray's where a graph runs without Ray.

A local actor has a mailbox and does one job at a time, on a thread of its own while there is one to do, or, ``inline``,
on the thread of whoever waits for it. It can die and be stopped as a process can; a method that is running then cannot
be broken off, but what it returns goes nowhere.

Private names used here: ``_get_actor_handle`` of Ray's node of a method, overridden for nodes of these actors.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ray.dag import ClassMethodNode
from ray.dag.constants import (
    BIND_INDEX_KEY,
    IS_CLASS_METHOD_OUTPUT_KEY,
    PARENT_CLASS_NODE_KEY,
    PREV_CLASS_METHOD_CALL_KEY,
)
from ray.exceptions import ActorDiedError

from cgexec.changed import Changed
from cgexec.engine.fault_plan import FaultPlan
from cgexec.hosts import LocalHandle

world = Changed()  # guards the state of all local actors; notified whenever some of it changes
_bind_indices = itertools.count()


class Job(Protocol):
    """Something for a local actor to do."""

    def is_ready(self) -> bool:
        """Return whether it can be done now. Called with ``world`` held."""

    def run(self) -> bool:
        """Do it; False if it never comes to an end. Called without ``world``."""

    def drop(self, death: Exception) -> None:
        """It will not be done any more: its process has died. Called without ``world``."""


class LocalProcess:
    """What a local actor is beside its handle. ``world`` guards every attribute that changes."""

    def __init__(self, instance: Any, faults: FaultPlan, *, inline: bool) -> None:
        self.instance = instance
        self.faults = faults
        self.inline = inline
        self.incarnation = uuid.uuid4().hex
        self.death: Exception | None = None
        self.stopped = False
        self.leased_to: tuple[str, str] | None = None  # the graph's id, and its name
        self.at_work: Job | None = None
        self.mourners: list[Callable[[Exception], None]] = []  # told of its death, once
        self._mailbox: deque[Job] = deque()
        self._serving = False
        self._unsent: list[Callable[[], None]] = []

    def post(self, job: Job) -> None:
        """Have a job done, behind those that were posted before; dropped at once if the process is dead."""
        with world:
            death = self.post_locked(job)
        if death is not None:
            job.drop(death)

    def post_locked(self, job: Job) -> Exception | None:
        """Have a job done, with ``world`` held; the death of the process if it is dead."""
        if self.death is None:
            self._mailbox.append(job)
            self._serve_locked()
            world.notify_all()  # a job may be ready by now, and its thread still wait for one that was withdrawn
        return self.death

    def postpone_locked(self, job: Job) -> None:
        """Put a job back that was taken from the mailbox, with ``world`` held: it is the next one."""
        self._mailbox.appendleft(job)

    def withdraw(self, unwanted: Callable[[Job], bool]) -> None:
        """Take jobs back that have not been begun."""
        with world:
            self._mailbox = deque(job for job in self._mailbox if not unwanted(job))
            world.notify_all()

    def die(self, error: Exception | None = None) -> None:
        """End it; idempotent."""
        with world:
            if self.death is not None:
                return
            death = self.death = error or ActorDiedError()
            undone, self._mailbox = self._mailbox, deque()
            self._unsent.clear()
            mourners, self.mourners = self.mourners, []
            world.notify_all()
        for job in undone:
            job.drop(death)
        for mourner in mourners:
            mourner(death)

    def stop(self) -> None:
        """Let it do nothing more until ``resume``."""
        with world:
            self.stopped = True

    def resume(self) -> None:
        """Let it go on, and send what it had ready; idempotent."""
        with world:
            self.stopped = False
            unsent, self._unsent = self._unsent, []
            for send in unsent:
                send()
            self._serve_locked()
            world.notify_all()

    def send(self, deliver: Callable[[], None]) -> None:
        """Call ``deliver()`` with ``world`` held: now, when it is resumed, or never if it dies before."""
        with world:
            if self.death is None and self.stopped:
                self._unsent.append(deliver)
            elif self.death is None:
                deliver()
                world.notify_all()

    def do_next(self) -> bool:
        """Do the next job if it is ready; returns whether one was done. For ``inline``."""
        with world:
            if not self._may_work_locked():
                return False
            job = self.at_work = self._mailbox.popleft()
        self._do(job)
        return True

    def _may_work_locked(self) -> bool:
        idle = self.death is None and not self.stopped and self.at_work is None
        return idle and bool(self._mailbox) and self._mailbox[0].is_ready()

    def _do(self, job: Job) -> None:
        ends = True
        try:
            ends = job.run()
        finally:
            if ends:
                with world:
                    self.at_work = None
                    world.notify_all()

    def _serve_locked(self) -> None:
        if not self.inline and not self._serving and self._mailbox:
            # In this order: Ctrl-C in between leaves a thread too many, which ends by itself, and not one too few.
            threading.Thread(target=self._serve, name="local-actor", daemon=True).start()
            self._serving = True

    def _serve(self) -> None:
        while True:
            with world:
                world.wait_for(lambda: self._may_work_locked() or not self._has_work_locked())
                if not self._may_work_locked():
                    self._serving = False
                    return
                job = self.at_work = self._mailbox.popleft()
            self._do(job)

    def _has_work_locked(self) -> bool:
        return self.death is None and not self.stopped and bool(self._mailbox) and self.at_work is None


class LocalActor(LocalHandle):
    """A handle to an actor in this process. Its methods can be bound into a graph as those of Ray's handles are.

    ``worker`` is a class, decorated with ``@ray.remote`` or not; the arguments go to its constructor, whatever that
    raises comes out here. ``inline``: its methods run on the thread of whoever waits for them, in a settled order, and
    no wait for them ends before they do; Ctrl-C in the midst of one is taken for something that the method raised.
    ``method.remote(...)`` returns a ``concurrent.futures.Future``.
    """

    def __init__(
        self, worker: Any, *args: Any, faults: FaultPlan | None = None, inline: bool = False, **kwargs: Any
    ) -> None:
        metadata = getattr(worker, "__ray_metadata__", None)
        self._class = worker if metadata is None else metadata.modified_class
        if not isinstance(self._class, type):
            raise TypeError(f"a LocalActor is made of a class, not {worker!r}")
        if faults is not None and not isinstance(faults, FaultPlan):
            raise TypeError(f"faults is to be a FaultPlan, not {faults!r}")
        self._process = LocalProcess(self._class(*args, **kwargs), faults or FaultPlan(), inline=inline)

        _actors[self._process.incarnation] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _actor, (self._process.incarnation,)  # Ray pickles the arguments of nodes to look for others in them

    def __getattr__(self, name: str) -> LocalMethod:
        if name.startswith("_") or not callable(getattr(self._class, name, None)):
            raise AttributeError(f"{self._class.__name__} has no method {name!r}")
        return LocalMethod(self, name)

    @property
    def __ray_call__(self) -> LocalMethod:
        """As that of Ray's handles: ``__ray_call__.remote(function, *args)`` runs ``function(instance, *args)``."""
        return LocalMethod(self, "__ray_call__")

    def __dir__(self) -> list[str]:
        methods = [each for each in dir(self._class) if not each.startswith("_")]
        return [*super().__dir__(), *(each for each in methods if callable(getattr(self._class, each, None)))]

    def __repr__(self) -> str:
        return f"LocalActor({self._class.__name__}, {self._process.incarnation[:8]})"


def process_of(actor: LocalActor) -> LocalProcess:
    """Return what a local actor is beside its handle."""
    return actor._process


_actors: weakref.WeakValueDictionary[str, LocalActor] = weakref.WeakValueDictionary()


def _actor(incarnation: str) -> LocalActor:
    return _actors[incarnation]


class LocalMethod:
    """A method of a local actor."""

    def __init__(self, actor: LocalActor, name: str, num_returns: int = 1) -> None:
        self._actor = actor
        self._name = name
        self._num_returns = num_returns

    def options(self, *, num_returns: int = 1) -> LocalMethod:
        """Return the method with another number of return values."""
        return LocalMethod(self._actor, self._name, num_returns)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return a node, or a tuple of them for a method with several return values.

        Raises:
            TypeError: the method does not take these arguments.
        """
        inspect.signature(getattr(self._actor._process.instance, self._name)).bind(*args, **kwargs)
        node = LocalMethodNode(
            self._name,
            args,
            kwargs,
            {"num_returns": self._num_returns},
            {
                PARENT_CLASS_NODE_KEY: self._actor,
                PREV_CLASS_METHOD_CALL_KEY: None,
                BIND_INDEX_KEY: next(_bind_indices),
            },
        )
        if self._num_returns == 1:
            return node
        part = {IS_CLASS_METHOD_OUTPUT_KEY: True, PARENT_CLASS_NODE_KEY: self._actor}
        return tuple(
            LocalMethodNode(f"return_idx_{index}", (node, index), {}, {}, dict(part))  # type: ignore[arg-type]
            for index in range(self._num_returns)
        )

    def remote(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the method, in its turn, and return the future of its result."""
        process = self._actor._process
        if self._name == "__ray_call__":
            function, *rest = args
            call = _Call(lambda: function(process.instance, *rest, **kwargs))
        else:
            call = _Call(lambda: getattr(process.instance, self._name)(*args, **kwargs))
        process.post(call)
        while process.inline and not call.future.done() and process.do_next():
            pass
        return call.future


class LocalMethodNode(ClassMethodNode):
    """A method of a local actor in a graph."""

    def _get_actor_handle(self) -> Any:
        return self._parent_class_node


class _Call:
    """An ordinary call of a method."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def is_ready(self) -> bool:
        return True

    def run(self) -> bool:
        if self.future.cancelled():
            return True
        try:
            answer = partial(self.future.set_result, self._call())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            answer = partial(self.future.set_exception, error)
        self._settle(answer)
        return True

    def drop(self, death: Exception) -> None:
        self._settle(partial(self.future.set_exception, death))

    def _settle(self, answer: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # whoever has called may have cancelled it, at any time
            answer()
