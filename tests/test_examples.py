"""The examples, run as the README runs them."""

import re
import sys
from pathlib import Path

import pytest
from test_cli import run

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_host_loss():
    code, out, err, _ = run(sys.executable, str(EXAMPLES / "host_loss.py"))
    assert code == 0, out + err
    lines = out.splitlines()
    assert lines[0] == "['ping', 'ping', 'ping', 'ping']"
    assert lines[-2:] == ["generation 1, hosts [1, 2, 3]", "['pong', 'pong', 'pong']"]


def served(*arguments):
    """Run the inference loop; return its output after checking that the answers are the model's."""
    code, out, err, _ = run(sys.executable, str(EXAMPLES / "inference_loop.py"), *arguments)
    assert code == 0, out + err
    assert "450 images" in out
    assert "0 answers differ" in out
    assert float(re.search(r"accuracy (0\.\d+)", out)[1]) > 0.95
    assert re.search(r"p50 [\d.]+ ms, p99 [\d.]+ ms", out)
    return out


@pytest.mark.campaign  # what follows does the same, and loses a host
def test_inference_loop():
    assert "generation 0, hosts [0, 1, 2, 3]" in served()


def test_inference_loop_goes_on_after_the_loss_of_a_host():
    out = served("--kill-after", "100")
    assert "killing host 0 after 100 images" in out
    assert "generation 1, hosts [1, 2, 3]" in out


def trained(directory, *arguments):
    """Run the training; return its output after checking what it promises."""
    plot = directory / "loss.png"
    script = str(EXAMPLES / "pipeline_training.py")
    code, out, err, _ = run(sys.executable, script, "--plot", str(plot), *arguments)
    assert code == 0, out + err
    assert float(re.search(r"test accuracy (0\.\d+)", out)[1]) >= 0.95
    assert "weights identical to those of the training in one process: True" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    return out


def test_pipeline_training_goes_on_after_the_loss_of_a_stage(tmp_path):
    assert "hosts lost: [2]" in trained(tmp_path, "--kill-stage", "2")


@pytest.mark.campaign
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble-h1"])
@pytest.mark.parametrize("stage", [None, 0, 3])
def test_pipeline_training(tmp_path, schedule, stage):
    lost = ["--kill-stage", str(stage), "--at-step", "57"] if stage is not None else []
    out = trained(tmp_path, "--schedule", schedule, *lost)
    host = None if stage is None else stage % (2 if schedule == "interleaved" else 4)
    assert f"hosts lost: {[] if host is None else [host]}" in out
