"""What ``GraphConfig`` and ``RebuildPolicy`` take and refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from cgexec import GraphConfig, RebuildPolicy

BAD_DURATIONS = [0, -1, -0.5, 1.1e9, math.nan, math.inf, True, "1", None]

REFUSED: list[tuple[type, str, list[Any]]] = [
    (GraphConfig, "build_timeout_s", BAD_DURATIONS),
    (GraphConfig, "retry_preempted", [-1, 0.5, "1", math.inf, True, None]),
    (GraphConfig, "fail_fast", [0, 1, None, "yes"]),
    (GraphConfig, "transport", ["", "carrier pigeon", None, 1, "RAY"]),
    (GraphConfig, "engine", ["ray", "", None, 3]),
    (GraphConfig, "pool_bytes", [-1, 0.5, "1", math.inf, True, None]),
    (RebuildPolicy, "min_hosts", [0, -1, 1.0, True, "1", None]),
    (RebuildPolicy, "max_rebuilds", [-1, 0.5, 1.0, "1", math.inf, True, False, 0.0]),
    (RebuildPolicy, "hook_timeout_s", BAD_DURATIONS),
    (RebuildPolicy, "probe_timeout_s", BAD_DURATIONS),
    (RebuildPolicy, "stuck_after_s", BAD_DURATIONS[:-1]),
    (RebuildPolicy, "backoff_s", [-1, -2, -0.5, math.nan, math.inf, True, "1", None]),
    (RebuildPolicy, "replace", [3]),
    (RebuildPolicy, "on_rebuild", [3]),
]

TAKEN: list[tuple[type, str, list[Any]]] = [
    (GraphConfig, "submit_timeout_s", [None, -1, 0, 0.5, 3]),
    (GraphConfig, "get_timeout_s", [None, -1, 0, 0.5, 3]),
    (GraphConfig, "teardown_timeout_s", [None, -1, 0, 0.5, 3]),
    (GraphConfig, "read_iteration_timeout_s", [None, 0.001, 1]),
    (GraphConfig, "build_timeout_s", [0.5, 3]),
    (GraphConfig, "max_inflight", [None, 1, 100]),
    (GraphConfig, "max_buffered_results", [None, 1]),
    (GraphConfig, "buffer_size_bytes", [None, 1000, 10**9]),
    (GraphConfig, "overlap_gpu_communication", [None, True, False]),
    (GraphConfig, "retry_preempted", [0, 1, 1 << 40]),
    (GraphConfig, "fail_fast", [True, False]),
    (GraphConfig, "transport", ["socket", "ray"]),
    (GraphConfig, "engine", ["compiled", "actor_calls", "in_process"]),
    (GraphConfig, "pool_bytes", [0, 1, 1 << 40]),
    (RebuildPolicy, "min_hosts", [1, 8]),
    (RebuildPolicy, "max_rebuilds", [None, 0, 1, 100]),
    (RebuildPolicy, "replace", [None, print]),
    (RebuildPolicy, "on_rebuild", [None, print]),
    (RebuildPolicy, "hook_timeout_s", [0.5, 3]),
    (RebuildPolicy, "probe_timeout_s", [0.5, 3]),
    (RebuildPolicy, "stuck_after_s", [None, 0.5, 3]),
    (RebuildPolicy, "backoff_s", [0, 0.0, 0.5]),
]


def cases(table: list[tuple[type, str, list[Any]]]) -> list[Any]:
    return [pytest.param(cls, name, value, id=f"{name}={value!r}") for cls, name, values in table for value in values]


@pytest.mark.parametrize(("cls", "name", "value"), cases(REFUSED))
def test_a_bad_value_is_refused_with_its_name_and_where_it_stood(cls: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="not usable") as caught:
        cls(**{name: value})
    for part in (f"{name}={value!r}", cls.__name__, "expected"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("cls", "name", "value"), cases(TAKEN))
def test_a_good_value_is_kept_as_it_is(cls: Any, name: str, value: Any) -> None:
    assert getattr(cls(**{name: value}), name) is value


def test_every_field_is_in_the_table_of_good_values() -> None:
    for cls in (GraphConfig, RebuildPolicy):
        fields = {field.name for field in dataclasses.fields(cls)}
        assert {name for of, name, _ in TAKEN if of is cls} == fields


@pytest.mark.parametrize("cls", [GraphConfig, RebuildPolicy])
def test_everything_has_a_default_and_goes_by_keyword(cls: Any) -> None:
    assert cls() == cls()
    with pytest.raises(TypeError):
        cls(1)


@pytest.mark.parametrize(("cls", "name"), [(GraphConfig, "fail_fast"), (RebuildPolicy, "min_hosts")])
def test_a_config_cannot_be_changed(cls: Any, name: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), name, 1)


def test_the_message_about_a_negative_number_offers_only_what_is_taken() -> None:
    with pytest.raises(ValueError, match="max_rebuilds") as rebuilds:
        RebuildPolicy(max_rebuilds=-1)
    assert "1 or more" not in str(rebuilds.value)  # 0 is taken, too
    with pytest.raises(ValueError, match="backoff_s") as backoff:
        RebuildPolicy(backoff_s=-2)
    assert "-1 to wait" not in str(backoff.value)


def test_a_transport_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected.*'ray'"):
        GraphConfig(transport="carrier pigeon")  # type: ignore[arg-type]
