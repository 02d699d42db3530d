"""``DONE`` stays itself wherever it goes; the other references hold what they were given."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import ray
from ray import cloudpickle

from cgexec import DONE, DoneSentinel, RefBox, current_actor_handle


def is_done(item: Any) -> bool:
    return item is DONE


def the_items_that_are_done(items: list[Any]) -> tuple[list[bool], list[Any]]:
    return [is_done(item) for item in items], items


@pytest.mark.parametrize(
    "through",
    [
        copy.copy,
        copy.deepcopy,
        lambda item: cloudpickle.loads(cloudpickle.dumps(item)),
        *(lambda item, p=p: pickle.loads(pickle.dumps(item, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_done_is_itself_after_every_kind_of_copy(through: Callable[[Any], Any]) -> None:
    assert through(DONE) is DONE
    assert through([None, DONE])[1] is DONE


def test_done_is_itself_in_another_process_and_on_its_way_back() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        there, returned = processes.submit(the_items_that_are_done, [None, DONE, "DONE"]).result(60)
    assert there == [False, True, False]
    assert [item is DONE for item in returned] == [False, True, False]


def test_there_is_one_sentinel_however_often_it_is_made() -> None:
    assert DoneSentinel() is DONE
    assert isinstance(DONE, DoneSentinel)


def test_done_names_itself_and_is_not_false() -> None:
    assert repr(DONE) == "DONE"
    assert DONE  # `while item:` must not end early
    assert DONE is not None


def test_there_is_no_actor_handle_outside_an_actor() -> None:
    before = ray.is_initialized()
    with pytest.raises(RuntimeError, match="outside an actor"):
        current_actor_handle()
    assert ray.is_initialized() is before  # asking must not start a cluster


def test_a_ref_box_holds_its_reference_as_it_is() -> None:
    ref: Any = object()
    box = RefBox(ref)
    assert box.ref is ref
    assert box == RefBox(ref)
    assert hash(box) == hash(RefBox(ref))
    with pytest.raises(AttributeError):
        box.ref = None  # type: ignore[misc]


def test_a_ref_box_gets_through_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda ref: f"the value of {ref}")
    assert RefBox("a reference").get() == "the value of a reference"  # type: ignore[arg-type]
