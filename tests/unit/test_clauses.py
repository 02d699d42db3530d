"""Each clause of the contract, as the README states it, is named by the tests that prove it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "README.md"


def clauses_named_in(path: Path) -> set[str]:
    """Return the clauses that the tests of a module are marked with."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return {
        ast.literal_eval(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "clause"
    }


def test_every_clause_is_proved_on_a_real_cluster_and_no_other_is_named() -> None:
    stated = re.findall(r"^- \*\*(C\d): ", README.read_text("utf-8"), re.MULTILINE)
    assert stated == [f"C{number}" for number in range(1, 9)]
    on_a_cluster = set().union(*map(clauses_named_in, TESTS.glob("test_*.py")))
    assert on_a_cluster == set(stated)
    assert set().union(*map(clauses_named_in, Path(__file__).parent.glob("test_*.py"))) <= on_a_cluster
