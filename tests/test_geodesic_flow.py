"""The executed map of geodesic midpoint steps: its determinant against finite differences, its density by quadrature, its weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from curved_walks import TARGETS, prior_of
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from bgwork.curved import ConstantCurvature, Hyperboloid, Sphere
from bgwork.fields.ambient import AmbientDrifts
from bgwork.generators import generator_path, load_trained
from bgwork.priors import Gaussian
from bgwork.recipes import Choice
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.geodesic_flow import CurrentVelocity, GeodesicFlow, GeodesicStep, shoot
from bgwork.samplers.inverse import invert_step
from bgwork.spaces import Euclidean
from bgwork.system import load_system

SPACES = (Sphere(n=1, d=3), Sphere(n=1, d=5, curvature=0.5), Sphere(n=2, d=3, curvature=4.0), Hyperboloid(n=1, d=3),
          Hyperboloid(n=2, d=4, curvature=-0.25))
every_space = pytest.mark.parametrize("space", SPACES, ids=str)


def flow_of(space: ConstantCurvature, *, steps: int = 3, size: float = 0.25, seed: int = 0) -> GeodesicFlow:
    """A flow along a made-up field whose divergence is not zero."""
    torch.manual_seed(seed)
    drifts = AmbientDrifts(space, hidden=16, depth=2)
    torch.nn.init.normal_(drifts.last.weight, std=size)
    torch.nn.init.normal_(drifts.last.bias, std=size)
    times = tuple(k / steps for k in range(steps + 1))
    return GeodesicFlow(prior=prior_of(space), field=CurrentVelocity(drifts, space), times=times, n_round_trip=16, batch=1024,
                        origin=Origin(method="flow", system="curved"))


def draw(flow: GeodesicFlow, n: int = 6) -> Tensor:
    return flow.prior.sample(n, generator=torch.Generator().manual_seed(1))


def frame(space: ConstantCurvature, x: Tensor) -> Tensor:
    """Orthonormal tangent vectors at x [n, d], by Gram and Schmidt: [dim, n, d]."""
    found: list[Tensor] = []
    for direction in torch.eye(space.n * space.d, dtype=torch.float64).view(-1, space.n, space.d):
        v = space.tangent(x, direction)
        for other in found:
            v = v - space.inner(other, v).sum() * other
        length = space.inner(v, v).sum().clamp_min(0).sqrt()
        if length > 1e-6:
            found.append(v / length)
    return torch.stack(found)


def by_differences(flow: GeodesicFlow, x: Tensor, *, step: float = 1e-5) -> Tensor:
    """dT at x [n, d] in orthonormal frames at x and T(x) [dim, dim], by central differences along geodesics."""
    space, y = flow.space, flow.forward(x[None])[0]
    columns = []
    for e in frame(space, x):
        ahead, behind = (flow.forward(space.exp(x[None], s * step * e[None])) for s in (1, -1))
        moved = (space.log(y[None], ahead) - space.log(y[None], behind))[0] / (2 * step)
        columns.append(torch.stack([space.inner(f, moved).sum() for f in frame(space, y)]))
    matrix = torch.stack(columns, 1)
    assert matrix.shape == (space.dim, space.dim)
    return matrix


@every_space
def test_determinant_is_that_of_the_differential_in_orthonormal_frames(space):
    flow = flow_of(space)
    z = draw(flow)
    pushed = flow.push(z)
    expected = torch.linalg.slogdet(torch.stack([by_differences(flow, x) for x in z]))[1]
    assert pushed.log_det.abs().min() > 1e-3  # a sign mistaken would be seen
    torch.testing.assert_close(pushed.log_det, expected, rtol=0, atol=1e-7)
    assert (pushed.x - space.project(pushed.x)).abs().max() < 1e-12


@every_space
def test_singular_values_are_those_of_the_differential_in_orthonormal_frames(space):
    """Those of ambient matrices on a hyperboloid are not. The radius, which stays, adds the value 1."""
    flow = flow_of(space, steps=1)
    z = draw(flow)
    expected = torch.linalg.svdvals(torch.stack([by_differences(flow, x) for x in z]))[:, -1]
    assert (expected < 0.99).any()
    torch.testing.assert_close(flow.push(z).smallest_singular, expected.clamp_max(1), rtol=0, atol=1e-7)


def test_signs_are_those_of_the_orientation():
    """Of frames that are right-handed together with the outward normal, at both ends."""
    flow = flow_of(SPACES[0], steps=1, size=4.0)
    z = draw(flow, 100)
    pushed, hands = flow.push(z), [torch.stack([torch.linalg.det(torch.cat([frame(SPACES[0], y)[:, 0], y])) for y in points])
                                   for points in (z, flow.forward(z))]
    brute = torch.linalg.det(torch.stack([by_differences(flow, x, step=1e-6) for x in z]))
    assert torch.equal(pushed.sign, torch.sign(brute * hands[0] * hands[1])) and 10 < (pushed.sign < 0).sum() < 90


@every_space
def test_samples_find_their_way_back_to_their_density(space):
    proposal = flow_of(space).sample(40, generator=torch.Generator().manual_seed(2))
    assert proposal.density is Density.EXACT and proposal.certificate.n_round_trip == 16
    torch.testing.assert_close(flow_of(space).log_prob(proposal.x), proposal.log_q, rtol=0, atol=1e-9)


def test_density_integrates_to_one_on_the_sphere():
    """Gauss-Legendre in the height, even in the angle: exact for polynomials up to degree 39."""
    height, weight = (torch.from_numpy(a) for a in leggauss(20))
    angle = torch.arange(40, dtype=torch.float64) * (2 * math.pi / 40)
    across = (1 - height**2).sqrt()[:, None]
    x = torch.stack([across * angle.cos(), across * angle.sin(), height[:, None].expand(-1, 40)], -1).reshape(-1, 1, 3)
    q = flow_of(SPACES[0], size=0.3).log_prob(x).exp()
    assert q.max() / q.min() > 2
    assert (q.view(20, 40) * weight[:, None]).sum().item() * (2 * math.pi / 40) == pytest.approx(1.0, abs=1e-4)


def test_density_integrates_to_one_on_the_hyperbolic_plane():
    """Gauss-Legendre in the distance from the origin, even in the angle; beyond 3.5 lies nothing that is worth mentioning."""
    node, weight = (torch.from_numpy(a) for a in leggauss(40))
    r, angle = 1.75 * (node + 1)[:, None], torch.arange(40, dtype=torch.float64) * (2 * math.pi / 40)
    x = torch.stack([torch.cosh(r).expand(-1, 40), torch.sinh(r) * angle.cos(), torch.sinh(r) * angle.sin()], -1).reshape(-1, 1, 3)
    q = flow_of(SPACES[3], steps=2, size=0.1).log_prob(x).exp().view(40, 40)
    assert (q.amax(1) / q.amin(1)).max() > 1.5
    area = 1.75 * weight * torch.sinh(r[:, 0]) * (2 * math.pi / 40)
    assert (q.sum(1) * area).sum().item() == pytest.approx(1.0, abs=1e-4)


def test_newton_finds_no_solutions_off_the_hyperboloid():
    """Beyond the light cone and on the sheet of the past there would be some, with a determinant above zero."""
    space = SPACES[3]
    flow = flow_of(space, steps=1)
    z, (step,) = draw(flow, 200), flow.steps
    assert torch.isnan(step.with_jacobian(torch.tensor([[[1.0, 2.0, 0.0]], [[-2.0, 0.0, 0.0]]], dtype=torch.float64))[0]).all()
    nearby = 0
    outside = (z[..., 1:].square().sum(-1) - 1).clamp_min(0).sqrt() + 0.02
    for height in (-z[..., 0] + 0.05, outside, z[..., 0] + 1):
        guess = z.clone()
        guess[..., 0] = height
        found, _, _ = invert_step(step.with_jacobian, flow.forward(z), guess, tolerance=torch.full((200,), 1e-10, dtype=torch.float64))
        found = found[torch.isfinite(found).flatten(1).all(1)]
        assert (found - space.project(found)).abs().sum() < 1e-6
        nearby += len(found)
    assert nearby > 100


@every_space
def test_order_of_convergence_is_two(space):
    z = draw(flow_of(space))
    exact = flow_of(space, steps=256).forward(z)
    few, many = (space.distance(flow_of(space, steps=k).forward(z), exact).mean().item() for k in (8, 16))
    assert 3.2 < few / many < 5


@every_space
def test_backward_undoes_a_step_up_to_its_order(space):
    z = draw(flow_of(space))
    few, many = (space.distance(step.backward(step(z)), z).max().item() for step in (flow_of(space, steps=k).steps[0] for k in (8, 16)))
    assert many < few / 4


def test_a_field_that_stands_still_has_a_jacobian():
    """cos(|v|) and sin(|v|) / |v| have slopes at v = 0, the square root in them has none."""
    for space in SPACES:
        flow = flow_of(space, size=0.0)
        x, jacobian = flow.steps[0].with_jacobian(draw(flow))
        torch.testing.assert_close(jacobian, torch.eye(space.n * space.d, dtype=torch.float64).expand_as(jacobian), rtol=0, atol=1e-12)
        torch.testing.assert_close(x, draw(flow), rtol=0, atol=1e-12)


@every_space
def test_shoot_is_the_exponential_map(space):
    x, generator = draw(flow_of(space)), torch.Generator().manual_seed(3)
    v = space.lift(x, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    for length in (1.0, 1e-4, 1e-6):
        torch.testing.assert_close(shoot(space, x, length * v), space.exp(x, length * v), rtol=0, atol=1e-12)


def test_a_fold_loses_its_label_and_weights_are_refused():
    flow = flow_of(SPACES[0], steps=1, size=4.0)
    proposal = flow.sample(400, generator=torch.Generator().manual_seed(4))
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.n_negative > 0
    with pytest.raises(ValueError, match="uncertified samples have no proper weights"):
        weigh(proposal, load_system("vmf-s2").target)


def ratios(flow: GeodesicFlow, name: str) -> tuple[Tensor, Tensor]:
    """exp(-u) / (q Z) of samples, which is one on average, and their signs."""
    target, proposal = TARGETS[name], flow.sample(6000, generator=torch.Generator().manual_seed(5))
    return torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z), proposal.sign


def away(values: Tensor) -> float:
    """Of their mean from one, in standard errors."""
    return ((values.mean() - 1) / (values.std() / len(values) ** 0.5)).item()


def test_a_flipped_sign_of_the_log_determinant_is_caught(monkeypatch):
    flow, right = flow_of(SPACES[0]), GeodesicStep.with_jacobian
    assert abs(away(ratios(flow, "vMF on S2")[0])) < 4
    monkeypatch.setattr(GeodesicStep, "with_jacobian", lambda step, x: (right(step, x)[0], torch.linalg.inv(right(step, x)[1])))
    assert abs(away(ratios(flow, "vMF on S2")[0])) > 6


@pytest.mark.parametrize(("options", "message"), [
    ({"prior": Gaussian(space=Euclidean(n=1, d=3))}, "spheres and hyperbolic spaces, got a prior on Euclidean.*samplers.flow.Flow"),
    ({"times": (0.0, 0.7, 0.7)}, "increase from 0 to 1"),
    ({"times": (0.0,)}, "steps must be a positive integer, got 0"),
    ({"batch": 0}, "positive integer, got 0"),
])
def test_impossible_flows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(flow_of(SPACES[0]), **options)


def test_fields_that_do_not_fit_are_refused():
    flow, generator = flow_of(SPACES[0]), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"project it with space.tangent\(x, v\)"):
        replace(flow, field=CurrentVelocity(Normal(), SPACES[0])).sample(2, generator=generator)
    with pytest.raises(ValueError, match="moves 1 particles in 5 dimensions"):
        replace(flow, field=flow_of(SPACES[1]).field).sample(2, generator=generator)


class Normal(torch.nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_current_velocity_of_a_reversible_diffusion_is_zero():
    class Reversible(torch.nn.Module):
        """f = -b: as the reversal runs like the process itself, its density stays."""

        def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            drift = SPACES[0].tangent(x, torch.ones_like(x))
            return drift, -drift

    x = draw(flow_of(SPACES[0]))
    assert CurrentVelocity(Reversible(), SPACES[0])(torch.tensor(0.5), x).abs().max() == 0


@pytest.mark.parametrize("name", ["vmf-s2", "vmf-s4", "hyperbolic-h2", "heisenberg-chain"])
def test_shipped_generators_have_exact_weights_in_few_steps(name):
    """Unbiased at any number of steps, and better than path weights over the walk of the same network."""
    system = load_system(name)
    made_by, trained = load_trained(generator_path(name), system=system)
    density, path = (weigh(made_by.sampler_of(trained, Choice(integrator="geodesic", steps=steps, weights=weights)).sample(
        1000, generator=torch.Generator().manual_seed(6)), system.target) for steps, weights in ((6, "density"), (None, "path")))
    assert density.proposal.density is Density.EXACT
    found = log_z(density)
    assert abs(found.value - system.target.log_z) < 4 * found.stderr
    assert ess(density).value > ess(path).value > 0.1
    exact = torch.tanh(system.target.sample(50_000, generator=torch.Generator().manual_seed(7)))
    for i, a in ((0, 0), (system.space.n - 1, system.space.d - 1)):
        mean, values = expectation(density, lambda x, i=i, a=a: torch.tanh(x[:, i, a])), exact[:, i, a]
        assert abs(mean.value - values.mean().item()) < 4 * math.hypot(mean.stderr, values.std().item() / len(values) ** 0.5)
