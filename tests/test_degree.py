"""The degree of folded maps: where it is not one, the density stays uncertified."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from flows import LINE, PLANE, flow, seed
from simple_fields import Linear, Pointwise, folding

from bgwork.records import Certificate, Density
from bgwork.runs import SampleSettings, find_run
from bgwork.samplers.degree import DRAWS, degree_margin, directions
from bgwork.samplers.flow import Flow
from bgwork.spaces import Euclidean, MeanFree, Torus


def test_a_map_that_turns_space_over_is_not_signed():
    """z -> -2 z on the line: every determinant is negative, and so is the degree."""
    proposal = flow(LINE, Linear(torch.tensor([[-3.0]]).double(), d=1), integrator="euler", steps=1).sample(50, generator=seed())
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.degree_margin < 1e-9
    assert not proposal.certificate.degree_one


def test_the_degree_is_looked_at_where_determinants_are_negative_only():
    clean = flow(LINE, folding(), integrator="euler", steps=8, std=2.0).sample(50, generator=seed()).certificate
    assert clean.clean and clean.n_degree == 0 and not clean.degree_one
    assert not Certificate(n=5, n_negative=1).degree_one


def test_a_sample_without_a_determinant_leaves_the_density_uncertified():
    def hole(x, value):
        return torch.where((x > 3) & (x < 4), torch.nan, value)  # nowhere near the far sphere

    field = Pointwise(lambda t, x: hole(x, 1.5 * torch.sin(2 * x)), lambda t, x: hole(x, 3 * torch.cos(2 * x)))
    proposal = flow(LINE, field, integrator="euler", steps=1, std=2.0).sample(200, generator=seed())
    assert proposal.x.isnan().any() and proposal.certificate.degree_one and proposal.density is Density.UNCERTIFIED


def test_without_a_finite_sample_nothing_is_said_of_the_degree():
    field = Pointwise(lambda t, x: torch.nan * x, lambda t, x: torch.nan * x)
    proposal = flow(LINE, field, integrator="euler", steps=1).sample(20, generator=seed())
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.n_degree == 0


@dataclass
class Reflected:
    """v = -(1 + a) x along the first axis, so that an Euler step is a reflection, of degree -1, with a fold along the second."""

    d: int
    n: int = 1
    a: float = 0.7

    def value_and_jacobian(self, t, x):
        jacobian = torch.zeros(len(x), self.d, self.d, dtype=x.dtype)
        jacobian[:, 0, 0], jacobian[:, 1, 1] = -(1 + self.a), 3 * torch.cos(2 * x[:, 0, 1])
        v = torch.zeros_like(x)
        v[..., 0], v[..., 1] = -(1 + self.a) * x[..., 0], 1.5 * torch.sin(2 * x[..., 1])
        return v, jacobian

    def __call__(self, t, x):
        return self.value_and_jacobian(t, x)[0]


@dataclass
class Stopped(Reflected):
    """T_1 = softplus(3 x_1) - 1.5 does not reach below -1.5, where the degree is nought; with the same fold."""

    def value_and_jacobian(self, t, x):
        v, jacobian = super().value_and_jacobian(t, x)
        v[..., 0] = torch.nn.functional.softplus(3 * x[..., 0]) - 1.5 - x[..., 0]
        jacobian[:, 0, 0] = 3 * torch.sigmoid(3 * x[:, 0, 0]) - 1
        return v, jacobian


@pytest.mark.parametrize("field", [Reflected, Stopped])
@pytest.mark.parametrize("d", [2, 3, 10, 60])
def test_one_bad_direction_among_many_is_found(field, d):
    space = Euclidean(n=1, d=d)
    proposal = flow(space, field(d), integrator="euler", steps=1, n_round_trip=4).sample(300, generator=seed())
    assert (proposal.sign < 0).any() and (proposal.sign > 0).any()
    assert proposal.certificate.degree_margin < 1 and proposal.density is Density.UNCERTIFIED
    assert "not known to be one" in proposal.note


def test_the_shipped_maps_pass_with_room_to_spare():
    for recipe, steps in (("eqot-fm", 3), ("distill", 2)):
        sampler = find_run("dw4", SampleSettings(n=1, steps=steps), recipe=recipe, folder=None).sampler(lambda *_: None)
        proposal = replace(sampler, n_round_trip=4, round_trip=None).sample(400, generator=seed())
        assert proposal.density is Density.SIGNED and proposal.certificate.degree_margin > 10


def test_a_map_of_molecules_at_the_end_of_a_flow_leaves_its_degree():
    """The far sphere is asked of the flow alone, and a map that turns orientations over is not taken for one that does not."""
    sampler = find_run("ala2-xtb", SampleSettings(n=1, steps=1), recipe="mapped", folder=None).sampler(lambda *_: None)
    z = sampler.prior.sample(4, generator=seed())
    flow = Flow(prior=sampler.prior, field=sampler.field, grid=sampler.grid, origin=sampler.origin)
    found = sampler._degree_margin(z, sampler.forward(z))
    assert found == pytest.approx(flow._degree_margin(z, flow.forward(z)), rel=1e-6) and found[1] > 10
    with torch.no_grad():
        sampler.map.linear[0] *= -1
    assert sampler._degree_margin(z, z)[0] == 0


@pytest.mark.parametrize("space", [Euclidean(n=1, d=2), MeanFree(n=5, d=3), MeanFree(n=4, d=2)])
def test_directions_are_unit_vectors_of_the_space_and_some_are_uneven(space):
    found = directions(space)
    assert found.shape == (DRAWS, space.n, space.d) and torch.equal(found, directions(space))
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(DRAWS).double())
    assert torch.allclose(space.project(found), found)
    if space.n > 1:
        share = found.square().sum(2).max(1).values
        assert share[DRAWS // 2:].mean() > share[: DRAWS // 2].mean() + 0.1


def test_the_margin_is_that_of_the_straight_way():
    """Quarter turns of the plane come as near as 1/sqrt(2) of the radius, half turns to the origin."""
    one = torch.tensor([[[1.0, 0.0]]]).double()
    turns = {0: torch.eye(2).double(), 90: torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double(), 180: -torch.eye(2).double()}
    margin = {degrees: degree_margin(lambda z, turn=turn: z @ turn, PLANE, one, one)[1] for degrees, turn in turns.items()}
    assert margin == pytest.approx({0: 100, 90: 100 / math.sqrt(2), 180: 0}, abs=1e-9)
    assert degree_margin(lambda z: z, Torus(n=1, d=1), one[..., :1], one[..., :1])[0] == 0
    assert math.isnan(degree_margin(lambda z: -1e200 * z, PLANE, one, one)[1])
