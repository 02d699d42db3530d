"""From what an engine delivered to the status a caller gets: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from ray.exceptions import RayCgraphCapacityExceeded, RayChannelTimeoutError

from cgexec.classify import Place, Verdict, classify
from cgexec.engine.protocol import Break, GraphSpec, Output, OutputError, OutputValue
from cgexec.isolation import copy_of
from cgexec.status import ExecutionInfo, HostFailure, JobError, JobStatus, JobSucceeded, made
from cgexec.topology import HostInfo, LostHost, as_lost


def failed_status(info: ExecutionInfo, verdict: Verdict, error: Exception) -> JobStatus:
    """Return the status of an execution that settles with ``error``."""
    return verdict.status(replace(info, state=verdict.value), error)


def pending_status(info: ExecutionInfo, error: Exception) -> JobError:
    """Return the answer of a wait that ran out: no outcome, the execution still settles."""
    return JobError(replace(info, state="pending"), error)


def no_room(name: str, in_flight: int, in_line: int, timeout_s: float) -> RayCgraphCapacityExceeded:
    """Return the error of an execution for which no slot became free in time."""
    return RayCgraphCapacityExceeded(
        f"no slot of graph {name!r} became free within the submit timeout ({timeout_s:g} s): {in_flight} executions "
        f"are in flight and {in_line} others in line; nothing was sent"
    )


def not_ready(name: str, state: str, timeout_s: float) -> RayChannelTimeoutError:
    """Return the error of an execution for which the graph was not ready in time."""
    return RayChannelTimeoutError(
        f"graph {name!r} is {state} and was not ready within the submit timeout ({timeout_s:g} s); nothing was sent"
    )


def ran_out(
    info: ExecutionInfo, waited_s: float, ahead: int, spec: GraphSpec | None, outputs: Sequence[Output | None]
) -> RayChannelTimeoutError:
    """Return the error of a wait that ran out: which outputs are missing, or how many executions come first."""
    waits_for = f"; {ahead} are ahead of it" if ahead else ""
    if spec is not None and not ahead:
        pairs = zip(spec.outputs, outputs, strict=True)
        missing = [f"{port.method}() of host {port.host_id}" for port, output in pairs if output is None]
        waits_for = f"; waiting for {', '.join(missing)}" if missing else ""
    return RayChannelTimeoutError(
        f"execution {info.execution} of graph {info.name!r} has not settled after {waited_s:.3g} s{waits_for}; it goes "
        "on, and a later status() may have the outcome"
    )


def _failure(error: OutputError, hosts: Mapping[int, HostInfo]) -> HostFailure:
    host = hosts.get(error.host_id) if error.host_id is not None else None
    return HostFailure(host, error.method, error.error)


def failures_in(outputs: Sequence[Output | None], hosts: Mapping[int, HostInfo]) -> tuple[HostFailure, ...]:
    """Return every application error in ``outputs``, in output order, one for each host and method that raised.

    An error upstream of several outputs arrives once in each of them. Errors of unknown origin all stand.
    """
    found: list[HostFailure] = []
    seen: set[tuple[int, str | None]] = set()
    arrived = [output for output in outputs if isinstance(output, OutputError)]
    for error in (each for first in arrived for each in (first, *first.also)):
        if classify(error.error, Place.OUTPUT) is Verdict.FAILED:
            if error.host_id is not None:
                if (error.host_id, error.method) in seen:
                    continue
                seen.add((error.host_id, error.method))
            found.append(_failure(error, hosts))
    return tuple(found)


def status_of_outputs(
    info: Callable[..., ExecutionInfo], spec: GraphSpec, outputs: Sequence[Output | None], hosts: Mapping[int, HostInfo]
) -> JobStatus:
    """Return the status of an execution: of its first error in output order, or of its result if it has none.

    ``info(**fields)`` is what is known of it, with these fields.
    """
    values = []
    for output in outputs:
        if isinstance(output, OutputError):
            failure = _failure(output, hosts)
            known = info(host=failure.host, method=failure.method, failures=failures_in(outputs, hosts))
            return failed_status(known, classify(output.error, Place.OUTPUT), output.error)
        if output is not None:
            values.append(output.value)
    result = values if spec.returns_list else values[0]
    return made(JobSucceeded, {"info": info(state="succeeded"), "result": result})


def status_of_output(
    info: ExecutionInfo,
    spec: GraphSpec,
    place: int,
    output: Output | None,
    otherwise: JobStatus,
    hosts: Mapping[int, HostInfo],
) -> JobStatus:
    """Return the status of one output by itself; ``otherwise`` is the answer for one that did not arrive."""
    port = spec.outputs[place]
    info = replace(info, host=hosts.get(port.host_id), method=port.method)
    if isinstance(output, OutputValue):
        return JobSucceeded(replace(info, state="succeeded"), output.value)
    if isinstance(output, OutputError):
        failure = _failure(output, hosts)
        failures = tuple(_failure(each, hosts) for each in (output, *output.also))
        info = replace(info, host=failure.host, method=failure.method, failures=failures)
        return failed_status(info, classify(output.error, Place.OUTPUT), output.error)
    return otherwise


def lost_at(why: Break, hosts: Mapping[int, HostInfo], generation: int) -> tuple[LostHost, ...]:
    """Return the hosts whose loss broke a generation, each with an exception of its own."""
    return tuple(
        LostHost(as_lost(hosts[host_id]), generation, copy_of(error))
        for host_id, error in why.errors
        if host_id in hosts and classify(error, Place.LOOP) is Verdict.PREEMPTED
    )


def status_of_break(info: ExecutionInfo, why: Break, hosts: Mapping[int, HostInfo]) -> JobStatus:
    """Return the status of an execution that was in flight when its generation broke. It may have run.

    Preempted if any host was lost, whatever else happened; else an error.
    """
    lost = lost_at(why, hosts, info.generation)
    if lost:
        error = cast("Exception", lost[0].cause)
        return failed_status(replace(info, host=lost[0].info, lost_hosts=lost), Verdict.PREEMPTED, error)
    host = hosts.get(why.errors[0][0]) if why.errors else None
    return failed_status(replace(info, host=host), Verdict.ERROR, copy_of(why.error))
