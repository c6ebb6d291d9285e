"""Fixtures that several tests share."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from toy import Toy, make_toy

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Networks that a test makes begin alike, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch) -> None:
    """Kernels are fitted anew wherever a test asks for them, whatever lies in the home folder; tests/test_widths.py undoes this."""
    monkeypatch.setattr("bgwork.recipes.widths.FittedWidths.of", lambda self, inputs, fit: fit())


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    """The toy system in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return make_toy(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A working directory in which `bgwork run toy` was called once."""
    from commands import QUICK, call  # here, since most tests need no command line and its imports take seconds

    root = tmp_path_factory.mktemp("finished")
    make_toy(root)
    with contextlib.chdir(root):
        result = call("run", "toy", *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    return root


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """The run's folder, in a copy of that directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "toy" / "shipped"
