"""What a handler of the caller's raises reaches nobody who has something to say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from conftest import eventually

from cgexec import GraphConfig, GraphExecutor, GraphState, JobSucceeded, fan_out
from cgexec.testing import LocalActor, Message, Recorder, kill


class RaisingHandler(logging.Handler):
    num_records = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.num_records += 1
        raise RuntimeError("the disk is full")


@pytest.fixture
def handler() -> Iterator[RaisingHandler]:
    made, log = RaisingHandler(), logging.getLogger("cgexec")
    log.addHandler(made)
    yield made
    log.removeHandler(made)


def test_a_graph_is_rebuilt_whatever_a_handler_of_its_log_does(handler: RaisingHandler) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, fan_out("work"), config=GraphConfig(engine="in_process")) as graph:
        kill(actors[0])
        assert eventually(lambda: graph.generation == 1 and graph.state is GraphState.READY), graph
        assert isinstance(graph.execute(Message(1)), JobSucceeded)
        graph.rebuild()
    assert handler.num_records > 0


def test_a_record_says_where_it_comes_from(caplog: pytest.LogCaptureFixture) -> None:
    actors = [LocalActor(Recorder, label) for label in range(2)]
    with GraphExecutor(actors, fan_out("work"), config=GraphConfig(engine="in_process")) as graph:
        kill(actors[0])
        assert eventually(lambda: graph.generation == 1)
    assert {record.filename for record in caplog.records if record.name == "cgexec.supervisor"} == {"supervisor.py"}
