"""Configurations in which particles coincide are handed to everything that takes configurations."""

from __future__ import annotations

import math

import pytest
import torch

from bgwork.observables import OBSERVABLES
from bgwork.recipes import default_recipe, initial_network, load_recipe
from bgwork.records import Density, Origin, Proposal
from bgwork.reweighting import ess, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.system import System, load_system, reference_samples


def overlapping(system: System) -> torch.Tensor:
    """[3, n, d]: two particles at one place, all of them at one place, and an ordinary configuration."""
    x = reference_samples(system).x[:3].clone()
    x[0, 1], x[1] = x[0, 0], 0.0
    return system.space.project(x)


def random_flow(system: System) -> Flow:
    """The system's own kind of field with random weights, none of them zero."""
    field = initial_network(load_recipe(system, default_recipe(system)), system, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in field.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return Flow(prior=system.prior, field=field.eval(), grid=Grid(integrator="midpoint", steps=4),
                origin=Origin(method="flow", system=system.name))


@pytest.mark.parametrize(("name", "energy"), [("lj13", math.inf), ("dw4", None)])
def test_energies_are_infinite_or_finite(name, energy):
    system = load_system(name)
    x = overlapping(system)
    for target in (system.target, system.differentiable_target):
        u = target.u(x)
        assert torch.isfinite(u[2]) and (torch.isfinite(u[:2]).all() if energy is None else (u[:2] == energy).all())
        assert target.n_nan == 0


@pytest.mark.parametrize("name", ["lj13", "dw4"])
def test_a_flow_has_a_finite_density_there_that_does_not_depend_on_the_others(name):
    system = load_system(name)
    x, flow = overlapping(system), random_flow(system)
    log_q = flow.log_prob(x)
    assert torch.isfinite(log_q).all()
    torch.testing.assert_close(flow.log_prob(x[2:]), log_q[2:], rtol=0, atol=1e-6)


def test_they_weigh_nothing_and_count_as_no_failure():
    system = load_system("lj13")
    x = overlapping(system)
    proposal = Proposal(x=x, log_q=random_flow(system).log_prob(x), space=system.space, density=Density.EXACT,
                        origin=Origin(method="flow", system="lj13"))
    weighted = weigh(proposal, system.target)
    assert weighted.n_failed == 0 and weighted.log_w.isneginf().tolist() == [True, True, False]
    assert ess(weighted).value == pytest.approx(1 / 3)
    assert all(OBSERVABLES[name](x).shape == (3,) for name in system.observables if name != "u")
