"""An execution settles whatever became of its graph while its input was being prepared. The engine is a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from cgexec import GraphConfig, GraphFailedError, GraphState, HostInfo, JobFailed, JobStatus
from cgexec.core import GraphCore
from cgexec.engine.protocol import Break, GraphSpec, InputSpec, Member
from cgexec.engine.ray_context import effective_settings
from cgexec.engine.reports import OutputPort
from cgexec.lifecycle import GraphEvent

MEMBER = Member(HostInfo(0, "slice-0", None, healthy=True, failed=False), "an actor")


class Nobody:
    """Is told what befalls the executions, and does nothing."""

    def broke(self, engine: Any, seen: Exception) -> None: ...

    def wait_ran_out(self, engine: Any) -> None: ...

    def never_collected(self, status: JobStatus) -> None: ...


class UnfitInput:
    """Stands where an engine would; every input is unfit, and something happens while that is found out."""

    spec = GraphSpec(InputSpec(1, frozenset()), (OutputPort(0, "step"),), returns_list=False)
    capacity = 1
    broken = False
    condemned = False

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.meanwhile()
        raise TypeError("it cannot be pickled")


@pytest.mark.parametrize("state", [state for state in GraphState if state is not GraphState.NEW])
def test_an_input_that_cannot_be_sent_is_a_failed_job_whatever_became_of_the_graph(state: GraphState) -> None:
    core = GraphCore(
        "echo", "inference", effective_settings(GraphConfig()), Nobody(), fail_fast=True, retry_preempted=0
    )

    def meanwhile() -> None:
        if state in (GraphState.BROKEN, GraphState.REBUILDING, GraphState.FAILED):
            core.break_off(engine, Break((), RuntimeError("gone")))  # type: ignore[arg-type]
        if state in (GraphState.REBUILDING, GraphState.FAILED):
            core.happened(GraphEvent.REBUILD, "")
        if state is GraphState.FAILED:
            core.fail(GraphFailedError("given up"), ())
        if state is GraphState.CLOSED:
            core.close()

    engine = UnfitInput(meanwhile)
    core.open(engine, [MEMBER])  # type: ignore[arg-type]
    status = core.submit(("input",), {}).status()
    assert core.state is state
    assert isinstance(status, JobFailed)
    assert isinstance(status.error, TypeError)
