"""Every prior on every space: samples on the space that repeat, a density that integrates to one, moments."""

import math

import pytest
import torch
from torch import Tensor

from bgwork.priors import Gaussian
from bgwork.spaces import Euclidean, MeanFree

PRIORS = {
    "Gaussian on the line": Gaussian(space=Euclidean(n=1, d=1), std=0.7),
    "Gaussian on the plane": Gaussian(space=Euclidean(n=1, d=2), std=1.6),
    "Gaussian of two particles": Gaussian(space=Euclidean(n=2, d=1)),
    "mean-free Gaussian of two particles": Gaussian(space=MeanFree(n=2, d=1), std=0.7),
    "mean-free Gaussian of two particles in the plane": Gaussian(space=MeanFree(n=2, d=2), std=1.3),
    "mean-free Gaussian of three particles": Gaussian(space=MeanFree(n=3, d=1), std=1.6),
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
    axis = prior.std * torch.arange(-18, 19, dtype=torch.float64) / 2
    coordinates = torch.cartesian_prod(*[axis] * prior.space.dim).view(-1, prior.space.dim)
    x = torch.einsum("gk,knd->gnd", coordinates, basis(prior.space))
    prior.space.check(x)
    assert (prior.log_prob(x).exp().sum() * (prior.std / 2) ** prior.space.dim).item() == pytest.approx(1, abs=1e-12)


@every_prior
def test_moments_in_orthonormal_coordinates(prior):
    """Mean 0, covariance std^2, and entropy dim/2 log(2 pi e std^2) = -<log q>."""
    n, dim = 20_000, prior.space.dim
    x = prior.sample(n, generator=seed())
    coordinates = torch.einsum("bnd,knd->bk", x, basis(prior.space))
    products = torch.einsum("bi,bj->bij", coordinates, coordinates)
    entropy = torch.full((1,), dim / 2 * math.log(2 * math.pi * math.e * prior.std**2), dtype=torch.float64)
    surprise = -prior.log_prob(x)[:, None]
    for values, truth in ((coordinates, torch.zeros(dim)), (products, prior.std**2 * torch.eye(dim)), (surprise, entropy)):
        assert ((values.mean(0) - truth).abs() < 4 * values.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_impossible_widths_are_refused(std):
    with pytest.raises(ValueError, match="std must be positive and finite"):
        Gaussian(space=Euclidean(n=1, d=1), std=std)
