"""Who wants to be told when something has happened to an execution, without waiting for it in a thread.

A *signal* is a function without arguments that may be called from any thread and with the graph's lock held: it must
neither block nor raise, and it may be called twice, where Ctrl-C comes in between: better than not at all. A user's
callback is no signal: it may do anything, and is called on a thread of its own.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

from cgexec.deadline import Deadline
from cgexec.execution import Execution
from cgexec.log import logger

_logger = logger(__name__)

Signal = Callable[[], None]


class Notices:
    """The signals that one graph owes. Called with the graph's lock held."""

    def __init__(self) -> None:
        self._watched: set[Execution] = set()  # those that have not settled, and of which somebody wants to be told
        self._attended: set[Execution] = set()  # those of which only who reads them by itself wants to be told
        self._withdrawn: deque[tuple[Execution, Signal]] = deque()
        self._when_open: list[Signal] = []

    def tell(self, execution: Execution, signal: Signal) -> None:
        """Call ``signal`` when the execution, which has not, settles."""
        self._sort_out()
        execution.signals = (*execution.signals, signal)
        self._attended.discard(execution)
        self._watched.add(execution)

    def attend(self, execution: Execution, signal: Signal) -> None:
        """Do as ``tell``; who is told will see to it that the execution is read."""
        self._sort_out()
        execution.signals = (*execution.signals, signal)
        if execution not in self._watched:
            self._attended.add(execution)

    def is_attended(self, execution: Execution) -> bool:
        """Return whether only who reads an execution by itself wants to be told of it."""
        self._sort_out()
        return execution in self._attended

    def hand_over(self, *those: Execution) -> None:
        """Have ``those`` that are attended, or all, read by the graph's threads after all."""
        handed = self._attended.intersection(those) if those else set(self._attended)
        self._watched |= handed
        self._attended -= handed

    def attended(self) -> bool:
        """Return whether anybody who reads by itself wants to be told of an execution that has not settled."""
        self._sort_out()
        return bool(self._attended)

    def untell(self, execution: Execution, signal: Signal) -> None:
        """Do not call ``signal`` after all. Needs no lock: coroutines may end in the garbage collector."""
        if execution.final is None:
            self._withdrawn.append((execution, signal))

    def watched(self) -> bool:
        """Return whether anybody wants to be told of an execution that has not settled."""
        self._sort_out()
        return bool(self._watched)

    def _sort_out(self) -> None:
        """Forget the signals that were withdrawn."""
        while self._withdrawn:
            execution, signal = self._withdrawn.popleft()
            execution.signals = tuple(each for each in execution.signals if each != signal)
            if not execution.signals:
                self._watched.discard(execution)
                self._attended.discard(execution)

    def tell_when_open(self, signal: Signal) -> None:
        """Call ``signal`` when the graph is neither broken nor being rebuilt any more."""
        self._when_open.append(signal)

    def sent(self, execution: Execution) -> None:
        """Tell whoever waits for it that an execution was sent, or will not be."""
        if execution.when_sent is not None:
            execution.when_sent()
            execution.when_sent = None

    def settled(self, execution: Execution) -> None:
        """Tell whoever waits for it that an execution has settled."""
        if execution.when_sent is not None:
            self.sent(execution)
        if self._withdrawn:
            self._sort_out()
        if execution.signals:
            for signal in execution.signals:
                signal()
            execution.signals = ()
            self._watched.discard(execution)
            self._attended.discard(execution)

    def opened(self) -> None:
        """Tell whoever waits for it that the graph is open, or for ever closed."""
        for signal in self._when_open:
            signal()
        self._when_open = []


class Once:
    """A call about an execution that is made once, however often its signal comes. ``collects``: it has the outcome."""

    def __init__(self, execution: Execution, call: Callable[[Execution], object], *, collects: bool) -> None:
        self._execution = execution
        self._calls = [call]
        self._collects = collects

    def __call__(self) -> None:
        if self._calls:
            self._execution.collected |= self._collects
            self._calls.pop()(self._execution)


class Callbacks:
    """Calls what users want called, in order, on one thread, which is started by the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False

    def start(self) -> None:
        """Have a thread ready. Raises RuntimeError if the system has none left."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"cgexec-callbacks-{self._name}", daemon=True)
                thread.start()
                self._thread = thread

    def call(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` soon. Never blocks."""
        with self._ending:
            if not self._ended:
                self._due.put(callback)
                return
        # An execution that was being sent as the graph was closed.
        name = f"cgexec-late-callback-{self._name}"
        threading.Thread(target=self._call_late, args=(callback,), name=name, daemon=True).start()

    def call_now(self, callback: Callable[[], object]) -> None:
        """Call ``callback``, on this thread; what it raises is logged."""
        try:
            callback()
        except Exception:
            _logger.exception("graph %r: a callback raised", self._name)

    def end(self) -> None:
        """Call what is due, and no more."""
        with self._ending:
            self._ended = True
            self._due.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until all has been called, up to ``timeout_s``, unless it is a callback that asks."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        while (callback := self._due.get()) is not None:
            self._call_there(callback)
            del callback

    def _call_late(self, callback: Callable[[], object]) -> None:
        """Call what came when the thread had been told to end, after all that came before."""
        if self._thread is not None:
            self._thread.join()
        self._call_there(callback)

    def _call_there(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException:
            _logger.exception("graph %r: a callback raised", self._name)


class Afterwards:
    """What users want done once an execution has settled: callbacks, and futures, which no callback keeps waiting."""

    def __init__(self, name: str) -> None:
        self._callbacks = Callbacks(name)
        self._futures = Callbacks(f"futures-{name}")

    def call_back(self, execution: Execution, callback: Callable[[Execution], object]) -> None:
        """See ``Execution.add_done_callback``."""
        self._call_on(self._callbacks, execution, Once(execution, callback, collects=True))

    def settle_future(self, execution: Execution, settle: Callable[[Execution], object]) -> None:
        """Call ``settle(execution)`` once it has settled."""
        self._call_on(self._futures, execution, Once(execution, settle, collects=False))

    def _call_on(self, callbacks: Callbacks, execution: Execution, once: Once) -> None:
        callbacks.start()
        if not execution.tell(lambda: callbacks.call(once)):
            callbacks.call_now(once)

    def end(self) -> None:
        """Call what is due, and no more."""
        self._callbacks.end()
        self._futures.end()

    def join(self, deadline: Deadline) -> None:
        """Wait until all has been called, up to the deadline, unless it is one of them that asks."""
        self._callbacks.join(deadline.remaining_s())
        self._futures.join(deadline.remaining_s())
