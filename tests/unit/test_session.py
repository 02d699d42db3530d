"""What a graph may ask of Ray, and when not: before, while, and after Ray shuts down."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.dag import compiled_dag_node

from cgexec.engine.protocol import SessionOverError
from cgexec.engine.session import Session

LONG_S = 30.0


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session of a Ray that says that it is there."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(compiled_dag_node, "_compiled_dags", weakref.WeakValueDictionary())
    return Session()


def on_a_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def await_end(session: Session) -> None:
    """Wait until a shutdown has begun."""
    while not session.over:
        threading.Event().wait(0.001)


class Leaver:
    """An engine that tells what it can ask while it leaves."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.found: list[Any] = []

    def leave_with_ray(self) -> None:
        self.found.append(self.session.over)
        self.found.append(self.session.leave(lambda: "said"))
        with pytest.raises(SessionOverError):
            self.session.ask(lambda: "asked")


def test_what_is_asked_is_answered(session: Session) -> None:
    assert session.ask(lambda: 42) == session.leave(lambda: 42) == 42
    assert not session.over


def test_nothing_is_asked_where_there_is_no_ray(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert session.over
    for gate in (session.ask, session.leave):
        with pytest.raises(SessionOverError, match="Ray is not initialised"):
            gate(pytest.fail)


def test_ray_tells_it_of_a_shutdown_and_then_only_who_leaves_may_ask(session: Session) -> None:
    leaver = Leaver(session)
    session.told_to(leaver)
    compiled_dag_node._shutdown_all_compiled_dags()
    assert leaver.found == [True, "said"]
    assert session.over
    for gate in (session.ask, session.leave):
        with pytest.raises(SessionOverError):
            gate(pytest.fail)
    with pytest.raises(SessionOverError):
        session.told_to(leaver)


def test_a_shutdown_waits_for_what_is_being_asked(session: Session) -> None:
    begun, may_end, order = threading.Event(), threading.Event(), []

    def ask() -> None:
        begun.set()
        may_end.wait(LONG_S)
        order.append("answered")

    asking = on_a_thread(lambda: session.ask(ask))
    assert begun.wait(LONG_S)

    def shut_down() -> None:
        compiled_dag_node._shutdown_all_compiled_dags()
        order.append("shut down")

    ending = on_a_thread(shut_down)
    await_end(session)
    may_end.set()
    asking.join(LONG_S)
    ending.join(LONG_S)
    assert order == ["answered", "shut down"]


def test_what_ray_adds_meanwhile_does_not_upset_the_shutdown(session: Session) -> None:
    """As a compile does that is under way: Ray goes through a dictionary then."""
    begun = threading.Event()
    compiled: list[Session] = []

    def compile_one() -> None:
        begun.set()
        await_end(session)
        compiled.append(Session())

    asking = on_a_thread(lambda: session.ask(compile_one))
    assert begun.wait(LONG_S)
    compiled_dag_node._shutdown_all_compiled_dags()
    asking.join(LONG_S)
    assert len(compiled) == 1


@pytest.mark.parametrize("gate", ["ask", "leave"])
def test_a_wait_that_ray_ends_is_no_exit(session: Session, gate: str) -> None:
    def wait() -> None:
        session.teardown(kill_actors=True) if gate == "leave" else setattr(session, "_ending", True)
        raise SystemExit(1)  # as ray.wait does

    with pytest.raises(SessionOverError):
        getattr(session, gate)(wait)


def test_an_exit_of_the_callers_is_theirs(session: Session) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        session.ask(leave)


def test_neither_ray_nor_the_session_keeps_what_was_forgotten(session: Session) -> None:
    leaver = Leaver(session)
    session.told_to(leaver)
    kept = weakref.ref(leaver)
    del leaver
    gc.collect()
    assert kept() is None
    other = weakref.ref(Session())
    gc.collect()
    assert other() is None
