"""In which orders torch.distributed.pipelining runs its schedules: what ours are held against.

    python tests/torch_orders.py > tests/unit/torch_orders.json

GPipe and 1F1B are run, one rank after the other, over a stage that only notes what it is asked to do. (What torch 2.13
prints of 1F1B, ``_get_pipeline_order``, is not what it runs: there the last rank begins with microbatch 1.) The others
run what they have worked out beforehand, which is asked for; torch's zero-bubble schedule with one stage on each rank
is H1. Orders that torch refuses are null.
"""

from __future__ import annotations

import json
from typing import Any

from torch.distributed.pipelining import schedules

NUM_STAGES, NUM_MICROBATCHES, NUM_VIRTUAL_STAGES = (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 8), (1, 2, 3)
Orders = dict[str, list[str] | None]  # a line for each host


class NotingStage:
    """Takes part in nothing; notes which microbatches it is to run."""

    def __init__(self, number: int, num_stages: int) -> None:
        self.stage_index, self.is_first, self.is_last = number, number == 0, number == num_stages - 1
        self.has_backward = True
        self.done: list[str] = []

    def forward_one_chunk(self, microbatch: int, *_args: Any, **_kwargs: Any) -> None:
        self.done.append(f"{self.stage_index}F{microbatch}")

    def backward_one_chunk(self, microbatch: int, *_args: Any, **_kwargs: Any) -> None:
        self.done.append(f"{self.stage_index}B{microbatch}")

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: [] if name.startswith("get_") else None


def bare(kind: Any, **attributes: Any) -> Any:
    """Return a schedule of that class that has not been set up."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def what_is_run(kind: Any, num_stages: int, num_microbatches: int) -> list[str]:
    """Return what a schedule with one stage on each rank runs."""
    lines = []
    for rank in range(num_stages):
        stage = NotingStage(rank, num_stages)
        schedule = bare(
            kind,
            _stage=stage,
            _num_stages=num_stages,
            _n_microbatches=num_microbatches,
            _has_backward=True,
            _loss_fn=None,
            scale_grads=False,
            _check_inputs=lambda *_: ([()] * num_microbatches, [{}] * num_microbatches),
        )
        for left_out in (
            "_maybe_compute_loss",
            "_maybe_get_loss",
            "_update_losses",
            "_initialize_stage",
            "_warmup_p2p",
        ):
            vars(schedule)[left_out] = lambda *_args, **_kwargs: None
        schedule._step_microbatches()
        lines.append(" ".join(stage.done))
    return lines


def what_is_planned(kind: Any, num_stages: int, num_microbatches: int, num_virtual_stages: int) -> list[str] | None:
    """Return what a schedule with several stages on each rank is going to run; None if torch refuses it."""
    rounds = max(1, num_microbatches // num_stages)
    if num_microbatches % rounds:  # as their constructors do
        return None
    schedule = bare(
        kind,
        pp_group_size=num_stages,
        n_local_stages=num_virtual_stages,
        _n_microbatches=num_microbatches,
        number_of_rounds=rounds,
        microbatches_per_round=num_microbatches // rounds,
    )
    ranks = [schedule._calculate_single_rank_operations(rank) for rank in range(num_stages)]
    return [" ".join(str(action) for action in actions if action is not None) for actions in ranks]


def orders() -> Orders:
    """Return every order of the grid, by the name of our schedule and the numbers."""
    found: Orders = {}
    for num_stages in NUM_STAGES:
        for num_microbatches in NUM_MICROBATCHES:
            where = f"{num_stages} {num_microbatches}"
            found[f"gpipe {where}"] = what_is_run(schedules.ScheduleGPipe, num_stages, num_microbatches)
            found[f"1f1b {where}"] = (
                what_is_run(schedules.Schedule1F1B, num_stages, num_microbatches)
                if num_microbatches >= num_stages  # or its constructor refuses
                else None
            )
            found[f"zero-bubble-h1 {where}"] = what_is_planned(
                schedules.ScheduleInterleavedZeroBubble, num_stages, num_microbatches, 1
            )
            for virtual in NUM_VIRTUAL_STAGES:
                found[f"interleaved {where} {virtual}"] = what_is_planned(
                    schedules.ScheduleInterleaved1F1B, num_stages, num_microbatches, virtual
                )
    return found


if __name__ == "__main__":
    print(json.dumps(orders(), indent=0))
