"""Waiting for several executions at once, of one graph or of several, as ``concurrent.futures`` does for futures."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import NamedTuple

from cgexec.deadline import Deadline
from cgexec.execution import Execution
from cgexec.settings import FROM_CALL, check_wait
from cgexec.status import JobSucceeded


class DoneAndNotDone(NamedTuple):
    """The executions that have settled, and those that have not."""

    done: set[Execution]
    not_done: set[Execution]


def as_completed(executions: Iterable[Execution], timeout_s: float = -1) -> Iterator[Execution]:
    """Yield each of ``executions`` once, as they settle; those that have settled already come first.

    Raises:
        TimeoutError: not all have settled ``timeout_s`` after the call; -1 waits for ever. They go on.
        ValueError: ``timeout_s`` is not usable.
        TypeError: ``executions`` are none.
    """
    deadline = Deadline.after(check_wait("timeout_s", timeout_s, FROM_CALL))
    return _as_completed(_set_of(executions), deadline)


def _set_of(executions: Iterable[Execution]) -> set[Execution]:
    found = set(executions)
    for each in found:
        if not isinstance(each, Execution):
            raise TypeError(f"{each!r} is no Execution: pass what submit() returned")
    return found


def _as_completed(pending: set[Execution], deadline: Deadline) -> Iterator[Execution]:
    settled: queue.SimpleQueue[Execution] = queue.SimpleQueue()
    num_executions = len(pending)
    if deadline.remaining_s() == 0:
        for execution in pending:  # before the graph's threads are asked to read, and may have it in their hands
            execution.done()
    with_signal = {}
    for execution in pending:
        with_signal[execution] = signal = _Signal(settled, execution)
        if not execution.tell(signal):
            signal()
    try:
        while pending:
            try:
                execution = _next(settled, pending, deadline)
            except queue.Empty:
                for execution in pending:
                    execution.gave_up()
                raise TimeoutError(f"{len(pending)} of {num_executions} executions have not settled") from None
            if execution in pending:  # else it has been told twice
                pending.remove(execution)
                yield execution
    finally:
        for execution in pending:
            execution.untell(with_signal[execution])


def _next(settled: queue.SimpleQueue[Execution], pending: set[Execution], deadline: Deadline) -> Execution:
    """Return one that has settled. Raises Empty at the deadline, when what has arrived was looked for as well."""
    try:
        return settled.get(timeout=deadline.wait_s())
    except queue.Empty:
        if not any([execution.done() for execution in pending]):  # noqa: C419 - look at each: they may be of several graphs
            raise
        return settled.get_nowait()  # those that have settled say so before anybody can see it


class _Signal:
    """Puts an execution into a queue. Neither blocks nor raises."""

    def __init__(self, settled: queue.SimpleQueue[Execution], execution: Execution) -> None:
        self._settled = settled
        self._execution = execution

    def __call__(self) -> None:
        self._settled.put(self._execution)


def wait(executions: Iterable[Execution], timeout_s: float = -1, return_when: str = ALL_COMPLETED) -> DoneAndNotDone:
    """Wait until all of ``executions`` have settled, or ``timeout_s`` has passed; -1 waits for ever.

    ``return_when`` is one of ``concurrent.futures``': ALL_COMPLETED, FIRST_COMPLETED, or FIRST_EXCEPTION, which returns
    as well once one has not succeeded.

    Raises:
        ValueError: ``timeout_s`` or ``return_when`` is not usable.
        TypeError: ``executions`` are none.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"return_when={return_when!r} (from the call) is not usable: see concurrent.futures")
    not_done, done = _set_of(executions), set[Execution]()
    enough = False
    try:
        for execution in as_completed(set(not_done), timeout_s):
            done.add(execution)
            not_done.discard(execution)
            failed = not isinstance(execution.final, JobSucceeded)
            enough |= return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and failed)
            if enough and not any(each.final is not None for each in not_done):
                break
    except TimeoutError:
        pass
    return DoneAndNotDone(done, not_done)
