"""The workers of the tests, and the requests they understand.

A request is ``(number, actions, path)``: its unique number, what each worker is to do by label, and the labels of the
workers it has passed. A worker does what it is told, records the number, and returns the request with itself added to
the path. So every answer can be checked against its own question, on any shape of graph.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
from ray import cloudpickle


class NeedsArgumentsError(Exception):
    """Cannot be loaded: pickle calls a class with ``args``, and those are not what it takes."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class HoldsALockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class CannotBeLoaded:
    """Can be pickled, cannot be loaded."""

    def __reduce__(self):
        return int, ("not a number",)


def request(number: int, actions: dict[int, tuple[Any, ...]] | None = None) -> tuple[Any, ...]:
    """Return a request of its own number."""
    return number, actions or {}, ()


class Worker:
    """Does what a request tells it to."""

    def __init__(self, label: int) -> None:
        self.label = label
        self.seen: list[int] = []

    def work(self, message):
        """Obey one request."""
        number, actions, path = message
        self.seen.append(number)
        done = self._act(*actions.get(self.label, ("nothing",)))
        return (number, actions, (*path, self.label)) if done is None else done

    def join(self, first, second):
        """Obey two requests that must be one: the meeting point of a diamond."""
        if first[0] != second[0]:
            raise AssertionError(f"given the inputs of executions {first[0]} and {second[0]}")
        return self.work((first[0], first[1], (first[2], second[2])))

    def two(self, message):
        """Return two values."""
        number, actions, path = self.work(message)
        return (number, actions, (*path, "left")), (number, actions, (*path, "right"))

    def _act(self, action, *details):
        if action == "raise":
            raise ValueError(*details)
        if action == "raise-later":
            time.sleep(details[0])
            raise ValueError(*details[1:])
        if action == "raise-needs-arguments":
            raise NeedsArgumentsError("this", "that")
        if action == "raise-holding-a-lock":
            raise HoldsALockError("a lock")
        if action == "raise-keyboard-interrupt":
            raise KeyboardInterrupt
        if action == "exit":
            os._exit(details[0])
        if action == "sleep":
            time.sleep(details[0])
        if action == "kill-self":
            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "return-a-lock": threading.Lock,
            "return-an-array": lambda: np.full(details[0], details[1]),
            "return-what-cannot-be-loaded": CannotBeLoaded,
        }.get(action, lambda: None)()

    def what_was_seen(self):
        """Return the numbers of the requests this worker was given, in order."""
        return self.seen

    def pid(self):
        """Return the process."""
        return os.getpid()

    def restore(self, seen):
        """Take over the state of another worker."""
        self.seen = list(seen)

    def generator(self, message):
        """Cannot be part of a graph."""
        yield message


class AsyncWorker:
    """An actor with an asynchronous method, which cannot be part of a graph."""

    def __init__(self, label: int) -> None:
        self.label = label

    async def work(self, message):
        """Return a coroutine, as far as a graph can see."""
        return message


# By value: Ray's workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
