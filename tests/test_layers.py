"""The rooms import downwards only, and the code keeps to the style that ruff checks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
LINT_IMPORTS = ("lint-imports", "--no-cache")


def check(command: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess:
    """Run a check of the test extra in a folder."""
    return subprocess.run([BIN / command[0], *command[1:]], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("command", [LINT_IMPORTS, ("ruff", "check", ".")], ids=lambda command: command[0])
def test_checks_pass(command):
    done = check(command, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def rooms(tmp_path) -> Path:
    """A package with the names of bgwork's modules, all of them empty, under the same contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in (ROOT / "bgwork").rglob("*.py"):
        empty = tmp_path / path.relative_to(ROOT)
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
    return tmp_path


@pytest.mark.parametrize(("room", "imported", "broken"), [
    ("report", "store", False), ("runs", "report", False), ("records", "store", True), ("samplers/flow", "training", True),
    ("reweighting", "samplers.flow", True), ("system", "workflow", True), ("loose", None, True)])
def test_imports_upwards_and_rooms_on_no_level_are_caught(rooms, room, imported, broken):
    (rooms / "bgwork" / f"{room}.py").write_text(f"import bgwork.{imported}\n" if imported else "")
    done = check(LINT_IMPORTS, rooms)
    assert (done.returncode != 0) == broken, done.stdout + done.stderr
    named = f"bgwork.{room.replace('/', '.')}" if imported else room
    assert not broken or named in done.stdout
