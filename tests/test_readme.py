"""The README's example prints what the README says it prints."""

import re
import sys
from pathlib import Path

from test_cli import run

README = Path(__file__).parent.parent / "README.md"


def test_the_example_prints_what_the_readme_shows(tmp_path):
    text = README.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code)
    status, out, err, _ = run(sys.executable, str(script), RAY_ADDRESS="local")  # not a cluster that happens to run
    assert status == 0, out + err
    assert out == shown


def test_the_commands_are_those_of_ci():
    command = "pip install -e '.[test]' && pytest"
    assert command in README.read_text()
    ci = (README.parent / ".ci" / "run").read_text()
    assert command in ci
