"""The training command: what it writes, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from commands import QUICK, call, files, refused

from bgwork import store
from bgwork.endings import interrupt_once


def test_train_then_run(toy):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    trained = call("train", "toy", "--set", "training.batch=4")
    assert trained.exit_code == 0, (trained.output, trained.exception)
    folder = toy.root / "runs" / "toy" / "eqot-fm-0"
    assert tomllib.loads((folder / "recipe.toml").read_text())["training"]["batch"] == 4
    assert "# commit" in (folder / "recipe.toml").read_text()
    assert call("sample", folder, *QUICK).exit_code == 0 and (folder / "samples.npz").exists()


ENERGY_ONLY = """
objective = "weighted-adjoint"
[field]
kind = "mlp"
hidden = 8
depth = 2
[process]
std = 3.0
clip = 50.0
curvature = 1.0
[replay]
fresh = 100
every = 2
batch = 20
[training]
steps = 4
warmup = 1
log_every = 2
evaluate_every = 0
[sampler]
steps = 10
"""


def test_training_from_the_energy_shows_what_was_asked_of_it_on_a_terminal_alone(toy, monkeypatch):
    (toy.system / "recipes" / "weighted-adjoint.toml").write_text(ENERGY_ONLY)
    command = ("train", "toy", "--recipe", "weighted-adjoint")
    quiet = call(*command)
    assert quiet.exit_code == 0 and quiet.stderr == "", (quiet.output, quiet.exception)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    shown = call(*command, "--out", "seen").stderr
    row = json.loads(Path("seen/metrics.jsonl").read_text().splitlines()[-1])
    assert row["gradient_evaluations"] == 200
    assert "gradients 200" in shown and "energies 0" in shown and f"raw u {row['u_50']:.3g} (5-95 %: {row['u_05']:.3g}" in shown


def test_the_report_says_what_the_training_asked_of_the_energy(toy):
    (toy.system / "recipes" / "weighted-adjoint.toml").write_text(ENERGY_ONLY)
    folder = Path("runs/toy/weighted-adjoint-0")
    assert call("train", "toy", "--recipe", "weighted-adjoint", "--set", "training.evaluate_every=2").exit_code == 0
    assert call("run", folder, *QUICK).exit_code == 0
    cost, page = store.read_json(folder / "report.json")["cost"], (folder / "report.html").read_text()
    assert cost["training"]["gradient"] == 200 and cost["training"]["energy"] == 0 and cost["training"]["steps"] == 4
    assert "gradients in training" in page and "How the training went on" in page
    tensors, meta = store.load_checkpoint(folder / "generator.safetensors")
    store.save_checkpoint(folder / "generator.safetensors", {name: 2 * value for name, value in tensors.items()}, meta)
    assert call("report", folder).exit_code == 0
    assert "training" not in store.read_json(folder / "report.json")["cost"], "of another generator than these samples are from"


def test_run_makes_the_generator_that_is_missing(toy):
    toy.generator.unlink()
    (toy.system / "system.toml").write_text((toy.system / "system.toml").read_text().replace("draws = 10", "draws = 400"))
    result = call("run", "toy", *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    assert {path.name for path in (toy.root / "runs" / "toy").iterdir()} == {"reference", "eqot-fm-0"}
    assert (toy.root / "runs/toy/eqot-fm-0/report.html").exists()


def test_a_finished_training_is_not_overwritten(toy):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    assert call("train", "toy").exit_code == 0
    before = files(toy.root)
    refused(call("train", "toy", "--set", "training.batch=4"), "--resume")
    assert files(toy.root) == before


@pytest.mark.parametrize(("table", "key", "goes_on"), [("training", "oversample", True), ("training", "batch", False)])
def test_checkpoints_go_on_where_newer_versions_know_more_keys(toy, table, key, goes_on):
    """A key that the checkpoint's version did not know stands at its default; one that stands at another value makes another recipe."""
    command = ("train", "toy", "--data", toy.system / "reference.npz", "--set", "training.batch=4", "--out", "run")
    assert call(*command).exit_code == 0
    checkpoint = Path("run/checkpoint.safetensors")
    tensors, meta = store.load_checkpoint(checkpoint)
    del meta["recipe"][table][key]
    store.save_checkpoint(checkpoint, tensors, meta)
    Path("run/generator.safetensors").unlink()
    if goes_on:
        result = call(*command, "--resume")
        assert result.exit_code == 0 and Path("run/generator.safetensors").exists(), (result.output, result.exception)
    else:
        refused(call(*command, "--resume"), "another recipe")


def test_a_start_of_another_size_is_refused(toy):
    data = ("--data", toy.system / "reference.npz")
    refused(call("train", "toy", *data, "--set", "training.initial=eqot-fm", "--set", "field.hidden=9"), "eqot-fm.safetensors", "[field]")
    assert not (toy.root / "runs" / "toy" / "eqot-fm-0" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("command", ["reference", "sample"])
def test_interrupted_work_leaves_nothing_half_written(toy, monkeypatch, command):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bgwork.reference.check" if command == "reference" else "bgwork.samplers.flow.Flow.push", interrupt)
    result = call(command, "toy", "-n", "400")
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert not files(toy.root / "runs")


def start_and_stop(command: list[str], root: Path, stop: signal.Signals) -> tuple[int, str]:
    """Start a training in its own process group, stop it once it has a checkpoint in cut/; exit code and stderr."""
    process = subprocess.Popen([*command, "--out", "cut"], stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (root / "cut" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, stop)
    return process.wait(timeout=60), process.stderr.read()


def test_further_interrupts_do_not_disturb_the_first(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *asked: handlers.append(asked))
    handlers = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_once(signal.SIGINT, None)
    assert handlers == [(signal.SIGINT, signal.SIG_IGN)]


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "every", "code"), [(signal.SIGINT, 20, 130), (signal.SIGKILL, 1, -signal.SIGKILL)])
def test_a_stopped_training_leaves_a_whole_checkpoint_and_resume_ends_the_same(toy, stop, every, code):
    options = ["--data", str(toy.system / "reference.npz"), "--set", "training.steps=300", "--set", f"training.checkpoint_every={every}"]
    command = [sys.executable, "-m", "bgwork.cli", "train", "toy", *options]
    returned, message = start_and_stop(command, toy.root, stop)
    assert returned == code, message
    assert stop == signal.SIGKILL or "--resume" in message
    _, meta = store.load_checkpoint(toy.root / "cut" / "checkpoint.safetensors")
    assert 0 < meta["progress"]["step"] < 300 and not (toy.root / "cut" / "generator.safetensors").exists()
    for out, extra in (("cut", ["--resume"]), ("whole", [])):
        subprocess.run([*command, "--out", out, *extra], check=True, cwd=toy.root, capture_output=True)
    cut, whole = (store.load_checkpoint(toy.root / out / "generator.safetensors")[0] for out in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
