"""Functions of ours run in actors by ordinary calls: beside a graph, on Ray's actors and on local ones alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from cgexec.deadline import Deadline
from cgexec.hosts import LocalHandle


def call(actor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Have ``function(instance, *arguments)`` run in an actor, and return what ``replies`` takes.

    What another such call returns may be an argument: with Ray it goes from actor to actor. ``function`` and what it
    takes and returns are pickled.
    """
    if isinstance(actor, LocalHandle):
        try:
            arguments = tuple(each.result() if isinstance(each, Future) else each for each in arguments)
        except Exception as error:  # noqa: BLE001 - as with Ray it is the answer of whatever was to be given it
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
    return actor.__ray_call__.remote(function, *arguments)


def replies(calls: Sequence[Any], timeout_s: float) -> list[Any]:
    """Return, for each call, what it returned or the exception that it raised; GetTimeoutError if it still runs."""
    deadline = Deadline.after(timeout_s)
    return [_reply(each, deadline.remaining_s()) for each in calls]


def _reply(one: Any, timeout_s: float) -> Any:
    try:
        return one.result(timeout_s) if isinstance(one, Future) else ray.get(one, timeout=timeout_s)
    except TimeoutError as error:
        return error if isinstance(error, GetTimeoutError) else GetTimeoutError("the actor has not answered in time")
    except Exception as error:  # noqa: BLE001 - an answer like any other
        return error
