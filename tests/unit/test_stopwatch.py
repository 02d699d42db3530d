"""The stopwatch, without its actor."""

from __future__ import annotations

import pytest

from cgexec import StopwatchActor
from cgexec.stopwatch import Stopwatch


def test_durations_add_up_by_name() -> None:
    watch = Stopwatch()
    for name, time in [("step", 1.0), ("load", 8.0), ("step", 2.0), ("step", 4.5)]:
        watch.measure(name, time)
    assert watch.get("step") == (7.5, 3)
    assert watch.average("step") == 2.5
    assert watch.get("load") == (8.0, 1)


def test_a_name_that_was_never_measured_counts_nothing_and_is_not_remembered() -> None:
    watch = Stopwatch()
    assert watch.get("step") == (0.0, 0)
    with pytest.raises(KeyError, match="nothing at all"):
        watch.average("step")


def test_the_average_of_an_unknown_name_lists_the_names_there_are() -> None:
    watch = Stopwatch()
    watch.measure("load", 1.0)
    watch.measure("step", 0.0)
    with pytest.raises(KeyError, match=r"'stepp'.*\['load', 'step'\]"):
        watch.average("stepp")
    assert watch.average("step") == 0.0


def test_the_actor_is_made_of_the_plain_class() -> None:
    assert hasattr(StopwatchActor, "remote")
    assert not isinstance(Stopwatch, type(StopwatchActor))
