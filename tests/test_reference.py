"""Reference data: the checks must let equilibrium pass and nothing else, and nothing is written half."""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch

from bgwork import store
from bgwork.molecule import GivenSection
from bgwork.records import Density, Estimate
from bgwork.reference import Check, ReferenceError, check, generate, measure, save, thinned
from bgwork.system import list_systems, load_system, reference_samples

DW4_TRUTH = {"u": Estimate(value=-22.541, stderr=0.002), "n_long_4_is_2": Estimate(value=0.407, stderr=0.001),
             "n_long_4_is_4": Estimate(value=0.517, stderr=0.001), "virial": Estimate(value=6.0, stderr=0.0)}


def quick(name, **settings):
    system = load_system(name)
    return dataclasses.replace(system, reference=system.reference.model_copy(update=settings))


@pytest.fixture(scope="module")
def dw4():
    return quick("dw4", chains=40, draws=150, burn_in=150, thin=7)


@pytest.fixture(scope="module")
def run(dw4):
    return generate(dw4, 6000, seed=5)


def failures(checks):
    return [c.name for c in checks if not c.passed]


def test_dw4_reaches_the_known_values(run):
    assert failures(run.checks) == []
    for name, truth in DW4_TRUTH.items():
        assert abs(run.estimates[name].z(truth)) < 4, name


def test_proposal_and_provenance(run, dw4):
    p = run.proposal
    assert p.density is Density.UNNORMALISED and len(p) == 6000
    assert p.group.unique().tolist() == list(range(40))
    assert (p.origin.system, p.origin.seed, p.origin.method) == ("dw4", 5, "parallel-tempering")
    assert run.made["seed"] == 5 and run.made["chains"] == 40 and run.made["settings"]["thin"] == 7
    assert set(run.estimates) >= {*dw4.observables, "u", "virial"}


def test_small_requests_use_fewer_chains_and_refuse_none():
    system = quick("gmm40", chains=50)
    assert generate(system, 400, seed=0).made["chains"] == 4
    with pytest.raises(ReferenceError, match="5 configurations are too few .* at least 8"):
        generate(system, 5, seed=0)
    with pytest.raises(ValueError, match="positive integer"):
        generate(system, 0, seed=0)


def test_same_seed_same_data():
    system = quick("lj13", chains=4, draws=4, burn_in=5, thin=1, leapfrog=2)
    a, b, c = (generate(system, 16, seed=seed).proposal.x for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_exact_draws():
    run = generate(quick("gmm40"), 4000, seed=0)
    assert failures(run.checks) == [] and run.proposal.origin.method == "exact"
    with pytest.raises(ReferenceError, match="cannot be drawn from directly"):
        generate(quick("dw4", sampler="exact", starts=[]), 100, seed=0)


def recheck(run, dw4, **changed):
    proposal = dataclasses.replace(run.proposal, **changed)
    group = proposal.group
    return check(measure(dw4, proposal), group, group * 2 // 40, dimension=dw4.space.dim)


def test_virial_catches_a_wrong_scale(run, dw4):
    assert failures(recheck(run, dw4)) == []
    assert any("virial, distance" in name for name in failures(recheck(run, dw4, x=1.05 * run.proposal.x)))


def test_a_stuck_chain_fails_rhat(run, dw4):
    x = run.proposal.x.clone()
    x[run.proposal.group == 3] = run.proposal.x[3]
    assert any("split R-hat" in name for name in failures(recheck(run, dw4, x=x)))


def test_starts_that_disagree_fail(run, dw4):
    """Chains of the second start that know only one of two basins."""
    x = run.proposal.x.clone()
    four = measure(dw4, run.proposal)["n_long_4"] == 4
    wrong = (run.proposal.group >= 20) & ~four
    x[wrong] = x[four][: int(wrong.sum())]
    assert any("starts agree on n_long_4" in name for name in failures(recheck(run, dw4, x=x)))


def test_check_with_nan_fails():
    assert not Check(name="c", value=math.nan, limit=4.0).passed
    assert not Check(name="c", value=4.0, limit=4.0).passed


def test_unconverged_data_are_not_saved(tmp_path):
    run = generate(quick("lj13", chains=8, draws=10, burn_in=0, thin=1, leapfrog=3, step=0.005), 80, seed=0)
    with pytest.raises(ReferenceError, match=r"not saved, .* checks failed[\s\S]*split R-hat of u: .*must be below 1.01"):
        save(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saved_data_come_back(run, tmp_path):
    save(run, tmp_path, command="bgwork reference dw4 -n 6000")
    loaded = store.load_samples(tmp_path / "samples.npz")
    assert torch.equal(loaded.x, run.proposal.x) and torch.equal(loaded.group, run.proposal.group)
    record = store.read_json(tmp_path / "reference.json")
    assert record["command"] == "bgwork reference dw4 -n 6000" and record["n"] == 6000 and record["seed"] == 5
    assert record["estimates"]["u"]["value"] == run.estimates["u"].value
    assert all(c["passed"] for c in record["checks"]) and len(record["checks"]) == len(run.checks)


@pytest.mark.parametrize(("call", "interrupted"), [("replace", 1), ("fsync", 1), ("replace", 2), ("fsync", 2)])
def test_saving_interrupted_at_either_file_leaves_whole_files_only(run, tmp_path, monkeypatch, call, interrupted):
    original, calls = getattr(os, call), []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(f"bgwork.store.os.{call}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(run, tmp_path)
    assert len(calls) == interrupted
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"][: interrupted - 1]
    if interrupted == 2:
        assert torch.equal(store.load_samples(tmp_path / "samples.npz").x, run.proposal.x)


def test_unwritable_folder(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(store.FileError, match="choose another output folder"):
        save(run, tmp_path / "file" / "below")


def test_thinning_keeps_whole_draws(run):
    part = thinned(run, 400)
    assert len(part.proposal) == 400 and part.estimates is run.estimates
    assert torch.equal(part.proposal.x[:40], run.proposal.x[14 * 40:15 * 40])
    assert part.proposal.origin.edits == ("kept every 15th draw of 6000 configurations",)
    with pytest.raises(ReferenceError, match="cannot keep 39 of 6000 configurations from 40 chains"):
        thinned(run, 39)


def test_a_system_whose_data_are_brought_makes_none():
    with pytest.raises(ReferenceError, match="ala2-xtb has no sampler of its own; bring a trajectory"):
        generate(dataclasses.replace(load_system("ala2-xtb"), reference=GivenSection(sampler="given")), 100, seed=0)


@pytest.mark.parametrize("name", [name for name in list_systems() if (load_system(name).path / "reference.npz").exists()])
def test_shipped_values_agree_with_shipped_samples(name):
    system = load_system(name)
    proposal = reference_samples(system)
    values = measure(system, proposal)
    group = proposal.group
    for observable in system.references.keys() & values.keys():
        v = values[observable]
        means = torch.stack([v[group == g].mean() for g in group.unique()])
        estimate = Estimate(value=means.mean().item(), stderr=(means.std() / len(means) ** 0.5).item())
        assert abs(estimate.z(system.references[observable])) < 4, observable
    assert abs(system.references["virial"].z(Estimate(value=system.space.dim, stderr=0.0))) < 4
    torch.testing.assert_close(-proposal.log_q, values["u"], rtol=1e-10, atol=1e-9)
    parted = "set_aside" in store.read_json(system.path / "reference.json")
    assert proposal.origin.seed != 0 or parted, "seed 0 makes training data, which leaves these out only if the run was parted"


@pytest.mark.parametrize(("name", "truth"), [("dw4", DW4_TRUTH), ("lj13", {"u": Estimate(value=-43.0, stderr=0.1)})])
def test_shipped_values_are_the_known_ones(name, truth):
    references = load_system(name).references
    for observable, known in truth.items():
        assert abs(references[observable].z(known)) < 4, observable


@pytest.mark.parametrize("name", ["lj13", "lj55"])
def test_openmm_and_torch_agree_on_equilibrium_data(name):
    system = load_system(name)
    x = reference_samples(system).x[:300]
    assert (system.target.u(x) - system.differentiable_target.u(x)).abs().max() < 1e-9
