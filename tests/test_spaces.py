"""Geodesics on every space: exp, log, transport and distance are what their names say, also where points nearly meet or are antipodal."""

import math

import pytest
import torch
from torch import Tensor

from bgwork.curved import ConstantCurvature, Hyperboloid, Sphere
from bgwork.priors import Uniform, WrappedNormal, tangent_noise, wrapped_normal_log_prob
from bgwork.spaces import Euclidean, MeanFree, Torus

CURVED = {
    "S2": Sphere(n=1, d=3), "S4 of radius 2": Sphere(n=1, d=5, curvature=0.25), "three points on S2": Sphere(n=3, d=3),
    "H2": Hyperboloid(n=1, d=3), "H4 of curvature -2": Hyperboloid(n=1, d=5, curvature=-2.0), "two points on H3": Hyperboloid(n=2, d=4)}
SPACES = CURVED | {"R2": Euclidean(n=1, d=2), "mean-free": MeanFree(n=3, d=2), "torus": Torus(n=1, d=2)}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
every_curved = pytest.mark.parametrize("space", CURVED.values(), ids=CURVED.keys())


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def centre(space) -> Tensor:
    return space.project(torch.eye(space.n, space.d, dtype=torch.float64) + 0.1)


def points(space, n: int = 50, *, at: int = 0, std: float = 0.6) -> Tensor:
    return WrappedNormal(space=space, mean=centre(space), std=std).sample(n, generator=seed(at))


@every_space
def test_exp_and_log_undo_each_other(space):
    x, y = points(space), points(space, at=1)
    space.check(x)
    v = space.log(x, y)
    assert v.dtype == torch.float64 and (space.tangent(x, v) - v).abs().max() < 1e-11
    torch.testing.assert_close(space.exp(x, v), y, rtol=0, atol=1e-11)
    torch.testing.assert_close(space.square(v).sum(-1).sqrt(), space.distance(x, y), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(space.distance(x, y), space.distance(y, x), rtol=1e-12, atol=0)


@every_space
def test_transport_is_an_isometry_that_carries_the_geodesic_along_and_comes_back(space):
    x, y = points(space), points(space, at=1)
    v, w = (tangent_noise(space, x, generator=seed(k)) for k in (2, 3))
    there = space.transport(x, y, v)
    assert (space.tangent(y, there) - there).abs().max() < 1e-11
    torch.testing.assert_close(space.square(there + space.transport(x, y, w)), space.square(v + w), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(space.transport(x, y, space.log(x, y)), -space.log(y, x), rtol=0, atol=1e-10)
    torch.testing.assert_close(space.transport(y, x, there), v, rtol=0, atol=1e-10)


@pytest.mark.parametrize("space", [Sphere(n=1, d=3), Sphere(n=1, d=4, curvature=4.0), Hyperboloid(n=1, d=3)], ids=["S2", "S3", "H2"])
def test_transport_obeys_the_geodesic_s_own_differential_equation(space):
    """Many small projections (Schild's limit) approach it to first order in their length."""
    x = points(space, 5)
    v, w = (tangent_noise(space, x, generator=seed(k)) for k in (2, 3))
    errors = []
    for steps in (200, 400):
        place, carried = x, w
        for k in range(steps):
            place = space.exp(x, v * (k + 1) / steps)
            carried = space.tangent(place, carried)
        errors.append((carried - space.transport(x, place, w)).abs().max().item())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.02


@every_curved
@pytest.mark.parametrize("tiny", [1e-3, 1e-8, 1e-12])
def test_points_that_nearly_coincide_keep_their_digits(space, tiny):
    x = points(space, 20, std=0.3)
    v = tiny * tangent_noise(space, x, generator=seed(2))
    y = space.exp(x, v)
    assert ((space.log(x, y) - v).abs().amax((1, 2)) < 1e-14 + 1e-11 * tiny).all()
    assert (space.log(x, x) == 0).all() and (space.distance(x, x) == 0).all()


@pytest.mark.parametrize("space", [Sphere(n=1, d=3), Sphere(n=1, d=5, curvature=0.25)], ids=["S2", "S4"])
@pytest.mark.parametrize("short", [1e-3, 1e-7, 1e-9])
def test_points_that_are_nearly_antipodal_keep_their_digits(space, short):
    x = points(space, 20)
    direction = tangent_noise(space, x, generator=seed(2))
    v = direction / space.square(direction).sqrt()[..., None] * (math.pi - short) / space.scale
    y = space.exp(x, v)
    assert (space.distance(x, y) * space.scale - math.pi + short).abs().max() < 1e-14
    assert (space.log(x, y) - v).abs().max() < 1e-14 / short
    w = tangent_noise(space, x, generator=seed(3))
    torch.testing.assert_close(space.square(space.transport(x, y, w)), space.square(w), rtol=1e-12, atol=0)


def test_exactly_antipodal_points_have_a_distance_and_no_direction():
    space = Sphere(n=1, d=3)
    x = points(space, 3)
    assert torch.allclose(space.distance(x, -x), torch.full((3,), math.pi, dtype=torch.float64))
    assert space.log(x, -x).isnan().all()


@every_space
def test_volume_element_is_the_determinant_of_exp(space):
    """|det D exp_x(v)| from the Gram determinant of its differential on an orthonormal basis, by central differences."""
    x = points(space, 1)
    v = 0.8 * tangent_noise(space, x, generator=seed(2))
    basis = torch.cat([orthonormal_basis(space, x[:, None, k : k + 1], k) for k in range(space.n)]) if isinstance(
        space, ConstantCurvature) else flat_basis(space)
    h = 1e-5
    columns = torch.cat([(space.exp(x, v + h * e[None]) - space.exp(x, v - h * e[None])) / (2 * h) for e in basis])
    gram = torch.stack([torch.stack([inner(space, a, b) for b in columns]) for a in columns])
    assert 0.5 * torch.logdet(gram).item() == pytest.approx(space.log_exp_det(v).sum().item(), abs=1e-7)


def inner(space, a: Tensor, b: Tensor) -> Tensor:
    return space.inner(a, b).sum() if isinstance(space, ConstantCurvature) else (a * b).sum()


def flat_basis(space) -> Tensor:
    vectors = torch.linalg.svd(space.project(torch.eye(space.n * space.d, dtype=torch.float64).view(-1, space.n, space.d)).flatten(1)).Vh
    return vectors[: space.dim].view(-1, space.n, space.d)


def orthonormal_basis(space: ConstantCurvature, x: Tensor, k: int) -> Tensor:
    """Gram-Schmidt, in the metric of the tangent space of point k, [m, n, d]."""
    vectors: list[Tensor] = []
    for noise in torch.randn(space.m, space.d, generator=seed(5), dtype=torch.float64):
        e = space.tangent(x[0, 0], noise[None])[0]
        for other in vectors:
            e = e - space.inner(e, other) * other
        vectors.append(e / space.inner(e, e).sqrt())
    basis = torch.zeros(space.m, space.n, space.d, dtype=torch.float64)
    basis[:, k] = torch.stack(vectors)
    return basis


@every_space
def test_gradients_are_dual_to_displacements(space):
    """<grad f, v> = d/dh f(exp_x(h v)) for f a linear function of the ambient coordinates."""
    x = points(space, 10)
    v, slope = tangent_noise(space, x, generator=seed(2)), torch.randn(space.n, space.d, generator=seed(3), dtype=torch.float64)
    h = 1e-5
    change = ((space.exp(x, h * v) - space.exp(x, -h * v)) * slope).sum((1, 2)) / (2 * h)
    gradient = space.gradient(x, slope.expand_as(x))
    product = space.inner(gradient, v).sum(1) if isinstance(space, ConstantCurvature) else (gradient * v).sum((1, 2))
    torch.testing.assert_close(product, change, rtol=1e-8, atol=1e-8)


# Densities that integrate to one over the whole space: the images must all be there, once.

WIDTHS = [0.2, 0.8, 2.5]


@pytest.mark.parametrize("std", WIDTHS)
def test_wrapped_normal_on_the_torus_integrates_to_one(std):
    space = Torus(n=1, d=1)
    x = -math.pi + 2 * math.pi * torch.arange(200, dtype=torch.float64).view(-1, 1, 1) / 200
    mean = torch.full_like(x, 0.7)
    density = wrapped_normal_log_prob(space, torch.full_like(x, 3.0), x, mean, std=std).exp()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("std", WIDTHS)
@pytest.mark.parametrize("space", [
    Sphere(n=1, d=2), Sphere(n=1, d=3, curvature=0.6), Sphere(n=1, d=5), Hyperboloid(n=1, d=3), Hyperboloid(n=1, d=5, curvature=-0.5)],
    ids=["S1", "S2", "S4", "H2", "H4"])
def test_wrapped_normal_around_its_pole_integrates_to_one(space, std):
    """area(S^(m-1)) int q(r) (sin(s r)/s)^(m-1) dr, by quadrature along one geodesic."""
    pole = torch.zeros(1, 1, space.d, dtype=torch.float64)
    pole[..., 0] = 1 / space.scale
    reach = math.pi / space.scale if isinstance(space, Sphere) else std * 10 + (space.m - 1) * std**2 * space.scale
    r = reach * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    v = torch.zeros(len(r), 1, space.d, dtype=torch.float64)
    v[:, 0, 1] = r
    y = space.exp(pole.expand_as(v), v)
    density = wrapped_normal_log_prob(space, pole.expand_as(v), y, torch.zeros_like(v), std=std).exp()
    area = 2 * math.pi ** (space.m / 2) / math.gamma(space.m / 2)
    total = area * (density * (r * space.sine_ratio(space.scale * r)) ** (space.m - 1)).mean() * reach
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("space", [Sphere(n=1, d=3, curvature=0.6), Hyperboloid(n=1, d=4)], ids=["S2", "H3"])
def test_wrapped_normal_off_its_pole_integrates_to_one(space):
    proposal = Uniform(space=space) if isinstance(space, Sphere) else WrappedNormal(space=space, mean=centre(space), std=0.9)
    estimate, stderr = integral(space, centre(space)[None], proposal, std=0.5)
    assert abs(estimate - 1) < 4 * stderr < 0.1


def integral(space, x: Tensor, proposal, *, std: float, n: int = 40_000) -> tuple[float, float]:
    """int q(y) dy by importance sampling, for an off-centre Gaussian of the tangent space at x."""
    y = proposal.sample(n, generator=seed())
    mean = (0.4 * tangent_noise(space, x, generator=seed(2))).expand_as(y)
    values = (wrapped_normal_log_prob(space, x.expand_as(y), y, mean, std=std) - proposal.log_prob(y)).exp()
    return values.mean().item(), (values.std() / math.sqrt(n)).item()


@every_curved
def test_wrapped_normal_s_draws_have_its_density(space):
    """<1/q> over a cap of given radius is its volume: the density is that of the draws, not just some density."""
    prior = WrappedNormal(space=space, mean=centre(space), std=0.7)
    x = prior.sample(20_000, generator=seed())
    space.check(x)
    radius = 0.8
    inside = (space.angle(x, prior.mean.expand_as(x)) / space.scale < radius).all(1)
    values = inside * (-prior.log_prob(x)).exp()
    fine = torch.linspace(0, radius, 2001, dtype=torch.float64)
    ratio = space.sine_ratio(space.scale * fine)
    area = 2 * math.pi ** (space.m / 2) / math.gamma(space.m / 2)
    volume = area * torch.trapezoid((fine * ratio) ** (space.m - 1), fine).item()
    assert abs(values.mean().item() - volume**space.n) < 4 * values.std().item() / math.sqrt(len(x))


@pytest.mark.parametrize(("space", "log_volume"), [
    (Sphere(n=1, d=3), math.log(4 * math.pi)), (Sphere(n=2, d=3, curvature=0.25), 2 * math.log(16 * math.pi)),
    (Sphere(n=1, d=5), math.log(8 * math.pi**2 / 3)), (Torus(n=2, d=1), 2 * math.log(2 * math.pi))])
def test_uniform_density_is_one_over_the_volume(space, log_volume):
    x = Uniform(space=space).sample(2000, generator=seed())
    space.check(x)
    assert Uniform(space=space).log_prob(x).unique().item() == pytest.approx(-log_volume, abs=1e-12)
    assert (x.mean(0).abs() < 4 * x.std(0) / math.sqrt(len(x))).all()


@pytest.mark.parametrize(("kind", "curvature"), [(Sphere, 0.0), (Sphere, -1.0), (Hyperboloid, 0.0), (Hyperboloid, 1.0), (Sphere, math.nan)])
def test_curvature_of_the_wrong_sign_is_refused(kind, curvature):
    with pytest.raises(ValueError, match=r"curvature 0 is Euclidean\(n, d\)"):
        kind(n=1, d=3, curvature=curvature)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 1, got d = 1"):
        Sphere(n=1, d=1)
    with pytest.raises(ValueError, match=r"apply space.project\(x\) first"):
        Sphere(n=1, d=3).check(torch.ones(2, 1, 3))
    with pytest.raises(ValueError, match=r"expected \[B, 1, 2\]"):
        Torus(n=1, d=2).check(torch.ones(2, 2))
    with pytest.raises(ValueError, match="infinite volume"):
        Uniform(space=Hyperboloid(n=1, d=3))
    with pytest.raises(ValueError, match="std must be positive"):
        WrappedNormal(space=Sphere(n=1, d=3), mean=centre(Sphere(n=1, d=3)), std=0.0)
