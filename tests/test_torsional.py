"""Torsional adjoint sampling: bridges and kernels on a torus, known log Z from untrained controls, torsions of a molecule."""

import math

import pytest
import torch
from torch import Tensor, nn

from bgwork.fields.torus import TorusMLP
from bgwork.geometry import angles, distances, torsions, wrap
from bgwork.objectives.replay import ReplaySettings, ReplaySource, regression_loss
from bgwork.objectives.torsional import TorsionalAdjointSampling, WeightedTorsionalAdjointSampling
from bgwork.paths import GeometricBrownian, stops
from bgwork.records import Density
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.torus import BridgeKernel, draw_image, image_shares, log_wrapped
from bgwork.spaces import Euclidean, MeanFree, Torus
from bgwork.system import load_system
from bgwork.targets.counting import CountedTarget
from bgwork.targets.torsion_angles import TorsionAngles, rotatable_bonds
from bgwork.training import TrainingConfig, TrainingJob, train

PLANE = Torus(n=1, d=2)
BROWNIAN = GeometricBrownian(std=2.5, ratio=0.1)


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


class CoupledRotors(CountedTarget):
    """u = -a cos(x - 1) - b cos(y + 2) - c cos(x - y); every answer by the periodic trapezoid rule, which is exact to round-off."""

    def __init__(self) -> None:
        super().__init__("rotors", PLANE)
        axis = wrap(2 * math.pi * torch.arange(256, dtype=torch.float64) / 256)
        self.grid = torch.cartesian_prod(axis, axis)[:, None]
        mass = torch.exp(-self._energy(self.grid))
        self.p, self.log_z = mass / mass.sum(), math.log(mass.mean().item() * 4 * math.pi**2)

    def _energy(self, x: Tensor) -> Tensor:
        a, b = x[:, 0].unbind(1)
        return -2.0 * torch.cos(a - 1) - 1.0 * torch.cos(b + 2) - 1.5 * torch.cos(a - b)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        rows = torch.multinomial(self.p, n, replacement=True, generator=generator)
        within = torch.rand(n, 1, 2, generator=generator, dtype=torch.float64) - 0.5
        return self.space.project(self.grid[rows] + within * 2 * math.pi / 256)


ROTORS = CoupledRotors()


def method(steps: int = 20, *, clip: float = 100.0) -> TorsionalAdjointSampling:
    return TorsionalAdjointSampling(space=PLANE, brownian=BROWNIAN, stops=stops(steps), clip=clip)


def weighted_method(steps: int = 20) -> WeightedTorsionalAdjointSampling:
    return WeightedTorsionalAdjointSampling(space=PLANE, brownian=BROWNIAN, stops=stops(steps), clip=100.0)


def test_images_are_drawn_with_the_probability_of_the_unwrapped_gaussian():
    """Wrapping N(0, variance) and drawing an image gives N(0, variance) back: variance and fourth moment."""
    y = 2.5 * torch.randn(40_000, 1, 2, generator=seed(), dtype=torch.float64)
    lifted = draw_image(PLANE, PLANE.project(y), variance=6.25, generator=seed(1))
    assert (wrap(lifted - y).abs() < 1e-12).all() and ((lifted - y).abs() > 1).any()
    for power, truth in ((1, 0.0), (2, 6.25), (4, 3 * 6.25**2)):
        values = lifted.flatten() ** power
        assert abs(values.mean().item() - truth) < 4 * values.std().item() / math.sqrt(len(values))


def test_shares_of_images_give_the_gradient_of_the_wrapped_normal():
    x = (torch.rand(20, 1, 2, generator=seed(), dtype=torch.float64) - 0.5) * 6
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_wrapped(PLANE, leaf, variance=4.0).sum(), leaf)
    images, shares = image_shares(PLANE, x, variance=4.0)
    torch.testing.assert_close(-(shares * images).sum(0) / 4.0, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_bridges_to_wrapped_ends_have_the_law_of_wrapped_brownian_motion(t):
    """<cos X_t> = exp(-nu_t / 2), and <cos(X_1 - X_t)> = exp(-(nu_1 - nu_t) / 2)."""
    n, total = 40_000, BROWNIAN.std**2
    x1 = PLANE.project(BROWNIAN.std * torch.randn(n, 1, 2, generator=seed(), dtype=torch.float64))
    lifted = draw_image(PLANE, x1, variance=total, generator=seed(1))
    x = PLANE.project(BROWNIAN.bridge(torch.full((n,), t), lifted, torch.randn(n, 1, 2, generator=seed(2), dtype=torch.float64)))
    now = BROWNIAN.variance(torch.tensor(t)).item()
    for values, variance in ((x.cos(), now), ((x1 - x).cos(), total - now)):
        assert abs(values.mean().item() - math.exp(-variance / 2)) < 4 * values.std().item() / math.sqrt(values.numel())


@pytest.mark.parametrize(("before", "now"), [(0.3, 0.5), (2.0, 5.0)])
def test_bridge_kernels_are_normalised_and_draw_what_they_say(before, now):
    space = Torus(n=1, d=1)
    grid = wrap(2 * math.pi * torch.arange(400, dtype=torch.float64) / 400).view(-1, 1, 1)
    kernel = BridgeKernel(space=space, y=torch.full_like(grid, 2.2), before=before, now=now)
    density = kernel.log_prob(grid).exp()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-9)
    ends = torch.full((20_000, 1, 1), 2.2, dtype=torch.float64)
    many = BridgeKernel(space=space, y=ends, before=before, now=now).sample(generator=seed())
    for f in (torch.cos, torch.sin):
        expected = (density * f(grid[:, 0, 0])).mean().item() * 2 * math.pi
        assert abs(f(many).mean().item() - expected) < 4 * f(many).std().item() / math.sqrt(len(many))


class Swirl(nn.Module):
    """A control that nobody trained."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.sin(x + x.flip(2) - 1) - 0.2 * t


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_path_weights_of_an_untrained_control_give_the_known_log_z(steps):
    weighted = weigh(method(steps).sampler(Swirl()).sample(20_000 if steps < 100 else 4000, generator=seed(steps)), ROTORS)
    estimate, moment = log_z(weighted), expectation(weighted, lambda x: torch.cos(x[:, 0, 0]))
    assert weighted.proposal.density is Density.PATH and weighted.n_failed == 0
    assert abs(estimate.value - ROTORS.log_z) < 4 * estimate.stderr < 0.4
    truth = (ROTORS.p * torch.cos(ROTORS.grid[:, 0, 0])).sum().item()
    assert abs(moment.value - truth) < 4 * moment.stderr


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_regression_at_exact_ends_agrees_with_bridge_matching(t):
    """At the fixed point E[value | X_t] = E[(lifted X_1 - X_t) / (nu_1 - nu_t) | X_t]: both have the same moments with functions of X_t."""
    n, total = 100_000, BROWNIAN.std**2
    x1 = ROTORS.sample(n, generator=seed())
    # Ends weighted by the target alone: the image of an end, given the end, is that of the base process, as in the reciprocal projection.
    lifted = draw_image(PLANE, x1, variance=total, generator=seed(1))
    unwrapped = BROWNIAN.bridge(torch.full((n,), t), lifted, torch.randn(n, 1, 2, generator=seed(2), dtype=torch.float64))
    images, shares = image_shares(PLANE, x1, variance=total)
    value = (shares * images).sum(0) / total - ROTORS.u_and_grad(x1)[1]
    left = total - BROWNIAN.variance(torch.tensor(t)).item()
    difference = value - (lifted - unwrapped) / left
    for f in (torch.ones_like, torch.cos, torch.sin):
        values = (difference * f(unwrapped))[:, 0]
        assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(n)).all()


def test_both_identities_of_the_fixed_point_have_the_same_moments():
    """Ends that follow the target: what the weighted method adds to the regression of the plain one averages to nought with f(X_t)."""
    n = 100_000
    x1 = ROTORS.sample(n, generator=seed())
    rows = {"x": x1, "gradient": ROTORS.u_and_grad(x1)[1]}
    plain, both = (made.regression(ROTORS, rows, generator=seed(1)) for made in (method(), weighted_method()))
    assert torch.equal(plain.x, both.x) and torch.equal(plain.t, both.t) and (both.weight > 0).all()
    difference = both.value - plain.value
    assert difference.std() > 0.1
    for f in (torch.ones_like, torch.cos, torch.sin):
        values = (difference * f(plain.x))[:, 0]
        assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(n)).all()


def test_end_points_are_drawn_by_their_tempered_weight():
    settings = ReplaySettings(capacity=500, fresh=500, batch=100, effective=0.2)
    source = ReplaySource(target=ROTORS, method=weighted_method(), settings=settings, seed=0)
    source._refill(Swirl(), seed())
    p = source.buffer["log_p"].exp()
    assert p.sum() == pytest.approx(1) and 1 / p.square().sum() / 500 > 0.199
    order = source.buffer["log_w"].argsort()
    assert (source.buffer["log_p"][order].diff() >= 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_training_on_a_torus_makes_the_weights_even(tmp_path, weighted):
    torch.manual_seed(0)
    settings = ReplaySettings(capacity=2000, fresh=300, every=25, batch=256, effective=0.2 if weighted else 1.0)
    source = ReplaySource(target=ROTORS, method=weighted_method() if weighted else method(), settings=settings, seed=0)
    config = TrainingConfig(steps=300, warmup=10, log_every=100, learning_rate=5e-3, ema=0.98)
    model = TorusMLP(1, 2, hidden=48, depth=3)
    before = ess_of(TorusMLP(1, 2, hidden=8, depth=1))
    train(TrainingJob(model=model, loss=regression_loss, data=source, config=config, folder=tmp_path, meta={}), resume=False)
    after = ess_of(model)
    assert after > 0.65 and after > before + 0.2


def ess_of(model: nn.Module) -> float:
    return ess(weigh(method(40).sampler(model).sample(1000, generator=seed(5)), ROTORS)).value


def test_clipping_is_per_angle_and_counted():
    rows = method().measure(ROTORS, method().sampler(Swirl()).sample(200, generator=seed()))
    free, short = (method(clip=clip).regression(ROTORS, rows, generator=seed(1)) for clip in (100.0, 1.0))
    assert free.clipped == 0 and short.clipped == (rows["gradient"].abs() > 1).double().mean().item() > 0
    assert ((free.value - short.value).abs() - (rows["gradient"].abs() - 1).clamp_min(0)).abs().max() < 1e-12


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="needs a torus"):
        TorsionalAdjointSampling(space=Euclidean(n=1, d=2), brownian=BROWNIAN, stops=stops(3), clip=1.0)
    proposal = method(2).sampler(Swirl()).sample(3, generator=seed())
    with pytest.raises(ValueError, match="give both the same space"):
        method(2).measure(CoupledElsewhere(), proposal)
    with pytest.raises(ValueError, match="at least 1"):
        TorusMLP(1, 2, depth=0)


class CoupledElsewhere(CoupledRotors):
    """The same energy claiming to live elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.space = MeanFree(n=2, d=1)


# Torsions of alanine dipeptide


@pytest.fixture(scope="module")
def peptide() -> TorsionAngles:
    system = load_system("ala2-vacuum")
    return TorsionAngles(system.differentiable_target, system.structure, rotatable_bonds(system.topology))


def test_torsions_of_a_peptide_turn_alone_and_by_their_angle(peptide):
    system = load_system("ala2-vacuum")
    phi = (torch.rand(10, 1, len(peptide.bonds), generator=seed(), dtype=torch.float64) - 0.5) * 2 * math.pi
    x, reference = peptide.cartesian(phi), peptide.cartesian(torch.zeros(1, 1, len(peptide.bonds), dtype=torch.float64))
    peptide.molecule.space.check(x)
    torch.testing.assert_close(reference[0], system.structure.double(), rtol=0, atol=1e-6)
    named = torch.tensor([bond.atoms for bond in peptide.bonds])
    torch.testing.assert_close(wrap(torsions(x, named) - torsions(reference, named) - phi[:, 0]), torch.zeros(10, len(named)).double(),
                               rtol=0, atol=1e-9)
    pairs = torch.tensor(system.topology.bonds)
    torch.testing.assert_close(distances(x, pairs), distances(reference, pairs).expand(10, -1), rtol=0, atol=1e-12)
    bends = torch.tensor([(a, b, c) for b, near in enumerate(system.topology.neighbours) for a in near for c in near if a < c])
    torch.testing.assert_close(angles(x, bends), angles(reference, bends).expand(10, -1), rtol=0, atol=1e-10)


def test_alanine_dipeptide_has_seven_bonds_to_turn_about(peptide):
    """Three methyl groups, phi, psi and two amides."""
    elements = load_system("ala2-vacuum").topology.elements
    middles = sorted("".join(sorted(elements[a] for a in bond.atoms[1:3])) for bond in peptide.bonds)
    assert middles == ["CC", "CC", "CC", "CN", "CN", "CN", "CN"] and peptide.space == Torus(n=1, d=7)


def test_torsional_gradient_is_that_of_the_torsional_energy(peptide):
    phi = 0.3 * torch.randn(3, 1, 7, generator=seed(), dtype=torch.float64)
    (u, gradient), h = peptide.u_and_grad(phi), 1e-5
    torch.testing.assert_close(u, peptide.u(phi))
    for k in range(7):
        shift = torch.zeros_like(phi)
        shift[..., k] = h
        slope = (peptide.u(phi + shift) - peptide.u(phi - shift)) / (2 * h)
        torch.testing.assert_close(gradient[:, 0, k], slope, rtol=1e-5, atol=1e-4)
    leaf = phi.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(peptide.u(leaf).sum(), leaf)[0], gradient, rtol=1e-8, atol=1e-8)


def test_a_molecule_without_rotatable_bonds_is_refused(peptide):
    with pytest.raises(ValueError, match="no rotatable bond"):
        TorsionAngles(peptide.molecule, peptide.structure, ())
