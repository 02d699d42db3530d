"""What a setting may be, where its value comes from, and which source wins.

Precedence, highest first: the argument of a call; the argument of the executor (``GraphConfig``); an attribute of
Ray's ``DAGContext`` that was changed in code; the environment (``RAY_CGRAPH_...``) as it stands when the graph is
built; Ray's default. Everything here is a pure function of those sources; ``engine/ray_context.py`` fetches them.

Ray itself reads the environment when it is imported, once in every process, and parses it with ``int()``: a fraction
there keeps Ray from being imported at all. What could not be read by Ray is therefore refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

ENVIRONMENT_PREFIX = "RAY_CGRAPH_"
FROM_CALL = "argument of the call"
FROM_CONFIG = "GraphConfig"
FROM_POLICY = "RebuildPolicy"
FROM_CONTEXT = "DAGContext"
FROM_ENVIRONMENT = "environment"
FROM_RAY = "Ray's default"

LONGEST_S = 1e9  # what Ray, sockets and locks count in takes little more
MIN_BUFFER_SIZE_BYTES = 1000  # Ray's own minimum: a channel must be able to carry the notice of its own growth.


@dataclass(frozen=True)
class Setting(Generic[T]):
    """An effective value and the name of the source it came from."""

    value: T
    source: str


@dataclass(frozen=True)
class Settings:
    """The effective settings of one graph, fixed when it is built. In seconds; -1 waits for ever, 0 not at all."""

    submit_timeout_s: Setting[float]
    get_timeout_s: Setting[float]
    teardown_timeout_s: Setting[float]
    read_iteration_timeout_s: Setting[float]
    max_inflight: Setting[int]
    max_buffered_results: Setting[int]
    buffer_size_bytes: Setting[int]
    overlap_gpu_communication: Setting[bool]


def _refuse(name: str, value: object, source: str, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r} (from {source}) is not usable: expected {expected}")


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LONGEST_S <= value <= LONGEST_S


def check_wait(name: str, value: Any, source: str) -> float:
    """Return ``value`` as seconds to wait: 0 or more, or -1 for ever. Raises ValueError for anything else."""
    if not _is_seconds(value) or (value < 0 and value != -1):
        raise _refuse(name, value, source, f"seconds, 0 or more, to {LONGEST_S:g}; or -1 to wait for ever")
    return float(value)


def check_duration(name: str, value: Any, source: str) -> float:
    """Return ``value`` as a bound in seconds, more than 0. Raises ValueError for anything else."""
    if not _is_seconds(value) or value <= 0:
        raise _refuse(name, value, source, f"seconds, more than 0, to {LONGEST_S:g}")
    return float(value)


def check_count(name: str, value: Any, source: str) -> int:
    """Return ``value`` as a count, 1 or more. Raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refuse(name, value, source, "a whole number, 1 or more")
    return value


def check_buffer_size(name: str, value: Any, source: str) -> int:
    """Return ``value`` as the size of a channel's buffer. Raises ValueError below Ray's minimum."""
    if check_count(name, value, source) < MIN_BUFFER_SIZE_BYTES:
        raise _refuse(name, value, source, f"a whole number of bytes, {MIN_BUFFER_SIZE_BYTES} or more")
    return int(value)


def check_limit(name: str, value: Any, source: str) -> int:
    """Return ``value`` as a count that may be 0. Raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refuse(name, value, source, "a whole number, 0 or more")
    return value


def check_pause(name: str, value: Any, source: str) -> float:
    """Return ``value`` as a pause in seconds, which may be 0. Raises ValueError for anything else."""
    if not _is_seconds(value) or value < 0:
        raise _refuse(name, value, source, f"seconds, 0 or more, to {LONGEST_S:g}")
    return float(value)


def check_flag(name: str, value: Any, source: str) -> bool:
    """Return ``value`` if it is True or False. Raises ValueError for anything else."""
    if not isinstance(value, bool):
        raise _refuse(name, value, source, "True or False")
    return value


def check_kind(name: str, value: Any, source: str, *kinds: type) -> None:
    """Raise ValueError unless ``value`` is of one of these classes."""
    if not isinstance(value, kinds):
        named = [kind.__name__ for kind in kinds if kind is not NoneType]
        raise _refuse(name, value, source, f"{' or '.join(named)}{' or None' if NoneType in kinds else ''}")


def _as_ray_flag(text: str) -> bool:
    return text.lower() in ("true", "1")


@dataclass(frozen=True)
class _Source:
    """How one of our settings is called and read in Ray."""

    name: str
    context_name: str
    variable: str
    parse: Callable[[str], Any]
    check: Callable[[str, Any, str], Any]


def _source(name: str, context_name: str, parse: Any, check: Any, variable: str | None = None) -> _Source:
    return _Source(name, context_name, ENVIRONMENT_PREFIX + (variable or context_name), parse, check)


# our name, DAGContext's attribute, how Ray parses the variable, what we accept[, the variable where it differs]
SOURCES: tuple[_Source, ...] = (
    _source("submit_timeout_s", "submit_timeout", int, check_wait),
    _source("get_timeout_s", "get_timeout", int, check_wait),
    _source("teardown_timeout_s", "teardown_timeout", int, check_wait),
    _source("read_iteration_timeout_s", "read_iteration_timeout", float, check_duration, "read_iteration_timeout_s"),
    _source("max_inflight", "max_inflight_executions", int, check_count),
    _source("max_buffered_results", "max_buffered_results", int, check_count),
    _source("buffer_size_bytes", "buffer_size_bytes", int, check_buffer_size),
    _source("overlap_gpu_communication", "overlap_gpu_communication", _as_ray_flag, check_flag),
)


def _from_environment(source: _Source, text: str) -> Any:
    try:
        value = source.parse(text)
    except ValueError:
        way_out = f"set a whole number, or leave it unset and pass GraphConfig({source.name}=...)"
        raise ValueError(
            f"{source.variable}={text!r} (from the environment) is not usable: every Ray process parses it with "
            f"{source.parse.__name__}() as it starts and would fail; {way_out}"
        ) from None
    return source.check(source.variable, value, FROM_ENVIRONMENT)


def _check_ray_accepts(environ: Mapping[str, str], get_timeout_s: float, read_iteration_timeout_s: float) -> None:
    """Refuse a pair that makes Ray's ``DAGContext`` raise in every process that inherits this environment."""
    names = (ENVIRONMENT_PREFIX + "get_timeout", ENVIRONMENT_PREFIX + "read_iteration_timeout_s")
    present = [f"{name}={environ[name]!r}" for name in names if name in environ]
    if present and read_iteration_timeout_s > get_timeout_s:
        raise ValueError(
            f"{' with '.join(present)} (from the environment) is not usable: Ray refuses a get timeout below its read "
            f"iteration timeout there ({get_timeout_s:g} < {read_iteration_timeout_s:g}); 0 and -1 are for "
            "GraphConfig(get_timeout_s=...) or DAGContext"
        )


def resolve(
    config: Mapping[str, Any],
    context: Mapping[str, Any],
    context_defaults: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Settings:
    """Return the effective settings.

    ``config`` holds the executor's arguments under our names (None: not given); ``context`` the ``DAGContext``
    attributes and ``context_defaults`` what they were when Ray was imported, both under Ray's names.

    Raises:
        ValueError: a value is not usable; names the setting, the value, its source and the way out.
    """
    environment = {
        source.name: _from_environment(source, environ[source.variable])
        for source in SOURCES
        if source.variable in environ
    }
    read_default = float(context_defaults["read_iteration_timeout"])
    _check_ray_accepts(
        environ,
        environment.get("get_timeout_s", float(context_defaults["get_timeout"])),
        environment.get("read_iteration_timeout_s", read_default),
    )
    effective: dict[str, Setting[Any]] = {}
    for source in SOURCES:
        in_context = context[source.context_name]
        if config.get(source.name) is not None:
            setting = Setting(config[source.name], FROM_CONFIG)
        elif in_context != context_defaults[source.context_name]:
            setting = Setting(in_context, FROM_CONTEXT)
        elif source.name in environment:
            setting = Setting(environment[source.name], FROM_ENVIRONMENT)
        else:
            setting = Setting(in_context, FROM_RAY)
        effective[source.name] = Setting(source.check(source.name, setting.value, setting.source), setting.source)
    return Settings(**effective)
