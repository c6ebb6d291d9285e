"""The commands, on a toy system: what they write, what they keep, and that wrong input ends with one line and exit code 2."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import RECIPE, make_generator, make_toy
from typer.testing import CliRunner

from bgwork import store, terminal
from bgwork.cli import app
from bgwork.records import WeightedSamples
from bgwork.system import load_system

QUICK = ("-n", "40")


def call(*arguments: str) -> object:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def files(folder: Path) -> set[str]:
    """All files below a folder, with their contents' hash."""
    return {f"{path.relative_to(folder)} {hash(path.read_bytes())}" for path in folder.rglob("*") if path.is_file()}


def refused(result: object, *words: str) -> None:
    """Exit code 2, one message on stderr naming the words, no traceback."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Error: " in result.stderr or "Usage: " in result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A working directory in which `bgwork run toy` was called once."""
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


GENERATOR = Path("systems/toy/generators/eqot-fm.safetensors")


def test_run_leaves_a_whole_report(run):
    report = json.loads((run / "report.json").read_text())
    required = {"system", "n", "seed", "density", "certificate", "ess", "forward_ess", "pareto_k", "max_weight", "n_failed", "log_z",
                "observables", "reference", "cost", "verdict", "edits"}
    assert required <= set(report)
    assert report["system"] == "toy" and report["n"] == 40 and report["seed"] == 0 and report["density"] == "exact"
    assert set(report["log_z"]) >= {"value", "stderr"} and set(report["observables"]) == {"u", "coordinate_x", "coordinate_y"}
    assert set(report["reference"]["coordinate_x"]) == {"value", "stderr", "z"}
    assert report["cost"]["energy"] == 1 and report["cost"]["network"] >= 8 and report["cost"]["seconds"] > 0
    assert report["provenance"]["sampling"]["steps"] == 4 and report["provenance"]["versions"]["torch"]
    assert (run / "report.html").read_text().endswith("</html>\n")
    assert isinstance(store.load_samples(run / "samples.npz"), WeightedSamples)
    assert tomllib.loads((run / "recipe.toml").read_text())["field"]["kind"] == "mlp"


def test_running_again_keeps_everything(run):
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    again = call("run", "toy", *QUICK)
    assert again.exit_code == 0 and again.stderr.count("kept") == 4, again.stderr
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_other_settings_draw_other_samples_and_a_new_report(run):
    first, report = store.load_samples(run / "samples.npz"), (run / "report.json").read_text()
    assert call("run", "toy", *QUICK, "--seed", "1").exit_code == 0
    assert not torch.equal(store.load_samples(run / "samples.npz").x, first.x) and (run / "report.json").read_text() != report
    assert "replacing" in call("sample", "toy", *QUICK).stderr
    assert torch.equal(store.load_samples(run / "samples.npz").x, first.x)


def test_another_generator_draws_other_samples(run):
    steeper(2.0)
    assert "replacing" in call("sample", "toy", *QUICK).stderr


def steeper(factor: float) -> None:
    """Multiply the shipped generator's velocity."""
    tensors, meta = store.load_checkpoint(GENERATOR)
    store.save_checkpoint(GENERATOR, tensors | {"last.weight": tensors["last.weight"] * factor}, meta)


@pytest.mark.parametrize(("options", "density"), [
    (("--integrator", "euler", "--steps", "3"), "exact"),
    (("--integrator", "rk4", "--steps", "2", "--density", "continuous"), "continuous"),
    (("--integrator", "dopri5", "--density", "continuous"), "continuous"),
])
def test_sample_with_every_density(toy, options, density):
    result = call("sample", "toy", *QUICK, *options, "--out", "here")
    assert result.exit_code == 0, (result.output, result.exception)
    assert store.load_samples(Path("here/samples.npz")).proposal.density.value == density


def test_estimate_reads_stored_samples_only(run):
    GENERATOR.unlink()
    result = call("estimate", run, run / "samples.npz", "--observable", "coordinate_x")
    assert result.exit_code == 0, result.exception
    assert result.stdout.count("coordinate_x") == 2 and "coordinate_y" not in result.stdout and result.stdout.count("Pareto k") == 2
    whole = call("estimate", run)
    assert "log Z" in whole.stdout and "coordinate_y" in whole.stdout


def test_report_reads_stored_samples_only(run):
    GENERATOR.unlink()
    (run / "report.html").unlink()
    result = call("report", run)
    assert result.exit_code == 0 and (run / "report.html").exists() and "Verdict: " in result.stdout


def test_reference_data_pass_through_estimate_and_report(toy):
    made = call("reference", "toy", "-n", "4000")
    assert made.exit_code == 0, made.output
    folder = toy.root / "runs" / "toy" / "reference"
    result = call("estimate", folder)
    assert result.exit_code == 0 and "log Z" not in result.stdout
    assert call("report", folder).exit_code == 0
    assert json.loads((folder / "report.json").read_text())["log_z"] is None


def test_reference_data_that_fail_a_check_are_not_saved(toy):
    refused(call("reference", "toy", "-n", "40"), "R-hat")
    assert not files(toy.root / "runs")


def test_systems_lists_what_there_is(toy):
    result = call("systems")
    assert result.exit_code == 0
    for word in ("toy", "dw4", "lj13", "lj55", "gmm40", "gaussian-mixture", "eqot-fm"):
        assert word in result.stdout


def test_train_then_run(toy):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    trained = call("train", "toy", "--set", "training.batch=4")
    assert trained.exit_code == 0, (trained.output, trained.exception)
    folder = toy.root / "runs" / "toy" / "eqot-fm-0"
    assert tomllib.loads((folder / "recipe.toml").read_text())["training"]["batch"] == 4
    assert "# commit" in (folder / "recipe.toml").read_text()
    assert call("sample", folder, *QUICK).exit_code == 0 and (folder / "samples.npz").exists()


def test_run_makes_the_generator_that_is_missing(toy):
    toy.generator.unlink()
    (toy.system / "system.toml").write_text((toy.system / "system.toml").read_text().replace("draws = 10", "draws = 400"))
    result = call("run", "toy", *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    assert {path.name for path in (toy.root / "runs" / "toy").iterdir()} == {"reference", "eqot-fm-0"}
    assert (toy.root / "runs/toy/eqot-fm-0/report.html").exists()


@pytest.mark.parametrize("command", [("reference",), ("train",), ("sample",), ("run",)])
def test_unknown_system(toy, command):
    refused(call(*command, "lj14"), "lj14", "lj13")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [("reference", "toy"), ("sample", "toy"), ("run", "toy")])
@pytest.mark.parametrize("n", ["0", "-3"])
def test_no_samples(toy, command, n):
    refused(call(*command, "-n", n), n)
    assert not files(toy.root / "runs")


@pytest.mark.parametrize(("options", "words"), [
    (("--integrator", "leapfrog"), ("leapfrog", "midpoint")),
    (("--integrator", "dopri5"), ("--density continuous",)),
    (("--density", "guessed"), ("guessed", "executed")),
    (("--steps", "0"), ("steps", "0")),
    (("--steps", "many"), ("--steps", "integer")),
    (("--accept", "nothing"), ("nothing",)),
])
def test_bad_sampling_options(toy, options, words):
    refused(call("sample", "toy", *QUICK, *options), *words)
    assert not files(toy.root / "runs")


@pytest.mark.parametrize(("options", "words"), [
    (("--recipe", "nonsense"), ("nonsense", "eqot-fm")),
    (("--set", "training.stepz=3"), ("stepz", "steps")),
    (("--set", "training.steps=three"), ("steps", "three")),
    (("--set", "steps"), ("steps", "=")),
    (("--data", "nowhere.npz"), ("nowhere.npz",)),
    (("--resume",), ("checkpoint",)),
])
def test_bad_training_options(toy, options, words):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    before = files(toy.root)
    refused(call("train", "toy", *options), *words)
    assert files(toy.root) == before


def test_training_data_of_another_system(toy):
    dw4 = load_system("dw4")
    refused(call("train", "toy", "--data", dw4.path / "reference.npz"), "reference.npz")


def test_a_finished_training_is_not_overwritten(toy):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    assert call("train", "toy").exit_code == 0
    before = files(toy.root)
    refused(call("train", "toy", "--set", "training.batch=4"), "--resume")
    assert files(toy.root) == before


@pytest.mark.parametrize(("old", "new", "words"), [
    ("std = 1.0\n", "", ("energy", "std")),
    ("components = 2", 'components = "two"', ("components", "two")),
    ("components = 2", "components = 2\ncolour = 1", ("colour", "components")),
    ("[space]", "[space", ("system.toml",)),
])
def test_bad_system_file(toy, old, new, words):
    path = toy.system / "system.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(call("run", "toy", *QUICK), *words)
    assert not Path("runs").exists()


def test_generator_of_another_system(toy):
    make_generator(toy.generator, recipe=tomllib.loads(RECIPE), system="dw4")
    refused(call("run", "toy", *QUICK), "dw4", "toy")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def pickle_into(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": 1}))


@pytest.mark.parametrize("damage", [truncate, pickle_into])
def test_damaged_files(run, damage):
    damage(run / "samples.npz")
    before = files(run)
    for command in (("estimate", run), ("report", run), ("run", "toy", *QUICK)):
        refused(call(*command), "samples.npz")
    damage(GENERATOR)
    refused(call("sample", "toy", *QUICK), "eqot-fm.safetensors")
    assert files(run) == before


def test_samples_without_log_q(toy):
    np.savez("mine.npz", x=np.zeros((5, 1, 2)))
    refused(call("estimate", "mine.npz"), "mine.npz", "log_q")


def test_missing_samples_and_unknown_observables(run):
    refused(call("estimate", "nowhere.npz"), "nowhere.npz")
    refused(call("report", "nowhere"), "nowhere")
    refused(call("estimate", run, "--observable", "colour"), "colour", "radius_of_gyration")


def test_unwritable_output(toy):
    Path("blocked").write_text("a file, not a folder")
    before = files(toy.root)
    for command in (("sample", "toy", *QUICK), ("reference", "toy", "-n", "400"), ("train", "toy", "--data", toy.system / "reference.npz")):
        refused(call(*command, "--out", "blocked/run"), "blocked")
    assert files(toy.root) == before


def test_uncertified_samples_are_kept_and_refused_until_accepted(toy):
    steeper(2000)  # so much that the map folds
    refused(call("run", "toy", *QUICK), "uncertified", "--accept uncertified")
    folder = toy.root / "runs" / "toy" / "shipped"
    assert [path.name for path in folder.iterdir() if path.suffix == ".json"] == []
    result = call("run", "toy", *QUICK, "--accept", "uncertified")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "accepted uncertified density" in (folder / "report.html").read_text()


@pytest.mark.parametrize("command", ["reference", "sample"])
def test_interrupted_work_leaves_nothing_half_written(toy, monkeypatch, command):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bgwork.reference.check" if command == "reference" else "bgwork.samplers.flow.Flow.push", interrupt)
    result = call(command, "toy", "-n", "400")
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert not files(toy.root / "runs")


def test_help_shows_examples():
    for command in ("reference", "train", "sample", "estimate", "report", "run"):
        result = call(command, "--help")
        assert result.exit_code == 0 and "Example" in result.stdout and "bgwork" in result.stdout


def test_progress_shows_figures_on_a_terminal_and_nothing_elsewhere(capsys, monkeypatch):
    with terminal.progress("Training") as tick:
        tick(1, 2, "loss 0.5")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress("Training") as tick:
        tick(1, 2, "loss 0.5")
    shown = capsys.readouterr().err
    assert "Training" in shown and "loss 0.5" in shown and "1/2" in shown


def test_a_pipe_gets_plain_text(toy):
    done = subprocess.run([sys.executable, "-m", "bgwork.cli", "sample", "toy", *QUICK], capture_output=True, text=True, cwd=toy.root)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and done.stderr == ""


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_resume_ends_the_same(toy):
    data = str(toy.system / "reference.npz")
    long = ["--data", data, "--set", "training.steps=3000", "--set", "training.checkpoint_every=20"]
    command = [sys.executable, "-m", "bgwork.cli", "train", "toy", *long]
    process = subprocess.Popen([*command, "--out", "cut"], stderr=subprocess.PIPE, text=True, cwd=toy.root, start_new_session=True)
    for _ in range(600):
        if (toy.root / "cut" / "checkpoint.safetensors").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in message, message
    assert not (toy.root / "cut" / "generator.safetensors").exists()
    for out, extra in (("cut", ["--resume"]), ("whole", [])):
        subprocess.run([*command, "--out", out, *extra], check=True, cwd=toy.root, capture_output=True)
    cut, whole = (store.load_checkpoint(toy.root / out / "generator.safetensors")[0] for out in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
