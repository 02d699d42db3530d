"""What can befall a host's process from outside, for Ray's actors and for local ones."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from cgexec.deadline import Deadline
from cgexec.engine.local_actor import LocalActor, process_of

_PID_TIMEOUT_S = 30.0
_STOPS_WITHIN_S = 10.0


def pid_of(actor: Any) -> int:
    """Return the process id of one of Ray's actors; it must be on this machine, and answer."""
    pid: int = ray.get(actor.__ray_call__.remote(_pid), timeout=_PID_TIMEOUT_S)
    return pid


def _pid(_instance: Any) -> int:
    return os.getpid()


def kill(actor: Any) -> None:
    """Kill an actor as its owner would, with ``ray.kill``. May return before it is dead."""
    if isinstance(actor, LocalActor):
        process_of(actor).die()
    else:
        ray.kill(actor)


def kill_process(actor: Any, pid: int | None = None) -> None:
    """End an actor's process with SIGKILL. ``pid``: its process, if it can no longer be asked."""
    if isinstance(actor, LocalActor):
        process_of(actor).die()
    else:
        _send(signal.SIGKILL, actor, pid)


def stop(actor: Any, pid: int | None = None) -> None:
    """Stop an actor's process with SIGSTOP: it is there, and does nothing. Returns when all of it has stopped.

    Raises:
        TimeoutError: it has not, and has not ended either.
    """
    if isinstance(actor, LocalActor):
        process_of(actor).stop()
        return
    pid = pid or pid_of(actor)
    _send(signal.SIGSTOP, actor, pid)
    deadline = Deadline.after(_STOPS_WITHIN_S)
    while not _has_stopped(pid):
        if deadline.remaining_s() == 0:
            raise TimeoutError(f"process {pid} has not stopped")
        time.sleep(0.001)


def _has_stopped(pid: int) -> bool:
    """Return whether every thread of a process has stopped or ended: a signal takes effect only as each next runs."""
    try:
        states = [_state(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(state in "TXZ" for state in states)


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def resume(actor: Any, pid: int | None = None) -> None:
    """Let a stopped process go on."""
    if isinstance(actor, LocalActor):
        process_of(actor).resume()
    else:
        _send(signal.SIGCONT, actor, pid)


def _send(number: signal.Signals, actor: Any, pid: int | None) -> None:
    """Send a signal; a process that has ended is left alone."""
    with suppress(ProcessLookupError, RayActorError):
        os.kill(pid or pid_of(actor), number)
