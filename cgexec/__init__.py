"""Ray Compiled Graphs over one actor per host: job statuses for answers, and a graph that outlives the loss of a host.

``GraphExecutor`` is the place to start.

What stands here is imported when it is first asked for: hosts need little of it, and each would import all of it before
a graph is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgexec.classify import handle_ray_error
    from cgexec.config import GraphConfig, RebuildPolicy
    from cgexec.engine.ordering import after
    from cgexec.errors import (
        CgexecError,
        GraphClosedError,
        GraphFailedError,
        GraphSpecError,
        NotEnoughHostsError,
        TransferError,
        UnpicklableExceptionError,
    )
    from cgexec.exception_info import ExceptionInfo
    from cgexec.execution import Execution
    from cgexec.executor import GraphExecutor
    from cgexec.hosts import HostGroup
    from cgexec.lifecycle import GraphState
    from cgexec.refs import DONE, DoneSentinel, RefBox, current_actor_handle
    from cgexec.shapes import chain, fan_out, scatter
    from cgexec.stats import GraphStats
    from cgexec.status import (
        ExecutionInfo,
        HostFailure,
        JobError,
        JobFailed,
        JobInfo,
        JobPreempted,
        JobStatus,
        JobSucceeded,
    )
    from cgexec.stopwatch import StopwatchActor
    from cgexec.supervision import SnitchRecipient, log_failures_to, print_remote_raise
    from cgexec.topology import HostInfo, LostHost, MultisliceInfo, SliceInfo
    from cgexec.waiting import as_completed, wait

__all__ = [
    "DONE",
    "CgexecError",
    "DoneSentinel",
    "ExceptionInfo",
    "Execution",
    "ExecutionInfo",
    "GraphClosedError",
    "GraphConfig",
    "GraphExecutor",
    "GraphFailedError",
    "GraphSpecError",
    "GraphState",
    "GraphStats",
    "HostFailure",
    "HostGroup",
    "HostInfo",
    "JobError",
    "JobFailed",
    "JobInfo",
    "JobPreempted",
    "JobStatus",
    "JobSucceeded",
    "LostHost",
    "MultisliceInfo",
    "NotEnoughHostsError",
    "RebuildPolicy",
    "RefBox",
    "SliceInfo",
    "SnitchRecipient",
    "StopwatchActor",
    "TransferError",
    "UnpicklableExceptionError",
    "after",
    "as_completed",
    "chain",
    "current_actor_handle",
    "fan_out",
    "handle_ray_error",
    "log_failures_to",
    "print_remote_raise",
    "scatter",
    "wait",
]

_FOUND_IN = {
    "cgexec.classify": ("handle_ray_error",),
    "cgexec.config": ("GraphConfig", "RebuildPolicy"),
    "cgexec.engine.ordering": ("after",),
    "cgexec.errors": (
        "CgexecError",
        "GraphClosedError",
        "GraphFailedError",
        "GraphSpecError",
        "NotEnoughHostsError",
        "TransferError",
        "UnpicklableExceptionError",
    ),
    "cgexec.exception_info": ("ExceptionInfo",),
    "cgexec.execution": ("Execution",),
    "cgexec.executor": ("GraphExecutor",),
    "cgexec.hosts": ("HostGroup",),
    "cgexec.lifecycle": ("GraphState",),
    "cgexec.refs": ("DONE", "DoneSentinel", "RefBox", "current_actor_handle"),
    "cgexec.shapes": ("chain", "fan_out", "scatter"),
    "cgexec.stats": ("GraphStats",),
    "cgexec.status": (
        "ExecutionInfo",
        "HostFailure",
        "JobError",
        "JobFailed",
        "JobInfo",
        "JobPreempted",
        "JobStatus",
        "JobSucceeded",
    ),
    "cgexec.stopwatch": ("StopwatchActor",),
    "cgexec.supervision": ("SnitchRecipient", "log_failures_to", "print_remote_raise"),
    "cgexec.topology": ("HostInfo", "LostHost", "MultisliceInfo", "SliceInfo"),
    "cgexec.waiting": ("as_completed", "wait"),
}
_MODULE_OF = {name: module for module, names in _FOUND_IN.items() for name in names}
_MODULES = {module.split(".")[1] for module in _FOUND_IN}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
