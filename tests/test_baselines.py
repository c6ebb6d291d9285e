"""Markov chains at a training's budget: counted by the target itself, and shown beside the training they are measured against."""

import math
from dataclasses import asdict

import pytest
import torch
from commands import call, refused

from bgwork import store
from bgwork.baselines import Baseline, BudgetError, Chains, baseline, baselines, from_json, ladder, run_chains, to_json
from bgwork.learning import TrainingRecord
from bgwork.reweighting import average, weigh
from bgwork.samplers.mcmc import HMC
from bgwork.system import load_system

BETAS = {"hmc": (1.0,), "parallel-tempering": (1.0, 0.6, 0.35, 0.2)}


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("budget", [20_000, 40_000])
def test_chains_spend_their_budget_and_no_more(kind, budget):
    system = load_system("dw4")
    before = system.differentiable_target.n_gradient
    proposal, spent = run_chains(system, Chains(budget=budget, betas=BETAS[kind], chains=20, n=200))
    assert system.differentiable_target.n_gradient - before == spent and proposal.origin.method == kind
    assert 0.7 * budget < spent <= budget
    assert len(proposal.group.unique()) == 20


def test_an_error_bar_from_the_effective_number_covers_the_truth():
    system = load_system("dw4")
    weighted = weigh(run_chains(system, Chains(budget=100_000, chains=20))[0], system.target)
    found, truth = average(weighted, weighted.u), system.references["u"]
    assert abs(found.value - truth.value) < 4 * math.hypot(found.stderr, truth.stderr)
    assert found.n_eff == baseline(system, Chains(budget=100_000, chains=20)).n_eff


@pytest.mark.parametrize("budget", [21_000, 26_300, 35_000])
def test_half_of_what_the_starts_leave_is_burn_in(budget, monkeypatch):
    seen = {}
    monkeypatch.setattr("bgwork.baselines.HMC", lambda **parts: seen.update(parts) or HMC(**parts))
    proposal, _ = run_chains(load_system("dw4"), Chains(budget=budget, chains=10, n=100))
    draws = len(proposal) // 10
    assert 0.45 < seen["burn_in"] / (seen["burn_in"] + seen["thin"] * draws) < 0.6 and draws <= 10


def test_parts_too_small_are_left_out_and_a_whole_too_small_is_refused():
    system = load_system("dw4")
    found = list(baselines(system, Chains(budget=24_000, chains=10, n=100)))
    assert {each.method for each in found} == set(BETAS) and all(each.spent <= 24_000 for each in found)
    assert len([each for each in found if each.method == "hmc"]) > len([each for each in found if each.method != "hmc"])
    with pytest.raises(BudgetError, match="300 gradients are too few for 10 chains on 4 rungs, whose starts alone take 5040; ask"):
        list(baselines(system, Chains(budget=300, chains=10)))


def test_a_system_without_starts_begins_at_the_prior_and_climbs_the_common_ladder():
    system = load_system("gmm40")
    assert ladder(system) == BETAS["parallel-tempering"] and not system.reference.starts
    proposal, spent = run_chains(system, Chains(budget=5_000, chains=10, n=50))
    assert spent <= 5_000 and torch.isfinite(proposal.x).all()


@pytest.mark.parametrize("name", ["vmf-s2", "ala2-vacuum"])
def test_curved_spaces_and_molecules_have_no_such_chains(name):
    with pytest.raises(BudgetError, match=f"{name} says nothing of Markov chains on .*only systems on flat space"):
        run_chains(load_system(name), Chains(budget=10_000))


def test_one_chain_has_no_error_bar():
    with pytest.raises(BudgetError, match="ask for 2 --chains at least, not 1"):
        Chains(budget=1000, chains=1)


def test_stored_chains_belong_to_one_generator():
    each = Baseline(method="hmc", spent=10, n=5, n_eff=2.5, u_05=-1.0, u_50=0.0, u_95=1.0)
    content = to_json([each], "abc", Chains(budget=10))
    assert from_json(content, "abc") == (each,) and from_json(content, "abd") == ()
    undefined = from_json({"made_for": "abc", "baselines": [asdict(each) | {"n_eff": None}]}, "abc")
    assert math.isnan(undefined[0].n_eff)
    with pytest.raises(BudgetError, match="are not those that `bgwork baselines` writes"):
        from_json({"made_for": "abc", "baselines": [{"method": "hmc"}]}, "abc")
    progress = {"energy_evaluations": 3, "gradient_evaluations": 7, "step": 1, "seconds": 1.0, "worker_seconds": 1.0}
    record = TrainingRecord(progress=progress, baselines=(each,))
    assert record.spent == 10 and record.cost["baselines"][0]["n_eff"] == 2.5


def test_the_report_shows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("run", "dw4", "--recipe", "weighted-adjoint", "-n", "40", "--out", "run").exit_code == 0
    result = call("baselines", "run", "--chains", "20")
    assert result.exit_code == 0, result.output
    found = store.read_json(tmp_path / "run" / "report.json")["cost"]["training"]
    assert {each["method"] for each in found["baselines"]} == set(BETAS)
    assert max(each["spent"] for each in found["baselines"]) <= found["energy"] + found["gradient"]
    forward = store.read_json(tmp_path / "run" / "report.json")["forward_ess"]
    assert 0.1 < forward["value"] < 1 and forward["stderr"] > 0
    assert "hmc, " in (tmp_path / "run" / "report.html").read_text()
    other = store.read_json(tmp_path / "run" / "baselines.json") | {"made_for": "other samples"}
    assert "report exists and is kept" in call("run", "dw4", "--recipe", "weighted-adjoint", "-n", "40", "--out", "run").stderr
    store.write_json(tmp_path / "run" / "baselines.json", other)
    assert call("report", "run").exit_code == 0
    assert store.read_json(tmp_path / "run" / "report.json")["cost"]["training"]["baselines"] == []


def test_runs_without_a_budget_are_refused(run):
    refused(call("baselines", run), "counted no evaluations of the energy")
    refused(call("baselines", "runs/nowhere"), "no samples in runs/nowhere; `bgwork run` makes some")
    refused(call("baselines", run, "--chains", "0"), "--chains")
