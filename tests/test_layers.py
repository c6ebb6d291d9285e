"""The rooms import downwards only, and the code keeps to the style that ruff checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("command", [("lint-imports", "--no-cache"), ("ruff", "check", ".")], ids=lambda command: command[0])
def test_checks_pass(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
