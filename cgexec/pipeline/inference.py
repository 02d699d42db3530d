"""Inference through stages that are groups of hosts: pipeline-parallel, and tensor-parallel within each stage.

::

                stage 0               stage 1
    input ─┬─ rank 0 (host 0) ───── rank 0 (host 2) ── result
           └─ rank 1 (host 1) ───── rank 1 (host 3) ── (not returned)

Every rank of the first stage is given the input, and every other one what the same rank of the stage before returned.
How the ranks of a stage come to a common answer is theirs. While one microbatch is in a stage, the next ones are in
those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from types import TracebackType
from typing import Any, cast

import numpy as np

from cgexec.config import GraphConfig, RebuildPolicy
from cgexec.engine.ray_context import effective_settings
from cgexec.executor import GraphExecutor, close_timeout_s
from cgexec.hosts import HostGroup
from cgexec.pipeline.complete import check_complete
from cgexec.settings import check_count
from cgexec.shapes import Methods
from cgexec.status import ExecutionInfo, JobFailed, JobStatus, JobSucceeded
from cgexec.topology import HostInfo


class StageGroups:
    """A builder for ``GraphExecutor``: ``num_stages`` stages of ``num_ranks`` hosts each, in host order.

    The outputs are those of the ranks of the last stage; the first one is the pipeline's. It cannot go on with fewer
    hosts: without ``RebuildPolicy.replace`` the graph fails when one is lost.
    """

    def __init__(self, method: str, num_stages: int, num_ranks: int = 1) -> None:
        self._methods = Methods(method)
        self.num_stages = check_count("num_stages", num_stages, "StageGroups")
        self.num_ranks = check_count("num_ranks", num_ranks, "StageGroups")

    def __call__(self, inp: Any, actors: Sequence[Any], infos: Sequence[HostInfo]) -> list[Any]:
        """Bind every rank of every stage.

        Raises:
            GraphSpecError: there are not as many hosts, or one does not have the method.
        """
        check_complete(infos, self.num_stages * self.num_ranks)
        nodes = [inp] * self.num_ranks
        for first in range(0, len(actors), self.num_ranks):
            ranks = actors[first : first + self.num_ranks]
            nodes = [self._methods.bind(*each) for each in zip(ranks, infos[first:], nodes, strict=False)]
        return nodes


class InferencePipeline:
    """Stages of hosts, through which inputs are sent one behind the other; also a context manager.

    Args:
        hosts: a ``HostGroup`` or a list of actor handles: the ranks of the first stage, those of the second, ...
        method: takes what the stage before returned, the first stage's the input, and returns what the next one takes.
        num_ranks: how many hosts make a stage.
        config, policy, name: of the graph. ``max_inflight``, unless given, is at least one more than there are stages:
            less would leave some of them without work.

    Raises:
        ValueError, GraphSpecError: as ``GraphExecutor``.
    """

    def __init__(
        self,
        hosts: HostGroup | Sequence[Any],
        method: str,
        *,
        num_ranks: int = 1,
        config: GraphConfig | None = None,
        policy: RebuildPolicy | None = None,
        name: str = "pipeline",
    ) -> None:
        num_stages, left_over = divmod(len(hosts), check_count("num_ranks", num_ranks, "InferencePipeline"))
        if left_over:
            raise ValueError(f"{len(hosts)} hosts do not make stages of num_ranks={num_ranks} each")
        build, config = StageGroups(method, num_stages, num_ranks), config or GraphConfig()
        if config.max_inflight is None:
            deep_enough = num_stages + 1
            config = replace(config, max_inflight=max(effective_settings(config).max_inflight.value, deep_enough))
        self.graph = GraphExecutor(hosts, build, name=name, config=config, policy=policy or RebuildPolicy())

    def execute(self, batch: Any, *, timeout_s: float | None = None) -> JobStatus:
        """Send one input through, as it is; see ``GraphExecutor.execute``. The result is that of the first rank."""
        return _of_the_first_rank(self.graph.execute(batch, timeout_s=timeout_s))

    def map(
        self,
        batches: Iterable[Any],
        *,
        num_microbatches: int = 1,
        split: Callable[[Any, int], Sequence[Any]] | None = None,
        join: Callable[[Sequence[Any]], Any] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[JobStatus]:
        """Return a status for each batch, in order; every stage is kept busy, with microbatches of several batches.

        ``split(batch, num_microbatches)`` makes microbatches of a batch, and ``join(results)`` one result of theirs: by
        default numpy's arrays are split and joined along their first axis, and lists and tuples likewise; where there
        is to be one microbatch it is the batch, whatever that is. A batch with fewer rows has as many microbatches as
        rows. The status of a batch is JobSucceeded if all of its microbatches were, else that of the first which was
        not; what ``join`` raises makes it JobFailed. ``timeout_s`` is the get timeout of each microbatch. What
        ``batches`` or ``split`` raise is raised, behind the statuses of what had been sent before.

        Raises:
            ValueError: ``num_microbatches`` is not usable.
            TypeError: a batch has no rows to split it by, and there is no ``split``; raised as what ``split`` raises.
        """
        check_count("num_microbatches", num_microbatches, "InferencePipeline.map")
        if num_microbatches == 1:
            split, join = split or _whole, join or _only
        return self._mapped(batches, num_microbatches, split or _split, join or _join, timeout_s)

    def _mapped(
        self,
        batches: Iterable[Any],
        num_microbatches: int,
        split: Callable[[Any, int], Sequence[Any]],
        join: Callable[[Sequence[Any]], Any],
        timeout_s: float | None,
    ) -> Iterator[JobStatus]:
        sizes: deque[int] = deque()  # of the batches that have been sent: how many microbatches each has

        def microbatches() -> Iterator[Any]:
            for batch in batches:
                parts = list(split(batch, num_microbatches))
                if not parts:
                    raise ValueError("split() has made no microbatches of a batch: at least one was expected")
                sizes.append(len(parts))
                yield from parts

        found: list[JobStatus] = []
        for status in self.graph.map(microbatches(), timeout_s=timeout_s):
            found.append(_of_the_first_rank(status))
            if len(found) == sizes[0]:
                sizes.popleft()
                yield _joined(found, join)
                found = []

    def close(self, timeout_s: float | None = None) -> None:
        """Close the graph; see ``GraphExecutor.close``."""
        self.graph.close(timeout_s)

    def __enter__(self) -> InferencePipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; without patience if Ctrl-C or the like ends the block."""
        self.close(close_timeout_s(error))


def _of_the_first_rank(status: JobStatus) -> JobStatus:
    if not isinstance(status, JobSucceeded):
        return status
    return JobSucceeded(status.info, cast("Sequence[Any]", status.result)[0])


def _joined(statuses: Sequence[JobStatus], join: Callable[[Sequence[Any]], Any]) -> JobStatus:
    """Return the status of a batch: its last microbatch's, with the joined result, or the first that went wrong."""
    results = []
    for status in statuses:
        if not isinstance(status, JobSucceeded):
            return status
        results.append(status.result)
    try:
        return JobSucceeded(statuses[-1].info, join(results))
    except Exception as error:  # noqa: BLE001 - the caller's, of this batch alone
        return JobFailed(replace(cast("ExecutionInfo", statuses[-1].info), state="failed"), error)


def _whole(batch: Any, _num_microbatches: int) -> Sequence[Any]:
    return [batch]


def _only(results: Sequence[Any]) -> Any:
    return results[0]


def _split(batch: Any, num_microbatches: int) -> Sequence[Any]:
    has_rows = hasattr(batch, "__len__") and hasattr(batch, "__getitem__") and getattr(batch, "ndim", 1) > 0
    if not has_rows or isinstance(batch, Mapping):
        raise TypeError(f"a batch that is a {type(batch).__name__} is split by whoever knows how: pass split=...")
    num_parts = max(1, min(num_microbatches, len(batch)))
    if isinstance(batch, np.ndarray):
        return np.array_split(batch, num_parts)
    bounds = [len(batch) * part // num_parts for part in range(num_parts + 1)]
    return [batch[first:end] for first, end in pairwise(bounds)]


def _join(results: Sequence[Any]) -> Any:
    if isinstance(results[0], np.ndarray):
        return np.concatenate(results)
    if not isinstance(results[0], (list, tuple)):
        raise TypeError(f"results of {type(results[0]).__name__} are joined by whoever knows how: pass join=...")
    joined = list(chain.from_iterable(results))
    return tuple(joined) if isinstance(results[0], tuple) else joined
