"""The benchmarks' own arithmetic: turns, medians, ratios, and what is written, compared and drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import compare, harness, report


def test_contestants_take_turns_in_an_order_that_moves_on() -> None:
    happened: list[str] = []

    @contextmanager
    def contestant(name: str) -> Iterator[str]:
        happened.append(f"{name} opens")
        yield name
        happened.append(f"{name} closes")

    def measure(name: str) -> list[float]:
        happened.append(name)
        return [float(len(happened))]

    steps: list[None] = []
    names = ("a", "b", "c")
    found = harness.in_turns(
        {name: partial(contestant, name) for name in names}, measure, 4, lambda: steps.append(None)
    )
    assert happened[1::3] == [*"abc", *"bca", *"cab", *"abc"]
    assert all(
        happened[at - 1 : at + 2 : 2] == [f"{happened[at]} opens", f"{happened[at]} closes"] for at in (1, 4, 31)
    )
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(steps) == 12


def test_a_ratio_is_of_medians_of_the_same_round() -> None:
    # The machine is ten times as slow in the second round, which hits both alike.
    found = {"raw": [[10.0, 10.0, 99.0], [100.0, 100.0, 100.0]], "ours": [[5.0, 5.0, 5.0], [50.0, 50.0, 990.0]]}
    raw, ours = harness.rows("case", "us", found)
    assert (raw.ratio, ours.ratio) == (1.0, 0.5)
    assert (ours.median, ours.spread) == (27.5, pytest.approx((50 - 5) / 27.5))
    assert ours.p99 > ours.p90 > ours.median


def test_without_a_base_there_is_no_ratio() -> None:
    (row,) = harness.rows("case", "us", {"ours": [[1.0]]})
    assert (row.ratio, row.median, row.p99) == (None, 1.0, 1.0)


def test_a_median_of_nothing_has_no_spread() -> None:
    (row,) = harness.rows("case", "kB", {"raw": [[0.0], [0.0]]}, base="none")
    assert row.spread == 0.0


@pytest.fixture
def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "latency.json"
    found = {"raw": [[10.0, 12.0]], "cgexec <socket>": [[5.0, 6.0]]}
    table = [*harness.rows("1 actor", "us", found), *harness.rows("no base", "us", {"cgexec <socket>": [[3.0]]})]
    harness.show("one execution", table, str(path), "python -m benchmarks.latency")
    assert "0.50" in capsys.readouterr().out
    return path


def test_what_is_written_says_where_it_was_measured_and_how(measured: Path) -> None:
    written = json.loads(measured.read_text())
    assert written["command"] == "python -m benchmarks.latency"
    assert written["about"].keys() >= {"cores", "cpu", "kernel", "python", "ray", "commit"}
    assert [row["contestant"] for row in written["rows"]] == ["raw", "cgexec <socket>", "cgexec <socket>"]


def test_two_files_are_compared(measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    faster = json.loads(measured.read_text())
    faster["rows"][1].update(median=2.75, ratio=0.25)
    faster["rows"].pop()
    other = measured.with_name("new.json")
    other.write_text(json.dumps(faster))
    monkeypatch.setattr("sys.argv", ["compare", str(measured), str(other)])
    compare.main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "-50%" in line)
    assert re.findall(r"\d\.\d+", line) == ["5.5", "2.75", "0.50", "0.25"]


def test_a_page_has_a_table_and_a_plot_for_each_file(measured: Path, tmp_path: Path, monkeypatch: Any) -> None:
    page = tmp_path / "report.html"
    monkeypatch.setattr("sys.argv", ["report", str(measured), str(measured), "--out", str(page)])
    report.main()
    text = page.read_text()
    assert text.count('src="data:image/svg+xml;base64,') == 2
    assert text.count("<tr>") == 2 * (1 + 3)
    assert "cgexec &lt;socket&gt;" in text
    assert "<socket>" not in text


def test_the_table_of_the_readme_has_a_line_for_each_case_with_a_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    files = []
    for name, base in (("latency", "raw"), ("recovery", "by hand")):
        files.append(str(tmp_path / f"{name}.json"))
        found = {base: [[10.0, 12.0]], "cgexec, socket": [[5.0, 6.0]], "floor": [[1.0, 1.0]]}
        table = [
            *harness.rows(f"{name}, a case", "us", found, base=base),
            *harness.rows("alone", "us", {"cgexec, socket": [[3.0]]}),
        ]
        harness.show(name, table, files[-1], f"python -m benchmarks.{name}")
    capsys.readouterr()
    plot = tmp_path / "ratios.svg"
    monkeypatch.setattr("sys.argv", ["report", *files, "--markdown", "--plot", str(plot)])
    report.main()
    assert capsys.readouterr().out.splitlines() == [
        "| | raw | cgexec | ratio |",
        "|---|---|---|---|",
        "| latency, a case | 11 us | 5.5 us | 0.50 |",
        "| recovery, a case | 11 us | 5.5 us | 0.50 |",
    ]
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
