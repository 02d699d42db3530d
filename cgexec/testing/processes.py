"""What can befall a host's process from outside, for Ray's actors and for local ones."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray.exceptions import RayError

from cgexec.engine.local_actor import LocalActor, process_of

_PID_TIMEOUT_S = 30.0


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
        os.kill(pid or pid_of(actor), signal.SIGKILL)


def stop(actor: Any, pid: int | None = None) -> None:
    """Stop an actor's process with SIGSTOP: it is there, and does nothing."""
    if isinstance(actor, LocalActor):
        process_of(actor).stop()
    else:
        os.kill(pid or pid_of(actor), signal.SIGSTOP)


def resume(actor: Any, pid: int | None = None) -> None:
    """Let a stopped process go on; one that has been killed meanwhile is left alone."""
    if isinstance(actor, LocalActor):
        process_of(actor).resume()
        return
    try:
        os.kill(pid or pid_of(actor), signal.SIGCONT)
    except (ProcessLookupError, RayError):
        return
