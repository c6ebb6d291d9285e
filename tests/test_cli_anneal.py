"""The annealing command: from a generator or from the prior, what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from commands import GENERATOR, call, files, refused, steeper

from bgwork import store

SMALL = ("-n", "400", "--islands", "20", "--transitions", "2")


@pytest.mark.parametrize(("options", "name", "method"), [
    ((), "shipped-annealed", "flow eqot-fm+rejuvenated"),
    (("--hottest", "0.5", "--moves", "mala"), "shipped-annealed", "flow eqot-fm+rejuvenated"),
    (("--start", "prior"), "prior-annealed", "smc"),
    (("--start", "prior", "--resample-below", "0"), "prior-annealed", "annealed-importance"),
])
def test_annealing_leaves_weighted_samples_and_a_report(toy, options, name, method):
    result = call("anneal", "toy", *SMALL, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    folder = toy.root / "runs" / "toy" / name
    report, weighted = json.loads((folder / "report.json").read_text()), store.load_samples(folder / "samples.npz")
    assert report["method"] == method and report["density"] == "path" and report["n"] == 400
    assert abs(report["log_z"]["value"]) < 4 * report["log_z"]["stderr"], "a mixture of normalised Gaussians has log Z = 0"
    assert abs(report["reference"]["coordinate_x"]["z"]) < 4
    copies = "0" not in options
    assert report["resampled"] == copies and ("ESS per ancestor" in result.stdout) == copies
    assert report["n_groups"] == (20 if copies else None) == (len(weighted.proposal.group.unique()) if copies else None)
    settings = tomllib.loads((folder / "sampling.toml").read_text())
    assert settings["islands"] == 20 and ("generator" in settings) == ("prior" not in options)


def test_gradients_and_the_pilot_are_counted(toy):
    """At one temperature every row makes two transitions of five gradients and one to begin with; the pilot of 128 makes more."""
    assert call("anneal", "toy", *SMALL).exit_code == 0
    cost = json.loads((toy.root / "runs/toy/shipped-annealed/report.json").read_text())["cost"]
    assert 11 * 400 < cost["gradient"] * 400 < 11 * 400 + 128 * 20 * 6 + 1
    assert cost["energy"] * 400 == pytest.approx(400 + 128 + 400) and cost["network"] * 400 == pytest.approx(8 * 528)


def test_annealing_again_keeps_the_samples_and_other_settings_draw_others(toy):
    assert call("anneal", "toy", *SMALL).exit_code == 0
    folder = toy.root / "runs" / "toy" / "shipped-annealed"
    before = files(folder)
    again = call("anneal", "toy", *SMALL)
    assert again.exit_code == 0 and again.stderr.count("kept") == 2 and files(folder) == before
    assert "replacing" in call("anneal", "toy", *SMALL, "--keep", "0.8").stderr
    steeper(2.0)
    assert "replacing" in call("anneal", "toy", *SMALL, "--keep", "0.8").stderr


def test_the_generator_of_a_run_and_a_folder_of_ones_own(run):
    result = call("anneal", GENERATOR, *SMALL, "--out", "mine")
    assert result.exit_code == 0, (result.output, result.exception)
    assert Path("mine/report.html").exists() and not Path("runs/toy/shipped-annealed").exists()


def test_improper_weights_of_the_generator_are_refused_until_accepted(toy):
    steeper(2000)  # so much that the map folds
    refused(call("anneal", "toy", *SMALL), "uncertified", "--accept uncertified")
    assert not files(toy.root / "runs")
    result = call("anneal", "toy", *SMALL, "--accept", "uncertified")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads((toy.root / "runs/toy/shipped-annealed/report.json").read_text())
    assert report["density"] == "uncertified" and report["edits"] == ["accepted uncertified density"] and not report["trusted"]


@pytest.mark.parametrize(("options", "words"), [
    (("--start", "nowhere"), ("nowhere", "generator, prior")),
    (("--moves", "gibbs"), ("gibbs", "hmc, mala")),
    (("--islands", "0"), ("0 islands",)),
    (("--islands", "401"), ("400 samples", "401 islands", "fewer --islands")),
    (("-n", "0"), ("0 samples",)),
    (("--transitions", "0"), ("transitions", "0")),
    (("--keep", "1"), ("keep", "1")),
    (("--keep", "nan"), ("keep", "nan")),
    (("--hottest", "1.5"), ("hottest", "1.5")),
    (("--resample-below", "-0.1"), ("resample-below", "-0.1")),
    (("--start", "prior", "--hottest", "0.5"), ("leave out --hottest",)),
    (("--start", "prior", "--recipe", "eqot-fm"), ("leave out --recipe",)),
    (("--recipe", "magic"), ("magic", "eqot-fm")),
    (("--islands", "many"), ("--islands", "integer")),
])
def test_bad_options(toy, options, words):
    refused(call("anneal", "toy", *SMALL, *options), *words)
    assert not files(toy.root / "runs")


def test_what_cannot_be_annealed(toy):
    refused(call("anneal", "lj14", *SMALL), "lj14", "lj13")
    refused(call("anneal", "vmf-s2", *SMALL, "--start", "prior"), "Euclidean and mean-free space")
    assert not files(toy.root / "runs")
    GENERATOR.unlink()
    refused(call("anneal", "toy", *SMALL), "no generator", "bgwork train toy")
    assert call("anneal", "toy", *SMALL, "--start", "prior").exit_code == 0
