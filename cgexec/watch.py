"""Looks after the hosts of a graph that has kept somebody waiting, and gives up those that will not come back.

::

    a wait ran out ──┐                     ┌─ no sign of life ─────────────┐
                     ├─> ask every host ──>┤                               ├─> given up: the supervisor rebuilds
    stuck_after_s ───┘   for its pulse     └─ too long in one method ──────┘
                                           └─ busy, or idle ──> leave it alone

A host gives its pulse however busy it is: a slow one is not taken for a dead one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

from ray.exceptions import RayChannelError

from cgexec.changed import Changed
from cgexec.config import RebuildPolicy
from cgexec.engine.protocol import Break, Engine
from cgexec.engine.reports import Pulse
from cgexec.log import logger

_logger = logger(__name__)

_PAUSE_S = 1.0  # between two looks because of waits that ran out


def given_up(pulses: Mapping[int, Pulse | None], policy: RebuildPolicy) -> dict[int, str]:
    """Return the hosts that the policy gives up, and why: those without a pulse, and those stuck in a method."""
    found: dict[int, str] = {}
    for host_id, pulse in pulses.items():
        if pulse is None:
            found[host_id] = (
                f"host {host_id} gave no sign of life within {policy.probe_timeout_s:g} s (probe_timeout_s)"
            )
        elif policy.stuck_after_s is not None and pulse.method and pulse.for_s >= policy.stuck_after_s:
            stuck = f"host {host_id} has been in {pulse.method}() for {pulse.for_s:.3g} s"
            limit = f"the policy gives it up after {policy.stuck_after_s:g} s (stuck_after_s)"
            found[host_id] = f"{stuck}, and {limit}"
    return found


def next_look_s(pulses: Mapping[int, Pulse | None], policy: RebuildPolicy) -> float:
    """Return after how many seconds a host may have been in a method for too long; infinite if that is no matter."""
    if policy.stuck_after_s is None:
        return math.inf
    longest_s = max((pulse.for_s for pulse in pulses.values() if pulse is not None), default=0.0)
    return max(0.0, policy.stuck_after_s - longest_s)


class Watch:
    """Watches over one generation at a time. It has a thread for as long as a look is due.

    ``give_up(engine, why)`` is told what was found, once for each generation; it must not block.
    """

    def __init__(self, name: str, policy: RebuildPolicy, give_up: Callable[[Engine, Break], None]) -> None:
        self._name = name
        self._policy = policy
        self._give_up = give_up
        self._changed = Changed()
        self._ended = False
        self._engine: Engine | None = None
        self._due_at = math.inf
        self._looked_at = -math.inf
        self._thread: threading.Thread | None = None

    def begin(self, engine: Engine) -> None:
        """Watch over a new generation."""
        with self._changed:
            if self._ended:
                return
            self._engine = engine
            self._look_by_locked(time.monotonic() + next_look_s({}, self._policy))

    def rest(self, engine: Engine) -> None:
        """Watch over this generation no longer."""
        with self._changed:
            if engine is self._engine:
                self._rest_locked()

    def end(self) -> None:
        """Watch no more."""
        with self._changed:
            self._ended = True
            self._rest_locked()

    def _rest_locked(self) -> None:
        self._engine, self._due_at = None, math.inf
        self._changed.notify_all()

    def wait_ran_out(self, engine: Engine) -> None:
        """Look soon: ``engine`` has kept somebody waiting. Does not wait for it."""
        with self._changed:
            if engine is self._engine:
                self._look_by_locked(max(time.monotonic(), self._looked_at + _PAUSE_S))

    def _look_by_locked(self, at: float) -> None:
        self._due_at = min(self._due_at, at)
        if self._due_at < math.inf and self._thread is None:
            thread = threading.Thread(target=self._run, name=f"cgexec-watch-{self._name}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none left: whoever is the next to wait for long tries again
                _logger.exception("graph %r: its hosts cannot be looked after", self._name)
            else:
                self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        while (engine := self._await_due()) is not None:
            try:
                self._look(engine)
            except Exception:
                _logger.exception("graph %r: its hosts could not be looked after", self._name)

    def _await_due(self) -> Engine | None:
        """Wait until a look is due and return the engine to look after; None if none will be: the thread ends."""
        with self._changed:
            while self._engine is not None and self._due_at < math.inf:
                pause_s = self._due_at - time.monotonic()
                if pause_s <= 0:
                    self._due_at = math.inf
                    return self._engine
                self._changed.wait(min(pause_s, threading.TIMEOUT_MAX))
            self._thread = None
            return None

    def _look(self, engine: Engine) -> None:
        pulses = engine.pulses(self._policy.probe_timeout_s)
        found = given_up(pulses, self._policy)
        with self._changed:
            if engine is not self._engine:
                return
            now = self._looked_at = time.monotonic()
            if not found:
                self._look_by_locked(now + next_look_s(pulses, self._policy))
                return
            self._engine = None
        errors = tuple((host_id, engine.unavailable(host_id, why)) for host_id, why in found.items())
        self._give_up(engine, Break(errors, RayChannelError("hosts were given up")))
