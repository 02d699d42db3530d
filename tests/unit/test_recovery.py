"""What to do after a break: decided from values alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgexec import GraphFailedError, HostInfo, NotEnoughHostsError, RebuildPolicy
from cgexec.recovery import LONGEST_BACKOFF_S, GiveUp, RebuildPlan, backoff_delay_s, plan_rebuild
from cgexec.settings import LONGEST_S

quick = settings(database=None, deadline=None, max_examples=200)


def hosts(*host_ids: int) -> list[HostInfo]:
    return [HostInfo(host_id, "slice-0", None, healthy=True, failed=False) for host_id in host_ids]


def never_called(info: HostInfo) -> Any:
    raise AssertionError("a decision has no effects")


SHRINK = RebuildPolicy()
REPLACE = RebuildPolicy(replace=never_called)


@pytest.mark.parametrize(
    ("planned", "alive", "policy", "keep", "replace"),
    [
        ((0, 1, 2, 3), {1, 2, 3}, SHRINK, (1, 2, 3), ()),
        ((0, 1, 2, 3), {0, 3}, SHRINK, (0, 3), ()),
        ((0, 1, 2, 3), {3}, SHRINK, (3,), ()),
        ((0, 1, 2, 3), {0, 1, 2, 3}, SHRINK, (0, 1, 2, 3), ()),
        ((1, 3), {3}, SHRINK, (3,), ()),
        ((0, 1), [1, 0], SHRINK, (0, 1), ()),
        ((0, 1), {0, 1, 7}, SHRINK, (0, 1), ()),
        ((0, 1, 2, 3), {1, 3}, REPLACE, (1, 3), (0, 2)),
        ((0, 1), {0, 1}, REPLACE, (0, 1), ()),
        ((0, 1), set(), REPLACE, (), (0, 1)),
        ((0, 1, 2), {0, 2}, RebuildPolicy(min_hosts=2), (0, 2), ()),
        ((0, 1, 2), {0}, RebuildPolicy(min_hosts=3, replace=never_called), (0,), (1, 2)),
    ],
)
def test_the_survivors_stay_and_the_lost_are_replaced_if_the_policy_can(
    planned: tuple[int, ...], alive: Any, policy: RebuildPolicy, keep: tuple[int, ...], replace: tuple[int, ...]
) -> None:
    assert plan_rebuild(hosts(*planned), alive, policy) == RebuildPlan(keep, replace)


@pytest.mark.parametrize(
    ("planned", "alive", "policy", "parts"),
    [
        ((0, 1), set(), SHRINK, ("0 of 2 hosts", "asks for 1", "host 0, 1")),
        ((0, 1, 2), {1}, RebuildPolicy(min_hosts=2), ("1 of 3 hosts", "asks for 2", "host 0, 2")),
        ((0, 1, 2), {0, 1, 2}, RebuildPolicy(min_hosts=4), ("3 of 3 hosts", "asks for 4", "none")),
        ((0, 1), {0}, RebuildPolicy(min_hosts=3, replace=never_called), ("asks for 3", "host 1")),
    ],
)
def test_too_few_hosts_end_the_graph_and_the_reason_counts_them(
    planned: tuple[int, ...], alive: set[int], policy: RebuildPolicy, parts: tuple[str, ...]
) -> None:
    answer = plan_rebuild(hosts(*planned), alive, policy)
    assert isinstance(answer, GiveUp)
    assert type(answer.reason) is NotEnoughHostsError
    assert all(part in str(answer.reason) for part in parts)


@pytest.mark.parametrize(
    ("max_rebuilds", "started", "goes_on"),
    [(None, 0, True), (None, 10**6, True), (0, 0, False), (1, 0, True), (1, 1, False), (3, 2, True), (3, 4, False)],
)
def test_the_budget_of_rebuilds_is_kept(max_rebuilds: int | None, started: int, goes_on: bool) -> None:
    answer = plan_rebuild(hosts(0, 1), {0}, RebuildPolicy(max_rebuilds=max_rebuilds), rebuilds_started=started)
    assert isinstance(answer, RebuildPlan if goes_on else GiveUp)
    if isinstance(answer, GiveUp):
        assert type(answer.reason) is GraphFailedError
        assert str(max_rebuilds) in str(answer.reason)


def test_a_plan_lists_kept_and_replaced_hosts_in_their_original_order() -> None:
    assert RebuildPlan((1, 4), (0, 2)).hosts == (0, 1, 2, 4)


POLICIES = st.builds(
    RebuildPolicy,
    min_hosts=st.integers(1, 6),
    max_rebuilds=st.none() | st.integers(0, 4),
    replace=st.sampled_from([None, never_called]),
)
HOST_IDS = st.integers(0, 9)


@quick
@given(
    planned=st.sets(HOST_IDS, min_size=1).map(sorted),
    alive=st.sets(HOST_IDS),
    policy=POLICIES,
    started=st.integers(0, 5),
)
def test_any_answer_keeps_to_the_policy(
    planned: list[int], alive: set[int], policy: RebuildPolicy, started: int
) -> None:
    answer = plan_rebuild(hosts(*planned), alive, policy, rebuilds_started=started)
    possible = len(planned) if policy.replace else len(alive.intersection(planned))
    allowed = policy.max_rebuilds is None or started < policy.max_rebuilds
    match answer:
        case RebuildPlan(keep, replace):
            assert allowed
            assert list(keep) == [host_id for host_id in planned if host_id in alive]
            assert list(replace) == ([host_id for host_id in planned if host_id not in alive] if policy.replace else [])
            assert len(answer.hosts) == possible >= policy.min_hosts
            assert list(answer.hosts) == sorted(answer.hosts)
        case GiveUp(reason):
            assert not allowed or possible < policy.min_hosts
            assert isinstance(reason, NotEnoughHostsError) is allowed


@quick
@given(planned=st.sets(HOST_IDS, min_size=2).map(sorted), data=st.data())
def test_shrinking_step_by_step_ends_where_one_step_does(planned: list[int], data: st.DataObject) -> None:
    last = data.draw(st.sets(st.sampled_from(planned), min_size=1))
    between = last | data.draw(st.sets(st.sampled_from(planned)))
    first = plan_rebuild(hosts(*planned), between, SHRINK)
    assert isinstance(first, RebuildPlan)
    second = plan_rebuild(hosts(*first.hosts), last, SHRINK, rebuilds_started=1)
    assert second == plan_rebuild(hosts(*planned), last, SHRINK)


# -- the pause between attempts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff_s", "delays"),
    [
        (0.1, [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]),
        (0.0, [0.0, 0.0, 0.0, 0.0]),
        (4.0, [0.0, 4.0, 5.0, 5.0]),
        (60.0, [0.0, 5.0, 5.0]),
    ],
)
def test_the_pause_doubles_up_to_the_longest(backoff_s: float, delays: list[float]) -> None:
    policy = RebuildPolicy(backoff_s=backoff_s)
    assert [backoff_delay_s(policy, attempt) for attempt in range(len(delays))] == pytest.approx(delays)


@quick
@given(backoff_s=st.floats(0, LONGEST_S), attempt=st.integers(0, 100_000))
def test_the_pause_is_bounded_and_never_shrinks_however_often_it_is_tried(backoff_s: float, attempt: int) -> None:
    policy = RebuildPolicy(backoff_s=backoff_s)
    assert 0.0 <= backoff_delay_s(policy, attempt) <= backoff_delay_s(policy, attempt + 1) <= LONGEST_BACKOFF_S
