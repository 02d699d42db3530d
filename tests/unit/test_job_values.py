"""The values of ``status`` and ``topology``: their fields, and what callers do with them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from cgexec import (
    ExecutionInfo,
    HostFailure,
    HostInfo,
    JobError,
    JobFailed,
    JobInfo,
    JobPreempted,
    JobStatus,
    JobSucceeded,
    LostHost,
    MultisliceInfo,
    SliceInfo,
)

REQUIRED = dataclasses.MISSING

FIELDS: dict[type, list[tuple[str, Any]]] = {
    JobInfo: [("name", REQUIRED), ("state", REQUIRED), ("kind", REQUIRED)],
    JobStatus: [("info", REQUIRED)],
    JobSucceeded: [("info", REQUIRED), ("result", REQUIRED)],
    JobFailed: [("info", REQUIRED), ("error", REQUIRED)],
    JobPreempted: [("info", REQUIRED), ("error", REQUIRED)],
    JobError: [("info", REQUIRED), ("error", REQUIRED)],
    ExecutionInfo: [
        ("name", REQUIRED),
        ("state", REQUIRED),
        ("kind", REQUIRED),
        ("execution", -1),
        ("generation", 0),
        ("attempts", 0),
        ("elapsed_s", 0.0),
        ("host", None),
        ("method", None),
        ("failures", ()),
        ("lost_hosts", ()),
    ],
    HostInfo: [
        ("host_id", REQUIRED),
        ("slice_name", REQUIRED),
        ("num_devices", REQUIRED),
        ("healthy", REQUIRED),
        ("failed", REQUIRED),
        ("node_id", None),
    ],
    SliceInfo: [
        ("slice_name", REQUIRED),
        ("num_hosts", REQUIRED),
        ("ip_address", REQUIRED),
        ("num_accelerators_per_host", REQUIRED),
        ("node_ids", None),
        ("host_infos", None),
    ],
    MultisliceInfo: [
        ("coordinator_ip", REQUIRED),
        ("slice_id", REQUIRED),
        ("num_slices", REQUIRED),
        ("port", 8081),
    ],
    LostHost: [("info", REQUIRED), ("generation", REQUIRED), ("cause", REQUIRED)],
    HostFailure: [("host", REQUIRED), ("method", REQUIRED), ("error", REQUIRED)],
}

INFO = JobInfo("echo", "succeeded", "inference")
HOST = HostInfo(2, "slice-0", 4, healthy=True, failed=False, node_id="ab")
SLICE = SliceInfo("slice-0", 2, "10.0.0.1", 4, ["a", "b"], [{"host_id": 0}])
LOST = LostHost(HOST, 3, ValueError("gone"))
EXECUTION_INFO = ExecutionInfo(
    "echo", "failed", "inference", 7, 1, 1, 0.5, HOST, "step", (HostFailure(HOST, "step", ValueError("x")),), (LOST,)
)
VALUES = [
    INFO,
    EXECUTION_INFO,
    JobStatus(INFO),
    JobSucceeded(INFO, [1, 2]),
    JobFailed(INFO, ValueError("x")),
    JobPreempted(INFO, ValueError("x")),
    JobError(INFO, ValueError("x")),
    HostFailure(None, None, ValueError("x")),
    HOST,
    SLICE,
    MultisliceInfo("10.0.0.1", 0, 2),
    LOST,
]


def named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


@pytest.mark.parametrize(("cls", "fields"), FIELDS.items(), ids=named)
def test_fields_stand_in_the_agreed_order_with_the_agreed_defaults(cls: Any, fields: list[tuple[str, Any]]) -> None:
    assert [(field.name, field.default) for field in dataclasses.fields(cls)] == fields
    assert all(field.default_factory is dataclasses.MISSING for field in dataclasses.fields(cls))


@pytest.mark.parametrize("cls", FIELDS, ids=named)
def test_fields_may_be_given_by_position(cls: Any) -> None:
    names = [name for name, _ in FIELDS[cls]]
    value = cls(*range(len(names)))
    assert [getattr(value, name) for name in names] == list(range(len(names)))


def test_every_value_of_the_two_modules_is_in_the_table() -> None:
    from cgexec import status, topology

    defined = {
        thing
        for module in (status, topology)
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == module.__name__
    }
    assert defined == set(FIELDS) == {type(value) for value in VALUES}


@pytest.mark.parametrize("value", VALUES, ids=named)
def test_a_value_cannot_be_changed(value: Any) -> None:
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


@pytest.mark.parametrize("value", VALUES, ids=named)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_value_survives_pickling(value: Any, protocol: int) -> None:
    arrived = pickle.loads(pickle.dumps(value, protocol))
    assert type(arrived) is type(value)
    assert repr(arrived) == repr(value)  # exceptions do not compare


class WordlessError(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


@pytest.mark.parametrize("status", [JobFailed, JobPreempted, JobError])
def test_a_status_can_be_shown_whatever_its_error_says(status: Any) -> None:
    error = WordlessError()
    info = ExecutionInfo("g", "failed", "graph", failures=(HostFailure(None, "work", error),))
    assert repr(status(info, error)).count("<its text cannot be had: SystemExit>") == 2


def test_the_statuses_are_a_closed_set_under_one_base() -> None:
    assert set(JobStatus.__subclasses__()) == {JobSucceeded, JobFailed, JobPreempted, JobError}
    assert not any(leaf.__subclasses__() for leaf in JobStatus.__subclasses__())


def described(status: JobStatus) -> str:
    match status:
        case JobSucceeded(JobInfo(name, _, _), [first, *_]):
            return f"{name} succeeded with {first}"
        case JobSucceeded(info, result):
            return f"{info.name} succeeded with {result}"
        case JobFailed(ExecutionInfo(execution=number, host=HostInfo(host_id)), error):
            return f"execution {number} failed on host {host_id}: {error}"
        case JobFailed(info, error=error) | JobPreempted(info, error=error) | JobError(info, error=error):
            return f"{info.name} {type(status).__name__}: {error}"
    raise AssertionError(status)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (JobSucceeded(INFO, [1, 2]), "echo succeeded with 1"),
        (JobSucceeded(INFO, None), "echo succeeded with None"),
        (JobFailed(INFO, ValueError("x")), "echo JobFailed: x"),
        (JobFailed(EXECUTION_INFO, ValueError("x")), "execution 7 failed on host 2: x"),
        (JobPreempted(INFO, ValueError("x")), "echo JobPreempted: x"),
        (JobError(INFO, ValueError("x")), "echo JobError: x"),
    ],
)
def test_statuses_are_told_apart_and_taken_apart_by_match(status: JobStatus, expected: str) -> None:
    assert described(status) == expected


def test_different_statuses_of_the_same_content_are_not_equal() -> None:
    error = ValueError("x")
    statuses = [JobFailed(INFO, error), JobPreempted(INFO, error), JobError(INFO, error)]
    assert len(set(statuses)) == len(statuses)
    assert JobFailed(INFO, error) == statuses[0]


def test_an_execution_info_is_a_job_info() -> None:
    assert isinstance(EXECUTION_INFO, JobInfo)
    assert ExecutionInfo("echo", "pending", "inference").execution == -1
