"""Options that do not go together, and Ctrl-C at any time, from the first moment on."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import call, files, refused

import bgwork
from bgwork import store
from bgwork.partial import PartialSamples

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


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_reference_does_not_promise_to_go_on(toy, monkeypatch):
    monkeypatch.setattr("bgwork.reference.generate", interrupt)
    result = call("reference", "toy", "-n", "4000")
    assert result.exit_code == 130 and "no reference data were saved" in result.stderr and "begins anew" in result.stderr
    assert "goes on" not in result.stderr


def test_other_interrupted_work_promises_what_holds_of_all(run, monkeypatch):
    monkeypatch.setattr("bgwork.workflow.average_all", interrupt)
    result = call("estimate", run)
    assert result.exit_code == 130 and "written whole or not at all" in result.stderr and "goes on" not in result.stderr


@pytest.mark.parametrize(("batches", "said"), [(0, "nothing was stored, and the same command begins anew"),
                                               (1, "40 samples are kept in runs/toy/shipped/samples.part.safetensors")])
def test_interrupted_sampling_says_what_it_has_kept(toy, monkeypatch, batches, said):
    if batches:  # after the last batch, before the samples are stored
        monkeypatch.setattr("bgwork.runs.Run.write_settings", interrupt)
        monkeypatch.setattr("bgwork.runs.PartialSamples", lambda **given: PartialSamples(**given, interval=0.0))
    else:
        monkeypatch.setattr("bgwork.samplers.flow.Flow.push", interrupt)
    result = call("sample", "toy", "-n", "40")
    assert result.exit_code == 130 and said in result.stderr, result.stderr


def reference(*options: str) -> object:
    return call("reference", "toy", *options)


def test_reference_data_are_not_replaced_by_others(toy):
    assert reference("-n", "4000").exit_code == 0
    before = files(toy.root)
    for options in (("-n", "4400"), ("-n", "4000", "--seed", "1")):
        refused(reference(*options), "holds 4000 configurations made by `bgwork", "--out", "move runs/toy/reference away")
    assert files(toy.root) == before
    assert reference("-n", "4400", "--out", "elsewhere").exit_code == 0
    again = reference("-n", "4000")
    assert again.exit_code == 0 and "replaced" in again.stderr and "made in the same way" in again.stderr
    record = Path("runs/toy/reference/reference.json")
    older = json.loads(record.read_text())
    del older["definition"], older["settings"]["burn_in"]
    record.write_text(json.dumps(older))  # as an older bgwork wrote it, which knew no such setting
    assert reference("-n", "4000").exit_code == 0
    steps = toy.system / "system.toml"
    steps.write_text(steps.read_text().replace("chains = 10", "chains = 20"))
    refused(reference("-n", "4000"), "holds 4000 configurations", "(other definition, chains)")


@pytest.mark.parametrize(("record", "words"), [
    (None, ("nothing says how",)), ("[1]", ("nothing says how",)), ("{", ("reference.json", "not readable JSON"))])
def test_samples_that_nothing_is_known_of_are_not_replaced(toy, record, words):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    if record is not None:
        Path("runs/toy/reference/reference.json").write_text(record)
    before = files(toy.root)
    refused(reference("-n", "4000"), *words)
    assert files(toy.root) == before
