"""The verdict: good samples are trusted, and every deliberate flaw is named."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from arviz import psislw
from oracles import LINE, GaussianOracle, MissingMode, chains, gaussian_mixture, propose

from bgwork import figures
from bgwork.observables import radius_of_gyration
from bgwork.pareto import pareto_k, pareto_limit, truncate
from bgwork.records import MOVED, Certificate, Cost, Density, Estimate, WeightedSamples, with_edit
from bgwork.reweighting import resample, weigh
from bgwork.samplers.diagnostics import Diagnosis, ReferenceSet, diagnose, to_json_dict
from bgwork.spaces import Euclidean

CLEAN = Certificate(n=2000, n_negative=0, n_round_trip=100, round_trip_of="reference", round_trip_error=1e-9, tolerance=1e-6)
RADIUS = {"radius_of_gyration": radius_of_gyration}


def side(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0, 0] > 0).long()


def reference_for(target, q=None, *, n: int = 3000, seed: int = 99) -> ReferenceSet:
    proposal = propose(target, n, seed=seed)
    proposal = replace(proposal, density=Density.UNNORMALISED, log_q=-target.u(proposal.x))
    samples = weigh(proposal, target)
    return ReferenceSet(samples=samples, log_q=None if q is None else q.log_prob(samples.x))


def good(n: int = 2000, *, std: float = 1.15, seed: int = 0, **changes) -> WeightedSamples:
    target = GaussianOracle()
    return weigh(replace(propose(GaussianOracle(std=std), n, seed=seed), **changes), target)


def only_problem(diagnosis: Diagnosis) -> str:
    assert not diagnosis.trusted and diagnosis.verdict.startswith("do not trust: ")
    assert len(diagnosis.problems) == 1, diagnosis.problems
    return diagnosis.problems[0]


def test_good_samples_are_trusted_and_every_figure_is_there():
    target, q = GaussianOracle(), GaussianOracle(std=1.15)
    weighted = good(certificate=CLEAN, sign=torch.ones(2000, dtype=torch.float64))
    diagnosis = diagnose(weighted, reference=reference_for(target, q), observables=RADIUS, basin_of=side)
    assert diagnosis.trusted and diagnosis.problems == ()
    assert diagnosis.verdict.startswith("trust: ") and "forward ESS" in diagnosis.verdict and "all 4 reference values" in diagnosis.verdict
    assert abs(diagnosis.log_z.z(Estimate(value=target.log_z, stderr=0.0))) < 4
    assert abs(diagnosis.log_z_bar.z(Estimate(value=target.log_z, stderr=0.0))) < 4
    assert abs(diagnosis.forward_ess.z(Estimate(value=target.ess_from(1.15), stderr=0.0))) < 4
    assert diagnosis.observables["u"].value == pytest.approx(target.space.dim / 2, abs=4 * diagnosis.observables["u"].stderr)
    assert diagnosis.negative_mass == Estimate(value=0.0, stderr=0.0, n_eff=diagnosis.ess.n_eff)
    assert set(diagnosis.basins) == {"0", "1"} and sum(e.value for e in diagnosis.basins.values()) == pytest.approx(1.0)


def test_report_json_holds_what_the_issue_asks_for():
    diagnosis = diagnose(good(certificate=CLEAN, cost=Cost(network=64_000, jacobian=32_000, seconds=2)),
                         reference=reference_for(GaussianOracle(), GaussianOracle(std=1.15)), observables=RADIUS, basin_of=side)
    content = to_json_dict(diagnosis)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"system", "n", "seed", "density", "certificate", "ess", "forward_ess", "pareto_k", "max_weight", "n_failed", "log_z",
            "observables", "reference", "cost", "verdict", "edits", "basins"} <= set(content)
    assert content["density"] == "exact" and content["system"] == "oracle" and content["seed"] == 0 and content["n"] == 2000
    assert content["cost"]["network"] == 32 and content["cost"]["jacobian"] == 16 and content["cost"]["energy"] == 1
    assert content["cost"]["seconds"] >= 2
    assert {"value", "stderr"} <= set(content["log_z"]) and {"value", "stderr"} <= set(content["observables"]["u"])
    assert set(content["reference"]["radius_of_gyration"]) == {"value", "stderr", "z"}
    assert content["certificate"]["smallest_singular"] is None  # NaN has no JSON


def test_mcmc_passes_through_and_says_why_it_has_no_log_z():
    target = GaussianOracle()
    weighted = weigh(chains(target, 40, 200, memory=0.6, seed=0), target)
    diagnosis = diagnose(weighted, reference=reference_for(target), observables=RADIUS)
    assert diagnosis.trusted, diagnosis.verdict
    assert diagnosis.log_z is None and diagnosis.forward_ess is None and diagnosis.n_groups == 40
    assert any("log Z and forward ESS are unknown for MCMC" in note for note in diagnosis.notes)
    content = to_json_dict(diagnosis)
    assert content["log_z"] is None and content["pareto_k"] is None and content["reference"]["u"]["z"] is not None


def test_missing_mode_is_seen_by_forward_ess_bar_and_populations():
    target, q = gaussian_mixture(), MissingMode()
    weighted = weigh(propose(q, 3000, seed=0), target)
    blind = diagnose(weighted)
    assert blind.trusted and blind.ess.value > 0.999 and "missing modes were not looked for" in blind.verdict
    seeing = diagnose(weighted, reference=reference_for(target, q), basin_of=side)
    assert not seeing.trusted and seeing.forward_ess.value < 0.01
    assert "missing modes" in seeing.verdict and "disagrees with BAR" in seeing.verdict
    assert "basin 1 is 0 +- 0 against 0." in seeing.verdict
    assert abs(seeing.basin_reference["1"].value - 0.3) < 4 * seeing.basin_reference["1"].stderr


def test_populations_alone_see_a_mode_of_the_wrong_weight():
    """MCMC that started in one mode and never left: nothing but the reference populations can tell."""
    target = gaussian_mixture()
    proposal = propose(MissingMode(), 4000, seed=0)
    stuck = replace(proposal, log_q=-target.u(proposal.x), density=Density.UNNORMALISED, group=torch.arange(4000) // 100)
    problems = diagnose(weigh(stuck, target), reference=reference_for(target), basin_of=side).problems
    assert any(p.startswith("basin 1 is 0 +- 0") for p in problems)


def test_a_rare_basin_raises_no_alarm_in_a_small_sample():
    """Of 300 exact samples a basin of 2 % holds none or one now and then, whose own scatter would make that many standard errors."""
    target = GaussianOracle()
    edge = target.sample(20_000, generator=torch.Generator().manual_seed(1)).square().sum((1, 2)).quantile(0.98)
    reference = reference_for(target)
    z, seen = [], []
    for seed in range(200):
        outside = lambda x: (x.square().sum((1, 2)) > edge).double()  # noqa: E731
        found = diagnose(good(300, std=1.0, seed=seed), reference=reference, basin_of=outside, observables={"outside": outside})
        assert found.reference["outside"].z == pytest.approx(found.basin_reference["1"].z), "one population, one judgement"
        z.append(found.basin_reference["1"].z)
        seen.append(found.basins["1"].value * 300)
    assert min(seen) < 1.5
    assert max(map(abs, z)) < 4 and 0.7 < torch.tensor(z).std() < 1.3


def test_an_empty_basin_is_as_far_off_as_so_many_effective_samples_make_it():
    target = GaussianOracle()
    weighted, truth = good(300, std=1.6), reference_for(target)
    beyond = weighted.x.square().sum((1, 2)).max()
    found = diagnose(weighted, reference=truth, basin_of=lambda x: (x.square().sum((1, 2)) > beyond / 4).double())
    ours, theirs, n_eff = found.basins["1"], found.basin_reference["1"], found.ess.n_eff
    least = math.sqrt(theirs.value * (1 - theirs.value) / n_eff)
    assert n_eff < 0.7 * 300
    assert theirs.z == pytest.approx((ours.value - theirs.value) / math.hypot(max(ours.stderr, least), theirs.stderr))


def test_heavy_tails_are_seen_by_pareto_k():
    target = GaussianOracle(space=Euclidean(n=10, d=1))
    weighted = weigh(propose(GaussianOracle(space=target.space, std=0.5), 20_000, seed=2), target)
    diagnosis = diagnose(weighted)
    assert diagnosis.pareto_k > diagnosis.pareto_k_limit == 0.7
    assert any("heavy-tailed weights: Pareto k" in p for p in diagnosis.problems)


@pytest.mark.parametrize("std", [0.8, 1.3])
def test_the_tail_drawn_is_the_one_reported(std):
    """Pareto smoothing puts the M largest weights on quantiles (i + 1/2) / M of the reported fit: arviz's must lie on the curve drawn."""
    weighted = good(std=std)
    diagnosis = diagnose(weighted)
    weights, curve = figures.weights(weighted, pareto_k=diagnosis.pareto_k, limit=diagnosis.pareto_k_limit).axes[1].lines
    assert len(weights.get_xdata()) == 2000 and f"k = {diagnosis.pareto_k:.2f}" in curve.get_label()
    length = math.ceil(3 * math.sqrt(2000))
    quantile = (np.arange(length) + 0.5) / length
    smoothed = np.sort(psislw(weighted.log_w.numpy(), normalize=False)[0])[-length:]
    drawn = np.interp(length / 2000 * (1 - quantile), curve.get_ydata()[::-1], curve.get_xdata()[::-1])
    expected = np.exp(smoothed - weighted.log_w.logsumexp(0).item()) * 2000
    below_the_cap = slice(length - 5)  # smoothed weights stop at the largest raw one
    np.testing.assert_allclose(drawn[below_the_cap], expected[below_the_cap], rtol=1e-3)


def test_failed_rows():
    weighted = good()
    weighted.u[:2] = math.nan
    assert diagnose(weighted).trusted and diagnose(weighted).n_failed == 2
    weighted.u[:3] = math.nan
    assert only_problem(diagnose(weighted)) == "3 of 2000 samples failed (NaN), more than 0.1%"


def test_a_single_weight():
    weighted = good(20_000)
    weighted.u[0] += weighted.log_w[0] - weighted.log_w.logsumexp(0) - math.log(0.1)
    assert any("a single sample carries 9.1% of the weight" in p for p in diagnose(weighted).problems)


def test_folds_and_failed_round_trips():
    folded = replace(CLEAN, n_negative=4)
    sign = torch.ones(2000, dtype=torch.float64)
    sign[:4] = -1
    problem = only_problem(diagnose(good(certificate=folded, sign=sign)))
    assert "folds (4 of 2000 determinants not positive, biasing Z by 0.00" in problem
    assert "2 of 100 reference did not return" in only_problem(diagnose(good(certificate=replace(CLEAN, n_round_trip_failed=2))))
    assert "no round trip" in only_problem(diagnose(good(certificate=replace(CLEAN, n_round_trip=0))))


def test_wrong_density_is_seen_by_bar():
    """A log q that forgets a factor of 2 leaves ESS perfect; only BAR against reference samples notices."""
    reference = reference_for(GaussianOracle(), GaussianOracle(std=1.15))
    weighted = good()
    shifted = replace(weighted, proposal=replace(weighted.proposal, log_q=weighted.proposal.log_q - math.log(2)))
    assert diagnose(weighted, reference=reference).trusted
    assert any("disagrees with BAR" in p for p in diagnose(shifted, reference=reference).problems)


def test_wrong_averages_are_named():
    truth = ReferenceSet(estimates={"radius_of_gyration": Estimate(value=2.0, stderr=0.01), "unrelated": Estimate(value=0.0, stderr=1.0)})
    diagnosis = diagnose(good(), reference=truth, observables=RADIUS)
    assert only_problem(diagnosis).startswith("radius_of_gyration is 1.")
    assert set(diagnosis.reference) == {"radius_of_gyration"}


def test_known_values_take_precedence_over_reference_samples():
    truth = replace(reference_for(GaussianOracle()), estimates={"u": Estimate(value=3.0, stderr=1e-3)})
    assert diagnose(good(), reference=truth).reference["u"].stderr == 1e-3


def test_too_few_samples_and_too_few_groups():
    assert "effective samples of 60" in diagnose(good(60)).verdict
    target = GaussianOracle()
    few = diagnose(weigh(chains(target, 4, 400, memory=0.0, seed=0), target))
    assert any("4 independent groups only" in p for p in few.problems)
    slow = diagnose(weigh(chains(GaussianOracle(space=LINE), 10, 200, memory=0.999, seed=0), GaussianOracle(space=LINE)))
    assert any("effective samples of 2000" in p for p in slow.problems)


def test_edits_are_never_silent():
    assert "truncated" in only_problem(diagnose(truncate(good())))
    noisy = propose(GaussianOracle(std=1.15), 2000, seed=0, density=Density.STOCHASTIC)
    accepted = weigh(noisy, GaussianOracle(), accept=[Density.STOCHASTIC])
    assert "accepted stochastic density" in only_problem(diagnose(accepted))


def test_an_edit_that_is_not_known_to_be_harmless_is_not_trusted():
    weighted = good()
    for edit in ("clipped 3 weights", "thinnedish", "Resampled by hand"):
        edited = replace(weighted, proposal=with_edit(weighted.proposal, edit))
        assert f"({edit})" in only_problem(diagnose(edited))


def test_thinned_samples_may_be_trusted_and_the_edit_is_shown():
    weighted = good()
    thinned = diagnose(replace(weighted, proposal=with_edit(weighted.proposal, "kept every 2nd draw of 4000")))
    assert thinned.trusted and "edited: kept every 2nd draw of 4000" in thinned.verdict


def test_configurations_moved_by_a_markov_chain_may_be_trusted():
    """Equilibrium sets of molecules are resampled from walkers and moved on by Hamiltonian Monte Carlo: neither edit biases."""
    target, generator = GaussianOracle(), torch.Generator().manual_seed(3)
    walkers = good(4000, group=torch.arange(4000) % 40)
    copies = resample(walkers, 3000, generator=generator)
    moved = replace(copies, proposal=with_edit(copies.proposal, f"{MOVED}40 steps of Hamiltonian Monte Carlo, 0.93 accepted"))
    diagnosis = diagnose(moved, reference=reference_for(target))
    assert diagnosis.trusted, diagnosis.verdict
    assert "edited: resampled 3000 of 4000 rows, edited: each moved on by 40 steps" in diagnosis.verdict


def test_resampled_rows_are_judged_by_their_ancestors():
    """Copies of a few draws have equal weights, so that the ESS of single rows is 1 although next to nothing was sampled."""
    few = resample(good(6), 3000, generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(few)
    assert diagnosis.resampled and diagnosis.ess.value < 6.5 / 3000 and diagnosis.max_weight > 1 / 7
    assert math.isnan(diagnosis.pareto_k) and any("all that descend from one draw" in note for note in diagnosis.notes)
    assert any("all that descends from a single draw carries" in p for p in diagnosis.problems)
    assert any("effective samples of 3000" in p for p in diagnosis.problems)
    content = to_json_dict(diagnosis)
    assert content["resampled"] and content["pareto_k"] is None and content["ess"]["value"] == diagnosis.ess.value


@pytest.mark.parametrize(("power", "suspicious"), [(0.1, False), (2.0, True)])
def test_resampled_rows_that_are_weighed_anew_have_the_tail_of_what_descends_from_one_draw(power, suspicious):
    """Weights U^-power, alike within a family, have k = power: of rows one would see the tail of copies, of families that of the ratio."""
    generator = torch.Generator().manual_seed(4)
    copies = resample(good(400), 800, generator=generator)
    families, index = torch.unique(copies.proposal.ancestor, return_inverse=True)
    log_ratio = -power * torch.rand(len(families), generator=generator, dtype=torch.float64).log()
    again = replace(copies, u=copies.u - log_ratio[index])
    diagnosis = diagnose(again)
    totals = torch.zeros(len(families), dtype=torch.float64).index_add_(0, index, again.log_w.exp())
    assert diagnosis.pareto_k == pytest.approx(pareto_k(totals.log()), abs=1e-9)
    assert diagnosis.pareto_k_limit == pareto_limit(len(families)) < pareto_limit(len(again))
    assert any("heavy-tailed" in problem for problem in diagnosis.problems) == suspicious, diagnosis.pareto_k


def test_resampled_rows_without_ancestors_have_no_ess():
    """Files from before ancestors were kept: nothing is better than a 1 that means nothing."""
    copies = resample(good(4000), 3000, generator=torch.Generator().manual_seed(0))
    old = replace(copies, proposal=replace(copies.proposal, ancestor=None))
    diagnosis = diagnose(old)
    assert math.isnan(diagnosis.ess.value) and math.isnan(diagnosis.max_weight) and "ESS" not in diagnosis.verdict
    assert any("was not kept which are copies" in note for note in diagnosis.notes)
    assert diagnosis.trusted and "effective of 3000 samples" in diagnosis.verdict


def test_a_reference_the_flow_cannot_invert_is_said_to_be_unknown():
    reference = reference_for(GaussianOracle(), GaussianOracle(std=1.15))
    reference.log_q[7] = math.nan
    diagnosis = diagnose(good(), reference=reference)
    assert diagnosis.forward_ess is None and "log q is unknown at 1 of 3000 reference samples" in only_problem(diagnosis)


def test_basin_labels_are_whole_numbers():
    with pytest.raises(ValueError, match="whole numbers"):
        diagnose(good(), basin_of=radius_of_gyration)


def test_weights_all_zero_are_an_error_not_a_nan():
    weighted = replace(good(20), u=torch.full((20,), math.inf, dtype=torch.float64))
    with pytest.raises(ValueError, match="all 20 weights are zero"):
        diagnose(weighted)


def test_notes_of_the_sampler_are_kept():
    assert "solver error 1e-5" in diagnose(good(note="solver error 1e-5", density=Density.CONTINUOUS)).notes
