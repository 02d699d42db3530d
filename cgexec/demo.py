"""``cgexec demo``: the whole story on one machine, in a few seconds.

Good executions, an application error that costs nothing, a host killed with an execution in flight, and the same graph
serving on the survivors. Every step is checked; what did not happen as promised is named, and the exit code is 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cgexec.executor import GraphExecutor
from cgexec.hosts import HostGroup
from cgexec.lifecycle import GraphState
from cgexec.status import ExecutionInfo, JobFailed, JobPreempted, JobStatus, JobSucceeded
from cgexec.supervision import remote_traceback

_OBJECT_STORE_BYTES = 200_000_000
_REBUILD_TIMEOUT_S = 60.0


class DemoWorker:
    """What runs on every host of the demo."""

    def root(self, number: float, seconds: float) -> float:
        """Return the square root of ``number`` after ``seconds``; raises for a negative one, as user code does."""
        time.sleep(seconds)
        if number < 0:
            raise ValueError(f"{number:g} has no real root")
        return float(number**0.5)


@contextmanager
def ray_session(address: str | None, num_cpus: int) -> Iterator[None]:
    """Connect to the cluster at ``address``, or start Ray on this machine; leaves nothing running that it started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray up to 2.5x warns of a coming default
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        ray.init(address=address, **quiet)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


class Report:
    """Prints a line for each status and keeps what did not happen as it should."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self.broken_promises: list[str] = []

    def status(self, what: str, graph: GraphExecutor, status: JobStatus) -> None:
        """Print one status: what was tried, the status, and the generation, hosts and milliseconds behind it."""
        info = status.info
        if isinstance(info, ExecutionInfo):
            hosts = ",".join(str(host.host_id) for host in graph.hosts)
            where = f"generation {info.generation}  hosts now {hosts:8s}{info.elapsed_s * 1e3:9.1f} ms"
        else:
            where = ""
        print(f"  {what:22s} {type(status).__name__:13s} {where}  {_gist(status)}")
        if self._verbose and not isinstance(status, JobSucceeded):
            print("    " + remote_traceback(status).replace("\n", "\n    "))

    def promise(self, what: str, kept: bool) -> None:
        """Note that something promised happened, or did not."""
        if not kept:
            self.broken_promises.append(what)


def _gist(status: JobStatus) -> str:
    if isinstance(status, JobSucceeded):
        return str(status.result)
    lines = str(getattr(status, "error", "")).strip().splitlines()
    lost = getattr(status.info, "lost_hosts", ())
    if lost:
        return f"lost host {', '.join(str(host.info.host_id) for host in lost)}: {type(lost[0].cause).__name__}"
    return lines[-1] if lines else ""


def run(num_hosts: int, address: str | None, verbose: bool) -> int:
    """Run the demo on ``num_hosts`` hosts (2 or more) and return the exit code: 0 only if all went as promised."""
    report = Report(verbose)
    with ray_session(address, num_hosts):
        print(f"starting {num_hosts} hosts and compiling a graph over them")
        with (
            HostGroup.spawn(DemoWorker, num_hosts=num_hosts, actor_options={"num_cpus": 0}) as hosts,
            GraphExecutor(hosts, _on_every_host, name="demo") as graph,
        ):
            _good_and_bad(graph, num_hosts, report)
            _lose_a_host(graph, num_hosts, report)
    for promise in report.broken_promises:
        print(f"NOT AS PROMISED: {promise}")
    print("everything happened as promised" if not report.broken_promises else "the demo failed")
    return 1 if report.broken_promises else 0


def _on_every_host(inp: Any, actors: list[Any]) -> list[Any]:
    """Build the graph: every host gets the number and the seconds, and there is one output for each."""
    return [actor.root.bind(inp[0], inp[1]) for actor in actors]


def _good_and_bad(graph: GraphExecutor, num_hosts: int, report: Report) -> None:
    print("good executions, and an application error, which costs nothing:")
    for number in (1.0, 4.0, -9.0, 16.0):
        status = graph.execute(number, 0.0)
        report.status(f"root of {number:g}", graph, status)
        if number < 0:
            failed = isinstance(status, JobFailed) and isinstance(status.error, ValueError)
            report.promise("a method that raises is a JobFailed with its error", failed)
        else:
            good = isinstance(status, JobSucceeded) and status.result == [number**0.5] * num_hosts
            report.promise(f"the root of {number:g} on every host", good)
    report.promise("an application error keeps the graph", graph.generation == 0)


def _lose_a_host(graph: GraphExecutor, num_hosts: int, report: Report) -> None:
    print("a host is killed with an execution in flight; the graph is rebuilt on the survivors:")
    in_flight = graph.submit(36.0, 2.0)
    ray.kill(graph.actors[-1])
    status = in_flight.status()
    deadline = time.monotonic() + _REBUILD_TIMEOUT_S
    while graph.generation == 0 and graph.state is not GraphState.FAILED and time.monotonic() < deadline:
        time.sleep(0.01)  # the graph rebuilds itself meanwhile; a caller would simply go on with execute()
    report.status("root of 36, in flight", graph, status)
    lost = [host.info.host_id for host in graph.lost_hosts]
    report.promise("the execution in flight is preempted", isinstance(status, JobPreempted))
    report.promise("the lost host is named", lost == [num_hosts - 1])

    for number in (49.0, 64.0):
        status = graph.execute(number, 0.0)
        report.status(f"root of {number:g}", graph, status)
        served = isinstance(status, JobSucceeded) and status.result == [number**0.5] * (num_hosts - 1)
        report.promise(f"the root of {number:g} on the survivors", served)
    report.promise("one system error costs one generation", graph.generation == 1)
