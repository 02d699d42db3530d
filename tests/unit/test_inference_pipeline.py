"""Inference through stages of several hosts each, without Ray."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cgexec import GraphConfig, JobFailed, JobSucceeded, RebuildPolicy
from cgexec.pipeline import InferencePipeline
from cgexec.testing import LocalActor, kill

IN_PROCESS = GraphConfig(engine="in_process", get_timeout_s=30)


class Rank:
    """Adds its own number to what it is given, and notes that."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.given: list[Any] = []

    def step(self, batch: Any) -> Any:
        self.given.append(batch)
        if isinstance(batch, np.ndarray):
            if (batch == 13).any():
                raise ValueError("thirteen")
            return batch * 10 + self.number
        return type(batch)((*each, self.number) for each in batch)

    def what_was_given(self) -> list[Any]:
        return self.given


def pipeline(num_hosts: int, num_ranks: int, **options: Any) -> tuple[list[Any], InferencePipeline]:
    actors = [LocalActor(Rank, number) for number in range(num_hosts)]
    return actors, InferencePipeline(actors, "step", num_ranks=num_ranks, **{"config": IN_PROCESS, **options})


def results(statuses: Any) -> list[Any]:
    return [status.result if isinstance(status, JobSucceeded) else type(status).__name__ for status in statuses]


def test_every_rank_is_given_what_the_same_rank_before_it_returned_and_the_first_answers() -> None:
    actors, made = pipeline(6, 2)
    with made:
        assert made.execute([()]).result == [(0, 2, 4)]  # type: ignore[attr-defined] # a success
        given = [actor.what_was_given.remote().result(10) for actor in actors]
    assert given == [[[()]], [[()]], [[(0,)]], [[(1,)]], [[(0, 2)]], [[(1, 3)]]]


@pytest.mark.parametrize("num_microbatches", [1, 2, 3, 7, 50])
def test_batches_come_back_whole_and_in_their_order(num_microbatches: int) -> None:
    _, made = pipeline(3, 1)
    batches = [np.arange(size) + 100 * size for size in (7, 1, 20, 3)]
    with made:
        found = results(made.map(batches, num_microbatches=num_microbatches))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_array_equal(result, batch * 1000 + 12)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_are_split_and_joined_too(kind: Any) -> None:
    actors, made = pipeline(2, 1)
    batch = kind((number,) for number in range(5))
    with made:
        (found,) = results(made.map([batch], num_microbatches=2))
        sizes = [len(each) for each in actors[0].what_was_given.remote().result(10)]
    assert found == kind((number, 0, 1) for number in range(5))
    assert sizes == [2, 3]


def test_batches_may_be_split_and_joined_in_a_way_of_ones_own() -> None:
    _, made = pipeline(2, 1)
    with made:
        found = made.map(
            [np.arange(6).reshape(2, 3)],
            num_microbatches=3,
            split=lambda batch, number: np.split(batch, number, axis=1),
            join=lambda parts: np.concatenate(parts, axis=1),
        )
        np.testing.assert_array_equal(results(found)[0], np.arange(6).reshape(2, 3) * 100 + 1)


def test_every_stage_is_at_work_at_the_same_time() -> None:
    """Each stage lets go of its microbatch only when all stages have one."""
    num_stages = 13  # more than Ray lets be in flight, unless it is told otherwise
    together = threading.Barrier(num_stages, timeout=30)

    class Meets:
        def __init__(self, number: int) -> None:
            self.number, self.num_done = number, 0

        def step(self, batch: Any) -> Any:
            # The first microbatches find no others behind them, the last ones none before.
            if num_stages - 1 - self.number <= self.num_done < 2 * num_stages - 1 - self.number:
                together.wait()
            self.num_done += 1
            return batch

    actors = [LocalActor(Meets, number) for number in range(num_stages)]
    with InferencePipeline(actors, "step", config=IN_PROCESS) as made:
        batch = np.arange(2.0 * (2 * num_stages - 1))
        (found,) = results(made.map([batch], num_microbatches=2 * num_stages - 1))
        np.testing.assert_array_equal(found, batch)


def test_a_failure_in_one_microbatch_is_its_batchs_alone() -> None:
    _, made = pipeline(2, 1)
    with made:
        found = list(made.map([np.array([1, 2]), np.array([3, 13]), np.array([4, 5])], num_microbatches=2))
        assert [type(status) for status in found] == [JobSucceeded, JobFailed, JobSucceeded]
        assert "thirteen" in str(found[1].error)  # type: ignore[attr-defined] # a failure
        np.testing.assert_array_equal(results(found)[2], np.array([401, 501]))


def test_what_join_raises_is_the_failure_of_its_batch() -> None:
    _, made = pipeline(2, 1)
    with made:

        def join(parts: Any) -> Any:
            if parts[0][0] == 101:
                raise ValueError("not these")
            return np.concatenate(parts)

        found = list(made.map([np.array([each, each]) for each in (0, 1, 2)], num_microbatches=2, join=join))
        assert [type(status) for status in found] == [JobSucceeded, JobFailed, JobSucceeded]
        assert str(found[1].error) == "not these"  # type: ignore[attr-defined] # a failure
        (one,) = made.map([{"of no": "length"}], split=lambda *_: [[()]], join=lambda results: ("joined", results))
        assert one.result == ("joined", [[(0, 1)]])  # type: ignore[attr-defined] # a success


def test_what_the_batches_raise_comes_behind_what_was_sent() -> None:
    _, made = pipeline(2, 1)

    def batches() -> Any:
        yield np.array([1, 2])
        raise OSError("no more")

    with made:
        found = made.map(batches(), num_microbatches=2)
        np.testing.assert_array_equal(next(found).result, np.array([101, 201]))  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="no more"):
            next(found)
        with pytest.raises(ValueError, match=r"split\(\) has made no microbatches"):
            list(made.map([np.array([1])], num_microbatches=2, split=lambda *_: []))


@pytest.mark.parametrize("batch", [7, {"of no": "rows"}, {1, 2}, np.array(3), None])
def test_a_batch_without_rows_is_split_by_whoever_knows_how(batch: Any) -> None:
    _, made = pipeline(2, 1)
    with made:
        found = made.map([np.array([1, 2]), batch], num_microbatches=2)
        assert isinstance(next(found), JobSucceeded)
        with pytest.raises(TypeError, match=f"a batch that is a {type(batch).__name__} .* pass split="):
            next(found)
        assert isinstance(made.execute(np.array([1])), JobSucceeded)


def test_a_lost_rank_is_replaced_or_the_graph_fails() -> None:
    actors, made = pipeline(
        4, 2, policy=RebuildPolicy(replace=lambda info: LocalActor(Rank, info.host_id), backoff_s=0.01)
    )
    with made:
        kill(actors[2])
        status = made.execute([()])
        while not isinstance(status, JobSucceeded):
            status = made.execute([()])
        assert status.result == [(0, 2)]
        assert made.graph.generation == 1
    actors, made = pipeline(4, 2)
    with made:
        kill(actors[3])
        while made.graph.state.value != "failed":
            made.execute([()])
        assert "the pipeline is for 4 hosts, and has 3; RebuildPolicy(replace=...)" in str(made.graph.failure)


def test_hosts_that_make_no_whole_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="5 hosts do not make stages of num_ranks=2 each"):
        pipeline(5, 2)
    with pytest.raises(ValueError, match="num_ranks=0"):
        pipeline(4, 0)
    _, made = pipeline(2, 1)
    with made, pytest.raises(ValueError, match="num_microbatches=0"):
        made.map([], num_microbatches=0)
