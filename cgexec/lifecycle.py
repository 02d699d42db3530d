"""The states of a graph, and the only ways between them.

::

    NEW ──built──> READY ──system error──> BROKEN ──rebuild──> REBUILDING ──built──> READY   (generation + 1)
                    │  ^ │                    │                   │  ^ │
                    │  └─┘ application error, │                   │  └─┘ a further system error: start over
                    │      wait ran out       └─────gave up───────┴──> FAILED (keeps the reason)
                    └──rebuild (on request)──> REBUILDING
    any ──close──> CLOSED

Values and pure functions: no clock, no threads, no Ray.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

HISTORY_LENGTH = 1000


class GraphState(enum.Enum):
    """Where a graph is in its life."""

    NEW = "new"
    READY = "ready"
    BROKEN = "broken"
    REBUILDING = "rebuilding"
    FAILED = "failed"
    CLOSED = "closed"


class GraphEvent(enum.Enum):
    """What can happen to a graph."""

    BUILT = "built"
    APPLICATION_ERROR = "application error"
    WAIT_RAN_OUT = "wait ran out"
    SYSTEM_ERROR = "system error"
    REBUILD = "rebuild"
    GAVE_UP = "gave up"
    CLOSE = "close"


@dataclass(frozen=True)
class HistoryEntry:
    """One thing that happened: when (seconds on the monotonic clock), what, what it led to, and what was said of it.

    Application errors and waits that ran out stand once each until something else happens: ``count`` says how often,
    the rest is of the last time.
    """

    at_s: float
    event: GraphEvent
    state: GraphState
    generation: int
    detail: str
    count: int = 1

    def __str__(self) -> str:
        times = f" x{self.count}" if self.count > 1 else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"generation {self.generation}: {self.event.value}{times} -> {self.state.value}{detail}"


KEEPS_THE_STATE = frozenset({GraphEvent.APPLICATION_ERROR, GraphEvent.WAIT_RAN_OUT})

_S, _E = GraphState, GraphEvent

TRANSITIONS: dict[tuple[GraphState, GraphEvent], GraphState] = {
    (_S.NEW, _E.BUILT): _S.READY,
    (_S.NEW, _E.GAVE_UP): _S.FAILED,
    # An application error keeps the graph, and so does a wait that ran out, wherever the graph stands by then.
    **{(state, event): state for state in _S if state is not _S.NEW for event in KEEPS_THE_STATE},
    (_S.READY, _E.SYSTEM_ERROR): _S.BROKEN,
    (_S.READY, _E.REBUILD): _S.REBUILDING,
    (_S.BROKEN, _E.REBUILD): _S.REBUILDING,
    (_S.REBUILDING, _E.SYSTEM_ERROR): _S.REBUILDING,
    (_S.REBUILDING, _E.BUILT): _S.READY,
    (_S.REBUILDING, _E.GAVE_UP): _S.FAILED,
    (_S.BROKEN, _E.GAVE_UP): _S.FAILED,
    **{(state, _E.CLOSE): _S.CLOSED for state in _S},
}


class IllegalTransitionError(RuntimeError):
    """An event that cannot happen in the state the graph is in: a defect of cgexec. Prints the history."""


class Lifecycle:
    """The state of one graph, its generation, and what has happened to it."""

    def __init__(self) -> None:
        self.state = GraphState.NEW
        self.generation = 0
        self._history: deque[HistoryEntry] = deque(maxlen=HISTORY_LENGTH)

    @property
    def history(self) -> list[HistoryEntry]:
        """What happened, newest last; the last ``HISTORY_LENGTH`` entries."""
        return list(self._history)

    def apply(self, event: GraphEvent, at_s: float, detail: str = "") -> GraphState:
        """Make ``event`` happen, record it, and return the new state.

        Raises:
            IllegalTransitionError: ``event`` cannot happen in this state; nothing changes.
        """
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            past = "\n".join(f"  {entry}" for entry in self._history)
            raise IllegalTransitionError(
                f"{event.value!r} cannot happen in state {self.state.value!r}; so far:\n{past}"
            )
        if event is GraphEvent.BUILT and self.state is not GraphState.NEW:
            self.generation += 1
        self.state = state
        count = self._take_back(event) + 1
        self._history.append(HistoryEntry(at_s, event, state, self.generation, detail, count))
        return state

    def _take_back(self, event: GraphEvent) -> int:
        """Remove the entry of an earlier such event since the state last changed; return how many it stood for."""
        if event in KEEPS_THE_STATE:
            for place in range(len(self._history) - 1, -1, -1):
                entry = self._history[place]
                if entry.event not in KEEPS_THE_STATE:
                    break
                if entry.event is event:
                    del self._history[place]
                    return entry.count
        return 0
