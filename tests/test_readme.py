"""The README's example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return code


@pytest.mark.parametrize("n", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_example_runs(n, capsys):
    code = example()
    assert code.count("2000") == 1
    exec(compile(code.replace("2000", str(n)), "README.md", "exec"), scope := {})
    ess, average = capsys.readouterr().out.splitlines()
    assert ess.count("+-") == 2 and average.count("+-") == 1
    assert scope["flow"].log_prob(scope["x"]).shape == (8,)
    assert scope["proposal"].density.value == "exact"


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from bgwork.cli import app

    known = get_command(app).commands
    named = set(re.findall(r"^    bgwork (\w+)", README, flags=re.MULTILINE))
    assert named == set(known)
