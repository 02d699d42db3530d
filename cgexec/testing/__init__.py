"""For the tests of those who call graphs, and our own: actors without Ray, faults at a stated place, and real ones.

With ``LocalActor`` and ``GraphConfig(engine="in_process")`` a graph runs in this process, in milliseconds, with the
statuses, rebuilds and errors of the real thing; a ``FaultPlan`` says what goes wrong, and where. ``kill``,
``kill_process``, ``stop`` and ``resume`` do to a real host what can befall it, and to a local one what comes closest;
``misbehave`` is for its methods. ``Recorder``, ``Message`` and ``SHAPES`` are what cgexec itself is tried with,
``Chaos`` draws faults by lot.
"""

from cgexec.engine.fault_plan import Fault, FaultKind, FaultPlan, Phase
from cgexec.engine.local_actor import LocalActor
from cgexec.testing.chaos_driver import Chaos, ChaosReport
from cgexec.testing.misbehaviour import MISBEHAVIOURS, Misbehaviour, misbehave
from cgexec.testing.processes import kill, kill_process, pid_of, resume, stop
from cgexec.testing.recorder import SHAPES, Message, MixedUpError, Recorder, Shape

__all__ = [
    "MISBEHAVIOURS",
    "SHAPES",
    "Chaos",
    "ChaosReport",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "LocalActor",
    "Message",
    "Misbehaviour",
    "MixedUpError",
    "Phase",
    "Recorder",
    "Shape",
    "kill",
    "kill_process",
    "misbehave",
    "pid_of",
    "resume",
    "stop",
]
