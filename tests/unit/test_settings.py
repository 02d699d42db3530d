"""Which source of a setting wins, and what each source refuses."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgexec import GraphConfig
from cgexec.engine.ray_context import effective_settings
from cgexec.settings import (
    FROM_CALL,
    FROM_CONFIG,
    FROM_CONTEXT,
    FROM_ENVIRONMENT,
    FROM_RAY,
    LONGEST_S,
    MIN_BUFFER_SIZE_BYTES,
    SOURCES,
    Setting,
    Settings,
    check_buffer_size,
    check_count,
    check_duration,
    check_flag,
    check_wait,
    resolve,
)

DEFAULTS: dict[str, Any] = {
    "submit_timeout": 10,
    "get_timeout": 10,
    "teardown_timeout": 30,
    "read_iteration_timeout": 0.1,
    "max_inflight_executions": 10,
    "max_buffered_results": 1000,
    "buffer_size_bytes": 1_000_000,
    "overlap_gpu_communication": False,
}

# our name: (Ray's name, the variable, what config gives, what is set in the context, the variable's text, its value)
SETTINGS: dict[str, tuple[str, str, Any, Any, str, Any]] = {
    "submit_timeout_s": ("submit_timeout", "RAY_CGRAPH_submit_timeout", 0.5, 2.5, "7", 7.0),
    "get_timeout_s": ("get_timeout", "RAY_CGRAPH_get_timeout", 0.5, 2.5, "7", 7.0),
    "teardown_timeout_s": ("teardown_timeout", "RAY_CGRAPH_teardown_timeout", 0.5, 2.5, "7", 7.0),
    "read_iteration_timeout_s": (
        "read_iteration_timeout",
        "RAY_CGRAPH_read_iteration_timeout_s",
        0.01,
        0.02,
        "0.03",
        0.03,
    ),
    "max_inflight": ("max_inflight_executions", "RAY_CGRAPH_max_inflight_executions", 2, 3, "4", 4),
    "max_buffered_results": ("max_buffered_results", "RAY_CGRAPH_max_buffered_results", 2, 3, "4", 4),
    "buffer_size_bytes": ("buffer_size_bytes", "RAY_CGRAPH_buffer_size_bytes", 2000, 3000, "4000", 4000),
    "overlap_gpu_communication": (
        "overlap_gpu_communication",
        "RAY_CGRAPH_overlap_gpu_communication",
        False,
        True,
        "1",
        True,
    ),
}


def resolved(
    config: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    return resolve(config or {}, {**DEFAULTS, **(context or {})}, DEFAULTS, environ or {})


# -- precedence --------------------------------------------------------------------------------------------------------


def test_the_table_of_this_file_has_every_setting() -> None:
    assert set(SETTINGS) == {source.name for source in SOURCES} == {f.name for f in dataclasses.fields(Settings)}
    assert {row[0] for row in SETTINGS.values()} == set(DEFAULTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_source_beats_those_below_it(name: str) -> None:
    ray_name, variable, given_value, in_context, text, in_environment = SETTINGS[name]
    config, context, environ = {name: given_value}, {ray_name: in_context}, {variable: text}

    assert getattr(resolved(config, context, environ), name) == Setting(given_value, FROM_CONFIG)
    assert getattr(resolved({}, context, environ), name) == Setting(in_context, FROM_CONTEXT)
    assert getattr(resolved({}, {}, environ), name) == Setting(in_environment, FROM_ENVIRONMENT)
    assert getattr(resolved(), name) == Setting(DEFAULTS[ray_name], FROM_RAY)


@pytest.mark.parametrize("name", SETTINGS)
def test_none_in_the_config_means_not_given(name: str) -> None:
    variable, text, value = SETTINGS[name][1], SETTINGS[name][4], SETTINGS[name][5]
    assert getattr(resolved({name: None}, {}, {variable: text}), name) == Setting(value, FROM_ENVIRONMENT)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_says_nothing_about_the_others(name: str) -> None:
    changed, untouched = resolved({name: SETTINGS[name][2]}), resolved()
    for other in SETTINGS:
        assert (getattr(changed, other) == getattr(untouched, other)) is (other != name)


def test_times_are_fractions_of_seconds_wherever_they_come_from() -> None:
    effective = resolved({"submit_timeout_s": 3}, {"get_timeout": 4}, {"RAY_CGRAPH_teardown_timeout": "5"})
    values = [effective.submit_timeout_s, effective.get_timeout_s, effective.teardown_timeout_s]
    assert [setting.value for setting in values] == [3.0, 4.0, 5.0]
    assert all(type(setting.value) is float for setting in values)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("false", False), ("yes", False)]
)
def test_a_flag_in_the_environment_is_read_as_ray_reads_it(text: str, value: bool) -> None:
    effective = resolved(environ={"RAY_CGRAPH_overlap_gpu_communication": text})
    assert effective.overlap_gpu_communication == Setting(value, FROM_ENVIRONMENT)


def test_the_environment_counts_as_it_is_when_the_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, variable, *_rest in SETTINGS.values():
        monkeypatch.delenv(variable, raising=False)
    assert effective_settings(GraphConfig()).submit_timeout_s.source == FROM_RAY
    monkeypatch.setenv("RAY_CGRAPH_submit_timeout", "17")
    assert effective_settings(GraphConfig()).submit_timeout_s == Setting(17.0, FROM_ENVIRONMENT)
    assert effective_settings(GraphConfig(submit_timeout_s=0.25)).submit_timeout_s == Setting(0.25, FROM_CONFIG)


def test_an_attribute_of_rays_context_that_was_changed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.dag import DAGContext

    monkeypatch.setenv("RAY_CGRAPH_get_timeout", "17")
    monkeypatch.setattr(DAGContext.get_current(), "get_timeout", 0.75)
    assert effective_settings(GraphConfig()).get_timeout_s == Setting(0.75, FROM_CONTEXT)


# -- refusals ----------------------------------------------------------------------------------------------------------

TIMES = ("submit_timeout_s", "get_timeout_s", "teardown_timeout_s")
NO_TIME = [-0.5, -2, math.nan, math.inf, -math.inf, True, False, "10", [1], 1j]
NO_COUNT = [0, -1, 1.0, 1.5, math.nan, True, "10", [1]]
BAD: dict[str, list[Any]] = {
    **dict.fromkeys(TIMES, NO_TIME),
    "read_iteration_timeout_s": [*NO_TIME, 0, -1],
    "max_inflight": NO_COUNT,
    "max_buffered_results": NO_COUNT,
    "buffer_size_bytes": [*NO_COUNT, MIN_BUFFER_SIZE_BYTES - 1],
    "overlap_gpu_communication": [0, 1, "true", 0.5],
}


BAD_CASES = [pytest.param(name, value, id=f"{name}={value!r}") for name in BAD for value in BAD[name]]


@pytest.mark.parametrize(("name", "value"), BAD_CASES)
def test_the_config_refuses_a_bad_value_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="not usable") as caught:
        GraphConfig(**{name: value})
    for part in (f"{name}={value!r}", "GraphConfig", "expected"):
        assert part in str(caught.value)


# What equals the default counts as not changed.
@pytest.mark.parametrize(
    ("name", "value"), [case for case in BAD_CASES if case.values[1] != DEFAULTS[SETTINGS[case.values[0]][0]]]
)
def test_a_bad_value_in_rays_context_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="not usable") as caught:
        resolved(context={SETTINGS[name][0]: value})
    for part in (f"{name}={value!r}", "DAGContext", "expected"):
        assert part in str(caught.value)


def test_a_number_that_no_clock_can_count_is_refused_as_a_value() -> None:
    huge = 10**400
    for refuses in (
        lambda: GraphConfig(submit_timeout_s=huge),
        lambda: resolved(context={"submit_timeout": huge}),
        lambda: resolved(environ={"RAY_CGRAPH_submit_timeout": str(huge)}),
    ):
        with pytest.raises(ValueError, match="not usable"):
            refuses()


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("text", ["0.5", "10.0", "1e3", "", " ", "ten", "nan", "inf", "True", "0x10"])
def test_a_variable_that_ray_could_not_read_is_refused_with_the_way_out(name: str, text: str) -> None:
    variable = SETTINGS[name][1]
    with pytest.raises(ValueError, match="every Ray process") as caught:
        resolved(environ={variable: text})
    for part in (f"{variable}={text!r}", "environment", "int()", "whole number", f"GraphConfig({name}=...)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "-2") for name in TIMES),
        ("read_iteration_timeout_s", "0"),
        ("read_iteration_timeout_s", "-1"),
        ("read_iteration_timeout_s", "nan"),
        ("read_iteration_timeout_s", "inf"),
        ("max_inflight", "0"),
        ("max_inflight", "-1"),
        ("max_buffered_results", "0"),
        ("buffer_size_bytes", "0"),
        ("buffer_size_bytes", "999"),
    ],
)
def test_a_variable_that_means_nothing_is_refused_by_name(name: str, text: str) -> None:
    variable = SETTINGS[name][1]
    with pytest.raises(ValueError, match="not usable") as caught:
        resolved(environ={variable: text})
    for part in (f"{variable}=", "environment", "expected"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("max_inflight", "2.5"), ("max_buffered_results", "many"), ("buffer_size_bytes", "1e6")]
)
def test_a_count_that_ray_could_not_read_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="every Ray process") as caught:
        resolved(environ={SETTINGS[name][1]: text})
    assert f"{SETTINGS[name][1]}={text!r}" in str(caught.value)


def test_what_the_environment_cannot_hold_is_refused_although_a_higher_source_wins() -> None:
    # Every process that inherits the environment would fail to import Ray.
    with pytest.raises(ValueError, match=r"RAY_CGRAPH_get_timeout='0.5'"):
        resolved({"get_timeout_s": 0.5}, {}, {"RAY_CGRAPH_get_timeout": "0.5"})


@pytest.mark.parametrize("text", ["0", "-1"])
def test_a_get_timeout_of_the_environment_below_the_read_iteration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Ray refuses") as caught:
        resolved(environ={"RAY_CGRAPH_get_timeout": text})
    for part in (f"RAY_CGRAPH_get_timeout={text!r}", "environment", "GraphConfig(get_timeout_s=...)", "DAGContext"):
        assert part in str(caught.value)


def test_a_read_iteration_of_the_environment_above_the_get_timeout_is_refused() -> None:
    variables = {"RAY_CGRAPH_read_iteration_timeout_s": "10.5"}
    with pytest.raises(ValueError, match=r"RAY_CGRAPH_read_iteration_timeout_s='10\.5'.*10 < 10\.5"):
        resolved(environ=variables)
    assert resolved(environ={**variables, "RAY_CGRAPH_get_timeout": "11"}).get_timeout_s.value == 11.0


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [-1, -1.0, 0, 0.0, 0.001, 3, 1e9])
def test_config_and_context_take_fractions_zero_and_for_ever(name: str, value: float) -> None:
    assert getattr(resolved({name: value}), name) == Setting(float(value), FROM_CONFIG)
    assert getattr(resolved(context={SETTINGS[name][0]: value}), name) == Setting(float(value), FROM_CONTEXT)


@pytest.mark.parametrize("name", ["submit_timeout_s", "teardown_timeout_s"])
@pytest.mark.parametrize("text", ["0", "-1", "25", " 25 "])
def test_the_environment_takes_whole_seconds(name: str, text: str) -> None:
    assert getattr(resolved(environ={SETTINGS[name][1]: text}), name) == Setting(float(text), FROM_ENVIRONMENT)


# -- the checks, as properties -----------------------------------------------------------------------------------------

LARGEST = sys.float_info.max
ANYTHING = st.one_of(st.integers(), st.floats(), st.booleans(), st.text("019.-e", max_size=4), st.none())
quick = settings(database=None, deadline=None, max_examples=200)


@quick
@given(value=ANYTHING)
def test_a_wait_is_a_finite_number_not_below_zero_or_minus_one(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value <= LONGEST_S
    if number and (value >= 0 or value == -1):
        assert check_wait("x", value, FROM_CALL) == float(value)
    else:
        with pytest.raises(ValueError, match="x="):
            check_wait("x", value, FROM_CALL)


@quick
@given(value=ANYTHING)
def test_a_duration_is_a_finite_number_above_zero(value: Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LONGEST_S:
        assert check_duration("x", value, FROM_CALL) == float(value)
    else:
        with pytest.raises(ValueError, match="x="):
            check_duration("x", value, FROM_CALL)


@quick
@given(value=ANYTHING)
def test_a_count_is_a_whole_number_of_at_least_one(value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        assert check_count("x", value, FROM_CALL) == value
    else:
        with pytest.raises(ValueError, match="x="):
            check_count("x", value, FROM_CALL)


@quick
@given(value=ANYTHING)
def test_a_flag_is_true_or_false_and_nothing_like_it(value: Any) -> None:
    if isinstance(value, bool):
        assert check_flag("x", value, FROM_CALL) is value
    else:
        with pytest.raises(ValueError, match="x="):
            check_flag("x", value, FROM_CALL)


@pytest.mark.parametrize(("value", "fits"), [(MIN_BUFFER_SIZE_BYTES, True), (MIN_BUFFER_SIZE_BYTES - 1, False)])
def test_a_buffer_is_no_smaller_than_rays_minimum(value: int, fits: bool) -> None:
    if fits:
        assert check_buffer_size("x", value, FROM_CALL) == value
    else:
        with pytest.raises(ValueError, match=f"{MIN_BUFFER_SIZE_BYTES} or more"):
            check_buffer_size("x", value, FROM_CALL)
