"""The commands, on a toy system: what they write, what they keep and what they show."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import GENERATOR, QUICK, call, files, refused, steeper

from bgwork import store, terminal
from bgwork.generators import load_generator
from bgwork.records import WeightedSamples


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
    assert abs(report["log_z"]["value"]) < 4 * report["log_z"]["stderr"], "a mixture of normalised Gaussians has log Z = 0"
    assert 0 < report["forward_ess"]["value"] <= 1
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


@pytest.mark.parametrize(("old", "new"), [("half_width = 1.0", "half_width = 1.1"), ("seed = 0", "seed = 5")])
def test_a_changed_system_is_sampled_and_reported_anew(run, old, new):
    before, path = json.loads((run / "report.json").read_text()), Path("systems/toy/system.toml")
    path.write_text(path.read_text().replace(old, new, 1))
    again = call("run", "toy", *QUICK)
    assert again.exit_code == 0 and "replacing" in again.stderr, again.stderr
    after = json.loads((run / "report.json").read_text())
    assert after["observables"]["u"] != before["observables"]["u"]


def test_changed_reference_samples_are_evaluated_and_reported_anew(run):
    before, path = (run / "samples.npz").read_bytes(), Path("systems/toy/reference.npz")
    old = json.loads((run / "report.json").read_text())
    reference = store.load_samples(path)
    fewer = {name: getattr(reference, name)[100:] for name in ("x", "log_q", "group")}
    store.save_samples(path, replace(reference, **fewer))
    again = call("run", "toy", *QUICK)
    assert again.exit_code == 0 and again.stderr.count("kept") == 2, again.stderr
    assert json.loads((run / "report.json").read_text())["forward_ess"] != old["forward_ess"]
    assert (run / "samples.npz").read_bytes() == before


def test_held_out_samples_come_from_all_over_the_reference(run):
    tensors, _ = store.load_checkpoint(run / "held_out.safetensors")
    rows = tensors["rows"]
    assert len(tensors["log_q"]) == len(rows) == len(rows.unique()) == 400
    assert rows.min() == 0 and rows.max() == 599 and rows.diff().max() <= 2
    with contextlib.chdir(run.parent.parent.parent):
        x = store.load_samples(Path("systems/toy/reference.npz")).x
        assert torch.equal(load_generator(GENERATOR).log_prob(x[rows]), tensors["log_q"])


def test_tables_show_weights_density_certificate_and_edits(run):
    drawn = call("sample", "toy", *QUICK).stdout
    for word in ("ESS", "Pareto k", "largest weight", "failed 0", "edits: none"):
        assert word in drawn
    shown = call("run", "toy", *QUICK).stdout
    for word in ("exact", "determinants <= 0", "round trip", "edits"):
        assert word in shown


@pytest.mark.parametrize(("options", "density"), [
    (("--integrator", "euler", "--steps", "3"), "exact"),
    (("--integrator", "rk4", "--steps", "2", "--weights", "continuous"), "continuous"),
    (("--integrator", "dopri5", "--weights", "continuous"), "continuous"),
])
def test_sample_with_every_density(toy, options, density):
    result = call("sample", "toy", *QUICK, *options, "--out", "here")
    assert result.exit_code == 0, (result.output, result.exception)
    assert store.load_samples(Path("here/samples.npz")).proposal.density.value == density
    assert ("steps" in tomllib.loads(Path("here/sampling.toml").read_text())) == ("dopri5" not in options)


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


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [(), ("runs",), ("runs", "runs/toy/reference/notes.txt")], ids=str)
@pytest.mark.parametrize(("n", "stopped", "code", "word"), [
    ("40", None, 2, "R-hat"), ("5", None, 2, "at least 8"), ("0", None, 2, "positive"),
    ("4000", "bgwork.reference.generate", 130, "interrupted"), ("4000", "bgwork.store.os.fsync", 130, "interrupted"),
    ("4000", "bgwork.store.os.replace", 130, "interrupted"),
])
def test_reference_data_that_are_not_saved_leave_nothing(toy, monkeypatch, there, n, stopped, code, word):
    """Refused for their checks or their number, or interrupted at any stage: the working directory is as it was."""
    for name in there:
        path = toy.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine") if path.suffix else path.mkdir()
    before = sorted(toy.root.rglob("*")), files(toy.root)
    if stopped:
        monkeypatch.setattr(stopped, interrupt)
    result = call("reference", "toy", "-n", n)
    assert result.exit_code == code and word in result.stderr, (result.output, result.exception)
    assert (sorted(toy.root.rglob("*")), files(toy.root)) == before


def test_systems_lists_what_there_is(toy):
    result = call("systems")
    assert result.exit_code == 0
    for word in ("toy", "dw4", "lj13", "lj55", "gmm40", "gaussian-mixture", "eqot-fm"):
        assert word in result.stdout


def test_uncertified_samples_are_kept_and_refused_until_accepted(toy):
    steeper(2000)  # so much that the map folds
    refused(call("run", "toy", *QUICK), "uncertified", "--accept uncertified")
    folder = toy.root / "runs" / "toy" / "shipped"
    assert [path.name for path in folder.iterdir() if path.suffix == ".json"] == []
    result = call("run", "toy", *QUICK, "--accept", "uncertified")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "accepted uncertified density" in (folder / "report.html").read_text()


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
