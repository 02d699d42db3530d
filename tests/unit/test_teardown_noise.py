"""What Ray logs from the threads of our own graphs is dropped; everything else stays."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from ray.dag import compiled_dag_node

from cgexec.engine import teardown_noise
from cgexec.engine.teardown_noise import hush

LOGGER = logging.getLogger("ray.dag.compiled_dag_node")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[list[str]]:
    """Collect what gets through, and leave the logger as it was."""
    handler = Kept()
    filters, level, propagate = list(LOGGER.filters), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    yield handler.texts
    LOGGER.removeHandler(handler)
    LOGGER.filters[:] = filters
    LOGGER.setLevel(level)
    LOGGER.propagate = propagate


def on_a_thread(call: Callable[[], object], *, hushed: bool) -> None:
    thread = threading.Thread(target=call)
    if hushed:
        hush(thread)
    thread.start()
    thread.join()


def test_the_logger_is_the_one_that_ray_uses() -> None:
    assert compiled_dag_node.logger is LOGGER


def test_what_a_hushed_thread_logs_is_dropped(kept: list[str]) -> None:
    on_a_thread(lambda: (LOGGER.info("tearing down"), LOGGER.error("a traceback")), hushed=True)
    assert kept == []


def test_what_other_threads_log_is_kept(kept: list[str]) -> None:
    on_a_thread(lambda: LOGGER.info("hushed"), hushed=True)
    on_a_thread(lambda: LOGGER.info("of another graph"), hushed=False)
    LOGGER.info("of this thread")
    assert kept == ["of another graph", "of this thread"]


def test_a_hushed_thread_may_log_elsewhere(kept: list[str]) -> None:
    other = logging.getLogger("ray.dag.something_else")
    handler = Kept()
    other.addHandler(handler)
    try:
        on_a_thread(lambda: (LOGGER.error("dropped"), other.error("kept")), hushed=True)
    finally:
        other.removeHandler(handler)
    assert (kept, handler.texts) == ([], ["kept"])


def test_hushing_counts_from_then_on(kept: list[str]) -> None:
    def talk() -> None:
        LOGGER.info("before")
        hush(threading.current_thread())
        LOGGER.info("after")

    on_a_thread(talk, hushed=False)
    assert kept == ["before"]


def test_any_number_of_graphs_share_one_filter(kept: list[str]) -> None:
    for _ in range(3):
        on_a_thread(lambda: LOGGER.info("dropped"), hushed=True)
    assert LOGGER.filters.count(teardown_noise._filter) == 1
    assert kept == []


def test_a_thread_is_not_kept_alive_by_being_hushed(kept: list[str]) -> None:
    thread = threading.Thread(target=print)
    hush(thread)
    alive = weakref.ref(thread)
    assert alive() in teardown_noise._quiet
    del thread
    assert alive() is None
