"""What the benchmarks do alike: options, a Ray of their own, contestants that take turns, figures, tables, files.

Contestants take turns, a block of calls each, and the order changes from round to round: what slows the machine down
slows all of them. A ratio is the median of the rounds' ratios, each between medians of the same round. Before its turn
each is called for a second: what a compile sets off in Ray takes half of one (it starts a worker for its pool, say).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

BASE = "raw"  # the contestant that ratios are to
WARM_UP_S = 1.0
TURN_S, FEWEST_CALLS = 3.0, 5  # a turn of slow calls ends early

Call = Callable[[], object]
Contestant = Callable[[], AbstractContextManager[Any]]  # yields what is measured: a Call, as a rule
Rounds = dict[str, list[list[float]]]  # the figures of each round, by contestant


def options(description: str, *, rounds: int, calls: int) -> argparse.Namespace:
    """Return the options of the command line; ``description`` is the docstring of the benchmark."""
    return parser(description, rounds=rounds, calls=calls).parse_args()


def parser(description: str, *, rounds: int, calls: int) -> argparse.ArgumentParser:
    """Return what parses the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contestant has its turn")
    parser.add_argument("--calls", type=int, default=calls, help="how many calls make a turn")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the cases whose name contains TEXT")
    return parser


@contextmanager
def a_ray(object_store_memory: int = 300 << 20) -> Any:
    """Start a Ray of one's own, and end it."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=object_store_memory,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def progress(what: str, total: int) -> Any:
    """Show how far a benchmark is, on the terminal; yields what is to be called after each step."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


def warm_up(call: Call) -> None:
    """Call until what has just been built has been used for a while."""
    until = time.monotonic() + WARM_UP_S
    call()
    while time.monotonic() < until:
        call()


def microseconds(call: Call, count: int) -> list[float]:
    """Return how long each of ``count`` calls took, or of as many as were done when they had taken ``TURN_S``."""
    taken: list[float] = []
    ends = time.perf_counter_ns() + TURN_S * 1e9
    for _ in range(count):
        started = time.perf_counter_ns()
        if started > ends and len(taken) >= FEWEST_CALLS:
            break
        call()
        taken.append((time.perf_counter_ns() - started) / 1e3)
    return taken


def in_turns(
    contestants: Mapping[str, Contestant],
    measure: Callable[[Any], Sequence[float]],
    rounds: int,
    step: Callable[[], object],
) -> Rounds:
    """Return what ``measure`` finds of each contestant in each round. Each is open only while it is measured."""
    found: Rounds = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with contestants[name]() as call:
                found[name].append(list(measure(call)))
            step()
    return found


@dataclass
class Row:
    """The figures of one contestant. ``spread``: of the rounds' medians, (largest - smallest) / median."""

    case: str
    contestant: str
    unit: str
    median: float
    p90: float
    p99: float
    spread: float
    ratio: float | None  # to the base; None without one


def rows(case: str, unit: str, found: Rounds, base: str = BASE) -> list[Row]:
    """Return the figures of every contestant."""
    medians = {name: [statistics.median(figures) for figures in turns] for name, turns in found.items()}
    table = []
    for name, turns in found.items():
        every = [figure for figures in turns for figure in figures]
        median = statistics.median(every)
        cuts = statistics.quantiles(every, n=100, method="inclusive") if len(every) > 1 else [median] * 99
        ratio = None
        if base in medians:
            ratio = statistics.median(own / other for own, other in zip(medians[name], medians[base], strict=True))
        spread = (max(medians[name]) - min(medians[name])) / median if median else 0.0
        table.append(Row(case, name, unit, median, cuts[89], cuts[98], spread, ratio))
    return table


def about() -> dict[str, Any]:
    """Return what the figures were measured on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=9"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    model = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return {
        "cores": os.cpu_count(),
        "cpu": model[0] if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


@contextmanager
def results(title: str, path: str | None, command: str) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Yield what is to be called with the figures of each case: they are in the file, if there is a path, from then on.

    Printed are those there are when the block ends, be it that it was interrupted.
    """
    table: list[Row] = []
    head = {"title": title, "command": command, "about": about()}

    def add(figures: Iterable[Row]) -> None:
        table.extend(figures)
        if path:
            written = {**head, "rows": [asdict(row) for row in table]}
            Path(path).write_text(json.dumps(written, indent=1) + "\n")

    try:
        yield add
    finally:
        Console(width=110).print(as_table(title, table))


def show(title: str, table: Iterable[Row], path: str | None, command: str) -> None:
    """Print the figures of a benchmark that has them all at once, and write them to a file if there is a path."""
    with results(title, path, command) as add:
        add(table)


def as_table(title: str, table: Sequence[Row]) -> Table:
    """Return the figures as a table for the terminal."""
    shown = Table(title=title)
    for name in ("case", "contestant"):
        shown.add_column(name)
    for name in ("median", "p90", "p99", "spread", "ratio"):
        shown.add_column(name, justify="right")
    for row in table:
        numbers = [f"{number:,.4g} {row.unit}" for number in (row.median, row.p90, row.p99)]
        shown.add_row(row.case, row.contestant, *numbers, f"{row.spread:.0%}", _ratio(row.ratio))
    return shown


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
