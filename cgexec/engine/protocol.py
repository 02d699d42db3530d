"""The seam between the executor and whatever runs a built graph.

An engine is one generation of one graph. It carries executions in and outputs out, in order; it says that it broke and
why; it can be torn down within a bound. It knows nothing of statuses, retries or rebuilds.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cgexec.deadline import Deadline
from cgexec.engine.reports import HostReport, OutputPort, Pulse
from cgexec.isolation import bare
from cgexec.topology import HostInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One host of a generation: what is known of it, and its actor."""

    info: HostInfo
    actor: Any


@dataclass(frozen=True)
class InputSpec:
    """What one execution takes: so many positional arguments, and these keyword arguments."""

    num_positional: int
    keywords: frozenset[str]

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError if ``args`` and ``kwargs`` are not what the graph takes; says what it does take."""
        if len(args) == self.num_positional and kwargs.keys() == self.keywords:
            return
        missing = sorted(self.keywords - kwargs.keys())
        unknown = sorted(kwargs.keys() - self.keywords)
        problems = []
        if len(args) != self.num_positional:
            problems.append(f"{len(args)} positional arguments were given")
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        if unknown:
            problems.append(f"unknown: {', '.join(unknown)}")
        if problems:
            keywords = f" and the keywords {', '.join(sorted(self.keywords))}" if self.keywords else ""
            raise TypeError(f"the graph takes {self.num_positional} positional{keywords}; {'; '.join(problems)}")


@dataclass(frozen=True)
class GraphSpec:
    """The outside of a built graph: its inputs, its outputs in order, and whether a result is a list of them."""

    inputs: InputSpec
    outputs: tuple[OutputPort, ...]
    returns_list: bool


@dataclass(slots=True, eq=False)
class OutputValue:
    """An output that arrived."""

    value: Any


@dataclass(frozen=True, eq=False)
class OutputError:
    """An error in the place of an output. ``host_id`` and ``method``: where it was raised, None where unknown.

    ``also`` are further errors that stand in the way of the same output, each without any of its own.
    """

    error: Exception
    host_id: int | None
    method: str | None
    also: tuple[OutputError, ...] = ()


Output = OutputValue | OutputError


@dataclass(frozen=True)
class Break:
    """Why a generation ended. ``errors``: what each host's loop ended with, the culprit first; may be empty.

    ``fallback`` is what the driver itself saw, for a break that no host accounts for.
    """

    errors: tuple[tuple[int, Exception], ...]
    fallback: Exception

    @property
    def error(self) -> Exception:
        """The first reason."""
        return self.errors[0][1] if self.errors else self.fallback


class EngineBrokenError(Exception):
    """The generation has ended. ``sent`` says whether part of the execution being submitted may have been sent."""

    def __init__(self, reason: Exception, *, sent: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.sent = sent


class HostsLostError(Exception):
    """The graph was not built because of a death: ``losses`` says which hosts were found dead or silent, and why.

    There may be none: an actor that Ray made for the compile may have been on a node that went away. Building again may
    then succeed.
    """

    def __init__(self, losses: dict[int, Exception], reason: Exception | None = None) -> None:
        names = ", ".join(f"host {host_id}: {error}" for host_id, error in losses.items())
        super().__init__(names or f"every host answers, but {reason}")
        self.losses = {host_id: bare(error) for host_id, error in losses.items()}


class SessionOverError(Exception):
    """What the hosts live in has ended, before or meanwhile: Ray was shut down. There is nothing to go on with."""

    def __init__(self) -> None:
        super().__init__("Ray is not initialised in this process, or was shut down meanwhile")


class SendTimeoutError(Exception):
    """There was no room for an execution in time; nothing of it was sent."""


class AtOnce(Protocol):
    """What of an engine may be done on an event loop's thread: nothing here waits, takes long, or runs anybody's code.

    As in ``Engine``, one at a time sends, and one collects.
    """

    def can_send_at_once(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether ``encode`` and ``send`` take no time to speak of for these inputs."""

    def readiness(self) -> select.epoll:
        """Return a descriptor that can be read while there is something to collect that has not ``has_arrived``.

        It is the caller's to close. Raises OSError where the system has none left.
        """

    def has_arrived(self) -> bool:
        """Return whether outputs have been received that were not collected yet, of whichever execution.

        Raises EngineBrokenError: the generation has ended; as ``readiness``, and ``collect_at_once``.
        """

    def collect_at_once(self, outputs: list[Output | None]) -> None:
        """Do as ``collect`` with a timeout of 0; but leave what ``takes_a_thread``."""

    def takes_a_thread(self, outputs: Sequence[Output | None]) -> bool:
        """Return whether what comes next in an empty place of ``outputs`` is to be collected by ``collect``."""


class Engine(Protocol):
    """One built graph. ``send`` and ``collect`` are each called by one thread at a time, but side by side.

    Attributes:
        spec: the outside of the graph.
        capacity: how many executions may be sent and not yet fully collected.
        broken: whether the generation has ended, as far as is known; what has arrived can still be collected.
        condemned: whether what arrives cannot be trusted any more, since a read or a write went wrong; the caller sets
            it, too.
        incarnations: for each host, what tells its process from the one that Ray may start in its place.
        node_ids: for each host, the node it is on.
        at_once: what may be done without a thread; None where nothing may.
    """

    spec: GraphSpec
    capacity: int
    broken: bool
    condemned: bool
    incarnations: dict[int, str]
    node_ids: dict[int, str]

    @property
    def at_once(self) -> AtOnce | None:
        """See the class."""

    @property
    def session_over(self) -> bool:
        """Whether what the hosts live in has ended, or is about to: there is nothing left to rebuild with."""

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the inputs of one execution, ready to be sent; nothing is sent.

        Raises whatever makes them unfit: TypeError for a wrong arity, anything at all from a failing serialisation.
        """

    def send(self, encoded: Any, deadline: Deadline) -> None:
        """Send one execution, waiting for room until the deadline.

        Raises:
            SendTimeoutError: no room in time; nothing was sent.
            EngineBrokenError: the generation has ended; ``sent`` says whether the execution may run.
        """

    def collect(self, outputs: list[Output | None], timeout_s: float) -> None:
        """Fill the empty places of ``outputs`` for the oldest execution that is not fully collected.

        Returns when none is empty, when an error was filled in and nothing more has arrived, or when the time has run
        out: look at ``outputs``. The caller passes the same list again until it is full. 0 looks once.

        Raises:
            EngineBrokenError: the generation has ended; what is in ``outputs`` stays valid.
        """

    def why_broken(self, seen: Exception, timeout_s: float) -> Break:
        """Wait for a host to account for the break, and return what is known. ``seen`` is what the driver saw."""

    def pulses(self, timeout_s: float) -> dict[int, Pulse | None]:
        """Ask every host for a sign of life, which a host gives however busy it is.

        None for a host that has not given one within ``timeout_s``; one that cannot be asked is missing. Returns early
        once the generation has ended.
        """

    def hurry(self, timeout_s: float) -> None:
        """Shorten a teardown that is under way, or yet to come, to ``timeout_s`` from now."""

    def unavailable(self, host_id: int, why: str) -> Exception:
        """Return the error that says of a host that it is not to be had, and why."""

    def kill(self, host_ids: Collection[int]) -> None:
        """Kill hosts that are given up, so that a teardown need not wait for them."""

    def tear_down(self, timeout_s: float) -> dict[int, Exception]:
        """End the generation; idempotent. Returns the hosts that did not leave in time, killed, and why.

        A second call waits for the first, within a bound, and returns none.
        """


class Backend(Protocol):
    """Where the generations of one graph come from: what they run on."""

    def build(self, generation: int, members: Sequence[Member], on_break: Callable[[Engine], None]) -> Engine:
        """Build one generation over ``members`` and return its engine.

        ``on_break(engine)`` is called when it turns out, with nobody calling, that the generation may have ended: on a
        thread where nothing may block.

        Raises:
            GraphSpecError: the builder's graph or the caller's actors cannot be used. Every actor is usable afterwards.
            HostsLostError: hosts are dead or do not answer. One that stopped answering meanwhile may have been killed;
                the others are usable afterwards.
            SessionOverError: there are no hosts any more.
        """

    def probe(self, members: Sequence[Member], timeout_s: float) -> dict[int, HostReport | Exception]:
        """Ask every host for a sign of life, in parallel; returns within ``timeout_s`` or a little later.

        A host that kept silent has a TimeoutError for an answer. Raises SessionOverError: there are none any more.
        """

    def ask(self, call: Callable[[], T]) -> T:
        """Return what code of the caller's does, which may ask for hosts. Raises SessionOverError, as ``probe``."""


def losses_among(replies: Mapping[int, HostReport | Exception]) -> dict[int, Exception]:
    """Return the hosts that did not answer, and why."""
    return {host_id: reply for host_id, reply in replies.items() if isinstance(reply, Exception)}
