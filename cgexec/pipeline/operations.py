"""What a stage of a pipeline does at a time, and the orders in which hosts do it.

The notation is that of ``torch.distributed.pipelining``: ``0F3`` is stage 0's forward of microbatch 3. ``B`` is the
full backward; a schedule that splits it has ``I``, the gradient of the input, which the stage before waits for, and
``W``, the gradient of the weights, which nobody waits for. (The paper on zero bubbles calls these B and W.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast, get_args

Kind = Literal["F", "B", "I", "W"]
FORWARD: Kind = "F"
FULL_BACKWARD: Kind = "B"
BACKWARD_INPUT: Kind = "I"
BACKWARD_WEIGHT: Kind = "W"

_NOTATION = re.compile(rf"(\d+)([{''.join(get_args(Kind))}])(\d+)", re.ASCII)


class Operation(NamedTuple):
    """One thing that one stage does with one microbatch; ``str`` gives torch's notation, ``3B1``."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Return the operation that ``text`` names. Raises ValueError if it names none."""
        found = _NOTATION.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no operation: expected a stage, F, B, I or W, and a microbatch, as in '3B1'")
        return cls(int(found[1]), cast(Kind, found[2]), int(found[3]))


Order = list[list[Operation]]  # for each host what it does, first things first


def parse_order(lines: Iterable[str]) -> Order:
    """Return the order that ``lines`` hold: a host in each, its operations apart by spaces."""
    return [[Operation.parse(word) for word in line.split()] for line in lines]
