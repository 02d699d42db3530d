"""Keeps Ray's account of our teardowns out of the log.

Ray logs several INFO lines for every teardown, and two tracebacks for every actor that died, from the threads that tear
the graph down. What they tell is in the status, in ``graph.history`` and in one line of our own. The filter looks only
at records of our own graphs' threads; other compiled graphs in the process keep their log.
"""

from __future__ import annotations

import logging
import threading
import weakref

_quiet: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class _FromQuietThreads(logging.Filter):
    def filter(self, _record: logging.LogRecord) -> bool:
        return threading.current_thread() not in _quiet


_filter = _FromQuietThreads()


def hush(thread: threading.Thread) -> None:
    """Drop what Ray's compiled graphs log from ``thread`` from now on."""
    logger = logging.getLogger("ray.dag.compiled_dag_node")
    if _filter not in logger.filters:
        logger.addFilter(_filter)
    _quiet.add(thread)
