"""The tree of cgexec's own exceptions, and that they cross a process with what they carry."""

from __future__ import annotations

import inspect
import pickle

import pytest
from ray import cloudpickle

from cgexec import (
    CgexecError,
    GraphClosedError,
    GraphFailedError,
    GraphSpecError,
    NotEnoughHostsError,
    TransferError,
    UnpicklableExceptionError,
    errors,
)

PARENTS = {
    CgexecError: (Exception,),
    GraphClosedError: (CgexecError,),
    GraphSpecError: (CgexecError, ValueError),
    GraphFailedError: (CgexecError,),
    NotEnoughHostsError: (GraphFailedError,),
    TransferError: (CgexecError,),
    UnpicklableExceptionError: (CgexecError,),
}

INSTANCES = [
    CgexecError("text"),
    GraphClosedError("text"),
    GraphSpecError("text"),
    GraphFailedError("text", ValueError("reason")),
    GraphFailedError("text"),
    NotEnoughHostsError("text", GraphFailedError("reason", KeyError("first"))),
    TransferError("what f() returned cannot be sent", "a.B", "its text", "its traceback"),
    UnpicklableExceptionError("a.B", "its text", "its traceback"),
]


def test_the_tree_is_as_drawn() -> None:
    defined = {
        cls: cls.__bases__
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == "cgexec.errors"
    }
    assert defined == PARENTS
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in defined)


def test_every_class_has_an_instance_here() -> None:
    assert {type(error) for error in INSTANCES} == set(PARENTS)


@pytest.mark.parametrize("library", [pickle, cloudpickle], ids=lambda library: library.__name__)
@pytest.mark.parametrize("error", INSTANCES, ids=repr)
def test_an_error_survives_pickling_with_its_data(error: Exception, library: object) -> None:
    arrived = library.loads(library.dumps(error))  # type: ignore[attr-defined]
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert {name: repr(value) for name, value in vars(arrived).items()} == {
        name: repr(value) for name, value in vars(error).items()
    }


def test_a_failed_graph_keeps_the_first_reason_as_its_cause() -> None:
    reason = ValueError("first")
    error = pickle.loads(pickle.dumps(NotEnoughHostsError("too few", reason)))
    assert str(error) == "too few"
    assert isinstance(error.reason, ValueError)
    assert error.__cause__ is error.reason


def test_a_failed_graph_without_a_reason_does_not_hide_what_was_being_handled() -> None:
    error = GraphFailedError("text")
    assert error.reason is None
    assert error.__cause__ is None
    assert not error.__suppress_context__


def test_a_stand_in_says_what_it_stands_for() -> None:
    error = UnpicklableExceptionError("some.module.SomeError", "it broke", "Traceback ...")
    assert str(error) == "some.module.SomeError: it broke"
    assert (error.type_name, error.text, error.traceback_text) == ("some.module.SomeError", "it broke", "Traceback ...")
