"""One HTML page of what was measured: a table and a plot for each file; or the README's table, and its plot.

python -m benchmarks.report results/*.json --out report.html
python -m benchmarks.report results/*.json --markdown --plot benchmarks/ratios.svg
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>cgexec: benchmarks</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }} td, th {{ padding: .2em .8em; border-bottom: 1px solid #ddd; }}
td + td + td, th + th + th {{ text-align: right; }} code {{ background: #f4f4f4; }} img {{ max-width: 100%; }}
</style></head><body><h1>cgexec: benchmarks</h1>
{sections}
</body></html>
"""
COLUMNS = ("case", "contestant", "median", "p90", "p99", "spread", "ratio")


def section(measured: dict[str, Any]) -> str:
    """Return the part of the page about one file."""
    about = ", ".join(f"{name} {value}" for name, value in measured["about"].items())
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells(row))}</tr>\n" for row in measured["rows"])
    return (
        f"<h2>{html.escape(measured['title'])}</h2>\n<p>{html.escape(about)}; <code>{html.escape(measured['command'])}"
        f'</code></p>\n<img alt="plot" src="data:image/svg+xml;base64,{plot(measured)}">\n'
        f"<table><tr>{head}</tr>\n{body}</table>"
    )


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row of a table."""
    numbers = [f"{row[name]:,.4g} {row['unit']}" for name in ("median", "p90", "p99")]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [html.escape(row["case"]), html.escape(row["contestant"]), *numbers, f"{row['spread']:.0%}", ratio]


def plot(measured: dict[str, Any]) -> str:
    """Return bars of the ratios, or of the medians where there are none, as SVG in base64."""
    rows = measured["rows"]
    by_ratio = any(row["ratio"] is not None for row in rows)
    field = "ratio" if by_ratio else "median"
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    heights = {(row["case"], row["contestant"]): row[field] for row in rows if row[field] is not None}
    figure, axes = plt.subplots(figsize=(10, 0.8 + 0.16 * len(cases) * (len(names) + 1)))
    for place, name in enumerate(names):
        ys = [index + (place - len(names) / 2) / (len(names) + 1) for index in range(len(cases))]
        widths = [heights.get((case, name), 0.0) for case in cases]
        axes.barh(ys, widths, height=1 / (len(names) + 1), label=name, align="edge")
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    if all(width > 0 for width in heights.values()):
        axes.set_xscale("log")
    if by_ratio:
        axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("ratio (less is faster)" if by_ratio else rows[0]["unit"])
    axes.legend(fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(drawn.getvalue()).decode()


# -- for the README ----------------------------------------------------------------------------------------------------

OURS, THEIRS = "cgexec, socket", ("raw", "by hand")


def markdown(files: Sequence[dict[str, Any]]) -> str:
    """Return a table of all files: a line for each case, with the raw graph, or the loop on it, beside cgexec."""
    lines = ["| | raw | cgexec | ratio |", "|---|---|---|---|"]
    for measured in files:
        by_case: dict[str, dict[str, Any]] = {}
        for row in measured["rows"]:
            by_case.setdefault(row["case"], {})[row["contestant"]] = row
        for case, rows in by_case.items():
            base = next((rows[name] for name in THEIRS if name in rows), None)
            if base is None or OURS not in rows:
                continue
            ours = rows[OURS]
            medians = [f"{short(row['median'])} {row['unit']}" for row in (base, ours)]
            ratio = "" if ours["ratio"] is None else f"{ours['ratio']:.2f}"
            lines.append(f"| {case} | {' | '.join(medians)} | {ratio} |")
    return "\n".join(lines)


def short(figure: float) -> str:
    """Return a figure with three digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def draw_ratios(files: Sequence[dict[str, Any]], path: str) -> None:
    """Write bars of how long cgexec takes of what the raw graph takes, a bar for each case."""
    rows = [
        row for measured in files for row in measured["rows"] if row["contestant"] == OURS and row["ratio"] is not None
    ]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.22 * len(rows)), layout="constrained")
    bars = axes.barh([row["case"] for row in rows], [row["ratio"] for row in rows])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize="small")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time of cgexec, raw Compiled Graph = 1")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="what a benchmark wrote with --json")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--markdown", action="store_true", help="print the README's table instead")
    parser.add_argument("--plot", metavar="FILE", help="with --markdown: write the README's plot")
    options = parser.parse_args()
    files = [json.loads(Path(path).read_text()) for path in options.files]
    if options.markdown:
        print(markdown(files))
        if options.plot:
            draw_ratios(files, options.plot)
        return
    Path(options.out).write_text(PAGE.format(sections="\n".join(map(section, files))))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
