"""Timelines of pipelines, drawn: as text, and as SVG, PNG or PDF with matplotlib (the extra ``draw``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgexec.pipeline.operations import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD
from cgexec.pipeline.timeline import Timeline

_COLOURS = {FORWARD: "#4c78a8", FULL_BACKWARD: "#f58518", BACKWARD_INPUT: "#e45756", BACKWARD_WEIGHT: "#72b7b2"}
SUFFIXES = (".svg", ".png", ".pdf")
_MEANING = {FORWARD: "forward", FULL_BACKWARD: "backward", BACKWARD_INPUT: "of input", BACKWARD_WEIGHT: "of weights"}


def as_text(timeline: Timeline) -> str:
    """Return one line for each host: a column is the time of the shortest operation, and a dot stands for idle time.

    Operations whose times are no multiples of that are drawn to the nearest column, one column at least.
    """
    unit = min(bar.end - bar.start for host in timeline.hosts for bar in host)
    start = timeline.start
    width = 1 + max(len(str(bar.operation)) for host in timeline.hosts for bar in host)
    digits = len(str(len(timeline.hosts) - 1))
    lines = []
    for number, host in enumerate(timeline.hosts):
        line = ""
        for bar in host:
            line = line.ljust(round((bar.start - start) / unit) * width, ".")
            line += str(bar.operation).ljust(round((bar.end - start) / unit) * width - len(line) - 1, "-") + "|"
        lines.append(f"host {number:<{digits}}  {line.ljust(round(timeline.span / unit) * width, '.')}")
    return "\n".join(lines)


def draw(timeline: Timeline, path: str | Path, *, title: str = "", unit: str = "") -> None:
    """Write a picture of a timeline: a bar for each operation, a row for each host.

    The suffix of ``path`` says in which format: .svg, .png or .pdf.

    Raises:
        ValueError: it says another.
        ImportError: matplotlib is not there.
        OSError: the file cannot be written.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is to be a picture: expected a name that ends in {' or '.join(SUFFIXES)}")
    figure = _figure(len(timeline.hosts))
    axes = figure.add_subplot()
    start = timeline.start
    few = sum(map(len, timeline.hosts)) <= 200  # beyond that labels only blacken the picture
    kinds = set()
    for number, host in enumerate(timeline.hosts):
        for bar in host:
            kinds.add(bar.operation.kind)
            length = bar.end - bar.start
            colour = _COLOURS[bar.operation.kind]
            axes.barh(number, length, 0.9, bar.start - start, color=colour, edgecolor="white", linewidth=0.5)
            if few:
                axes.text(bar.start - start + length / 2, number, str(bar.operation), ha="center", va="center", size=7)
    for kind in (kind for kind in _COLOURS if kind in kinds):
        axes.barh(0, 0, color=_COLOURS[kind], label=f"{kind}: {_MEANING[kind]}")
    axes.set_yticks(range(len(timeline.hosts)), [f"host {number}" for number in range(len(timeline.hosts))])
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.span)
    axes.set_xlabel(unit)
    axes.set_title(f"{title}, {timeline.bubble:.1%} idle" if title else f"{timeline.bubble:.1%} idle")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path)


def _figure(num_hosts: int) -> Any:
    from matplotlib.figure import Figure  # not before it is wanted, and without pyplot: there may be no display

    return Figure(figsize=(12, 1.2 + 0.45 * num_hosts), layout="constrained")
