"""The states of a graph: every pair of state and event is allowed by the table, or refused and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgexec.lifecycle import (
    HISTORY_LENGTH,
    KEEPS_THE_STATE,
    TRANSITIONS,
    GraphEvent,
    GraphState,
    HistoryEntry,
    IllegalTransitionError,
    Lifecycle,
)

S, E = GraphState, GraphEvent

# How to get there from NEW.
WAYS: dict[GraphState, list[GraphEvent]] = {
    S.NEW: [],
    S.READY: [E.BUILT],
    S.BROKEN: [E.BUILT, E.SYSTEM_ERROR],
    S.REBUILDING: [E.BUILT, E.SYSTEM_ERROR, E.REBUILD],
    S.FAILED: [E.BUILT, E.SYSTEM_ERROR, E.REBUILD, E.GAVE_UP],
    S.CLOSED: [E.BUILT, E.CLOSE],
}
PAIRS = list(itertools.product(S, E))


def lived(events: Iterable[GraphEvent]) -> Lifecycle:
    lifecycle = Lifecycle()
    for at_s, event in enumerate(events):
        lifecycle.apply(event, float(at_s), f"detail {at_s}")
    return lifecycle


def test_a_graph_begins_new_and_without_a_past() -> None:
    lifecycle = Lifecycle()
    assert (lifecycle.state, lifecycle.generation, lifecycle.history) == (S.NEW, 0, [])


@pytest.mark.parametrize("state", S)
def test_every_state_can_be_reached(state: GraphState) -> None:
    assert lived(WAYS[state]).state is state


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair in TRANSITIONS])
def test_a_pair_in_the_table_leads_where_the_table_says(state: GraphState, event: GraphEvent) -> None:
    lifecycle = lived(WAYS[state])
    assert lifecycle.apply(event, 50.0, "why") is TRANSITIONS[state, event]
    assert lifecycle.state is TRANSITIONS[state, event]
    assert lifecycle.history[-1] == HistoryEntry(50.0, event, lifecycle.state, lifecycle.generation, "why")


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_a_pair_outside_the_table_is_refused_and_changes_nothing(state: GraphState, event: GraphEvent) -> None:
    lifecycle = lived(WAYS[state])
    before = (lifecycle.state, lifecycle.generation, lifecycle.history)
    with pytest.raises(IllegalTransitionError) as refused:
        lifecycle.apply(event, 50.0)
    assert (lifecycle.state, lifecycle.generation, lifecycle.history) == before
    assert f"'{event.value}' cannot happen in state '{state.value}'" in str(refused.value)
    for entry in lifecycle.history:
        assert str(entry) in str(refused.value)


# Written down once more, so that a change of the table is a decision.
LEADS: dict[GraphEvent, dict[GraphState, GraphState]] = {
    E.BUILT: {S.NEW: S.READY, S.REBUILDING: S.READY},
    E.SYSTEM_ERROR: {S.READY: S.BROKEN, S.REBUILDING: S.REBUILDING},
    E.REBUILD: {S.READY: S.REBUILDING, S.BROKEN: S.REBUILDING},
    E.GAVE_UP: {S.NEW: S.FAILED, S.BROKEN: S.FAILED, S.REBUILDING: S.FAILED},
    E.CLOSE: dict.fromkeys(S, S.CLOSED),
}


@pytest.mark.parametrize("event", LEADS)
def test_the_events_that_move_a_graph_are_these(event: GraphEvent) -> None:
    assert {before: after for (before, happened), after in TRANSITIONS.items() if happened is event} == LEADS[event]


@pytest.mark.parametrize("event", KEEPS_THE_STATE)
def test_an_application_error_keeps_the_graph(event: GraphEvent) -> None:
    for (before, happened), after in TRANSITIONS.items():
        if happened is event:
            assert after is before


@pytest.mark.parametrize("state", [state for state in S if state is not S.NEW])
def test_an_application_error_may_become_known_in_every_state_but_the_first(state: GraphState) -> None:
    # An execution that was begun on a running graph may settle at any time after it: its input turns out unfit, say.
    lifecycle = lived(WAYS[state])
    assert lifecycle.apply(E.APPLICATION_ERROR, 50.0) is state


def test_failed_and_closed_are_final() -> None:
    for state in (S.FAILED, S.CLOSED):
        ends = {after for (before, _), after in TRANSITIONS.items() if before is state}
        assert ends <= {state, S.CLOSED}


@pytest.mark.parametrize("state", S)
def test_a_graph_can_be_closed_from_everywhere(state: GraphState) -> None:
    lifecycle = lived(WAYS[state])
    generation = lifecycle.generation
    assert lifecycle.apply(E.CLOSE, 50.0) is S.CLOSED
    assert lifecycle.generation == generation


# -- generations -------------------------------------------------------------------------------------------------------


def test_the_first_build_is_generation_zero_and_each_further_one_counts() -> None:
    rebuild = [E.SYSTEM_ERROR, E.REBUILD, E.BUILT]
    for rebuilds in range(4):
        assert lived([E.BUILT, *rebuild * rebuilds]).generation == rebuilds


@pytest.mark.parametrize(
    ("events", "generation"),
    [
        ([E.BUILT, E.SYSTEM_ERROR], 0),
        ([E.BUILT, E.SYSTEM_ERROR, E.REBUILD, E.SYSTEM_ERROR, E.SYSTEM_ERROR], 0),
        ([E.BUILT, E.SYSTEM_ERROR, E.REBUILD, E.SYSTEM_ERROR, E.SYSTEM_ERROR, E.BUILT], 1),
        ([E.BUILT, E.REBUILD, E.BUILT, E.REBUILD, E.BUILT], 2),
        ([E.BUILT, E.APPLICATION_ERROR, E.WAIT_RAN_OUT], 0),
        ([E.BUILT, E.SYSTEM_ERROR, E.REBUILD, E.GAVE_UP], 0),
        ([E.GAVE_UP], 0),
    ],
)
def test_only_a_completed_rebuild_counts(events: list[GraphEvent], generation: int) -> None:
    assert lived(events).generation == generation


# -- history -----------------------------------------------------------------------------------------------------------


def in_short(lifecycle: Lifecycle) -> list[tuple[GraphEvent, int]]:
    return [(entry.event, entry.count) for entry in lifecycle.history]


def test_the_history_tells_what_happened_oldest_first() -> None:
    lifecycle = lived([E.BUILT, E.SYSTEM_ERROR, E.REBUILD, E.BUILT])
    assert lifecycle.history == [
        HistoryEntry(0.0, E.BUILT, S.READY, 0, "detail 0"),
        HistoryEntry(1.0, E.SYSTEM_ERROR, S.BROKEN, 0, "detail 1"),
        HistoryEntry(2.0, E.REBUILD, S.REBUILDING, 0, "detail 2"),
        HistoryEntry(3.0, E.BUILT, S.READY, 1, "detail 3"),
    ]


def test_what_changes_nothing_is_counted_in_one_entry_with_the_last_detail() -> None:
    lifecycle = lived([E.BUILT, *[E.APPLICATION_ERROR] * 3])
    assert lifecycle.history[1:] == [HistoryEntry(3.0, E.APPLICATION_ERROR, S.READY, 0, "detail 3", count=3)]
    assert str(lifecycle.history[-1]) == "generation 0: application error x3 -> ready: detail 3"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (
            [E.APPLICATION_ERROR, E.WAIT_RAN_OUT, E.APPLICATION_ERROR, E.WAIT_RAN_OUT, E.WAIT_RAN_OUT],
            [(E.APPLICATION_ERROR, 2), (E.WAIT_RAN_OUT, 3)],
        ),
        (
            [E.WAIT_RAN_OUT, E.APPLICATION_ERROR, E.APPLICATION_ERROR, E.WAIT_RAN_OUT],
            [(E.APPLICATION_ERROR, 2), (E.WAIT_RAN_OUT, 2)],
        ),
        (
            [E.APPLICATION_ERROR, E.SYSTEM_ERROR, E.APPLICATION_ERROR],
            [(E.APPLICATION_ERROR, 1), (E.SYSTEM_ERROR, 1), (E.APPLICATION_ERROR, 1)],
        ),
        (
            [E.APPLICATION_ERROR, E.REBUILD, E.BUILT, E.APPLICATION_ERROR, E.APPLICATION_ERROR],
            [(E.APPLICATION_ERROR, 1), (E.REBUILD, 1), (E.BUILT, 1), (E.APPLICATION_ERROR, 2)],
        ),
    ],
)
def test_counting_starts_afresh_when_the_state_changes(
    events: list[GraphEvent], expected: list[tuple[GraphEvent, int]]
) -> None:
    assert in_short(lived([E.BUILT, *events]))[1:] == expected


def test_any_number_of_application_errors_leaves_the_rest_of_the_history_alone() -> None:
    lifecycle = lived([E.BUILT, *[E.APPLICATION_ERROR, E.WAIT_RAN_OUT] * HISTORY_LENGTH])
    assert in_short(lifecycle) == [
        (E.BUILT, 1),
        (E.APPLICATION_ERROR, HISTORY_LENGTH),
        (E.WAIT_RAN_OUT, HISTORY_LENGTH),
    ]


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    lifecycle = lived([E.BUILT, *[E.REBUILD, E.BUILT] * HISTORY_LENGTH])
    assert len(lifecycle.history) == HISTORY_LENGTH
    assert lifecycle.history[-1].generation == HISTORY_LENGTH
    assert lifecycle.history[0].generation == HISTORY_LENGTH // 2


def test_an_entry_is_taken_out_by_what_it_is_and_not_by_what_it_looks_like() -> None:
    lifecycle = Lifecycle()
    for event in (E.BUILT, E.REBUILD, E.APPLICATION_ERROR, E.SYSTEM_ERROR, E.APPLICATION_ERROR, E.APPLICATION_ERROR):
        lifecycle.apply(event, 0.0)  # a clock that stands still makes entries alike
    assert in_short(lifecycle) == [
        (E.BUILT, 1),
        (E.REBUILD, 1),
        (E.APPLICATION_ERROR, 1),
        (E.SYSTEM_ERROR, 1),
        (E.APPLICATION_ERROR, 2),
    ]


def test_the_history_handed_out_is_a_copy() -> None:
    lifecycle = lived([E.BUILT])
    lifecycle.history.clear()
    assert in_short(lifecycle) == [(E.BUILT, 1)]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (HistoryEntry(0.0, E.BUILT, S.READY, 2, ""), "generation 2: built -> ready"),
        (HistoryEntry(0.0, E.BUILT, S.READY, 2, "on host 1"), "generation 2: built -> ready: on host 1"),
        (HistoryEntry(0.0, E.WAIT_RAN_OUT, S.READY, 0, "", 4), "generation 0: wait ran out x4 -> ready"),
    ],
)
def test_an_entry_reads_as_a_line(entry: HistoryEntry, text: str) -> None:
    assert str(entry) == text


# -- any life ----------------------------------------------------------------------------------------------------------


@settings(database=None, deadline=None, max_examples=200)
@given(events=st.lists(st.sampled_from(list(E)), max_size=60))
def test_in_any_life_nothing_is_lost_and_generations_are_the_rebuilds(events: list[GraphEvent]) -> None:
    lifecycle, happened = Lifecycle(), []
    for at_s, event in enumerate(events):
        before = lifecycle.state
        try:
            lifecycle.apply(event, float(at_s))
        except IllegalTransitionError:
            assert (before, event) not in TRANSITIONS
            assert lifecycle.state is before
        else:
            happened.append(event)
    assert sum(entry.count for entry in lifecycle.history) == len(happened)
    assert lifecycle.generation == max(0, happened.count(E.BUILT) - 1)
    assert [entry.at_s for entry in lifecycle.history] == sorted(entry.at_s for entry in lifecycle.history)
    moved = [event for event in happened if event not in KEEPS_THE_STATE]
    assert [entry.event for entry in lifecycle.history if entry.event not in KEEPS_THE_STATE] == moved
