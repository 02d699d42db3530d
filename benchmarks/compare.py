"""What has changed between two runs of a benchmark?

    python -m benchmarks.compare OLD.json NEW.json

Figures of different runs were not taken side by side: believe the ratios, which were, rather than the medians.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def load(path: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of a file by case and contestant."""
    return {(row["case"], row["contestant"]): row for row in json.loads(Path(path).read_text())["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args()
    old, new = load(options.old), load(options.new)
    table = Table(title=f"{options.old} and {options.new}")
    for name in ("case", "contestant", "old median", "new median", "change", "old ratio", "new ratio"):
        table.add_column(name, justify="left" if name in ("case", "contestant") else "right")
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        medians = [f"{row['median']:,.4g} {row['unit']}" if row else "" for row in (before, after)]
        change = f"{after['median'] / before['median'] - 1:+.0%}" if before and after and before["median"] else ""
        ratios = [f"{row['ratio']:.2f}" if row and row["ratio"] is not None else "" for row in (before, after)]
        table.add_row(*key, *medians, change, *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
