"""Ray Compiled Graphs over one actor per host: job statuses for answers, and a graph that outlives the loss of a host.

``GraphExecutor`` is the place to start.
"""

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
