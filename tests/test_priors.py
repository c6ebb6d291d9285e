"""Every prior on every space: samples on the space that repeat, a density that integrates to one, moments."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bgwork.priors import BondedGaussian, Gaussian
from bgwork.spaces import Euclidean, MeanFree

PRIORS = {
    "Gaussian on the line": Gaussian(space=Euclidean(n=1, d=1), std=0.7),
    "Gaussian on the plane": Gaussian(space=Euclidean(n=1, d=2), std=1.6),
    "Gaussian of two particles": Gaussian(space=Euclidean(n=2, d=1)),
    "mean-free Gaussian of two particles": Gaussian(space=MeanFree(n=2, d=1), std=0.7),
    "mean-free Gaussian of two particles in the plane": Gaussian(space=MeanFree(n=2, d=2), std=1.3),
    "mean-free Gaussian of three particles": Gaussian(space=MeanFree(n=3, d=1), std=1.6),
    "two particles with a bond": BondedGaussian(space=MeanFree(n=2, d=2), std=0.7, bonds=((0, 1),)),
    "a chain of three": BondedGaussian(space=MeanFree(n=3, d=1), std=0.4, bonds=((0, 1), (1, 2))),
    "a ring of three": BondedGaussian(space=MeanFree(n=3, d=1), std=1.3, bonds=((0, 1), (1, 2), (0, 2))),
    "a star of four": BondedGaussian(space=MeanFree(n=4, d=1), std=1.3, bonds=((0, 2), (1, 2), (2, 3))),
}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def basis(space: Euclidean | MeanFree) -> Tensor:
    """Orthonormal vectors [dim, n, d] of the space; on mean-free space Helmert's, (1, ..., 1, -k, 0, ...) normalised."""
    particles = torch.eye(space.n, dtype=torch.float64)
    if isinstance(space, MeanFree):
        rows = torch.tensor([[1.0] * k + [-k] + [0.0] * (space.n - k - 1) for k in range(1, space.n)], dtype=torch.float64)
        particles = rows / rows.norm(dim=1, keepdim=True)
    return torch.einsum("kn,ab->kanb", particles, torch.eye(space.d, dtype=torch.float64)).reshape(-1, space.n, space.d)


def covariance(prior: Gaussian | BondedGaussian) -> Tensor:
    """In the coordinates of `basis`, [dim, dim]."""
    vectors = basis(prior.space)
    return torch.linalg.inv(torch.einsum("ina,nm,jma->ij", vectors, prior.precision, vectors))


@every_prior
def test_samples_are_configurations_of_the_space(prior):
    x = prior.sample(50, generator=seed())
    assert x.shape == (50, prior.space.n, prior.space.d) and x.dtype == torch.float64
    prior.space.check(x)
    torch.testing.assert_close(prior.space.project(x), x, rtol=0, atol=1e-14)
    log_q = prior.log_prob(x)
    assert log_q.shape == (50,) and log_q.dtype == torch.float64 == prior.log_prob(x.float()).dtype


@every_prior
def test_the_same_seed_gives_the_same_numbers(prior):
    x = prior.sample(5, generator=seed())
    assert torch.equal(x, prior.sample(5, generator=seed()))
    assert not torch.equal(x, prior.sample(5, generator=seed(1)))
    assert torch.equal(prior.log_prob(x), torch.cat([prior.log_prob(row[None]) for row in x]))


@every_prior
def test_the_density_integrates_to_one_over_the_space(prior):
    """The trapezoid rule in orthonormal coordinates is exact to round-off for a Gaussian on a grid of half its std out to nine."""
    axis, root = torch.arange(-18, 19, dtype=torch.float64) / 2, torch.linalg.cholesky(covariance(prior))
    coordinates = torch.cartesian_prod(*[axis] * prior.space.dim).view(-1, prior.space.dim) @ root.T
    x = torch.einsum("gk,knd->gnd", coordinates, basis(prior.space))
    prior.space.check(x)
    cell = torch.linalg.det(root / 2)
    assert (prior.log_prob(x).exp().sum() * cell).item() == pytest.approx(1, abs=1e-12)


@every_prior
def test_moments_in_orthonormal_coordinates(prior):
    """Mean 0, the inverse of the precision for covariance, and entropy log det(2 pi e covariance) / 2 = -<log q>."""
    n, dim = 20_000, prior.space.dim
    x = prior.sample(n, generator=seed())
    coordinates = torch.einsum("bnd,knd->bk", x, basis(prior.space))
    products = torch.einsum("bi,bj->bij", coordinates, coordinates)
    entropy = torch.logdet(2 * math.pi * math.e * covariance(prior))[None] / 2
    surprise = -prior.log_prob(x)[:, None]
    for values, truth in ((coordinates, torch.zeros(dim)), (products, covariance(prior)), (surprise, entropy)):
        assert ((values.mean(0) - truth).abs() < 4 * values.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("prior", [p for p in PRIORS.values() if isinstance(p, Gaussian)])
def test_an_isotropic_precision_is_that_of_its_std(prior):
    torch.testing.assert_close(covariance(prior), prior.std**2 * torch.eye(prior.space.dim, dtype=torch.float64))


def test_ideal_chains_are_random_walks():
    """<|x_i - x_j|^2> = d s^2 |i - j|, each bond independent of the others."""
    prior = BondedGaussian(space=MeanFree(n=6, d=3), std=0.3, bonds=tuple((k, k + 1) for k in range(5)))
    x = prior.sample(20_000, generator=seed())
    for k in range(1, 6):
        square = (x[:, k] - x[:, 0]).square().sum(1)
        assert abs(square.mean() - 3 * k * 0.3**2) < 4 * square.std() / 20_000**0.5
    first, last = x[:, 1] - x[:, 0], x[:, 5] - x[:, 4]
    product = (first * last).sum(1)
    assert abs(product.mean()) < 4 * product.std() / 20_000**0.5


def test_wider_is_a_scale():
    chain = BondedGaussian(space=MeanFree(n=4, d=3), std=0.1, bonds=((0, 1), (1, 2), (1, 3)))
    wide = replace(chain, std=0.2)
    x = chain.sample(5, generator=seed())
    torch.testing.assert_close(wide.sample(5, generator=seed()), 2 * x)
    torch.testing.assert_close(wide.log_prob(2 * x), chain.log_prob(x) - 9 * math.log(2))


def test_bonds_must_join_all_particles():
    with pytest.raises(ValueError, match="the 2 bonds do not join all 4 particles; give a Gaussian prior"):
        BondedGaussian(space=MeanFree(n=4, d=3), std=0.1, bonds=((0, 1), (2, 3)))
    with pytest.raises(ValueError, match="centre of mass free"):
        BondedGaussian(space=Euclidean(n=2, d=3), std=0.1, bonds=((0, 1),))


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_impossible_widths_are_refused(std):
    with pytest.raises(ValueError, match="std must be positive and finite"):
        Gaussian(space=Euclidean(n=1, d=1), std=std)
    with pytest.raises(ValueError, match="std of bonds must be positive and finite"):
        BondedGaussian(space=MeanFree(n=2, d=1), std=std, bonds=((0, 1),))
