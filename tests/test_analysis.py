"""The analysis scripts on stored samples, as a user runs them."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from typer.testing import CliRunner

from bgwork import store
from bgwork.free_energy import free_energy_difference
from bgwork.observables import n_long_is, radius_of_gyration
from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import expectation, weigh
from bgwork.samplers.mcmc import ParallelTempering
from bgwork.system import load_system

FOLDER = Path(__file__).parents[1] / "analysis"
TRUTH = {"2": (0.407, 0.001), "4": (0.517, 0.001)}  # populations of DW4's basins, design section 4


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"analysis_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object):
    return CliRunner().invoke(script(name).app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def weighted() -> WeightedSamples:
    """A little MCMC data of DW4, in 100 chains."""
    system = load_system("dw4")
    start = 2.0 * system.prior.sample(100, generator=torch.Generator().manual_seed(0))
    sampler = ParallelTempering(target=system.target, start=start, betas=(1.0, 0.6, 0.35, 0.2), burn_in=200, thin=5, step=0.1, system="dw4")
    return weigh(sampler.sample(2000, generator=torch.Generator().manual_seed(1)), system.target)


@pytest.fixture
def samples(weighted, tmp_path) -> Path:
    store.save_samples(tmp_path / "samples.npz", weighted)
    return tmp_path / "samples.npz"


def test_free_energy_between_basins_and_along_a_coordinate(weighted, samples, tmp_path):
    files = ("--png", tmp_path / "f.png", "--json", tmp_path / "f.json")
    result = run("free_energy", samples, "--coordinate", "pair_distance_max", "--bins", 12, *files)
    assert result.exit_code == 0, result.output
    for word in ("population", "F / kT", "ESS", "Pareto k", "failed rows", "profile along pair_distance_max"):
        assert word in " ".join(result.output.split()), word  # lines are folded where the folder's path ends
    content = json.loads((tmp_path / "f.json").read_text())
    populations = content["diagnosis"]["basins"]
    for label, (value, stderr) in TRUTH.items():
        assert abs(populations[label]["value"] - value) < 4 * math.hypot(populations[label]["stderr"], stderr)
    expected = free_energy_difference(weighted, lambda x: n_long_is(x, count=4), lambda x: n_long_is(x, count=2))
    assert content["differences"]["2"]["value"] == pytest.approx(expected.value)
    assert abs(expected.value - math.log(0.517 / 0.407)) < 4 * expected.stderr
    profile = content["profile"]["by_route"]["weights"]
    assert len(profile["value"]) == 12 and profile["outside"] == pytest.approx(0.0, abs=1e-12)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_observables_with_their_diagnostics(weighted, samples, tmp_path):
    result = run("observables", samples, "--observable", "radius_of_gyration", "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    for word in ("radius_of_gyration", "ESS", "Pareto k", "failed rows", "trust"):
        assert word in result.output
    value = json.loads((tmp_path / "o.json").read_text())[str(samples)]["observables"]["radius_of_gyration"]
    expected = expectation(weighted, radius_of_gyration)
    assert value["value"] == pytest.approx(expected.value) and value["stderr"] == pytest.approx(expected.stderr)


def test_a_runs_density_at_reference_samples_gives_bar_and_forward_ess(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("run", "dw4", "-n", "400")
    assert done.exit_code == 0, (done.output, done.exception)
    folder = Path("runs/dw4/shipped")
    report = json.loads((folder / "report.json").read_text())
    for name in ("free_energy", "observables"):
        result = run(name, folder, "--json", tmp_path / f"{name}.json")
        assert result.exit_code == 0, (result.output, result.exception)
        content = json.loads((tmp_path / f"{name}.json").read_text())
        found = content["diagnosis"] if name == "free_energy" else next(iter(content.values()))
        assert found["forward_ess"] == report["forward_ess"] and found["log_z_bar"] == report["log_z_bar"] is not None


def test_samples_without_energies_are_weighed(weighted, tmp_path):
    store.save_samples(tmp_path / "bare.npz", weighted.proposal)
    result = run("observables", tmp_path / "bare.npz", "--observable", "u")
    assert result.exit_code == 0, result.output


def damaged(kind: str, weighted: WeightedSamples, folder: Path) -> Path:
    """A file that cannot be used."""
    path = folder / f"{kind}.npz"
    if kind == "no-log-q":
        np.savez(path, x=weighted.x.numpy())
    elif kind == "no-samples":
        proposal = weighted.proposal
        store.save_samples(path, replace(proposal, x=proposal.x[:0], log_q=proposal.log_q[:0], group=proposal.group[:0]))
    elif kind == "improper":
        store.save_samples(path, replace(weighted.proposal, density=Density.STOCHASTIC))
    elif kind == "unknown-system":
        proposal = weighted.proposal
        store.save_samples(path, replace(proposal, origin=replace(proposal.origin, system="atlantis")))
    return path


@pytest.mark.parametrize("name", ["observables", "free_energy"])
@pytest.mark.parametrize(("kind", "message"), [
    ("missing", "no samples file"), ("no-log-q", "lacks log_q"), ("no-samples", "n = 0"), ("improper", "no proper weights"),
    ("unknown-system", "atlantis")])
def test_files_that_cannot_be_used(name, kind, message, weighted, tmp_path):
    result = run(name, damaged(kind, weighted, tmp_path))
    assert result.exit_code == 2 and message in " ".join(result.output.split())


@pytest.mark.parametrize(("name", "options", "message"), [
    ("observables", ("--observable", "colour"), "unknown observable 'colour'"), ("observables", ("--system", "atlantis"), "atlantis"),
    ("free_energy", ("--coordinate", "colour"), "unknown observable 'colour'"),
    ("free_energy", ("--basins", "colour"), "unknown observable 'colour'"),
    ("free_energy", ("--basins", "radius_of_gyration"), "whole numbers"), ("free_energy", ("--png", "x.png"), "--coordinate"),
    ("free_energy", ("--coordinate", "radius_of_gyration", "--png", "profile.xyz"), ".png, .pdf, .svg"),
    ("free_energy", ("--coordinate", "n_long_4", "--bins", "0"), "0 bins"),
    ("free_energy", ("--coordinate", "u", "--coordinate", "u", "--coordinate", "u"), "name one for a profile, two for a map"),
    ("free_energy", ("--coordinate", "n_long_4", "--json", "/proc/no/f.json"), "cannot write")])
def test_options_that_make_no_sense(name, options, message, samples):
    result = run(name, samples, *options)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
