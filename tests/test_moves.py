"""Kernels of annealing leave their temperature invariant and lead to it; paths refuse what they cannot do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from annealing import PLANE, every_kernel, every_space, seed, square, walls
from oracles import LINE, GaussianOracle, TwoWells

from bgwork.priors import Gaussian
from bgwork.samplers.moves import CrankNicolson, Hamiltonian, Path, Rung, Walkers
from bgwork.samplers.smc import SMC
from bgwork.spaces import Torus


@every_space
@every_kernel
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_kernels_leave_their_temperature_invariant(kernel, space, beta):
    target, prior = GaussianOracle(space=space, std=0.8, offset=2.0), Gaussian(space=space, std=2.0)
    path, std = Path(prior=prior, target=target), ((1 - beta) / 4.0 + beta / 0.64) ** -0.5
    x = Gaussian(space=space, std=std).sample(4000, generator=seed())
    walkers = Walkers(x=x, u_0=path.u_0(x), u=target.u(x))
    step, generator = 0.3 if isinstance(kernel, CrankNicolson) else 0.8 * std, seed(1)
    for _ in range(4):
        walkers, probability = kernel.move(path, beta, walkers, step, generator=generator)
    assert 0.3 < probability.mean() < 0.999 and (walkers.x != x).any(2).any(1).double().mean() > 0.5
    space.check(walkers.x)
    torch.testing.assert_close((walkers.u_0, walkers.u), (path.u_0(walkers.x), target.u(walkers.x)), rtol=0, atol=1e-10)
    for values, truth in ((square(walkers.x), space.dim * std**2), (square(walkers.x).square(), space.dim * (space.dim + 2) * std**4)):
        assert abs(values.mean().item() - truth) < 4 * values.std().item() / 4000**0.5


@every_kernel
def test_kernels_mix(kernel):
    """From the prior, moves at beta = 1 lead to the target."""
    target, prior = GaussianOracle(space=PLANE, std=0.5), Gaussian(space=PLANE, std=2.0)
    path, x = Path(prior=prior, target=target), prior.sample(2000, generator=seed())
    walkers, generator = Walkers(x=x, u_0=path.u_0(x), u=target.u(x)), seed(1)
    for _ in range(60):
        walkers, _ = kernel.move(path, 1.0, walkers, 0.3, generator=generator)
    values = square(walkers.x)
    assert abs(values.mean().item() - target.mean_square) < 4 * values.std().item() / 2000**0.5


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_gradients_of_the_path(beta):
    target = TwoWells(d=2)
    for prior in (Gaussian(space=PLANE, std=2.0), None):
        rung, x = Rung(path=Path(prior=prior, target=target), beta=beta), torch.tensor([[[0.3, -0.8]], [[-1.0, 2.0]]], dtype=torch.float64)
        u, grad = rung.u_and_grad(x)
        torch.testing.assert_close(u, beta * target.u(x) - (0 if prior is None else (1 - beta) * prior.log_prob(x)))
        for k in range(2):
            h = torch.zeros_like(x).index_fill_(2, torch.tensor([k]), 1e-5)
            slope = (rung.u_and_grad(x + h)[0] - rung.u_and_grad(x - h)[0]) / 2e-5
            torch.testing.assert_close(grad[:, 0, k], slope, rtol=1e-6, atol=1e-7)


def test_overlap_is_never_accepted():
    path = Path(target=walls(outside=math.inf), prior=Gaussian(space=LINE))
    for broken in (math.inf, math.nan):
        path, x = replace(path, target=walls(outside=broken)), torch.full((500, 1, 1), 0.1, dtype=torch.float64)
        for kernel in (Hamiltonian(), CrankNicolson()):
            walkers, _ = kernel.move(path, 1.0, Walkers(x=x, u_0=path.u_0(x), u=path.target.u(x)), 0.7, generator=seed())
            assert (walkers.x > 0).all() and torch.isfinite(walkers.u).all() and (walkers.x != x).any()


def test_paths_refuse_what_they_cannot_do():
    target = GaussianOracle(space=PLANE)
    with pytest.raises(ValueError, match="give both one space"):
        Path(target=target, prior=Gaussian(space=LINE))
    with pytest.raises(ValueError, match="Euclidean and mean-free space"):
        Path(target=GaussianOracle(space=Torus(n=1, d=2)))
    with pytest.raises(ValueError, match="need a Gaussian prior"):
        SMC(prior=target, target=target, kernel=CrankNicolson()).sample(64, generator=seed())
    with pytest.raises(ValueError, match="has no gradient.*AnnealedFlow"):
        Path(target=target, prior=Blind(space=PLANE)).u_0_and_grad(torch.zeros(2, 1, 2))


class Blind(Gaussian):
    """A prior whose density cannot be differentiated."""

    def log_prob(self, x):
        return super().log_prob(x).detach()


@pytest.mark.parametrize("make", [
    lambda: Hamiltonian(leapfrog=0), lambda: Hamiltonian(jitter=1.0), lambda: Hamiltonian(transitions=0),
    lambda: CrankNicolson(first_step=0.0), lambda: CrankNicolson(acceptance=1.0)])
def test_bad_kernels_are_refused(make):
    with pytest.raises(ValueError, match="at least one leapfrog|jitter must be|must be at least 1, first_step positive"):
        make()
