"""The Pareto tail of weights: against arviz, against known tails, and its edits."""

import math

import pytest
import torch
from arviz import psislw
from oracles import GaussianOracle, propose

from bgwork.pareto import pareto_k, pareto_limit, smooth, truncate
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.spaces import Euclidean


def normal(n: int, sigma: float, seed: int = 0) -> torch.Tensor:
    return sigma * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [30, 1000, 20_000])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_k_agrees_with_arviz(n, sigma):
    log_w = normal(n, sigma)
    assert pareto_k(log_w + 700.0) == pytest.approx(float(psislw(log_w.numpy())[1]), abs=1e-9)


def test_k_agrees_with_arviz_where_weights_vanish():
    log_w = normal(2000, 1.0)
    log_w[:50] = -math.inf
    assert pareto_k(log_w) == pytest.approx(float(psislw(log_w.clamp_min(-1e4).numpy())[1]), abs=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_of_exact_pareto_weights(k):
    """w = U^-k has shape k; the fit on 949 tail samples has standard deviation (1 + k) / sqrt(949)."""
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert pareto_k(-k * uniform.log()) == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(949))


def test_a_proposal_that_is_too_narrow_has_a_heavy_tail():
    """q of scale s < 1 under a target of scale 1: P(w > t) ~ t^(-1/k) with k = 1 - s^2, so that s = 0.5 has k = 0.75."""
    target = GaussianOracle(space=Euclidean(n=10, d=1))
    heavy = weigh(propose(GaussianOracle(space=target.space, std=0.5), 5000, seed=0), target)
    light = weigh(propose(GaussianOracle(space=target.space, std=1.2), 5000, seed=0), target)
    assert pareto_k(heavy.log_w) > pareto_limit(5000) > pareto_k(light.log_w)


def test_degenerate_tails():
    assert pareto_k(torch.zeros(100, dtype=torch.float64)) == -math.inf
    assert pareto_k(-5 + 1e-12 * normal(100, 1.0)) == -math.inf
    assert pareto_k(normal(12, 1.0)) == math.inf
    for log_w in (torch.full((9,), -math.inf), torch.zeros(0)):
        with pytest.raises(ValueError, match="none of"):
            pareto_k(log_w)


def test_the_limit_knows_the_sample_size():
    assert pareto_limit(100) == pytest.approx(0.5)
    assert pareto_limit(2000) < 0.7 == pareto_limit(2200) == pareto_limit(1_000_000)


def test_smoothing_agrees_with_arviz_and_is_recorded():
    target = GaussianOracle()
    raw = weigh(propose(GaussianOracle(std=0.8), 2000, seed=0), target)
    smoothed = smooth(raw)
    expected = torch.from_numpy(psislw(raw.log_w.numpy(), normalize=False)[0])
    assert torch.allclose(smoothed.log_w.sort().values, expected.sort().values, atol=1e-9)
    assert "smoothed" in smoothed.proposal.origin.edits[0] and raw.proposal.origin.edits == ()


def test_truncation_is_recorded_and_keeps_zero_weights():
    target = GaussianOracle()
    raw = weigh(propose(GaussianOracle(std=0.75), 2000, seed=0), target)
    raw.u[0] = math.inf
    cut = truncate(raw)
    assert cut.log_w[0] == -math.inf
    assert "truncated" in cut.proposal.origin.edits[0]
    assert ess(cut).value > ess(raw).value and log_z(cut).value < log_z(raw).value
    assert cut.log_w.max().item() == pytest.approx(raw.log_w.logsumexp(0).item() - 0.5 * math.log(2000))
    assert math.isfinite(expectation(cut, lambda x: x.square().sum((1, 2))).value)
    with pytest.raises(ValueError, match="five"):
        smooth(weigh(propose(GaussianOracle(std=0.75), 5, seed=0), target))
