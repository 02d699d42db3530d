"""Waiting without a thread: what asyncio's callers do.

Their event loop sends and reads for them what takes no time (``attending``), and the graph's own threads do the rest.

Nothing here blocks the event loop. The graph's lock is taken, but never while anything is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from cgexec.execution import Execution
from cgexec.status import JobError, JobPreempted, JobStatus

T = TypeVar("T")

_PAUSE_S = 0.05  # between looks at one that is in line, and may be sent meanwhile, or is just being written


class Graph(Protocol):
    """What is asked of a graph's core."""

    def submit_later(self, args: Any, kwargs: Any, when_sent: Callable[[], None] | None = None) -> Execution: ...

    def withdraw(self, execution: Execution) -> None: ...

    def refuse_late(self, execution: Execution) -> None: ...

    def tell(self, execution: Execution, signal: Callable[[], None], *, here: bool = False) -> bool: ...

    def untell(self, execution: Execution, signal: Callable[[], None]) -> None: ...

    def is_arriving(self, execution: Execution) -> bool: ...

    def tell_when_open(self, signal: Callable[[], None]) -> bool: ...

    def status_now(self, execution: Execution, waited_s: float) -> JobStatus: ...

    def wait_status(self, execution: Execution, timeout_s: float | None) -> JobStatus: ...


class Bell:
    """Wakes the coroutine that made it, from any thread, once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake it. Neither blocks nor raises."""
        with suppress(RuntimeError):  # its event loop is closed: nobody waits
            if self._runs_here():
                self._set()
            else:
                self._loop.call_soon_threadsafe(self._set)

    def _runs_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none does
            return False

    def _set(self) -> None:
        self._rung = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def heard(self, timeout_s: float) -> bool:
        """Return whether it has rung, after ``timeout_s`` at the latest; -1 waits for ever."""
        if not self._rung:
            self._waiter = self._loop.create_future()
            timer = None if timeout_s == -1 else self._loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                if timer is not None:
                    timer.cancel()
        return self._rung


async def on_a_thread(call: Callable[[], T]) -> T:
    """Return what ``call()`` returns, from a thread of its own: those of the event loop's executor may all be busy."""
    executor = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, call)
    finally:
        executor.shutdown(wait=False)


async def submitted(graph: Graph, args: Any, kwargs: Any) -> Execution:
    """Return the handle of an execution once it has been sent, or has settled unsent. Cancelled, it may not be sent."""
    bell = Bell()
    execution = graph.submit_later(args, kwargs, bell.ring)
    try:
        while execution.is_in_line() and not await bell.heard(_in_line_s(execution)):
            _refuse_if_late(graph, execution)
    except asyncio.CancelledError:
        _cancelled(graph, execution)
        raise
    return execution


async def outcome(graph: Graph, execution: Execution, wait_s: float) -> JobStatus:
    """Return the outcome of an execution, or a pending JobError after ``wait_s``; -1 waits for ever."""
    if wait_s == 0:  # looks once, which may load a value: not on the event loop's thread
        return await on_a_thread(lambda: graph.wait_status(execution, 0))
    bell, started = Bell(), time.monotonic()
    try:
        if graph.tell(execution, bell.ring, here=True) and not await bell.heard(wait_s):
            await _arrived(graph, execution, bell)
    except asyncio.CancelledError:
        execution.gave_up()
        raise
    finally:
        graph.untell(execution, bell.ring)
    return graph.status_now(execution, time.monotonic() - started)


async def executed(graph: Graph, args: Any, kwargs: Any, wait_s: float) -> JobStatus:
    """Submit and return the outcome; if a system error was in the way, when the graph is open again or has failed.

    ``wait_s`` runs from when the execution has been sent. Cancelled, the execution goes on unless it is still in line.
    """
    if wait_s == 0:
        return await outcome(graph, await submitted(graph, args, kwargs), 0)
    bell = Bell()
    execution = graph.submit_later(args, kwargs)
    try:
        if graph.tell(execution, bell.ring, here=True):
            while not await bell.heard(_left_s(execution, wait_s)):
                if execution.sent_at is None:
                    _refuse_if_late(graph, execution)
                elif _left_s(execution, wait_s) == 0:
                    await _arrived(graph, execution, bell)
                    break
    except asyncio.CancelledError:
        _cancelled(graph, execution)
        raise
    finally:
        graph.untell(execution, bell.ring)
    if isinstance(execution.final, (JobPreempted, JobError)) and execution.attempts > 0:
        reopened = Bell()
        if graph.tell_when_open(reopened.ring):
            await reopened.heard(_left_s(execution, wait_s))
    return graph.status_now(execution, wait_s)  # last: nobody has been told as long as this may be cancelled


async def _arrived(graph: Graph, execution: Execution, bell: Bell) -> None:
    """Wait a moment longer for what was in time, if the event loop was late: it is being read."""
    if graph.is_arriving(execution):
        await bell.heard(_PAUSE_S)


def _cancelled(graph: Graph, execution: Execution) -> None:
    graph.withdraw(execution)
    execution.gave_up()


def _refuse_if_late(graph: Graph, execution: Execution) -> None:
    if execution.submit_by is not None and execution.submit_by.remaining_s() == 0:
        graph.refuse_late(execution)


def _in_line_s(execution: Execution) -> float:
    """Return how long to wait for an execution to be sent before looking again; -1: until it is."""
    if execution.submit_by is None or (left_s := execution.submit_by.wait_s()) is None:
        return -1
    return max(_PAUSE_S, left_s)


def _left_s(execution: Execution, wait_s: float) -> float:
    """Return how long to wait before looking again; -1: for ever, 0: the time has run out."""
    if execution.sent_at is None:
        in_line_s = _in_line_s(execution)
        if wait_s == -1:
            return in_line_s
        look_s = max(wait_s, min(_PAUSE_S, time.monotonic() - execution.submitted_at))
        return look_s if in_line_s == -1 else min(in_line_s, look_s)
    return -1 if wait_s == -1 else max(0.0, execution.sent_at + wait_s - time.monotonic())


async def pipelined(
    graph: Graph, inputs: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]], wait_s: float, depth: int
) -> AsyncIterator[JobStatus]:
    """Yield the statuses of ``inputs``, each the positional arguments of an execution, ``depth`` executions deep."""
    waiting: deque[Execution] = deque()
    ended: list[Exception] = []
    each = _each_submitted(graph, inputs, ended)
    while True:
        if len(waiting) >= depth:
            yield await outcome(graph, waiting.popleft(), wait_s)
        execution = await anext(each, None)
        if execution is None:
            break
        waiting.append(execution)
    while waiting:
        yield await outcome(graph, waiting.popleft(), wait_s)
    if ended:
        raise ended.pop()


async def _each_submitted(
    graph: Graph, inputs: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]], ended: list[Exception]
) -> AsyncIterator[Execution]:
    """Yield an execution for each of ``inputs``; what ends that is put into ``ended``."""
    try:
        async for args in _each(inputs):
            yield await submitted(graph, tuple(args), {})
    except Exception as error:  # noqa: BLE001 - raised when what was sent has been answered
        ended.append(error)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def each_alone(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[tuple[T]]:
    """Yield each item as the one argument of a call."""
    async for item in _each(items):
        yield (item,)
