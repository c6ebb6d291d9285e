"""Kernels with a width for each direction: exact where everything is Gaussian, proper where nothing is known."""

import math
from dataclasses import replace

import pytest
import torch
from exact_diffusions import Scaling, control, score, velocity
from oracles import DW4_SPACE, GaussianOracle, double_well
from simple_fields import randomise
from torch.distributions import MultivariateNormal

from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.paths import GeometricBrownian, GeometricNoise, LinearInterpolant, VariancePreserving, stops
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.directional import CovarianceKernel, basis_of, directional, fitted
from bgwork.samplers.kernels import FieldKernels, control_table, score_table, velocity_table
from bgwork.samplers.sde import PathSampler, PointPrior
from bgwork.spaces import Euclidean, MeanFree, Torus

ORIGIN = Origin(method="test", system="oracle")
BROWNIAN = GeometricBrownian(std=2.0, ratio=0.05)
NOISE = GeometricNoise(ratio=0.01)
PLANE = Euclidean(n=1, d=2)
STDS = torch.tensor([0.1, 1.2]).double()
KINDS = ["linear", "preserving", "score", "control"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Separate:
    """A field whose coordinates are those of two fields of one dimension: what two widths ask for."""

    def __init__(self, *fields):
        self.fields, self.n, self.d = fields, 1, len(fields)

    def __call__(self, t, x):
        return torch.cat([field(t, x[..., i:i + 1]) for i, field in enumerate(self.fields)], -1)

    def value_and_jacobian(self, t, x):
        parts = [field.value_and_jacobian(t, x[..., i:i + 1]) for i, field in enumerate(self.fields)]
        return torch.cat([v for v, _ in parts], -1), torch.diag_embed(torch.cat([jacobian.view(-1, 1) for _, jacobian in parts], 1))


class Ellipse(GaussianOracle):
    """N(0, diag(STDS^2)) in the plane."""

    def __init__(self):
        super().__init__(space=PLANE, std=1.0)

    def u(self, x):
        return 0.5 * (x[:, 0] / STDS).square().sum(1)

    @property
    def log_z(self):
        return math.log(2 * math.pi) + STDS.log().sum().item()


class Wrong:
    """A field disturbed by a network."""

    def __init__(self, exact, network):
        self.exact, self.network, self.n, self.d = exact, network, exact.n, exact.d

    def __call__(self, t, x):
        return self.value_and_jacobian(t, x)[0]

    def value_and_jacobian(self, t, x):
        v, jacobian = self.exact.value_and_jacobian(t, x)
        off, slope = self.network.value_and_jacobian(t, x)
        return v + 0.1 * off.double(), jacobian + 0.1 * slope.double()


def setting(kind, steps, *, space=PLANE, spread=1.0):
    """Start, table, and the exact scaling of one coordinate with standard deviation s at the target."""
    times = stops(steps)
    if kind == "control":
        return PointPrior(space=space), control_table(BROWNIAN, times), lambda s: control(BROWNIAN, target_std=s)
    if kind == "score":
        table = score_table(NOISE, times, prior_std=5.0, spread=spread)
        return Gaussian(space=space, std=math.hypot(5.0, spread)), table, lambda s: score(NOISE, prior_std=5.0, target_std=s)
    path = {"linear": LinearInterpolant(), "preserving": VariancePreserving()}[kind]
    table = velocity_table(path, times, prior_std=1.5, spread=spread)
    return Gaussian(space=space, std=1.5), table, lambda s: velocity(path, prior_std=1.5, target_std=s)


def stretched(kind, steps):
    """A sampler of the ellipse with the exact field and isotropic kernels."""
    start, table, exact = setting(kind, steps)
    field = Separate(*(Scaling(exact(s.item()), 1, 1) for s in STDS))
    return PathSampler(start=start, kernels=FieldKernels(space=PLANE, field=field, table=table), origin=ORIGIN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussian_of_two_widths_needs_a_width_for_each_direction(kind):
    """After the first step, at which no signal tells directions apart, theory's covariances are exact, so weights are nearly equal."""
    plain = stretched(kind, 12)
    theory = directional(plain.kernels)
    exact = replace(theory, floor=plain.kernels.table.posterior.sure.clamp_min(1e-12))
    found = ess(weigh(replace(plain, kernels=exact).sample(2000, generator=seeded(1)), Ellipse())).value
    before = ess(weigh(plain.sample(2000, generator=seeded(1)), Ellipse())).value
    assert found > 0.85 and before < 0.5
    proposal = replace(plain, kernels=theory).sample(20, generator=seeded())
    assert proposal.density is Density.PATH and proposal.cost.jacobian == proposal.cost.network == 20 * 12


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_of_theory_are_those_of_the_steps(kind):
    """Of x_{k+1} given x_k under the noised target, by Gaussian algebra."""
    plain = stretched(kind, 5).kernels
    kernels, table = directional(plain), plain.table
    x = torch.tensor([[[0.3, -0.2]]]).double()
    for k in range(1, 4):
        mean, unknown, axes = kernels.posterior(k, x)
        covariance = axes[0] @ torch.diag(unknown[0] + table.posterior.sure[k]) @ axes[0].T
        assert torch.allclose(covariance, torch.diag(step_variances(kind, table, k)), atol=1e-9)
        assert torch.allclose(mean, x + plain.forward(k, x).move, atol=1e-12)


def test_no_slope_at_the_origin_is_asked_for():
    """All walks of a control start there, and what its Jacobian says there was never learned."""
    plain = stretched("control", 5).kernels
    steep = replace(plain, field=Separate(*(Scaling(lambda t: torch.as_tensor(1e4).double(), 1, 1) for _ in STDS)))
    x = torch.zeros(1, 1, 2).double()
    unknown = directional(steep).posterior(0, x)[1]
    torch.testing.assert_close(unknown + plain.table.posterior.sure[0], (plain.table.std[0] ** 2).expand(1, 2))


def step_variances(kind, table, k):
    """Of x_{k+1} | x_k for both coordinates, where x_t = a x1 + sigma xi and x_k = back x_{k+1} + back_std xi."""
    t = table.times[k + 1]
    if kind == "control":
        g = BROWNIAN.variance(t) / BROWNIAN.variance(torch.tensor(1.0).double())
        marginal = g**2 * STDS**2 + BROWNIAN.variance(torch.tensor(1.0).double()) * g * (1 - g)
    else:
        path, s = {"linear": (LinearInterpolant(), 1.5), "preserving": (VariancePreserving(), 1.5), "score": (NOISE, 5.0)}[kind]
        c = path.coefficients(t)
        marginal = c[0] ** 2 * STDS**2 + (c[1] * s) ** 2
    return 1 / (1 / marginal + table.back[k] ** 2 / table.back_std[k] ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 20])
def test_an_untrained_field_leaves_the_weights_proper(kind, steps):
    oracle, (start, table, exact) = double_well(), setting(kind, steps, space=Euclidean(n=1, d=1), spread=2.0)
    field = Wrong(Scaling(exact(2.0), 1, 1), randomise(MLP(1, 1, hidden=8, depth=2), seed=3))
    kernels = directional(FieldKernels(space=oracle.space, field=field, table=table))
    found = log_z(weigh(PathSampler(start=start, kernels=kernels, origin=ORIGIN).sample(8000, generator=seeded(steps)), oracle))
    assert abs(found.value - oracle.log_z) < 4 * found.stderr and found.stderr < 0.1


def test_fitted_kernels_on_the_mean_free_space_are_proper_and_mend_wrong_widths():
    oracle = GaussianOracle(space=DW4_SPACE, std=0.7)
    start, table, exact = setting("linear", 5, space=DW4_SPACE, spread=0.7)
    network = randomise(MultiHop(4, 2, MultiHopConfig(hidden=8, message=8, vectors=4, node_hidden=8)), seed=1, size=0.3)
    first = directional(FieldKernels(space=DW4_SPACE, field=Wrong(Scaling(exact(0.7), 4, 2), network), table=table))
    wrong = replace(first, floor=2 * first.floor)
    kernels = fitted(wrong, oracle.sample(2000, generator=seeded(3)), generator=seeded(4))
    samplers = [PathSampler(start=start, kernels=each, origin=ORIGIN) for each in (wrong, kernels)]
    before, after = (weigh(sampler.sample(1500, generator=seeded(2)), oracle) for sampler in samplers)
    for weighted in (before, after):
        assert abs(log_z(weighted).value - oracle.log_z) < 4 * log_z(weighted).stderr
    assert ess(after).value > 1.2 * ess(before).value
    assert torch.equal(fitted(wrong, oracle.sample(2000, generator=seeded(3)), generator=seeded(4)).floor, kernels.floor)


@pytest.mark.parametrize("space", [PLANE, MeanFree(n=3, d=2)], ids=str)
def test_the_density_is_that_of_a_normal_distribution_on_the_space(space):
    basis = basis_of(space)
    factor = torch.randn(space.dim, space.dim, generator=seeded(1), dtype=torch.float64)
    variances, vectors = torch.linalg.eigh(factor @ factor.T)
    mean = space.project(torch.randn(1, space.n, space.d, generator=seeded(2), dtype=torch.float64))
    kernel = CovarianceKernel(mean=mean.expand(5000, -1, -1), variances=variances.expand(5000, -1),
                              axes=(basis @ vectors).expand(5000, -1, -1))
    x = kernel.sample(generator=seeded(3))
    assert torch.allclose(x, space.project(x), atol=1e-12)
    flat = (x - mean).flatten(1) @ basis
    assert torch.allclose(kernel.log_prob(x), MultivariateNormal(torch.zeros(space.dim).double(), factor @ factor.T).log_prob(flat))
    assert torch.allclose(flat.T.cov(), factor @ factor.T, rtol=0.15, atol=0.2)


def test_rows_where_the_field_is_lost_stay_as_such():
    """NaN in, NaN out, and the other rows as if they were alone."""
    sampler = stretched("linear", 5)
    x = torch.tensor([[[0.3, -0.2]], [[math.nan, 0.0]]]).double()
    kernel = directional(sampler.kernels).forward(2, x)
    assert torch.isnan(kernel.mean[1]).all() and torch.isfinite(kernel.mean[0]).all() and (kernel.variances > 0).all()
    assert torch.equal(kernel.mean[:1], directional(sampler.kernels).forward(2, x[:1]).mean)
    with pytest.raises(ValueError, match="1 of 2 walks back"):
        fitted(directional(sampler.kernels), x, generator=seeded())


def test_what_has_no_directions_is_refused():
    kernels = stretched("linear", 3).kernels
    with pytest.raises(ValueError, match='weights = "path"'):
        directional(replace(kernels, table=replace(kernels.table, posterior=None)))
    with pytest.raises(ValueError, match="not flat"):
        basis_of(Torus(n=1, d=2))


def test_draws_depend_on_the_covariance_and_not_on_the_axes_it_is_written_in():
    """Axes of equal variances may be any, and their signs too: LAPACK's choice must not decide the numbers."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(5, 4, 4, generator=generator, dtype=torch.float64))[0]
    variances = torch.tensor([0.5, 2.0, 2.0, 2.0], dtype=torch.float64).expand(5, 4)
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    turn[0, 0] = -1
    mean = torch.zeros(5, 2, 2, dtype=torch.float64)
    drawn, again = (CovarianceKernel(mean=mean, variances=variances, axes=a).sample(generator=torch.Generator().manual_seed(1))
                    for a in (axes, axes @ turn))
    torch.testing.assert_close(drawn, again, rtol=0, atol=1e-12)
