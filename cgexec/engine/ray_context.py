"""Ray's own settings of compiled graphs, as they stand in this process."""

from __future__ import annotations

import os
from typing import Any

from ray.dag import DAGContext
from ray.dag import context as dag_context

from cgexec.config import GraphConfig
from cgexec.settings import SOURCES, Settings, resolve

# Private: what the DAGContext attributes were when Ray was imported; a difference shows a change made in code.
_DEFAULTS: dict[str, str] = {
    "submit_timeout": "DEFAULT_SUBMIT_TIMEOUT_S",
    "get_timeout": "DEFAULT_GET_TIMEOUT_S",
    "teardown_timeout": "DEFAULT_TEARDOWN_TIMEOUT_S",
    "read_iteration_timeout": "DEFAULT_READ_ITERATION_TIMEOUT_S",
    "max_inflight_executions": "DEFAULT_MAX_INFLIGHT_EXECUTIONS",
    "max_buffered_results": "DEFAULT_MAX_BUFFERED_RESULTS",
    "buffer_size_bytes": "DEFAULT_BUFFER_SIZE_BYTES",
    "overlap_gpu_communication": "DEFAULT_OVERLAP_GPU_COMMUNICATION",
}


def effective_settings(config: GraphConfig) -> Settings:
    """Return the settings of a graph built now with ``config``: see ``cgexec.settings`` for which source wins.

    Raises:
        ValueError: a value is not usable; names the setting, the value, its source and the way out.
    """
    context = DAGContext.get_current()
    current: dict[str, Any] = {name: getattr(context, name) for name in _DEFAULTS}
    defaults: dict[str, Any] = {name: getattr(dag_context, constant) for name, constant in _DEFAULTS.items()}
    given = {source.name: getattr(config, source.name) for source in SOURCES}
    return resolve(given, current, defaults, os.environ)
