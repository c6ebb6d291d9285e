"""Populations: resampling keeps what it must on average, and effective sizes that do not profit from copies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from annealing import seed

from bgwork.samplers.moves import Walkers
from bgwork.samplers.resampling import Population, ancestral_ess, conditional_ess, in_islands, kish, resampled, reweighted, systematic
from bgwork.samplers.schedules import next_beta


def population(log_w, *, islands=1):
    log_w = torch.tensor(log_w, dtype=torch.float64)
    n = len(log_w)
    zeros = torch.zeros(n, dtype=torch.float64)
    walkers = Walkers(x=torch.arange(n, dtype=torch.float64)[:, None, None], u_0=zeros, u=torch.arange(n, dtype=torch.float64))
    return Population(walkers=walkers, log_w=log_w, island=in_islands(n, islands), ancestor=torch.arange(n))


def test_systematic_draws_floor_or_ceiling_and_the_right_average():
    w = torch.tensor([0.0, 0.5, 0.02, 0.3, 0.18, 0.0], dtype=torch.float64)
    generator, counts = seed(), []
    for _ in range(4000):
        counts.append(torch.bincount(systematic(w.log(), generator=generator), minlength=6))
    counts = torch.stack(counts).double()
    assert ((counts - 6 * w).abs() < 1).all()
    assert ((counts.mean(0) - 6 * w).abs() <= 4 * counts.std(0) / 4000**0.5 + 1e-12).all()


def test_resampling_keeps_the_mass_of_every_island():
    before = population([0.0, 3.0, -1.0, 0.5, 0.5, 0.5, -math.inf, -math.inf, -math.inf], islands=3)
    after = resampled(before, 0.9, generator=seed())
    masses = [torch.zeros(3, dtype=torch.float64).index_add_(0, p.island, p.log_w.exp()) for p in (before, after)]
    torch.testing.assert_close(masses[1], masses[0], rtol=1e-12, atol=0)
    assert after.log_w[:3].unique().numel() == 1 and 1 in after.ancestor[:3]
    assert after.ancestor[3:].tolist() == [3, 4, 5, 6, 7, 8], "equal weights and dead islands stay as they are"
    assert after.walkers.x[:, 0, 0].tolist() == after.walkers.u.tolist() == after.ancestor.tolist()
    assert resampled(before, 0.0, generator=seed()).ancestor.tolist() == list(range(9))


def test_resampling_is_unbiased():
    before, generator, sums = population([0.3, 2.0, -1.0, 0.0]), seed(), []
    for _ in range(4000):
        after = resampled(before, 1.0, generator=generator)
        sums.append((after.log_w.exp() * after.walkers.u.square()).sum())
    sums = torch.stack(sums)
    assert abs(sums.mean() - (before.log_w.exp() * before.walkers.u.square()).sum()) < 4 * sums.std() / 4000**0.5


@pytest.mark.parametrize(("n", "islands"), [(10, 3), (7, 7), (9, 1), (100, 32)])
def test_islands_are_as_equal_as_can_be(n, islands):
    sizes = torch.bincount(in_islands(n, islands))
    assert len(sizes) == islands and sizes.sum() == n and sizes.max() - sizes.min() <= 1


def test_effective_fractions():
    w, v = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor([2.0, 1.0, 0.5, 3.0], dtype=torch.float64).log()
    assert kish(w) == pytest.approx(1 / (0.3 * 4))
    assert conditional_ess(w, v) == pytest.approx((0.2 + 0.4 + 0.15 + 0.6) ** 2 / (0.4 + 0.4 + 0.075 + 1.8))
    assert conditional_ess(torch.zeros(4), v) == pytest.approx(kish(v))


def test_the_next_temperature_keeps_what_was_asked_for():
    p = population([0.1 * k for k in range(50)])
    beta = next_beta(p, 0.2, keep=0.8)
    assert 0.2 < beta < 1
    assert conditional_ess(p.log_w, reweighted(p, beta - 0.2).log_w - p.log_w) == pytest.approx(0.8, abs=1e-6)
    assert next_beta(population([0.0, 0.0]), 0.2, keep=0.5) == 1.0


def test_ancestral_ess_counts_families():
    p = replace(population([0.0] * 8, islands=4), ancestor=torch.tensor([0, 0, 2, 3, 4, 5, 6, 6]))
    found = ancestral_ess(p)
    assert found.value == pytest.approx(64 / (8 * (4 + 1 + 1 + 1 + 1 + 4))) and found.stderr > 0
    weighted = population([0.0, 1.0, -2.0, 0.5])
    assert ancestral_ess(weighted).value == pytest.approx(kish(weighted.log_w)) and math.isnan(ancestral_ess(weighted).stderr)
    with pytest.raises(ValueError, match="all 2 weights are zero"):
        ancestral_ess(population([-math.inf, -math.inf]))
