"""One table of what every sampler must do: an honest proposal, the same numbers for the same seed, proper weights, clear refusals."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from oracles import GaussianOracle
from scipy.special import i0, i1
from simple_fields import Linear, exploding, randomise

from bgwork.curved import Sphere
from bgwork.fields.ambient import AmbientDrifts
from bgwork.fields.egnn import EGNN
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.torus import TorusMLP
from bgwork.priors import Gaussian, Uniform
from bgwork.protocols import HasLogProb, Sampler
from bgwork.records import Density, Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.geodesic_flow import CurrentVelocity, GeodesicFlow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.mcmc import HMC, ParallelTempering
from bgwork.samplers.ode import AdaptiveFlow, ContinuousFlow, HutchinsonFlow, SolverError, predicted_damage
from bgwork.samplers.torus_flow import TorusFlow
from bgwork.spaces import Euclidean, MeanFree, Torus

LINE, PLANE, DW4 = Euclidean(n=1, d=1), Euclidean(n=1, d=2), MeanFree(n=4, d=2)
SPHERE, TORUS = Sphere(n=1, d=3), Torus(n=1, d=2)
ORIGIN = Origin(method="test", system="oracle")


class Oracle(NamedTuple):
    """An energy with its log Z and mean."""

    u: Callable[[torch.Tensor], torch.Tensor]
    log_z: float
    mean_u: float


def gaussian(space):
    target = GaussianOracle(space=space)
    return Oracle(target.u, target.log_z, space.dim / 2)


TARGETS = {
    PLANE: gaussian(PLANE), DW4: gaussian(DW4),
    SPHERE: Oracle(lambda x: -x[:, 0, 2], math.log(4 * math.pi * math.sinh(1)), 1 - 1 / math.tanh(1)),  # von Mises and Fisher
    TORUS: Oracle(lambda x: -x.cos().sum((1, 2)), 2 * math.log(2 * math.pi * i0(1)), -2 * i1(1) / i0(1))}


def mlp():
    torch.manual_seed(2)
    return randomise(MLP(1, 2, hidden=16, depth=2), seed=2, size=0.8)


def egnn():
    torch.manual_seed(0)
    return randomise(EGNN(4, 2, layers=2, hidden=6, reach=0.4), size=0.8)


def two_hops():
    torch.manual_seed(0)
    return randomise(MultiHop(4, 2, MultiHopConfig(hidden=8, message=6, vectors=4, node_hidden=10, n_basis=6)), size=0.3)


def periodic():
    torch.manual_seed(0)
    field = TorusMLP(1, 2, hidden=16, depth=2)
    torch.nn.init.normal_(field.last.weight, std=0.3)
    return field.double()


def drifting():
    torch.manual_seed(0)
    drifts = AmbientDrifts(SPHERE, hidden=16, depth=2)
    torch.nn.init.normal_(drifts.last.weight, std=0.3)
    return CurrentVelocity(drifts, SPHERE)


def generated(kind, space, field, **options):
    return kind(prior=Gaussian(space=space, std=1.3), field=field(), origin=ORIGIN, **options)


def chain(kind, **options):
    target = GaussianOracle(space=DW4)
    start = target.sample(50, generator=torch.Generator().manual_seed(9))
    return kind(target=target, start=start, burn_in=100, thin=2, leapfrog=6, step=0.4, system="oracle", **options)


GENERATORS = {
    "executed map, mlp": lambda **o: generated(Flow, PLANE, mlp, grid=Grid(steps=3), **o),
    "executed map, two hops": lambda **o: generated(Flow, DW4, two_hops, grid=Grid(integrator="heun", steps=3), **o),
    "executed map, geodesics": lambda **o: GeodesicFlow(
        prior=Uniform(space=SPHERE), field=drifting(), origin=ORIGIN, times=(0.0, 0.5, 1.0), **o),
    "executed map, torus": lambda **o: TorusFlow(prior=Uniform(space=TORUS), field=periodic(), origin=ORIGIN, grid=Grid(steps=3), **o),
    "divergence integral, mlp": lambda **o: generated(ContinuousFlow, PLANE, mlp, grid=Grid(integrator="rk4", steps=6), **o),
    "divergence integral, egnn": lambda **o: generated(ContinuousFlow, DW4, egnn, grid=Grid(steps=6), **o),
    "adaptive, mlp": lambda **o: generated(AdaptiveFlow, PLANE, mlp, **o),
}
NOISY = {"hutchinson, egnn": lambda **o: generated(HutchinsonFlow, DW4, egnn, grid=Grid(steps=4), **o)}
CHAINS = {"hmc": lambda: chain(HMC), "parallel tempering": lambda: chain(ParallelTempering, betas=(1.0, 0.5))}
SAMPLERS = {**GENERATORS, **NOISY, **CHAINS}
DENSITIES = {"executed": Density.EXACT, "divergence": Density.CONTINUOUS, "adaptive": Density.CONTINUOUS, "hutchinson": Density.STOCHASTIC,
             "hmc": Density.UNNORMALISED, "parallel": Density.UNNORMALISED}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_generator = pytest.mark.parametrize("name", GENERATORS)


def seed(value=0):
    return torch.Generator().manual_seed(value)


@every_sampler
def test_an_honest_proposal(name):
    sampler = SAMPLERS[name]()
    proposal = sampler.sample(7, generator=seed(3))
    assert isinstance(sampler, Sampler) and proposal.space == sampler.space and len(proposal) == 7
    assert proposal.density is DENSITIES[name.replace(",", " ").split()[0]]
    assert torch.isfinite(proposal.x).all() and torch.isfinite(proposal.log_q).all()
    assert (proposal.x - proposal.space.project(proposal.x)).abs().max() < 1e-12
    assert proposal.origin.seed == 3 and proposal.origin.system == "oracle" and proposal.origin.edits == ()
    assert proposal.cost.seconds > 0 and proposal.cost.network + proposal.cost.gradient > 0
    assert not (proposal.x.requires_grad or proposal.log_q.requires_grad)
    assert (proposal.certificate is not None) == (proposal.sign is not None) == name.startswith("executed")
    assert (proposal.group is not None) == (name in CHAINS)


@every_sampler
def test_same_seed_same_numbers(name):
    first, again, other = (SAMPLERS[name]().sample(5, generator=seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.x, again.x) and torch.equal(first.log_q, again.log_q)
    assert (first.x - other.x).abs().max() > 1e-3


@every_sampler
@pytest.mark.parametrize("n", [0, -3])
def test_no_samples_is_refused(name, n):
    with pytest.raises(ValueError, match=f"got {n}"):
        SAMPLERS[name]().sample(n, generator=seed())


@pytest.mark.parametrize("name", [*GENERATORS, *NOISY])
def test_results_do_not_depend_on_the_batch_and_progress_is_told(name):
    told = []
    small = SAMPLERS[name](batch=3, on_batch=lambda done, total: told.append((done, total))).sample(8, generator=seed())
    large = SAMPLERS[name](batch=100).sample(8, generator=seed())
    atol = 1e-3 if name.startswith("adaptive") else 1e-12
    torch.testing.assert_close(small.x, large.x, rtol=0, atol=atol)
    torch.testing.assert_close(small.log_q, large.log_q, rtol=0, atol=atol)
    assert told == [(3, 8), (6, 8), (8, 8)]


@every_generator
def test_log_prob_agrees_with_the_samples_own(name):
    sampler = GENERATORS[name]()
    proposal = sampler.sample(6, generator=seed())
    assert isinstance(sampler, HasLogProb)
    tolerance = 1e-9 if proposal.density is Density.EXACT else 5e-3
    torch.testing.assert_close(sampler.log_prob(proposal.x), proposal.log_q, rtol=0, atol=tolerance)


@every_generator
@pytest.mark.parametrize("spoil,message", [
    (lambda x: x[:, :, :1], "expected"),
    (lambda x: x[0], "expected"),
    (lambda x: x.index_fill(0, torch.tensor([1]), math.nan), "1 of 4 configurations hold NaN or infinity .first: row 1.; remove"),
    (lambda x: x / 0, "NaN or infinity"),
    (lambda x: x.numpy(), "must be a torch.Tensor"),
])
def test_log_prob_refuses_what_is_not_a_configuration(name, spoil, message):
    sampler = GENERATORS[name]()
    with pytest.raises(ValueError, match=message):
        sampler.log_prob(spoil(sampler.prior.sample(4, generator=seed())))


@pytest.mark.parametrize("name", [name for name in GENERATORS if GENERATORS[name]().space is DW4])
def test_log_prob_refuses_configurations_off_the_space(name):
    sampler = GENERATORS[name]()
    with pytest.raises(ValueError, match="apply space.project"):
        sampler.log_prob(sampler.prior.sample(4, generator=seed()) + 1)


def z_score(sampler, n=3000):
    """(mean of w / Z - 1) in standard errors, and the effective sample size, on a Gaussian of known Z."""
    target = TARGETS[sampler.space]
    proposal = sampler.sample(n, generator=seed(5))
    w = torch.exp(-target.u(proposal.x) - proposal.log_q - target.log_z)
    z_f = (w * target.u(proposal.x) - target.mean_u).mean() / ((w * target.u(proposal.x)).std() / math.sqrt(n))
    z = (w.mean() - 1) / (w.std() / math.sqrt(n))
    return z.item(), z_f.item(), (w.sum().square() / w.square().sum() / n).item()


@every_generator
def test_proper_weights(name):
    z, z_f, ess = z_score(GENERATORS[name](), n=1000 if "egnn" in name else 3000)
    assert 0.2 < ess < 0.95  # neither hopeless nor trivial
    assert abs(z) < 4 and abs(z_f) < 4


@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_proper_ratios(name):
    proposal = CHAINS[name]().sample(5000, generator=seed(5))
    target = TARGETS[DW4]
    u = target.u(proposal.x)
    torch.testing.assert_close(proposal.log_q, -u)
    means = torch.stack([u[proposal.group == k].mean() for k in proposal.group.unique()])
    assert abs(u.mean() - DW4.dim / 2) < 4 * means.std() / math.sqrt(len(means))


@pytest.mark.parametrize("name,method", [("divergence integral, mlp", "value_and_divergence"), ("executed map, mlp", "value_and_jacobian"),
                                         ("adaptive, mlp", "value_and_divergence")])
def test_a_flipped_sign_is_caught(name, method, monkeypatch):
    right = getattr(MLP, method)
    monkeypatch.setattr(MLP, method, lambda self, t, x: (right(self, t, x)[0], -right(self, t, x)[1]))
    assert abs(z_score(GENERATORS[name]())[0]) > 6


def test_fixed_grid_and_adaptive_solver_agree():
    fixed = generated(ContinuousFlow, PLANE, mlp, grid=Grid(integrator="rk4", steps=64)).sample(16, generator=seed())
    adaptive = generated(AdaptiveFlow, PLANE, mlp, rtol=1e-9, atol=1e-9).sample(16, generator=seed())
    executed = generated(Flow, PLANE, mlp, grid=Grid(integrator="rk4", steps=64)).sample(16, generator=seed())
    for other in (adaptive, executed):
        torch.testing.assert_close(other.x, fixed.x, rtol=0, atol=1e-6)
        torch.testing.assert_close(other.log_q, fixed.log_q, rtol=0, atol=1e-6)


def test_the_solver_error_is_measured():
    notes = [generated(ContinuousFlow, PLANE, mlp, grid=Grid(steps=s)).sample(9, generator=seed()).note for s in (2, 32)]
    coarse, fine = (float(note.split("average (")[1].split(" r.m.s.")[0]) for note in notes)
    assert coarse > 50 * fine > 0 and "(9 samples)" in notes[0]
    unmeasured = generated(ContinuousFlow, PLANE, mlp, n_check=0).sample(2, generator=seed())
    assert "not measured" in unmeasured.note


def test_hutchinson_noise_is_unbiased_and_its_damage_predicted():
    matrix = torch.tensor([[0.3, -0.8], [0.2, -0.6]], dtype=torch.float64)
    sampler = HutchinsonFlow(prior=Gaussian(space=PLANE), field=Linear(matrix), origin=ORIGIN, grid=Grid(steps=2), probes=2, batch=5000)
    noisy = sampler.sample(5000, generator=seed())
    z = sampler.prior.sample(5000, generator=seed())
    noise = noisy.log_q - (sampler.prior.log_prob(z) - matrix.trace())
    tau2 = (-0.8 + 0.2) ** 2 / 2  # var(eps A eps) = sum_{i<j} (a_ij + a_ji)^2 over 2 probes
    assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(5000)
    assert noise.var().item() == pytest.approx(tau2, rel=0.1)
    assert f"tau^2 = {tau2:.2g}"[:-1] in noisy.note


def test_damage_in_words():
    spread = torch.tensor([[0.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    note = predicted_damage(spread)  # variance 2 between two probes: tau^2 = 1
    assert "tau^2 = 1 " in note and f"ESS x {math.exp(-1):.3g}" in note and "log Z +0.5" in note


@pytest.mark.parametrize("kind", [Flow, ContinuousFlow, AdaptiveFlow, HutchinsonFlow])
def test_a_field_that_does_not_fit_is_refused(kind):
    with pytest.raises(ValueError, match="1 particles in 2 dimensions"):
        generated(kind, DW4, mlp).sample(2, generator=seed())
    with pytest.raises(ValueError, match="subtract its mean"):
        generated(kind, DW4, lambda: randomise(MLP(4, 2, hidden=8, depth=1))).sample(2, generator=seed())
    with pytest.raises(ValueError, match="positive integer"):
        generated(kind, PLANE, mlp, batch=0)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="at least 2 probes"):
        generated(HutchinsonFlow, PLANE, mlp, probes=1)
    with pytest.raises(ValueError, match="rtol and atol"):
        generated(AdaptiveFlow, PLANE, mlp, rtol=0.0)
    with pytest.raises(ValueError, match="NaN"):
        generated(Flow, PLANE, mlp, round_trip=torch.full((1, 1, 2), math.nan))


def test_the_adaptive_solver_says_when_it_gives_up():
    sampler = AdaptiveFlow(prior=Gaussian(space=LINE), field=exploding(), origin=ORIGIN)
    with pytest.raises(SolverError, match="use a fixed grid"):
        sampler.sample(100, generator=seed())
