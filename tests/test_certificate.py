"""The certificate of an executed map: folds are counted, preimages are found or said to be lost, and no density is called exact without."""

from __future__ import annotations

import math

import pytest
import torch
from flows import LINE, flow, made, seed
from oracles import GaussianOracle
from simple_fields import folding, squashing

from bgwork.records import Density
from bgwork.samplers.inverse import invert_step


def folded_weights(steps, n=20_000):
    target = GaussianOracle(space=LINE)
    proposal = flow(LINE, folding(), integrator="euler", steps=steps, std=2.0, batch=4096).sample(n, generator=seed())
    return proposal, torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)


def test_a_fold_is_counted_and_its_weights_are_signed():
    proposal, w = folded_weights(steps=1)
    negative = (proposal.sign < 0).double()
    stderr = w.std() / math.sqrt(len(w))
    signed = proposal.sign * w
    assert proposal.density is Density.SIGNED
    assert "determinant <= 0" in proposal.note and "degree is one, by all that was seen" in proposal.note
    assert proposal.certificate.n_negative == negative.sum() > 1000
    assert w.mean() - 1 > 10 * stderr
    assert abs(signed.mean() - 1) < 4 * signed.std() / math.sqrt(len(w))
    assert w.mean() - signed.mean() == pytest.approx((2 * negative * w).mean().item(), abs=1e-12)


def test_coming_back_to_another_preimage_is_a_failed_round_trip():
    sampler = flow(LINE, folding(), integrator="euler", steps=1, std=2.0)
    proposal, z = sampler.sample(64, generator=seed()), sampler.prior.sample(64, generator=seed())
    inversion = sampler.invert(proposal.x)
    elsewhere = inversion.converged & ((inversion.z - z).abs()[:, 0, 0] > 1e-3)
    assert elsewhere.sum() > 5
    assert proposal.certificate.n_round_trip_failed == elsewhere.sum() + (~inversion.converged).sum()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_preimage_where_a_step_folds_gives_no_density(steps):
    """pi/2 is a fixed point of every Euler step of x + h 1.5 sin 2x, of slope -2 in one step and -1/2 in each of two; 0 has slope > 0."""
    x = torch.tensor([math.pi / 2, 0.0]).double().view(-1, 1, 1)
    sampler = flow(LINE, folding(), integrator="euler", steps=steps, round_trip=x)
    inversion = sampler.invert(x)
    assert inversion.converged.tolist() == [False, True]
    for nought in (inversion.z[0], inversion.log_prob[0], inversion.error[0]):
        assert torch.isnan(nought).all()
    exact = -0.5 * math.log(2 * math.pi) - steps * math.log(1 + 3 / steps)
    assert inversion.log_prob[1].item() == pytest.approx(exact, abs=1e-9)
    assert sampler.sample(2, generator=seed()).certificate.n_round_trip_failed == 1


def test_nothing_returns_within_an_impossible_tolerance():
    proposal = made("mlp", tolerance=1e-30).sample(20, generator=seed())
    assert proposal.certificate.n_round_trip_failed > 0 and proposal.density is Density.UNCERTIFIED


def test_newton_is_damped_where_it_would_run_away():
    def step_of_arctan(z):
        return torch.atan(z), (1 / (1 + z.square())).reshape(-1, 1, 1)

    x = torch.zeros(3, 1, 1, dtype=torch.float64)
    guess = torch.tensor([0.1, 3.0, -20.0], dtype=torch.float64).view(-1, 1, 1)  # undamped Newton diverges beyond 1.39
    z, log_det, iterations = invert_step(step_of_arctan, x, guess, tolerance=torch.full((3,), 1e-12).double())
    torch.testing.assert_close(z, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(log_det, torch.zeros(3).double(), rtol=0, atol=1e-11)
    assert iterations[0] < iterations[2]


def test_more_steps_unfold_the_same_flow():
    proposal, w = folded_weights(steps=8)
    assert proposal.density is Density.EXACT and proposal.certificate.n_negative == 0
    assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(len(w))


def test_points_outside_the_image_have_no_density():
    sampler = flow(LINE, squashing(), integrator="euler", steps=1)
    inversion = sampler.invert(torch.tensor([0.5, 2.0, -0.9, -1.5]).double().view(-1, 1, 1))
    assert inversion.converged.tolist() == [True, False, True, False]
    assert torch.isnan(inversion.log_prob).tolist() == torch.isnan(inversion.error).tolist() == [False, True, False, True]
    z = math.atanh(0.5)
    exact = -z * z / 2 - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.5**2)
    assert inversion.log_prob[0].item() == pytest.approx(exact, abs=1e-9)


def test_held_out_configurations_outside_the_image_refuse_the_certificate():
    held_out = torch.tensor([0.5, 2.0, -0.9]).double().view(-1, 1, 1)
    proposal = flow(LINE, squashing(), integrator="euler", steps=1, round_trip=held_out).sample(10, generator=seed())
    certificate = proposal.certificate
    assert (certificate.n_round_trip, certificate.n_round_trip_failed, certificate.round_trip_of) == (3, 1, "reference")
    assert proposal.density is Density.UNCERTIFIED and certificate.n_negative == 0 and certificate.round_trip_error < 1e-9
    kept = flow(LINE, squashing(), integrator="euler", steps=1, round_trip=held_out[:1]).sample(10, generator=seed())
    assert kept.density is Density.EXACT


def test_without_a_round_trip_there_is_no_certificate():
    proposal = made("mlp", n_round_trip=0).sample(5, generator=seed())
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.round_trip_of == "none"
