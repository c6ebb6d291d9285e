"""Every target against one table of promises, then what is particular to each."""

from __future__ import annotations

import math

import pytest
import torch

from bgwork.protocols import Target
from bgwork.spaces import MeanFree
from bgwork.targets.double_well import DoubleWell
from bgwork.targets.gaussian_mixture import GaussianMixture
from bgwork.targets.lennard_jones import LennardJones
from bgwork.targets.openmm import OpenMMTarget, lennard_jones_system
from bgwork.targets.own_function import FunctionTarget


def springs(x):
    """Particles bound to each other by springs that stiffen: an energy as a user would write it."""
    square = (x[:, :, None] - x[:, None]).square().sum(3)
    return (square / 4 + square.square() / 20).sum((1, 2))


TARGETS = {
    "dw4": lambda: DoubleWell(4),
    "double-well-3d": lambda: DoubleWell(3, 3, quartic=0.5, quadratic=1.0, r0=2.0),
    "lj13": lambda: LennardJones(13),
    "lj-plane": lambda: LennardJones(5, 2, depth=0.7, r_min=1.3, trap=0.4),
    "gmm40": lambda: GaussianMixture.random(40, half_width=40.0, std=1.3),
    "own-function": lambda: FunctionTarget(springs, space=MeanFree(n=4, d=2), name="springs"),
    "openmm-lj": lambda: OpenMMTarget(lennard_jones_system(6), space=MeanFree(n=6, d=3), kT=1.0),
}
CLUSTERS = [name for name in TARGETS if name != "gmm40"]


@pytest.fixture(params=TARGETS)
def target(request):
    return TARGETS[request.param]()


def configurations(target, count=5, seed=0):
    """Configurations near a spread-out lattice, where energies are moderate."""
    generator = torch.Generator().manual_seed(seed)
    n, d = target.space.n, target.space.d
    sites = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * d, indexing="ij"), -1).flatten(0, -2)[:n]
    noise = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    return target.space.project(1.2 * sites.double() + 0.1 * noise)


def test_meets_the_protocol(target):
    assert isinstance(target, Target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_float64(target, dtype):
    x = configurations(target).to(dtype)
    u, grad = target.u_and_grad(x)
    assert u.shape == (5,) and grad.shape == x.shape
    assert target.u(x).dtype == u.dtype == grad.dtype == torch.float64
    assert not (u.requires_grad or grad.requires_grad)
    torch.testing.assert_close(target.u(x), u, rtol=1e-13, atol=1e-13)


def test_empty_batch(target):
    u, grad = target.u_and_grad(configurations(target)[:0])
    assert u.shape == (0,) and grad.shape == (0, target.space.n, target.space.d)


def test_large_batches_are_evaluated_in_parts(target, monkeypatch):
    x = configurations(target, count=7)
    u, grad = target.u_and_grad(x)
    monkeypatch.setattr(target, "batch", 3)
    torch.testing.assert_close(target.u(x), u, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(target.u_and_grad(x)[1], grad, rtol=1e-12, atol=1e-12 * grad.abs().max().item())
    assert (target.n_energy, target.n_gradient) == (7, 14)


def test_evaluations_are_counted_per_configuration(target):
    x = configurations(target)
    target.u(x)
    target.u(x[:2])
    assert (target.n_energy, target.n_gradient) == (7, 0)
    target.u_and_grad(x)
    target.u(x[:3].requires_grad_())
    assert (target.n_energy, target.n_gradient) == (7, 8)


def test_gradient_matches_finite_differences(target):
    x = configurations(target)
    _, grad = target.u_and_grad(x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        v = target.space.project(torch.randn(x.shape, generator=generator, dtype=torch.float64))
        h = 1e-5
        slope = (target.u(x + h * v) - target.u(x - h * v)) / (2 * h)
        torch.testing.assert_close((grad * v).sum((1, 2)), slope, rtol=1e-6, atol=1e-6)


def test_autograd_of_u_is_the_gradient(target):
    x = configurations(target).requires_grad_()
    (by_autograd,) = torch.autograd.grad(target.u(x).sum(), x)
    grad = target.u_and_grad(x)[1]
    torch.testing.assert_close(by_autograd, grad, rtol=1e-11, atol=1e-11 * grad.abs().max().item())


def test_float32_leaf_gets_a_float32_gradient(target):
    x = configurations(target).float().requires_grad_()
    target.u(x).sum().backward()
    assert x.grad.dtype == torch.float32 and bool(torch.isfinite(x.grad).all())


def test_nan_stays_in_its_row_and_is_counted(target):
    x = configurations(target)
    clean = target.u(x)
    x[1, 0, 0] = math.nan
    u, grad = target.u_and_grad(x)
    assert torch.isnan(u).tolist() == [False, True, False, False, False]
    assert torch.isnan(grad).flatten(1).all(1).tolist() == [False, True, False, False, False]
    torch.testing.assert_close(u[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])
    assert target.n_nan == 1


@pytest.mark.parametrize("shape", [(5, 2), (1, 2, 7, 3), (5, 99, 3)])
def test_wrong_shape_is_refused(target, shape):
    with pytest.raises(ValueError, match=r"x has shape .* expected \[B, "):
        target.u(torch.zeros(shape))


@pytest.mark.parametrize("name", CLUSTERS)
def test_invariance(name):
    target = TARGETS[name]()
    x = configurations(target)
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(target.space.d, target.space.d, generator=generator, dtype=torch.float64))[0]
    moved = (x @ rotation.T)[:, torch.randperm(target.space.n, generator=generator)] + 3.0
    torch.testing.assert_close(target.u(moved), target.u(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["lj13", "lj-plane", "openmm-lj"])
def test_overlap_is_plus_infinity_without_a_gradient(name):
    target = TARGETS[name]()
    x = configurations(target)
    x[2, 1] = x[2, 3]
    u, grad = target.u_and_grad(x)
    assert u[2] == math.inf and target.u(x)[2] == math.inf
    assert bool(torch.isnan(grad[2]).all()) and bool(torch.isfinite(grad[[0, 1, 3, 4]]).all())
    assert target.n_nan == 0


def pair(r):
    return torch.tensor([[[0.5 * r, 0.0, 0.0], [-0.5 * r, 0.0, 0.0]]], dtype=torch.float64)


def test_lennard_jones_dimer_by_hand():
    target = LennardJones(2, depth=2.0, r_min=1.5, trap=3.0)
    assert target.u(pair(1.5)).item() == pytest.approx(-2.0 + 3.0 * 1.5**2 / 4)
    assert target.u(pair(3.0)).item() == pytest.approx(2.0 * (2**-12 - 2 * 2**-6) + 3.0 * 9 / 4)


def test_double_well_by_hand():
    target = DoubleWell(2, 3)
    assert target.u(pair(4.0)).item() == 0.0
    assert target.u(pair(6.0)).item() == pytest.approx(0.9 * 16 - 4 * 4)
    assert target.u(pair(4.0 + (4 / 1.8) ** 0.5)).item() == pytest.approx(-16 / 3.6)


def test_gmm40_means_are_those_published():
    target = GaussianMixture.random(40, half_width=40.0, std=1.0)
    torch.manual_seed(0)
    assert torch.equal(target.means, ((torch.rand(40, 2) - 0.5) * 80).double())


def test_gmm_log_z_by_quadrature():
    target = GaussianMixture.random(7, half_width=5.0, std=0.8, seed=3)
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(1)
    z = torch.exp(-target.u(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert math.log(z) == pytest.approx(target.log_z, abs=1e-10)


def test_gmm_draws_have_its_moments():
    target = GaussianMixture.random(7, half_width=5.0, std=0.8, seed=3)
    x = target.sample(20_000, generator=torch.Generator().manual_seed(0))[:, 0]
    mean, second = target.means.mean(0), (target.means**2).mean(0) + 0.8**2
    for values, truth in ((x, mean), (x**2, second)):
        z = (values.mean(0) - truth) / (values.std(0) / len(x) ** 0.5)
        assert z.abs().max() < 4
