"""What can befall a host's process from outside, for Ray's actors and for local ones."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from cgexec.deadline import Deadline
from cgexec.engine.local_actor import LocalActor, process_of
from cgexec.testing.leftovers import thread_states

_PID_TIMEOUT_S = 30.0
_STOPS_WITHIN_S = 10.0

_stopped: dict[Any, int] = {}  # by actor, while it cannot be asked


def pid_of(actor: Any) -> int:
    """Return the process id of one of Ray's actors; it must be on this machine, and answer."""
    if isinstance(actor, LocalActor):
        raise TypeError(f"{actor!r} has no process of its own")
    _check_actor(actor)
    pid: int = ray.get(actor.__ray_call__.remote(_pid), timeout=_PID_TIMEOUT_S)
    return pid


def _check_actor(actor: Any) -> None:
    if not hasattr(actor, "__ray_call__"):
        raise TypeError(f"{actor!r} is no actor: pass the handle that Class.remote() returned, or a LocalActor")
    if not ray.is_initialized():
        raise RuntimeError(f"Ray is not running, and with it {actor!r}")


def _pid(_instance: Any) -> int:
    return os.getpid()


def kill(actor: Any) -> None:
    """Kill an actor as its owner would, with ``ray.kill``. May return before it is dead."""
    if isinstance(actor, LocalActor):
        process_of(actor).die()
    else:
        _check_actor(actor)
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
    pid = pid or _stopped_process_of(actor) or pid_of(actor)
    _send(signal.SIGSTOP, actor, pid)
    _stopped[actor] = pid
    deadline = Deadline.after(_STOPS_WITHIN_S)
    # A signal takes effect on each thread only as it next runs.
    while not all(state in "TXZ" for state in thread_states(pid)):
        if deadline.remaining_s() == 0:
            raise TimeoutError(f"process {pid} has not stopped")
        time.sleep(0.001)


def resume(actor: Any, pid: int | None = None) -> None:
    """Let a stopped process go on."""
    if isinstance(actor, LocalActor):
        process_of(actor).resume()
    else:
        _send(signal.SIGCONT, actor, pid)


def _send(number: signal.Signals, actor: Any, pid: int | None) -> None:
    """Send a signal; a process that has ended is left alone. Only one that is stopped cannot be asked which it is."""
    stopped = _stopped_process_of(actor)
    _stopped.pop(actor, None)
    with suppress(ProcessLookupError, RayActorError):
        os.kill(pid or stopped or pid_of(actor), number)


def _stopped_process_of(actor: Any) -> int | None:
    """Return the process of an actor that ``stop`` has stopped, if it is the actor's yet: Ray may have started another.

    One that has ended, or goes on, is not.
    """
    pid = _stopped.get(actor)
    return pid if pid is not None and "T" in thread_states(pid) else None
