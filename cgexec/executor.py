"""The object that callers hold: a graph that answers with statuses and outlives its hosts.

::

    caller ──execute──> GraphExecutor ──> GraphCore ──send/collect──> Engine (generation 0, 1, 2, ...)
                              │               │ broke                     ^
                              │               v                           │ build
                              └────────── Supervisor ─────────────────────┘   (a thread of its own)
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from cgexec import asynchronous
from cgexec.changed import Changed
from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.core import GraphCore
from cgexec.deadline import Deadline
from cgexec.engine.backends import backend_for
from cgexec.engine.protocol import HostsLostError, Member, SessionOverError
from cgexec.engine.ray_context import effective_settings
from cgexec.engine.recipe import GraphRecipe
from cgexec.engine.reports import HostReport
from cgexec.errors import GraphClosedError, GraphSpecError
from cgexec.execution import Execution
from cgexec.hosts import HostGroup
from cgexec.lifecycle import GraphState, HistoryEntry
from cgexec.log import logger
from cgexec.settings import FROM_CALL, Settings, check_duration, check_wait
from cgexec.stats import GraphStats
from cgexec.status import JobStatus
from cgexec.supervisor import Supervisor
from cgexec.topology import HostInfo, LostHost

_logger = logger(__name__)

_CTRL_C_CLOSE_S = 1.0
_STOP_MARGIN_S = 0.5  # what close() may take beyond its timeout for each of: the supervisor, and the teardown


class GraphExecutor:
    """A Ray Compiled Graph over one actor per host. Also a context manager, which is the way to use it.

    One that is neither closed nor referred to any more is closed, as by ``close()``, with a warning in the log. An
    ``Execution`` does not refer to it; hooks of its own may.

    Args:
        hosts: a ``HostGroup``, or a list of actor handles, one per host.
        build: the builder, called ``build(inp, actors)`` or ``build(inp, actors, infos)`` for every generation: binds
            fresh nodes and returns a node or a list of nodes. A list makes a result a list in that order.
        name, kind: what every status says of the job.
        config: how the graph runs.
        policy: what happens after the loss of a host.

    Raises:
        GraphSpecError: the builder's graph cannot be compiled, or the actors cannot be used; every actor is usable.
        ValueError: a setting is not usable.
    """

    def __init__(
        self,
        hosts: HostGroup | Sequence[Any],
        build: Callable[..., Any],
        *,
        name: str = "graph",
        kind: str = "inference",
        config: GraphConfig = GraphConfig(),  # noqa: B008 - a frozen value
        policy: RebuildPolicy = RebuildPolicy(),  # noqa: B008 - a frozen value
    ) -> None:
        if not callable(build):
            raise GraphSpecError(f"the builder is not callable: {build!r}; pass fan_out(...) or a function")
        try:
            group = hosts if isinstance(hosts, HostGroup) else HostGroup.from_actors(list(hosts))
        except (TypeError, ValueError) as error:
            raise GraphSpecError(str(error)) from error
        if len(group) < policy.min_hosts:
            raise GraphSpecError(
                f"{len(group)} hosts were given and RebuildPolicy.min_hosts asks for {policy.min_hosts}"
            )
        self._settings = effective_settings(config)
        self._planned = tuple(group.infos)
        self._probe_timeout_s = policy.probe_timeout_s
        self._closing = Changed()
        self._closed = False
        recipe = GraphRecipe(
            graph_id=uuid.uuid4().hex,
            name=name,
            build=build,
            settings=self._settings,
            build_timeout_s=config.build_timeout_s,
            transport=config.transport,
            pool_bytes=config.pool_bytes,
        )
        self._backend = backend_for(config.engine, recipe, group.actors)
        self._supervisor = Supervisor(name, self._backend, policy, self._settings.teardown_timeout_s.value)
        self._core = GraphCore(
            name,
            kind,
            self._settings,
            self._supervisor,
            fail_fast=config.fail_fast,
            retry_preempted=config.retry_preempted,
        )
        self._if_forgotten = weakref.finalize(self, self._supervisor.forgotten)
        self._if_forgotten.atexit = False  # Ray's own exit ends the graph
        members = [Member(info, actor) for info, actor in zip(group.infos, group.actors, strict=True)]
        try:
            self._supervisor.start(self._core, members)
        except SessionOverError as error:
            raise GraphSpecError(f"the actors cannot be used: {error}") from error
        except HostsLostError as error:
            if not error.losses:
                raise GraphSpecError(f"the graph cannot be built: {error}") from error
            host_id, cause = next(iter(error.losses.items()))
            raise GraphSpecError(f"host {host_id} ({group.actors[host_id]!r}) cannot be used: {cause}") from cause

    # -- running -------------------------------------------------------------------------------------------------------

    def execute(self, /, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> JobStatus:
        """Run the graph once and return the outcome: submit, wait, classify.

        ``timeout_s`` replaces the get timeout: 0 looks once, -1 waits for ever. After a system error the answer comes
        when the graph has been rebuilt or has failed for good, at the latest when the get timeout has run out.

        Raises:
            GraphClosedError: the graph is closed.
            ValueError: ``timeout_s`` is not usable.
        """
        return self._core.execute(args, kwargs, timeout_s)

    def submit(self, /, *args: Any, **kwargs: Any) -> Execution:
        """Send one execution and return its handle, without waiting for its outcome.

        Waits for a free slot up to the submit timeout, helping to settle meanwhile. What the input or the cluster does
        raises nothing: the Execution has then settled already, as JobFailed for an input that cannot be sent, as
        JobError where there was no slot in time or the graph has failed.

        Raises:
            GraphClosedError: the graph is closed.
        """
        return self._core.submit(args, kwargs)

    def try_submit(self, /, *args: Any, **kwargs: Any) -> Execution | None:
        """Send one execution if that needs no waiting, and return its handle; None if the graph is full, or not ready.

        Those in line come first; for one that has a slot, and is just being sent, it waits 0.1 s at most. Where all
        slots are taken it looks for what has arrived, which it then loads. What it refuses does not count as
        submitted. An input that cannot be sent, and a graph that has failed, answer with an
        Execution that has settled, as ``submit`` does.

        Raises:
            GraphClosedError: the graph is closed.
        """
        return self._core.try_submit(args, kwargs)

    def map(self, inputs: Iterable[Any], *, timeout_s: float | None = None) -> Iterator[JobStatus]:
        """Return the statuses of ``inputs`` in their order, ``max_inflight`` executions deep.

        Each input is the one positional argument of an execution. ``timeout_s`` is the get timeout of each. What
        ``inputs`` raise, or a graph that is closed meanwhile, is raised after the statuses of what had been sent.
        """
        return self.starmap(((item,) for item in inputs), timeout_s=timeout_s)

    def starmap(self, inputs: Iterable[Iterable[Any]], *, timeout_s: float | None = None) -> Iterator[JobStatus]:
        """Do as ``map``, each input being unpacked into positional arguments."""
        if timeout_s is not None:
            check_wait("timeout_s", timeout_s, FROM_CALL)
        return self._pipelined(inputs, timeout_s)

    def _pipelined(self, inputs: Iterable[Iterable[Any]], timeout_s: float | None) -> Iterator[JobStatus]:
        waiting: deque[Execution] = deque()
        ended: list[Exception] = []
        each = self._each_submitted(inputs, ended)
        while True:
            if len(waiting) >= self._settings.max_inflight.value:
                yield waiting.popleft().status(timeout_s)
            execution = next(each, None)
            if execution is None:
                break
            waiting.append(execution)
        while waiting:
            yield waiting.popleft().status(timeout_s)
        if ended:
            raise ended.pop()

    def _each_submitted(self, inputs: Iterable[Iterable[Any]], ended: list[Exception]) -> Iterator[Execution]:
        """Yield an execution for each of ``inputs``; what ends that is put into ``ended``."""
        try:
            for args in inputs:
                yield self.submit(*args)
        except Exception as error:  # noqa: BLE001 - raised when what was sent has been answered
            ended.append(error)

    # -- running, from a coroutine ------------------------------------------------------------------------------------

    async def execute_async(self, /, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> JobStatus:
        """Do as ``execute``, without blocking the event loop: what takes long, or runs your code, is done elsewhere.

        So leave the input unchanged meanwhile. Cancelled, it does no harm to any other execution: its own is
        not sent if it is still in line, and else goes on and keeps its slot until it settles.

        Raises:
            GraphClosedError: the graph is closed.
            ValueError: ``timeout_s`` is not usable.
        """
        return await asynchronous.executed(self._core, args, kwargs, self._core.wait_s(timeout_s))

    async def submit_async(self, /, *args: Any, **kwargs: Any) -> Execution:
        """Do as ``submit``, without blocking the event loop; leave the input unchanged until it returns.

        Cancelled, the execution is not sent if it is still in line.
        """
        return await asynchronous.submitted(self._core, args, kwargs)

    def map_async(
        self, inputs: Iterable[Any] | AsyncIterable[Any], *, timeout_s: float | None = None
    ) -> AsyncIterator[JobStatus]:
        """Do as ``map``, for ``async for``; ``inputs`` may be an asynchronous iterable."""
        return self.starmap_async(asynchronous.each_alone(inputs), timeout_s=timeout_s)

    def starmap_async(
        self, inputs: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]], *, timeout_s: float | None = None
    ) -> AsyncIterator[JobStatus]:
        """Do as ``map_async``, each input being unpacked into positional arguments."""
        return self._pipelined_async(inputs, self._core.wait_s(timeout_s))

    async def _pipelined_async(
        self, inputs: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]], wait_s: float
    ) -> AsyncIterator[JobStatus]:
        """Yield the statuses. What iterates over them holds the graph."""
        async for status in asynchronous.pipelined(self._core, inputs, wait_s, self._settings.max_inflight.value):
            yield status

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """How often the graph has been rebuilt: the first build is 0."""
        return self._core.generation

    @property
    def state(self) -> GraphState:
        """Where the graph is in its life. While it is READY it takes executions, if there is a slot."""
        return self._core.state

    @property
    def failure(self) -> Exception | None:
        """Why the graph is broken or has failed; None while it runs, and while that is being found out."""
        return self._core.failure

    @property
    def history(self) -> list[HistoryEntry]:
        """What happened to the graph, newest last."""
        return self._core.history

    def stats(self) -> GraphStats:
        """Return what the graph has done so far: counts, and latencies."""
        return self._core.stats()

    @property
    def actors(self) -> list[Any]:
        """The actors of the current generation, in host order."""
        return [member.actor for member in self._core.members]

    @property
    def hosts(self) -> list[HostInfo]:
        """The hosts of the current generation, in the same order as ``actors``."""
        return [member.info for member in self._core.members]

    @property
    def lost_hosts(self) -> list[LostHost]:
        """Every host that was lost, oldest first: which, in which generation, and why."""
        return self._core.lost_hosts

    @property
    def timeouts(self) -> Settings:
        """The effective settings, each with its value and the source it came from."""
        return self._settings

    def check_health(self, timeout_s: float = 1.0) -> list[HostInfo]:
        """Return a HostInfo for each host the graph was planned with, in that order; executions are not disturbed.

        ``healthy`` hosts answered within ``timeout_s``; ``failed`` ones are dead. A host that is neither did not answer
        in time: it may be busy with an ordinary call, or stopped.
        """
        check_duration("timeout_s", timeout_s, FROM_CALL)
        members = self._core.members
        replies: dict[int, HostReport | Exception] = {}
        with suppress(SessionOverError):  # its hosts are gone
            replies = self._backend.probe(members, timeout_s)
        by_id = {member.info.host_id: member.info for member in members}
        health = []
        for planned in self._planned:
            info = by_id.get(planned.host_id, planned)
            reply = replies.get(planned.host_id)
            silent = isinstance(reply, TimeoutError)
            alive = isinstance(reply, HostReport)
            health.append(replace(info, healthy=alive, failed=not alive and not silent))
        return health

    # -- rebuilding and ending -----------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Rebuild now, on the live actors: settles what is in flight, as far as the teardown timeout allows.

        One rebuild is enough for all who ask before its actors are bound, and so is one after a system error.

        Raises:
            GraphFailedError: the policy gave up, now or before.
            GraphClosedError: the graph is closed.
        """
        if self.state is GraphState.CLOSED:
            raise GraphClosedError(f"graph {self._core.name!r} is closed")
        self._supervisor.request_rebuild().result()

    def close(self, timeout_s: float | None = None) -> None:
        """End the graph; idempotent. The actors stay usable.

        What is in flight is settled as far as it arrives within ``timeout_s`` (None: the teardown timeout); the rest
        settles as JobError with a GraphClosedError. An actor that is still inside a method then is killed, and named in
        ``lost_hosts`` and in the log. Returns within ``timeout_s`` and a second.

        Raises:
            ValueError: ``timeout_s`` is not usable.
        """
        if timeout_s is None:
            timeout_s = self._settings.teardown_timeout_s.value
        deadline = Deadline.after(check_wait("timeout_s", timeout_s, FROM_CALL))
        self._core.close()
        # Another thread may be closing: one close is enough, and neither waits longer than it was told to.
        self._closing.within(deadline.slice_s(threading.TIMEOUT_MAX), lambda: self._close(deadline))

    def _close(self, deadline: Deadline) -> None:
        """Settle, stop and tear down, once.

        Ctrl-C takes away the time to wait. What it leaves undone, the next close does.
        """
        if self._closed:
            return
        try:
            self._core.drain(deadline)
        except BaseException:
            deadline = Deadline.after(0)
            raise
        finally:
            error = GraphClosedError(f"graph {self._core.name!r} was closed while this was in flight; it may have run")
            last = Deadline.after(deadline.slice_s(threading.TIMEOUT_MAX) + 2 * _STOP_MARGIN_S)
            left = self._core.abandon(error)
            self._supervisor.stop(max(_STOP_MARGIN_S, deadline.slice_s(threading.TIMEOUT_MAX)))
            if left is not None:
                self._supervisor.tear_down(self._core, left, deadline)
                self._core.let_go()
            self._core.stop_threads(min(_STOP_MARGIN_S, last.remaining_s()))
            self._if_forgotten.detach()  # it refers to the caller's hooks, which may refer to whatever they like
            self._closed = True

    def __enter__(self) -> GraphExecutor:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close; without patience if Ctrl-C or the like ends the block."""
        self.close(close_timeout_s(error))

    async def __aenter__(self) -> GraphExecutor:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close, on another thread; without patience if a cancellation, Ctrl-C or the like ends the block."""
        await asynchronous.on_a_thread(lambda: self.close(close_timeout_s(error)))

    def __repr__(self) -> str:
        return (
            f"<GraphExecutor {self._core.name!r}, {self.state.value}, generation {self.generation}, "
            f"{len(self._core.members)} of {len(self._planned)} hosts>"
        )


def close_timeout_s(error: BaseException | None) -> float | None:
    """Return the timeout of a close at the end of a block: Ctrl-C and the like have no patience."""
    return _CTRL_C_CLOSE_S if error is not None and not isinstance(error, Exception) else None
