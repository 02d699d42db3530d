"""One suite over both transports: a test of a graph takes a fixture that is there once for each, or says why not."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
FOR_EACH = {"small", "way", "site", "ending", "trial"}

# What Ray's channels cannot do; the README has the same in its table.
RAY_CANNOT = {
    "test_stages_that_exchange_large_values_do_not_wait_for_each_other": "room for values of any size",
    "test_an_idle_graph_and_a_driver_that_waits_use_next_to_no_cpu": "wait without spinning",
}
# What is of one transport alone, of raw Ray, or is run on each in another way.
OF_ITS_OWN = {
    "test_what_is_short_and_plain_takes_no_thread_but_the_loops": "only wires can be heard of without one",
    "test_a_method_may_write_over_what_it_returned": "the pool of the socket transport, and what goes beyond it",
    "test_a_lone_host_which_is_told_of_arrays_first_is_given_them_whole": "shared memory of the socket transport",
    "test_what_is_looked_for_can_be_seen": "only Ray's channels leave shared memory behind",
    "test_strangers_are_dropped_and_harm_no_execution": "what listens is the same with both",
    **dict.fromkeys(
        [
            "test_a_builder_that_is_not_callable_is_refused",
            "test_fewer_hosts_than_the_policy_asks_for_are_refused",
            "test_hosts_that_are_no_actors_are_refused",
            "test_the_same_actor_twice_is_refused",
        ],
        "refused before there is a transport",
    ),
}


def graphs_in_tests() -> dict[str, bool]:
    """Return, for each test that builds a graph, whether it takes one of ``FOR_EACH``."""
    found = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                builds = any(isinstance(name, ast.Name) and name.id == "GraphExecutor" for name in ast.walk(node))
                if builds:
                    found[node.name] = bool(FOR_EACH & {argument.arg for argument in node.args.args})
    return found


def test_every_test_of_a_graph_runs_on_both_transports_or_says_why_not() -> None:
    assert {name for name, both in graphs_in_tests().items() if not both} == set(RAY_CANNOT) | set(OF_ITS_OWN)


def test_there_are_many() -> None:
    assert sum(graphs_in_tests().values()) > 80
