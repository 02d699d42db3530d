"""What is no Exception, raised by the caller's own classes: an outcome, unless it can be Ctrl-C."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cgexec import GraphConfig, GraphExecutor, JobError, JobFailed, JobStatus, TransferError, chain
from cgexec.testing import LocalActor

ON_A_THREAD, ON_THE_MAIN_THREAD = "a thread", "the main thread"


class StrangeError(BaseException):
    """Derives from what nobody should derive from."""


class WillNotGo:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class WillNotCome:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _raise, (self.kind,)


def _raise(kind: type[BaseException]) -> Any:
    raise kind(3)


class Returns:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def step(self, message: Any) -> Any:
        return WillNotCome(self.kind) if message == "what will not come" else message


def answer_on(where: str, graph: GraphExecutor, message: Any) -> JobStatus:
    answers: list[JobStatus] = []
    if where == ON_THE_MAIN_THREAD:
        return graph.execute(message)
    thread = threading.Thread(target=lambda: answers.append(graph.execute(message)))
    thread.start()
    thread.join(30)
    return answers[0]


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (SystemExit, ON_THE_MAIN_THREAD),
        (SystemExit, ON_A_THREAD),
        (KeyboardInterrupt, ON_A_THREAD),  # where Ctrl-C does not come
        (StrangeError, ON_THE_MAIN_THREAD),
    ],
)
def test_what_the_callers_classes_raise_is_an_outcome_whatever_it_is(kind: type[BaseException], where: str) -> None:
    with GraphExecutor([LocalActor(Returns, kind)], chain("step"), config=GraphConfig(engine="in_process")) as graph:
        failed = answer_on(where, graph, WillNotGo(kind(3)))
        assert isinstance(failed, JobFailed)
        assert failed.info.attempts == 0
        assert kind.__name__ in str(failed.error)
        lost = answer_on(where, graph, "what will not come")
        assert isinstance(lost, JobError)
        assert isinstance(lost.error, TransferError)
        assert graph.execute("next").result == "next"
        assert graph.generation == 0


def test_what_may_be_ctrl_c_is_raised_to_the_caller() -> None:
    actor = LocalActor(Returns, KeyboardInterrupt)
    with GraphExecutor([actor], chain("step"), config=GraphConfig(engine="in_process")) as graph:
        with pytest.raises(KeyboardInterrupt):
            graph.execute(WillNotGo(KeyboardInterrupt()))
        assert graph.execute("next").result == "next"
        with pytest.raises(KeyboardInterrupt):
            graph.execute("what will not come")
        assert graph.execute("next").result == "next"
