"""Timelines, drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cgexec import cli
from cgexec.pipeline import Bar, Schedule1F1B, ScheduleZeroBubbleH1, Timeline, as_text, draw, parse_order, run


def test_text_has_a_line_for_each_host_and_a_column_for_each_unit_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["draw-schedule", "1f1b", "--stages", "2", "--microbatches", "3"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == as_text(run(Schedule1F1B().order(2, 3))).splitlines()
    lengths = {len(line) for line in out.splitlines()[:2]}
    assert len(lengths) == 1
    assert out.splitlines()[2] == "25.0% idle; activations of so many microbatches at most: [2, 1]"


def test_every_operation_stands_where_it_runs() -> None:
    text = as_text(run(parse_order(["0F0 0B0", "1F0 1B0"])))
    assert text == "host 0  0F0|............0B0----|\nhost 1  ....1F0|1B0----|........"


def test_a_timeline_is_drawn_from_where_it_begins() -> None:
    timeline = run(Schedule1F1B().order(3, 4))
    later = Timeline(
        tuple(tuple(Bar(bar.operation, bar.start + 50, bar.end + 50) for bar in host) for host in timeline.hosts)
    )
    assert as_text(later) == as_text(timeline)


def test_the_lines_of_many_hosts_begin_at_the_same_place() -> None:
    lines = as_text(run(Schedule1F1B().order(11, 11))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line[:9] for line in lines[9:]] == ["host 9   ", "host 10  "]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drawn.{suffix}"
    draw(run(ScheduleZeroBubbleH1().order(3, 4)), path, title="H1", unit="forwards")
    if suffix == "svg":
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["1f1b", "--stages", "3", "--microbatches", "2"], "1F1B cannot be had with 2 microbatches on 3 hosts"),
        (["gpipe", "--stages", "0", "--microbatches", "2"], "num_stages=0 is not usable"),
        (["gpipe", "--stages", "2", "--microbatches", "2", "--virtual-stages", "2"], "one stage on each host, not 2"),
        (["2f2b", "--stages", "2", "--microbatches", "2"], "invalid choice: '2f2b'"),
        (
            ["gpipe", "--stages", "2", "--microbatches", "2", "--out", "x.foo"],
            "a name that ends in .svg or .png or .pdf",
        ),
        (["gpipe", "--stages", "2", "--microbatches", "2", "--out", "/not/there.svg"], "No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_says_why(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["draw-schedule", *arguments])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_a_picture_without_the_library_for_it_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SystemExit):
        cli.main(["draw-schedule", "gpipe", "--stages", "1", "--microbatches", "1", "--out", "x.svg"])
    assert "wants the library matplotlib: pip install 'cgexec[draw]'" in capsys.readouterr().err


def test_matplotlib_is_not_imported_before_it_is_wanted() -> None:
    code = "import cgexec.pipeline, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
