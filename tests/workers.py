"""The workers of the tests, and the requests they understand.

A request is ``(number, actions, path)``: its unique number, what each worker is to do by label, and the labels of the
workers it has passed. A worker does what it is told, records the number, and returns the request with itself added to
the path. So every answer can be checked against its own question, on any shape of graph.
"""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from cgexec import (
    DONE,
    ExceptionInfo,
    GraphExecutor,
    GraphSpecError,
    SnitchRecipient,
    chain,
    current_actor_handle,
    fan_out,
    log_failures_to,
)
from cgexec.testing.misbehaviour import CannotBeLoaded, HoldsALockError, NeedsArgumentsError


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


class Stage:
    """Several methods on one actor, which take messages and note what they were given.

    A message is ``(number, orders, path)``: its unique number, what is to happen where (by ``"label.method"``), and the
    way it has come.
    """

    def __init__(self, label: int) -> None:
        self.label = label
        self.given: list[tuple[str, list[int]]] = []

    def _run(self, method, *messages):
        self.given.append((method, [message[0] for message in messages]))
        number, orders, _ = messages[0]
        here = f"{self.label}.{method}"
        order = orders.get(here)
        if order == "raise":
            raise ValueError(here, number)
        if order == "sleep":
            time.sleep(0.05)
        if order == "return-a-lock":
            return threading.Lock()
        if order == "return-what-cannot-be-loaded":
            return CannotBeLoaded()
        return number, orders, (here, *(message[2] for message in messages))

    def f(self, *messages):
        return self._run("f", *messages)

    def m1(self, *messages):
        return self._run("m1", *messages)

    def m2(self, *messages):
        return self._run("m2", *messages)

    def m3(self, *messages):
        return self._run("m3", *messages)

    def tagged(self, tag, message, *, suffix):
        number, orders, path = self._run("tagged", message)
        return number, orders, (tag, suffix, *path)

    def two(self, *messages):
        whole = self._run("two", *messages)
        number, orders, path = whole if isinstance(whole, tuple) else (messages[0][0], {}, ())
        if orders.get(f"{self.label}.two") == "too-few":
            return (whole,)
        if orders.get(f"{self.label}.two") == "no-tuple":
            return number
        if not isinstance(whole, tuple):
            return whole, whole
        return (number, orders, ("left", *path)), (number, orders, ("right", *path))

    def what_was_given(self):
        return self.given


class Boxed(Stage):
    """Takes references to objects, boxed, and hands them on."""

    def unbox(self, message):
        number, box = message
        return number, box.get(), box

    def forward(self, message):
        number, box = message
        return number, box


class Slow(Worker):
    """Takes its time to come up."""

    def __init__(self, label, seconds):
        time.sleep(seconds)
        super().__init__(label)


class AsyncWorker:
    """An actor with an asynchronous method, which cannot be part of a graph."""

    def __init__(self, label: int) -> None:
        self.label = label

    async def work(self, message):
        """Return a coroutine, as far as a graph can see."""
        return message


class Asynchronous(Worker):
    """An actor of Ray's asynchronous kind."""

    async def wait(self):
        """Make it one."""


class Labelled(Worker):
    """A worker that needs no label: all hosts of a group get the same arguments."""

    def __init__(self, label: int = 0, *, extra: str | None = None) -> None:
        super().__init__(label)
        self.extra = extra

    def node(self):
        """Return the node."""
        return ray.get_runtime_context().get_node_id()

    def what_extra(self):
        """Return what the constructor was given."""
        return self.extra


class Child:
    def end_of_stream(self, item):
        return item is DONE, item

    def myself(self):
        return current_actor_handle()

    def unbox(self, box):
        return isinstance(box.ref, ray.ObjectRef), box.get()

    def failure(self, kind):
        try:
            self._fail(kind)
        except Exception:
            return ExceptionInfo.ser_exc_info()

    def _fail(self, kind):
        if kind == "chained":
            try:
                raise KeyError("the cause")
            except KeyError as error:
                raise ValueError("the effect") from error
        raise {"lock": HoldsALockError("a lock"), "arguments": NeedsArgumentsError(1, 2)}[kind]

    def fail_and_tell(self, parent, suppress):
        with log_failures_to(parent, suppress=suppress):
            raise ValueError("told")
        return "suppressed"


class Parent(SnitchRecipient):
    def __init__(self):
        self.records = []
        self.logger = logging.getLogger("parent")
        self.logger.propagate = False
        handler = logging.Handler()
        handler.emit = lambda record: self.records.append((record.getMessage(), record.exc_info[0].__name__))
        self.logger.addHandler(handler)

    def reports(self):
        return self.records


class Unborn(Worker):
    """A worker whose constructor raises."""

    def __init__(self, label: int) -> None:
        raise LookupError(f"no state for {label}")


class WithoutCgexec(Worker):
    """An actor whose process cannot import cgexec."""

    def __init__(self, label: int) -> None:
        super().__init__(label)
        sys.modules["cgexec"] = None


class Driver:
    """Builds graphs from inside an actor."""

    def __init__(self, label: int) -> None:
        self.label = label

    def work(self, message):
        """Be there, for a graph that must not be built."""
        return message

    def drive(self, me, others, config):
        """Return the error of a graph over this very actor, and answers of one over the others."""
        try:
            GraphExecutor([*others, me], fan_out("work"), config=config)
        except GraphSpecError as error:
            refused = str(error)
        else:
            refused = "it was built"
        with GraphExecutor(others, chain("work"), config=config) as graph:
            return refused, [graph.execute(request(number)).result for number in range(5)]


def start_over(instance: Any, label: int) -> None:
    """Make an actor's instance as good as new. In the actor."""
    vars(instance).clear()
    instance.__init__(label)


def is_in_a_graph(actor: Any) -> bool:
    """Return whether a graph's loop runs in an actor, whosever it is."""
    return bool(ray.get(actor.__ray_call__.remote(loops), timeout=5))


def loops(_instance: Any) -> Any:
    """Return the graphs whose loops run in the actor. In the actor."""
    from cgexec.engine.tasks import loops_here

    return loops_here()


# By value: Ray's workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
