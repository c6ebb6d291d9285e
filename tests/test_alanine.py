"""benchmarks/alanine.py end to end: stored made-up samples with known answers, and samples of a generator that was never trained."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from ala2 import generated, share_of_left_handed, simulated
from oracles import propose

from bgwork import store
from bgwork.held_out import keep
from bgwork.pareto import unseen_weight
from bgwork.records import Certificate, Cost, Density, Proposal
from bgwork.report import HeldOut
from bgwork.retarget import retarget_temperature
from bgwork.reweighting import weigh
from bgwork.system import System, load_system, reference_samples

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a system and its reference samples; results go there too."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(load_system("ala2-vacuum").path, tmp_path / "systems" / "ala2-vacuum")
    system = load_system("ala2-vacuum")
    store.save_samples(system.path / "reference.npz", simulated(system, 300))
    monkeypatch.setattr(importlib.import_module("rows"), "RESULTS", tmp_path / "results")
    return tmp_path


def measured(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> dict[str, dict]:
    """The rows that a call of the script leaves, by metric."""
    monkeypatch.setattr(sys, "argv", ["alanine.py", *map(str, arguments)])
    importlib.import_module("alanine").main()
    return {row["metric"]: row for row in json.loads((folder / "results" / "alanine.json").read_text())}


def test_stored_samples_of_known_population(folder, monkeypatch, capsys):
    system = load_system("ala2-vacuum")
    run, wide = folder / "runs" / "ala2-vacuum" / "made-up", folder / "wide.npz"
    store.save_samples(run / "samples.npz", generated(system, 400, noise=0.5))
    store.save_samples(wide, simulated(system, 900, seed=50))
    rows = measured(monkeypatch, folder, "--run", run, "--reference", wide, "--distance-n", 200)
    delta, share = rows["Delta F(phi) from weights"], share_of_left_handed()
    assert abs(delta["value"] - math.log((1 - share) / share)) < 4 * delta["stderr"] < 1
    assert rows["reverse ESS"]["value"] == pytest.approx(math.exp(-0.25), abs=0.1) and rows["n_failed"]["value"] == 0
    drawn = rows["torus-W2, 8 draws"]
    assert 0 < drawn["stderr"] < drawn["value"] / 2 and abs(drawn["value"] - rows["torus-W2"]["value"]) < 4 * drawn["stderr"]
    for metric in ("torus-W2", "energy-W2"):
        floors = [rows[f"{metric}, floor: reference {kind}, 200 samples"] for kind in ("against reference", "with these weights")]
        assert all(f["value"] > 0 and f["stderr"] > 0 for f in floors)
        assert rows[metric]["value"] < floors[1]["value"] + 6 * floors[1]["stderr"]
        assert rows[metric]["n"] == 400 and rows[metric]["seed"] == 0 and rows[metric]["goal"]
    assert rows["broken, share of samples"]["value"] == rows["inverted, share of weight"]["value"] == 0
    said = capsys.readouterr().out
    assert "no Delta F(phi) from pooled: the generator's density at reference samples is not known" in said
    assert "alanine.py --run" in rows["torus-W2"]["command"]
    warmer = retarget_temperature(weigh(store.load_samples(run / "samples.npz").proposal, system.target), factor=350 / 300)
    assert rows["reverse ESS at 350 K"]["value"] == pytest.approx(warmer.measured.value)
    assert rows["reverse ESS at 350 K, predicted"]["value"] == pytest.approx(warmer.predicted.log_normal.value)
    reference = retarget_temperature(weigh(reference_samples(system), system.target), factor=350 / 300)
    for route, samples in (("weights", warmer.samples), ("reference", reference.samples)):
        stderr = rows[f"Delta F(phi) at 350 K from {route}"]["stderr"]  # null where the tail of the new weights has no mean
        assert stderr is None if math.isinf(unseen_weight(samples)) else stderr > 0


def test_weight_that_basins_lack_is_a_row_of_each(folder, monkeypatch):
    """The density at every tenth reference sample, and at the rest of phi > 0 on top."""
    system, run = load_system("ala2-vacuum"), folder / "run"
    samples = generated(system, 400, noise=0.5)
    store.save_samples(run / "samples.npz", samples)
    known = weigh(reference_samples(system), system.target)
    rows = torch.arange(0, 300, 10)
    rare = (system.functions["phi_positive"](known.x).bool() & ~torch.isin(torch.arange(300), rows)).nonzero().flatten()
    log_q = [-known.u[each] + (samples.u + samples.proposal.log_q).mean() for each in (rows, rare)]
    found = HeldOut(log_q=log_q[0], rows=rows, rare=HeldOut(log_q=log_q[1], rows=rare))
    keep(found, run, system, made_with=samples.proposal.origin.config_hash)
    measured_rows = measured(monkeypatch, folder, "--run", run, "--distance-n", 100)
    inside = int(system.functions["phi_positive"](known.x[rows]).sum()) + len(rare)
    assert [m for m in measured_rows if m.startswith("unseen in basin 1")] == [f"unseen in basin 1, 0 of {inside} reference samples",
                                                                              "unseen in basin 1, at least"]
    assert measured_rows["unseen in basin 1, at least"]["value"] == 0 and inside > len(rare) > 0


def test_too_few_reference_samples_leave_out_the_floor_and_say_so(folder, monkeypatch, capsys):
    store.save_samples(folder / "run" / "samples.npz", generated(load_system("ala2-vacuum"), 400))
    rows = measured(monkeypatch, folder, "--run", folder / "run", "--distance-n", 200)
    assert "torus-W2" in rows and not [metric for metric in rows if "floor" in metric]
    assert "no floor of torus-W2, reference with these weights: a noise floor of 400 weighted against 200" in capsys.readouterr().out


def test_distances_see_a_wrong_distribution(folder, monkeypatch):
    """Samples of one basin alone, with energies 5 kT too high, against the reference: far beyond both floors."""
    system = load_system("ala2-vacuum")
    good = generated(system, 400, noise=0.1)
    x = good.x.clone()
    x[:] = x[good.u.argmin()]
    origin = good.proposal.origin
    wrong = propose(system.prior, 400, seed=0, density=Density.EXACT)
    wrong = type(wrong)(x=x, log_q=torch.zeros(400, dtype=torch.float64), space=wrong.space, density=wrong.density, origin=origin)
    store.save_samples(folder / "run" / "samples.npz", weigh(wrong, system.target))
    store.save_samples(folder / "wide.npz", simulated(system, 900, seed=50))
    rows = measured(monkeypatch, folder, "--run", folder / "run", "--reference", folder / "wide.npz", "--distance-n", 200)
    for metric in ("torus-W2", "energy-W2"):
        floor = rows[f"{metric}, floor: reference with these weights, 200 samples"]
        assert rows[metric]["value"] > floor["value"] + 6 * floor["stderr"]


def test_a_weighted_reference_counts_by_its_weights(folder, monkeypatch):
    """Two rows of phi > 0 for every one that there should be, and half the weight on each."""
    system = load_system("ala2-vacuum")
    store.save_samples(folder / "run" / "samples.npz", generated(system, 400, noise=0.1))
    once = simulated(system, 900, seed=50)
    rare = system.functions["phi_positive"](once.x).bool()
    twice = once.take(torch.cat([torch.arange(900), rare.nonzero().flatten()]))
    halved = system.functions["phi_positive"](twice.x) * math.log(2)
    uneven = weigh(replace(twice, log_q=twice.log_q + halved), system.target)
    arguments = ("--run", folder / "run", "--distance-n", 200, "--reference", folder / "wide.npz")
    store.save_samples(folder / "wide.npz", uneven)
    rows = measured(monkeypatch, folder, *arguments)
    store.save_samples(folder / "wide.npz", twice)
    unweighted = measured(monkeypatch, folder, *arguments)
    floors = [metric for metric in rows if metric.startswith("torus-W2, floor")]
    assert floors == ["torus-W2, floor: half of the walkers against the others, 200 samples"]  # copies would hide the noise of the others
    assert rows["torus-W2"]["value"] < rows[floors[0]]["value"] + 6 * rows[floors[0]]["stderr"]
    assert unweighted["torus-W2"]["value"] > 1.5 * rows["torus-W2"]["value"]


@dataclass(frozen=True)
class Folded:
    """Stands in for a flow whose certificate failed; its settings are fields, as a flow's are."""

    system: System
    batch: int = 0
    round_trip: torch.Tensor | None = None

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        good = generated(self.system, n).proposal
        certificate = Certificate(n=n, n_negative=3)
        return replace(good, density=Density.UNCERTIFIED, cost=Cost(network=8 * n), certificate=certificate, note="folds")

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return -self.system.target.u(x) + 60.0


def test_uncertified_samples_are_refused_with_what_failed_or_named(folder, monkeypatch, capsys):
    system = load_system("ala2-vacuum")
    monkeypatch.setattr(importlib.import_module("alanine"), "generator", lambda *_, **__: Folded(system))
    arguments = ("ala2-vacuum", "-n", 40, "--held-out", 20, "--distance-n", 30)
    rows = measured(monkeypatch, folder, *arguments)
    assert rows["negative determinants"]["value"] == 3 and "reverse ESS" not in rows
    assert rows["negative determinants"]["evaluations"] == 8.0
    assert "samples are uncertified: folds; try more --steps, or --accept uncertified" in capsys.readouterr().out
    rows = measured(monkeypatch, folder, *arguments, "--accept", "uncertified")
    assert rows["reverse ESS"]["method"].endswith("uncertified") and "Delta F(phi) from pooled" in rows
    assert "unseen in basin 0, at least" in rows


@pytest.mark.slow
def test_an_untrained_generator_is_sampled_at_several_numbers_of_steps(folder, monkeypatch):
    from bgwork.recipes import initial_network, parse_recipe

    system = load_system("ala2-vacuum")
    text = tomllib.loads((system.path / "recipes" / "fm.toml").read_text())
    network = initial_network(parse_recipe(text, source="fm.toml"), system, seed=0)
    meta = {"kind": "generator", "system": system.name, "recipe_name": "fm", "recipe": text, "seed": 0, "prior_std": 0.17, "commit": "",
            "versions": {}, "progress": {"step": 0}}
    store.save_checkpoint(folder / "generator.safetensors", dict(network.named_parameters()), meta)
    options = ("-n", 16, "--steps", 1, 2, "--generator", folder / "generator.safetensors", "--held-out", 8, "--round-trip", 4)
    measured(monkeypatch, folder, "ala2-vacuum", *options, "--distance-n", 16)
    rows = json.loads((folder / "results" / "alanine.json").read_text())
    assert {row["evaluations"] for row in rows} == {2.0, 4.0}
    assert [row["value"] for row in rows if row["metric"] == "n_failed"] == [0, 0]
