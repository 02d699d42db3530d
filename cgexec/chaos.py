"""``cgexec chaos``: faults drawn by lot on this machine; was any answer wrong, lost or late, is anything left?

The hosts are killed, stopped, stuck and misled, singly and together, while callers go on; every answer is held against
its own question. The same seed draws the same faults. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cgexec.config import GraphConfig
from cgexec.demo import ray_session
from cgexec.testing.chaos_driver import Chaos, ChaosReport

if TYPE_CHECKING:  # an extra
    from rich.console import Console

_NUM_CPUS = 4


def run(num_faults: int, seed: int, config: GraphConfig) -> int:
    """Run it, with a progress bar and a table at the end, and return the exit code."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    logging.getLogger("cgexec").setLevel(logging.CRITICAL)  # what goes wrong here is no news
    console = Console()
    columns = (TextColumn("faults"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ray_session(None, _NUM_CPUS), Progress(*columns, console=console) as progress:
        task = progress.add_task("faults", total=num_faults)
        report = Chaos(num_faults, seed, config, on_fault=lambda _: progress.advance(task)).run()
    _show(console, report)
    return 0 if report.passed else 1


def _show(console: Console, report: ChaosReport) -> None:
    from rich.table import Table

    table = Table("what", "count", title="chaos")
    for kind, count in sorted(report.faults.items()):
        table.add_row(f"fault: {kind}", str(count))
    table.add_section()
    for name, count in sorted(report.statuses.items()):
        table.add_row(f"status: {name}", str(count))
    table.add_section()
    table.add_row("recovery, median", f"{report.recovery_s(50):.3f} s")
    table.add_row("recovery, 95 %", f"{report.recovery_s(95):.3f} s")
    table.add_section()
    for name, found in report.problems.items():
        table.add_row(name, str(len(found)))
    console.print(table)
    for name, found in report.problems.items():
        for each in found:
            console.print(f"{name}: {each}", markup=False)
