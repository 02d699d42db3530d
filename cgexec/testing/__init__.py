"""For the tests of those who call graphs: actors without Ray, faults at a stated place, and real ones.

With ``LocalActor`` and ``GraphConfig(engine="in_process")`` a graph runs in this process, in milliseconds, with the
statuses, rebuilds and errors of the real thing; a ``FaultPlan`` says what goes wrong, and where.
"""

from cgexec.engine.fault_plan import Fault, FaultKind, FaultPlan, Phase
from cgexec.engine.local_actor import LocalActor

__all__ = ["Fault", "FaultKind", "FaultPlan", "LocalActor", "Phase"]
