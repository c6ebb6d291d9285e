"""ManyWell-32: log Z against the published number and an independent quadrature, gradient, exact draws."""

import math

import pytest
import torch
from scipy.integrate import quad

from bgwork.system import load_system
from bgwork.targets.many_well import ManyWell


def test_log_z_is_the_published_one():
    assert ManyWell().log_z == pytest.approx(164.69567532, abs=1e-6)  # Midgley et al. 2023
    one = math.log(quad(lambda x: math.exp(-(x**4 - 6 * x * x - 0.5 * x)), -6, 6, epsabs=1e-12)[0]) + 0.5 * math.log(2 * math.pi)
    assert ManyWell(3).log_z == pytest.approx(3 * one, abs=1e-7)


def test_the_gradient_is_that_of_the_energy():
    target = ManyWell(3, quartic=0.7, quadratic=2.0, tilt=0.3)
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    u = target.u(x)
    found_u, found = target.u_and_grad(x)
    assert torch.allclose(torch.autograd.grad(u.sum(), x)[0], found) and torch.equal(found_u, u.detach())


def test_draws_have_the_averages_of_the_density():
    target, n = ManyWell(4), 20_000
    x = target.sample(n, generator=torch.Generator().manual_seed(1))
    mass = [quad(lambda s: math.exp(-(s**4 - 6 * s * s - 0.5 * s)), low, 6)[0] for low in (-6, 0)]
    weight = mass[1] / mass[0]
    right = (x[..., 0] > 0).double()
    assert abs(right.mean() - weight) < 4 * math.sqrt(weight * (1 - weight) / (4 * n))
    virial = (x * target.u_and_grad(x)[1]).sum((1, 2))
    assert abs(virial.mean() - 8) < 4 * virial.std() / n**0.5
    assert abs(x[..., 1].var() - 1) < 4 * math.sqrt(2 / (4 * n))


def test_the_system_holds_this_energy():
    system = load_system("manywell32")
    assert system.space.dim == 32 and system.target.log_z == pytest.approx(ManyWell().log_z)
