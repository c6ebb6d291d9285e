"""Options that do not go together, and Ctrl-C at any time, from the first moment on."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import call, files, refused

import bgwork

TRAJECTORY = ("--from", "mine.dcd", "--frame-time", "1", "--temperature", "300")


@pytest.mark.parametrize(("options", "words"), [
    (("--top", "mine.pdb"), ("--top", "add --from")), (("--frame-time", "1"), ("--frame-time", "add --from")),
    (("--temperature", "300"), ("--temperature", "add --from")),
    ((*TRAJECTORY, "-n", "10"), ("mine.dcd", "leave out -n")), ((*TRAJECTORY, "--seed", "0"), ("mine.dcd", "leave out --seed")),
    ((*TRAJECTORY, "-n", "10000", "--seed", "0"), ("leave out -n, --seed",)),
    (TRAJECTORY[:4], ("--temperature",)), ((*TRAJECTORY[:2], *TRAJECTORY[4:]), ("--frame-time",))])
def test_options_of_reference_that_would_be_ignored_are_refused(toy, options, words):
    before = files(toy.root)
    refused(call("reference", "toy", *options), *words)
    assert files(toy.root) == before


def test_defaults_of_reference_are_nobodys_wish(toy):
    refused(call("reference", "toy", *TRAJECTORY), "not a molecule")


SLOW_TORCH = """
import time
open("loading", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("module", ["bgwork", "bgwork.cli"])
def test_an_interrupt_while_torch_is_loading_is_no_traceback(tmp_path, module):
    """With a stand-in for torch that takes a minute."""
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(bgwork.__file__).parent.parent}"}
    process = subprocess.Popen([sys.executable, "-m", module, "systems"], cwd=tmp_path, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "loading").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "") and "interrupted" in error and "Traceback" not in error, error


def test_names_of_the_package_are_those_that_it_fetches():
    assert sorted(bgwork.__all__) == sorted(name for names in bgwork.HOMES.values() for name in names)
    for home, names in bgwork.HOMES.items():
        module = importlib.import_module(f"bgwork.{home}")
        assert all(getattr(bgwork, name) is getattr(module, name) for name in names)
    assert set(bgwork.__all__) <= set(dir(bgwork))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bgwork.nonsense  # noqa: B018
