"""Pipelines over hosts: schedules of training steps, the graphs that run them, and how they look in time."""

from cgexec.pipeline.drawing import as_text, draw
from cgexec.pipeline.inference import InferencePipeline, StageGroups
from cgexec.pipeline.operations import Operation, Order, parse_order
from cgexec.pipeline.schedules import (
    Schedule,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZeroBubbleH1,
    schedule_named,
)
from cgexec.pipeline.snapshot_format import SnapshotError
from cgexec.pipeline.snapshots import PipelineSnapshots
from cgexec.pipeline.timeline import Bar, Timeline, check, peak_activations, run
from cgexec.pipeline.trainer import PipelineTrainer
from cgexec.pipeline.training import StageMethods, StepResult, TrainingStep

__all__ = [
    "Bar",
    "InferencePipeline",
    "Operation",
    "Order",
    "PipelineSnapshots",
    "PipelineTrainer",
    "Schedule",
    "Schedule1F1B",
    "ScheduleGPipe",
    "ScheduleInterleaved1F1B",
    "ScheduleZeroBubbleH1",
    "SnapshotError",
    "StageGroups",
    "StageMethods",
    "StepResult",
    "Timeline",
    "TrainingStep",
    "as_text",
    "check",
    "draw",
    "parse_order",
    "peak_activations",
    "run",
    "schedule_named",
]
