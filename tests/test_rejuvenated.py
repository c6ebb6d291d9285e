"""Samples of any generator refreshed by moves, and flows annealed in latent space: proper weights, improper starts refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from annealing import PLANE, SPACES, Drawn, exactly, right, seed, square
from oracles import LINE, GaussianOracle, chains, double_well, propose
from simple_fields import Linear, folding, randomise

from bgwork.fields.mlp import MLP
from bgwork.priors import Gaussian
from bgwork.protocols import Target
from bgwork.records import Density, Origin, WeightedSamples
from bgwork.reweighting import average, ess, expectation, log_z, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.latent import AnnealedFlow, PulledBack
from bgwork.samplers.moves import CrankNicolson, Hamiltonian
from bgwork.samplers.resampling import ancestral_ess
from bgwork.samplers.smc import SMC, Rejuvenated
from bgwork.targets.gaussian_mixture import GaussianMixture


def test_rejuvenation_keeps_log_z_and_makes_averages_better():
    target = double_well()
    source = Drawn(Gaussian(space=LINE, std=3.0))
    sampler = Rejuvenated(source=source, target=target, kernel=Hamiltonian(transitions=8), islands=50)
    schedule = sampler.tune(generator=seed())
    assert schedule.betas == (1.0,)
    start = sampler.start(5000, generator=seed(1))
    ended = sampler.run(start, schedule, generator=seed(2))
    plain, weighted = weigh(propose(source.source, 5000, seed=start.proposal.origin.seed), target), weigh(ended.proposal, target)
    assert log_z(weighted).value == pytest.approx(log_z(plain).value, abs=1e-9)
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4
    u = average(weighted, weighted.u)
    assert abs(u.z(exactly(target.average(target.u)))) < 4 and u.n_eff > 1.5 * average(plain, plain.u).n_eff
    assert abs(expectation(weighted, right).z(exactly(target.average(right)))) < 4
    assert ess(weighted).value == pytest.approx(ancestral_ess(ended.population).value)
    assert ess(weighted).value < 1.05 * ess(plain).value < 0.6


def test_rejuvenation_cools_from_the_temperature_it_is_told():
    """A generator of exp(-u/4): weighed to exp(-.3 u) first, then cooled."""
    target, hot = GaussianOracle(space=SPACES[1], std=0.5, offset=-2.0), GaussianOracle(space=SPACES[1], std=1.0)
    sampler = Rejuvenated(source=Drawn(hot), target=target, hottest=0.3)
    schedule = sampler.tune(generator=seed())
    assert schedule.betas[0] == 0.3 and schedule.betas[-1] == 1.0 and len(schedule.betas) > 2
    weighted = weigh(sampler.sample(2000, generator=seed(1)), target)
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.1
    assert abs(expectation(weighted, square).z(exactly(target.mean_square))) < 4
    assert weighted.proposal.origin.method == "GaussianOracle+rejuvenated" and weighted.proposal.note.endswith("start: drawn")


def test_improper_starts_are_refused_unless_accepted():
    target = GaussianOracle(space=PLANE)
    for density in (Density.UNCERTIFIED, Density.STOCHASTIC):
        sampler = Rejuvenated(source=Drawn(GaussianOracle(space=PLANE, std=1.2), density), target=target)
        with pytest.raises(ValueError, match=f"{density.value} samples have no proper weights"):
            sampler.sample(64, generator=seed())
        proposal = replace(sampler, accept=[density]).sample(64, generator=seed())
        assert proposal.density is density and proposal.origin.edits == (f"accepted {density.value} density",)
        with pytest.raises(ValueError, match="no proper weights"):
            weigh(proposal, target)


def test_unnormalised_starts_stay_unnormalised():
    target = GaussianOracle(space=PLANE)
    proposal = Rejuvenated(source=Drawn(target, Density.UNNORMALISED), target=target).sample(64, generator=seed())
    with pytest.raises(ValueError, match="log Z is unknown"):
        log_z(weigh(proposal, target))


class Chains:
    """A sampler of correlated rows."""

    space = PLANE

    def sample(self, n, *, generator):
        return chains(GaussianOracle(space=PLANE), 4, n // 4, memory=0.5, seed=0)


def test_correlated_starts_are_refused():
    with pytest.raises(ValueError, match="AR\\(1\\) samples are correlated"):
        Rejuvenated(source=Chains(), target=GaussianOracle(space=PLANE)).sample(64, generator=seed())


@pytest.mark.parametrize("hottest", [0.0, 1.5])
def test_bad_first_temperatures_are_refused(hottest):
    target = GaussianOracle(space=PLANE)
    with pytest.raises(ValueError, match="inverse temperature in \\(0, 1\\]"):
        Rejuvenated(source=Drawn(target), target=target, hottest=hottest)


def plane_flow(field, *, steps=4, space=PLANE, **options):
    return Flow(prior=Gaussian(space=space), field=field, origin=Origin(method="flow", system="test"), grid=Grid(steps=steps, **options))


def test_the_pulled_back_target_is_the_path_from_q_to_the_target():
    flow, target = plane_flow(randomise(MLP(1, 2, hidden=8, depth=2))), GaussianMixture(torch.ones(1, 2), std=1.5)
    pulled, z = PulledBack(flow, target), flow.prior.sample(5, generator=seed())
    assert isinstance(pulled, Target)
    x = flow.forward(z)
    log_w = -target.u(x) - flow.log_prob(x)
    torch.testing.assert_close(pulled.u(z) + flow.prior.log_prob(z), -log_w, rtol=0, atol=1e-9)
    u, grad = pulled.u_and_grad(z)
    torch.testing.assert_close(u, pulled.u(z), rtol=0, atol=1e-12)
    for k in range(2):
        h = torch.zeros_like(z).index_fill_(2, torch.tensor([k]), 1e-5)
        torch.testing.assert_close(grad[:, 0, k], (pulled.u(z + h) - pulled.u(z - h)) / 2e-5, rtol=1e-6, atol=1e-7)
    assert pulled.n_pushed == 35 and pulled.n_energy == 35 and pulled.n_gradient == 5


@pytest.mark.parametrize("kernel", [CrankNicolson(), Hamiltonian(leapfrog=1)], ids=["crank-nicolson", "hmc"])
def test_annealed_flows_have_proper_weights(kernel):
    """The flow widens space, so that its determinants matter: log det DT = 0.9."""
    field = Linear(torch.tensor([[0.6, -0.8], [0.5, 0.3]], dtype=torch.float64))
    flow, target = plane_flow(field), GaussianOracle(space=PLANE, std=0.6, offset=-1.0)
    proposal = AnnealedFlow(flow=flow, target=target, kernel=kernel, pilot=32).sample(320, generator=seed())
    assert proposal.density is Density.PATH and proposal.certificate.clean and len(proposal.group.unique()) == 32
    weighted = weigh(proposal, target)
    torch.testing.assert_close(weighted.u, target.u(proposal.x))
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4 and log_z(weighted).stderr < 0.2
    assert abs(expectation(weighted, square).z(exactly(target.mean_square))) < 4
    assert (proposal.cost.energy, proposal.cost.gradient) == (target.n_energy - 320 - 320, target.n_gradient)
    assert proposal.cost.network == proposal.cost.jacobian > 320 * 2 * flow.evaluations


def test_a_folding_flow_is_not_certified_by_annealing():
    flow = plane_flow(folding(), space=LINE, steps=1, integrator="euler")
    proposal = AnnealedFlow(flow=flow, target=GaussianOracle(space=LINE), pilot=32).sample(64, generator=seed())
    assert proposal.density is Density.UNCERTIFIED and proposal.certificate.n_negative > 0
    with pytest.raises(ValueError, match="no proper weights"):
        weigh(proposal, GaussianOracle(space=LINE))


def test_flows_are_not_priors():
    flow = plane_flow(Linear(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="Flow is a sampler, not a prior; anneal a flow with AnnealedFlow"):
        SMC(prior=flow, target=GaussianOracle(space=PLANE)).sample(64, generator=seed())


def test_weighted_samples_of_a_rejuvenated_flow():
    flow, target = plane_flow(randomise(MLP(1, 2, hidden=8, depth=2))), GaussianOracle(space=PLANE, std=1.1)
    proposal = Rejuvenated(source=flow, target=target, pilot=32).sample(400, generator=seed())
    weighted = weigh(proposal, target)
    assert isinstance(weighted, WeightedSamples) and proposal.certificate is None and "executed map" in proposal.note
    assert abs(log_z(weighted).z(exactly(target.log_z))) < 4
    assert proposal.cost.network == (400 + 32) * flow.evaluations
