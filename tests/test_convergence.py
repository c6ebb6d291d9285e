"""R-hat against arviz, and error bars from whole chains."""

from __future__ import annotations

import math

import arviz
import numpy as np
import pytest
import torch

from bgwork.samplers.convergence import by_chain, chain_average, split_rhat


def autoregressive(chains, draws, *, rho=0.7, seed=0):
    """Stationary Gaussian chains with correlation rho between draws, [chains, draws]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for k in range(1, draws):
        x[:, k] = rho * x[:, k - 1] + math.sqrt(1 - rho**2) * noise[:, k]
    return x


CHAINS = {
    "converged": autoregressive(8, 100),
    "odd number of draws": autoregressive(5, 51),
    "one chain elsewhere": autoregressive(8, 100) + torch.eye(8, 1, dtype=torch.float64) * 2,
    "one chain wider": autoregressive(8, 100) * (1 + 3 * torch.eye(8, 1, dtype=torch.float64)),
    "drifting": autoregressive(4, 100) + torch.linspace(0, 3, 100, dtype=torch.float64),
    "heavy tails": torch.tan(1.5 * torch.erf(autoregressive(6, 60))),
    "zeros and ones": (autoregressive(10, 80) > 1).double(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_rhat_matches_arviz(name):
    chains = CHAINS[name]
    assert split_rhat(chains) == pytest.approx(float(arviz.rhat(np.asarray(chains), method="rank")), rel=1e-10)


@pytest.mark.parametrize("name", ["one chain elsewhere", "one chain wider", "drifting"])
def test_rhat_sees_what_is_wrong(name):
    assert split_rhat(CHAINS[name]) > 1.05


@pytest.mark.parametrize("bad", [torch.zeros(4, 20), torch.full((4, 20), math.inf), torch.full((4, 20), math.nan)])
def test_rhat_of_what_says_nothing_is_nan(bad):
    assert math.isnan(split_rhat(bad))


def test_by_chain_undoes_any_order():
    chains = torch.arange(12.0).view(3, 4)
    group = torch.tensor([7, 2, 5]).repeat_interleave(4)
    rows = chains.flatten()
    assert by_chain(rows, group).tolist() == chains[[1, 2, 0]].tolist()
    interleaved = torch.arange(12).view(3, 4).T.flatten()
    assert by_chain(rows[interleaved], group[interleaved]).tolist() == chains[[1, 2, 0]].tolist()


def test_by_chain_cuts_to_the_shortest():
    assert by_chain(torch.arange(9.0), torch.arange(9) % 2).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_by_chain_needs_draws():
    with pytest.raises(ValueError, match="a chain has 3 draws, R-hat needs at least 4"):
        by_chain(torch.zeros(9), torch.arange(9) % 3)


def test_error_bar_knows_the_correlation():
    """For an autoregressive chain stderr^2 = (1 + rho)/(1 - rho) / N; n_eff accordingly."""
    x = autoregressive(2000, 100, rho=0.5)
    group = torch.arange(2000).repeat_interleave(100)
    estimate = chain_average(x.flatten(), group)
    assert abs(estimate.value) < 4 * estimate.stderr
    assert estimate.stderr == pytest.approx(math.sqrt(3 / x.numel()), rel=0.06)
    assert estimate.n_eff == pytest.approx(x.numel() / 3, rel=0.12)
