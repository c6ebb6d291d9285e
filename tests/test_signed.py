"""Signed weights: unbiased where the map folds, if its degree is one; refused where a density or a probability is needed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from flows import LINE, flow, seed
from oracles import LineOracle, propose
from simple_fields import Pointwise, folding

from bgwork import figures
from bgwork.error_bars import weighted_stderr
from bgwork.free_energy import forward_ess, free_energy_difference, log_z_bar
from bgwork.objectives.bootstrap import resampled
from bgwork.pareto import unseen_weight
from bgwork.profiles import free_energy_profile
from bgwork.records import Density, Estimate, WeightedSamples
from bgwork.retarget import predict, retarget_temperature
from bgwork.reweighting import average, chances, ess, expectation, log_z, max_weight, negative_mass, normalised_weights, resample, weigh
from bgwork.samplers.diagnostics import ReferenceSet, diagnose
from bgwork.samplers.smc import Rejuvenated
from bgwork.store import load_samples, save_samples

N = 20_000
SKEW = LineOracle(lambda x: x.square() / 2 + torch.sin(x))  # no symmetry to hide a mistake in
FUNCTIONS = {"x": lambda x: x[:, 0, 0], "square": lambda x: x[:, 0, 0].square(), "beyond a fold": lambda x: (x[:, 0, 0] > 1).double()}


def gentle() -> Pointwise:
    """v = .75 sin 2x: one Euler step folds where cos 2x < -2/3, for a small part of the prior."""
    return Pointwise(lambda t, x: 0.75 * torch.sin(2 * x), lambda t, x: 1.5 * torch.cos(2 * x))


def folded(n: int = N, *, field=None, value: int = 0, target=SKEW) -> WeightedSamples:
    sampler = flow(LINE, field or folding(), integrator="euler", steps=1, std=2.0, batch=4096, n_round_trip=8)
    return weigh(sampler.sample(n, generator=seed(value)), target)


def plain(weighted: WeightedSamples) -> WeightedSamples:
    """The same samples with positive weights."""
    return replace(weighted, proposal=replace(weighted.proposal, density=Density.UNCERTIFIED))


def truth(f) -> float:
    return SKEW.average(lambda x: f(x.view(-1, 1, 1)))


@pytest.mark.parametrize("field", [folding, gentle])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_averages_are_unbiased(name, field):
    found = expectation(folded(field=field()), FUNCTIONS[name])
    assert abs(found.value - truth(FUNCTIONS[name])) < 4 * found.stderr


@pytest.mark.parametrize("field", [folding, gentle])
def test_log_z_is_unbiased_and_plain_weights_are_not(field):
    weighted = folded(field=field())
    assert weighted.proposal.density is Density.SIGNED and (weighted.sign < 0).any()
    assert abs(log_z(weighted).z(Estimate(value=SKEW.log_z, stderr=0.0))) < 4
    assert log_z(plain(weighted)).z(Estimate(value=SKEW.log_z, stderr=0.0)) > 5
    assert math.exp(log_z(plain(weighted)).value - log_z(weighted).value) == pytest.approx(1 + 2 * negative_mass(weighted).value)
    assert negative_mass(plain(weighted)) == replace(negative_mass(weighted), n_eff=negative_mass(plain(weighted)).n_eff)


def test_error_bars_cover():
    """Of 300 estimates of log Z and <x> from 500 samples each, how many lie within two standard errors: .954 of independent ones."""
    z = []
    for value in range(300):
        weighted = folded(500, value=value)
        z.append((log_z(weighted).z(Estimate(value=SKEW.log_z, stderr=0.0)),
                  expectation(weighted, FUNCTIONS["x"]).z(Estimate(value=truth(FUNCTIONS["x"]), stderr=0.0))))
    covered = (torch.tensor(z).abs() < 2).double().mean(0)
    assert (covered > 0.954 - 4 * math.sqrt(0.954 * 0.046 / 300)).all()


def test_ess_and_largest_weight_count_magnitudes():
    weighted, signed = folded(), normalised_weights(folded())
    assert signed.sum().item() == pytest.approx(1.0) and (signed < 0).any()
    assert ess(weighted).value == pytest.approx(1 / (N * signed.square().sum().item()))
    assert ess(weighted).value < ess(plain(weighted)).value
    assert max_weight(weighted) == signed.abs().max().item()


def test_differences_and_profiles_take_signed_weights():
    weighted = folded()
    difference = free_energy_difference(weighted, lambda x: x[:, 0, 0] < 0, lambda x: x[:, 0, 0] >= 0)
    right = truth(lambda x: (x[:, 0, 0] >= 0).double())
    assert abs(difference.value - math.log((1 - right) / right)) < 4 * difference.stderr
    edges = torch.linspace(-2.0, 1.0, 7)
    profile = free_energy_profile(weighted, FUNCTIONS["x"], edges)
    exact = torch.tensor([truth(lambda x, a=a, b=b: ((x[:, 0, 0] >= a) & (x[:, 0, 0] < b)).double()) for a, b in zip(edges, edges[1:])])
    assert ((profile.value + (exact / edges.diff()).log()).abs() < 4 * profile.stderr).all()
    retargeted = retarget_temperature(weighted, factor=1.2)
    warmer = retargeted.samples
    hot = LineOracle(lambda x: SKEW.energy_1d(x) / 1.2)
    assert abs(log_z(warmer).z(Estimate(value=hot.log_z, stderr=0.0))) < 4


def test_predictions_for_another_energy_take_signed_weights():
    """A change c(x) = a x of Gaussian-like weights: to first order in a the loss is a^2 (2 Var_w x - Var_w2 x), with signed w."""
    weighted, a = folded(), 1e-3
    p, x = normalised_weights(weighted), weighted.x[:, 0, 0]
    q = p.square() / p.square().sum()
    spread = [(share * (x - (share * x).sum()).square()).sum() for share in (p, q)]
    means = [(share * x).sum() for share in (p, q)]
    loss = predict(weighted, a * x).loss.value
    assert loss == pytest.approx((2 * a * (means[0] - means[1]) - a**2 * (spread[0] - 2 * spread[1])).item(), rel=1e-6)


def test_unseen_weight_is_relative_to_the_signed_sum():
    weighted = folded()
    share = (weighted.sign * weighted.log_w.exp()).sum() / weighted.log_w.exp().sum()
    assert unseen_weight(weighted) == pytest.approx(unseen_weight(weighted.magnitudes) / share.item())


def test_the_largest_weight_may_be_negative():
    weighted = folded(200)
    row = int(weighted.log_w.argmax())
    turned = replace(weighted, proposal=replace(weighted.proposal, sign=weighted.proposal.sign.index_fill(0, torch.tensor([row]), -1.0)))
    assert max_weight(turned) == normalised_weights(turned)[row].abs().item() > normalised_weights(turned).max().item()


def test_few_rows_of_negative_weight_have_no_number_of_effective_samples():
    weighted = folded()
    chosen = (weighted.sign < 0).double()
    found = average(weighted, chosen)
    assert found.value < 0 and math.isnan(found.n_eff) and found.stderr > 0


def test_an_unseen_tail_is_not_hidden_by_negative_weights():
    """sum p c^2 = -1.7 here, while weights of either sign have a tail."""
    p, centred = torch.tensor([1.2, -0.2]).double(), torch.tensor([0.3, 3.0]).double()
    assert weighted_stderr(p, centred, group=None, unseen=math.inf) == math.inf


def test_progress_figures_and_pictures_outlive_heads_that_weigh_nothing_together():
    weighted = folded(200)
    order = weighted.sign.argsort()
    assert (weighted.sign[order[:50]] < 0).sum() > 25
    assert len(figures.growth(weighted.take(order)).axes) == 2


def test_what_needs_a_density_or_probabilities_refuses():
    weighted, x = folded(64), torch.zeros(3, 1, 1).double()
    known = torch.zeros(3).double(), SKEW.u(x)
    for attempt in (lambda: resample(weighted, 5, generator=seed()), lambda: chances(weighted), lambda: log_z_bar(weighted, *known),
                    lambda: forward_ess(weighted, *known)):
        with pytest.raises(ValueError, match="weights are negative, where the map folds"):
            attempt()
    source = flow(LINE, folding(), integrator="euler", steps=1, std=2.0)
    with pytest.raises(ValueError, match="weights are negative"):
        Rejuvenated(source=source, target=SKEW, pilot=32, islands=4).sample(64, generator=seed())


def test_training_data_leave_negative_rows_out():
    weighted = folded(500)
    rows = resampled(weighted, 2000, generator=seed()).x
    assert not torch.isin(rows, weighted.x[weighted.sign < 0]).any()


def test_a_map_whose_negative_weights_win_is_told():
    weighted = folded(64)
    upside_down = replace(weighted, proposal=replace(weighted.proposal, sign=-weighted.proposal.sign.abs()))
    with pytest.raises(ValueError, match="negative ones outweigh the others"):
        log_z(upside_down)


def test_the_verdict_trusts_signed_weights_and_says_so():
    weighted = folded()
    x = SKEW.sample(4000, generator=seed(9))
    samples = weigh(replace(propose(SKEW, 4000, seed=9, density=Density.UNNORMALISED), x=x, log_q=-SKEW.u(x)), SKEW)
    found = diagnose(weighted, reference=ReferenceSet(samples=samples), observables=FUNCTIONS)
    assert found.trusted and "weights signed, since the map folds" in found.verdict and len(found.reference) == 4
    assert not diagnose(plain(weighted), observables=FUNCTIONS).trusted


def test_forward_ess_and_bar_are_left_out_and_a_note_says_so():
    samples = weigh(replace(propose(SKEW, 400, seed=9, density=Density.UNNORMALISED), log_q=-SKEW.u(propose(SKEW, 400, seed=9).x)), SKEW)
    found = diagnose(folded(), reference=ReferenceSet(samples=samples, log_q=torch.zeros(400).double()))
    assert found.forward_ess is None and found.log_z_bar is None and not found.overlap_failure
    assert any("several preimages" in note for note in found.notes)


def test_signs_and_degree_are_stored(tmp_path):
    weighted = folded(100)
    save_samples(tmp_path / "samples.npz", weighted)
    again = load_samples(tmp_path / "samples.npz")
    assert again.proposal.density is Density.SIGNED and again.proposal.certificate.degree_one
    assert str(again.proposal.certificate) == str(weighted.proposal.certificate)
    assert torch.equal(again.sign, weighted.sign) and log_z(again) == log_z(weighted)


def test_a_failed_row_has_no_sign():
    weighted = folded(100)
    failed = replace(weighted, u=weighted.u.index_fill(0, (weighted.sign < 0).nonzero().flatten()[:1], math.nan))
    assert (failed.sign < 0).sum() == (weighted.sign < 0).sum() - 1 and log_z(failed).value != log_z(weighted).value


def test_uncertified_and_gaussian_samples_have_no_signs():
    weighted = plain(folded(64))
    assert (weighted.sign == 1).all() and (normalised_weights(weighted) >= 0).all()
    assert average(weighted, torch.ones(64)).value == pytest.approx(1.0)


def test_leaving_signs_out_is_an_edit():
    weighted = folded(100)
    assert "signs of the weights left out" in weighted.magnitudes.proposal.origin.edits
    clean = weighted.take(weighted.sign > 0)
    assert clean.magnitudes is clean
