"""The README's examples print what the README says they print."""

import re
import sys
from pathlib import Path

import pytest
from test_cli import run

README = Path(__file__).parent.parent / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(), re.DOTALL)


def test_every_example_shows_what_it_prints():
    assert len(EXAMPLES) == README.read_text().count("```python") == 3


@pytest.mark.parametrize(("code", "shown"), EXAMPLES, ids=["ray", "many callers", "in process"])
def test_the_example_prints_what_the_readme_shows(tmp_path, code, shown):
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
