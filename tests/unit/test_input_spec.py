"""A graph says what it takes when it is given something else."""

from __future__ import annotations

from typing import Any

import pytest

from cgexec.engine.protocol import InputSpec

ONE = InputSpec(1, frozenset())
NONE = InputSpec(0, frozenset())
MIXED = InputSpec(2, frozenset({"scale", "bias"}))


@pytest.mark.parametrize(
    ("spec", "args", "kwargs"),
    [(ONE, (1,), {}), (ONE, (None,), {}), (NONE, (), {}), (MIXED, (1, 2), {"bias": 0, "scale": 1})],
)
def test_what_the_graph_takes_passes(spec: InputSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    spec.check(args, kwargs)
    with pytest.raises(TypeError):
        spec.check((*args, "one more"), kwargs)


@pytest.mark.parametrize(
    ("spec", "args", "kwargs", "text"),
    [
        (ONE, (), {}, "the graph takes 1 positional; 0 positional arguments were given"),
        (ONE, (1, 2), {}, "the graph takes 1 positional; 2 positional arguments were given"),
        (ONE, (1,), {"x": 1}, "the graph takes 1 positional; unknown: x"),
        (
            MIXED,
            (1,),
            {"bias": 0, "z": 1, "a": 2},
            "the graph takes 2 positional and the keywords bias, scale; 1 positional arguments were given; "
            "missing: scale; unknown: a, z",
        ),
    ],
)
def test_what_it_does_not_take_is_named(
    spec: InputSpec, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError) as caught:
        spec.check(args, kwargs)
    assert str(caught.value) == text
