"""Functions of ours run in actors by ordinary calls: beside a graph, on Ray's actors and on local ones alike."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from cgexec.deadline import Deadline
from cgexec.hosts import LocalHandle
from cgexec.texts import told


class ActorExitedError(Exception):
    """What a local actor raised is no Exception: a process of its own would have ended."""


def call(actor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Have ``function(instance, *arguments)`` run in an actor, and return what ``replies`` takes. Does not wait.

    What another such call returns may be an argument: with Ray it goes from actor to actor. ``function`` and what it
    takes and returns are pickled.
    """
    remote = actor.__ray_call__.remote
    if not isinstance(actor, LocalHandle):
        return remote(function, *arguments)
    reply: Future[Any] = Future()
    awaited = [each for each in arguments if isinstance(each, Future)]
    left, lock = [len(awaited)], threading.Lock()

    def run() -> None:
        values = []
        for each in arguments:
            if isinstance(each, Future) and each.exception() is not None:
                reply.set_exception(each.exception())
                return
            values.append(each.result() if isinstance(each, Future) else each)
        _chain(remote(function, *values), reply)

    def one_is_there(_future: Future[Any]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            run()

    for each in awaited:
        each.add_done_callback(one_is_there)
    if not awaited:
        run()
    return reply


def _chain(source: Future[Any], reply: Future[Any]) -> None:
    def hand_on(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            reply.set_result(done.result())
        else:
            reply.set_exception(error)

    source.add_done_callback(hand_on)


def replies(calls: Sequence[Any], deadline: Deadline) -> list[Any]:
    """Return, for each call, what it returned or the exception that it raised; GetTimeoutError if it still runs."""
    return [_of_local(each, deadline) if isinstance(each, Future) else _of_ray(each, deadline) for each in calls]


def _of_local(one: Future[Any], deadline: Deadline) -> Any:
    answered: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    one.add_done_callback(answered.put)
    try:
        answered.get(timeout=deadline.wait_s())  # and not the future's own wait, whose lock Ctrl-C may leave held
    except queue.Empty:
        return GetTimeoutError("the actor has not answered in time")
    error = one.exception()
    if error is None:
        return one.result()
    return error if isinstance(error, Exception) else ActorExitedError(told(error))


def _of_ray(one: Any, deadline: Deadline) -> Any:
    try:
        return ray.get(one, timeout=deadline.wait_s())
    except Exception as error:  # noqa: BLE001 - an answer like any other
        return error
