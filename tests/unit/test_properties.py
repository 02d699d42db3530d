"""Any interleaving of calls and faults, against a model: graphs in this process, so that thousands can be tried."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest
from calls import NUM_HOSTS, Calls
from hypothesis import HealthCheck, settings

from cgexec import GraphConfig
from cgexec.testing import MISBEHAVIOURS, LocalActor, Recorder

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.clause("C3"), pytest.mark.clause("C4")]


class LocalCalls(Calls):
    """Whoever waits does the work, so that an example always goes the same way."""

    orders: ClassVar = [each for each in MISBEHAVIOURS.values() if not each.ends_process]
    config: ClassVar = GraphConfig(engine="in_process", teardown_timeout_s=0)
    gives_up_after_s: ClassVar = (0.001, 60.0)

    def start(self) -> tuple[list[Any], list[int | None]]:
        return [LocalActor(Recorder, label, inline=True) for label in range(NUM_HOSTS)], [None] * NUM_HOSTS


TestCalls = LocalCalls.TestCase
TestCalls.settings = settings(
    max_examples=int(os.environ.get("CGEXEC_EXAMPLES", "150")),
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestCalls = pytest.mark.timeout(1000)(TestCalls)
