"""Targets on curved spaces: log Z against quadrature, samples against averages by quadrature, gradients against autograd."""

import math

import pytest
import torch
from torch import Tensor

from bgwork.curved import Hyperboloid, Sphere
from bgwork.priors import Uniform, WrappedNormal
from bgwork.protocols import Target
from bgwork.targets.hyperbolic_mixture import HyperbolicMixture
from bgwork.targets.spin_chain import SpinChain
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture

TARGETS = {
    "vMF on S2": VonMisesFisherMixture.random(4, 3, concentration=5.0, seed=1),
    "vMF on S4": VonMisesFisherMixture.random(3, 5, concentration=4.0, seed=2),
    "Gaussians on H2": HyperbolicMixture.ring(3, radius=1.5, std=0.5),
    "Gaussians on H4": HyperbolicMixture.ring(2, 4, radius=1.0, std=0.4),
    "Heisenberg chain": SpinChain(3, coupling=2.0),
    "antiferromagnet": SpinChain(3, 4, coupling=-1.5)}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def wide(space):
    """Something to integrate with that does not come from the target."""
    if isinstance(space, Sphere):
        return Uniform(space=space)
    return WrappedNormal(space=space, mean=Hyperboloid(n=1, d=space.d).origin(torch.zeros(1, space.d)), std=1.2)


@every_target
def test_log_z_and_exact_samples_agree_with_importance_sampling(target):
    """Z and three bounded averages, from draws of another density."""
    y, x = wide(target.space).sample(100_000, generator=seed()), target.sample(20_000, generator=seed(1))
    target.space.check(x)
    w = (-target.u(y) - wide(target.space).log_prob(y) - target.log_z).exp()
    assert abs(w.mean().item() - 1) < 4 * w.std().item() / math.sqrt(len(w)) < 0.1
    for f in (lambda z: torch.tanh(z[:, 0, 1]), lambda z: torch.tanh(z[:, -1, -1] * z[:, 0, -1]), lambda z: torch.tanh(target.u(z))):
        expected, values = f(y), f(x)
        influence = w * (expected - (w * expected).mean())
        stderr = math.hypot(influence.std().item() / math.sqrt(len(w)), values.std().item() / math.sqrt(len(x)))
        assert abs(values.mean() - (w * expected).mean() / w.mean()) < 4 * stderr


@pytest.mark.parametrize("name", ["vMF on S2", "Gaussians on H2"])
def test_log_z_by_quadrature(name):
    target = TARGETS[name]
    curve, reach = (torch.sin, math.pi) if isinstance(target.space, Sphere) else (torch.sinh, 7.0)
    r = reach * (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    phi = 2 * math.pi * torch.arange(300, dtype=torch.float64) / 300
    radius, angle = torch.meshgrid(r, phi, indexing="ij")
    height = torch.cos(radius) if isinstance(target.space, Sphere) else torch.cosh(radius)
    x = torch.stack([height, curve(radius) * torch.cos(angle), curve(radius) * torch.sin(angle)], -1).view(-1, 1, 3)
    mass = (torch.exp(-target.u(x)).view_as(radius) * curve(radius)).sum() * reach / 800 * 2 * math.pi / 300
    assert math.log(mass.item()) == pytest.approx(target.log_z, abs=1e-5)


@pytest.mark.parametrize("d", [2, 3, 5, 8])
@pytest.mark.parametrize("c", [0.3, 4.0, 300.0])
def test_one_von_mises_fisher_component_by_quadrature_along_its_axis(d, c):
    target = VonMisesFisherMixture(torch.eye(1, d), torch.tensor([c], dtype=torch.float64), torch.ones(1))
    theta = math.pi * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    area = 2 * math.pi ** ((d - 1) / 2) / math.gamma((d - 1) / 2)
    mass = area * (torch.exp(c * (torch.cos(theta) - 1)) * torch.sin(theta) ** (d - 2)).mean() * math.pi
    assert math.log(mass.item()) == pytest.approx(target.log_z, abs=1e-8)


@pytest.mark.parametrize("m", [2, 3, 4, 6])
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_one_riemannian_gaussian_by_quadrature_along_its_radius(m, std):
    target = HyperbolicMixture(torch.eye(1, m + 1), std=std, heights=torch.ones(1))
    reach = 12 * std + m * std**2
    r = reach * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    mass = 2 * math.pi ** (m / 2) / math.gamma(m / 2) * (torch.exp(-0.5 * (r / std) ** 2) * torch.sinh(r) ** (m - 1)).mean() * reach
    assert math.log(mass.item()) == pytest.approx(target.log_z, abs=1e-8)


def test_heisenberg_chain_has_its_textbook_alignment_and_partition_function():
    chain = SpinChain(5, coupling=1.7)
    assert chain.alignment == pytest.approx(1 / math.tanh(1.7) - 1 / 1.7, abs=1e-12)
    assert chain.log_z == pytest.approx(math.log(4 * math.pi) + 4 * math.log(4 * math.pi * math.sinh(1.7) / 1.7), abs=1e-12)
    x = chain.sample(20_000, generator=seed())
    bonds = (x[:, 1:] * x[:, :-1]).sum(2)
    assert ((bonds.mean(0) - chain.alignment).abs() < 4 * bonds.std(0) / math.sqrt(len(x))).all()


@every_target
def test_gradients_are_those_of_the_energy(target):
    assert isinstance(target, Target)
    x = target.sample(20, generator=seed())
    leaf = x.clone().requires_grad_()
    u, gradient = target.u_and_grad(x)
    (derivative,) = torch.autograd.grad(target.u(leaf).sum(), leaf)
    torch.testing.assert_close(u, target.u(x))
    torch.testing.assert_close(target.space.gradient(x, gradient), target.space.gradient(x, derivative), rtol=1e-9, atol=1e-9)
    assert target.n_gradient >= 40


def test_gradient_of_a_riemannian_gaussian_is_finite_at_its_mean():
    target = HyperbolicMixture.ring(1, radius=1.0, std=0.5)
    assert (target.u_and_grad(target.means[:, None])[1] == Tensor([0.0])).all()


@pytest.mark.parametrize(("build", "message"), [
    (lambda: VonMisesFisherMixture(torch.eye(2, 3), torch.ones(1), torch.ones(2)), "need K concentrations and K heights"),
    (lambda: VonMisesFisherMixture(torch.eye(2, 3), torch.zeros(2), torch.ones(2)), "must be positive"),
    (lambda: HyperbolicMixture(torch.ones(2, 3), std=0.5, heights=torch.ones(2)), "away from"),
    (lambda: HyperbolicMixture(torch.eye(1, 3), std=-0.5, heights=torch.ones(1)), "must be positive"),
    (lambda: SpinChain(1, coupling=1.0), "at least 2 spins"), (lambda: SpinChain(3, coupling=0.0), "coupling other than 0")])
def test_impossible_constants_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
