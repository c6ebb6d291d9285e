"""The README's example runs as printed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import bgwork

README = (Path(__file__).parent.parent / "README.md").read_text()


EXAMPLE, *OTHERS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_example_runs(n, capsys):
    assert EXAMPLE.count("2000") == 1
    exec(compile(EXAMPLE.replace("2000", str(n)), "README.md", "exec"), scope := {})
    ess, average = capsys.readouterr().out.splitlines()
    assert ess.count("+-") == 2 and average.count("+-") == 1
    assert scope["flow"].log_prob(scope["x"]).shape == (8,)
    assert scope["proposal"].density.value == "exact"


def test_the_other_examples_run_one_after_the_other(capsys):
    torch.manual_seed(0)
    exec(compile("\n".join(OTHERS), "README.md", "exec"), scope := {})
    length = bgwork.expectation(scope["weighted"], lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1))
    r = torch.linspace(0, 6, 100_001, dtype=torch.float64)
    weight = r.square() * torch.exp(-5 * (r - 1) ** 2)
    exact = ((weight * r).sum() / weight.sum()).item()
    assert abs(length.value - exact) < 4 * length.stderr
    volume = math.log(4 * math.pi / 2**1.5) + (weight.sum() * (r[1] - r[0])).log().item()  # of (x_0 - x_1) / sqrt 2
    found = bgwork.log_z(scope["learned"])
    assert scope["learned"].proposal.density.value == "path" and abs(found.value - volume) < 4 * found.stderr < 0.4
    assert "after 2000 gradients" in capsys.readouterr().out


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from bgwork.commands import app

    known = get_command(app).commands
    named = set(re.findall(r"^    bgwork ([\w-]+)", README, flags=re.MULTILINE))
    assert named == set(known)
