"""Any interleaving of calls and faults, against a model: on a real cluster, over sockets, Ray's channels and calls.

As many examples as the default suite has time for; ``CGEXEC_REAL_EXAMPLES`` asks for more.
"""

import os
from typing import Any, ClassVar

import pytest
from calls import NUM_HOSTS, Calls
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from pool import WAYS, Pool, check_that_nothing_is_left, check_that_nothing_is_open

from cgexec import GraphConfig

pytestmark = [pytest.mark.clause("C1"), pytest.mark.clause("C2"), pytest.mark.clause("C3"), pytest.mark.clause("C4")]

SETTINGS = settings(
    max_examples=int(os.environ.get("CGEXEC_REAL_EXAMPLES", "4")),
    stateful_step_count=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # an example may go another way each time: there is no shrinking it
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("way", WAYS)
def test_any_interleaving(pool: Pool, way: str) -> None:
    class RealCalls(Calls):
        config: ClassVar[GraphConfig] = WAYS[way]

        def start(self) -> tuple[list[Any], list[int | None]]:
            actors = pool.take(NUM_HOSTS)
            return actors, [pool.actors[actor] for actor in actors]

        def teardown(self) -> None:
            super().teardown()
            if "graph" in self.__dict__:
                for label in self.dead():
                    pool.bury(self.actors[label])
                check_that_nothing_is_open(pool, [actor for actor in self.actors if actor in pool.actors])
                check_that_nothing_is_left(pool)

    run_state_machine_as_test(RealCalls, settings=SETTINGS)
