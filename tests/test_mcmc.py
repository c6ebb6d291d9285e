"""Markov chain samplers on targets whose averages are known, and what they promise as samplers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize

from bgwork.protocols import Sampler
from bgwork.records import Density
from bgwork.samplers.convergence import chain_average
from bgwork.samplers.mcmc import HMC, ParallelTempering, StepSize
from bgwork.samplers.starts import STARTS
from bgwork.targets.gaussian_mixture import GaussianMixture
from bgwork.targets.lennard_jones import LennardJones

GAUSSIAN = GaussianMixture(torch.tensor([[1.0, -2.0]]), std=0.7)


def two_wells():
    return GaussianMixture(torch.tensor([[-4.0], [4.0]]), std=0.7)


def starts(chains, *, d=2, at=0.0):
    return torch.full((chains, 1, d), at, dtype=torch.float64)


def gaussian_hmc(**options):
    return HMC(**{"target": GAUSSIAN, "start": starts(40), "burn_in": 100, "thin": 2, "leapfrog": 5, "step": 0.2, **options})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hmc_has_the_moments_of_its_target():
    p = gaussian_hmc().sample(8000, generator=generator())
    for axis, mean in enumerate((1.0, -2.0)):
        x = p.x[:, 0, axis]
        for values, truth in ((x, mean), ((x - mean) ** 2, 0.49), ((x - mean) ** 4, 3 * 0.49**2)):
            estimate = chain_average(values, p.group)
            assert abs(estimate.value - truth) < 4 * estimate.stderr


def test_error_bars_cover_the_truth():
    """In 100 independent sets of 30 short, correlated chains the mean must lie within one stderr about 68 % of the time."""
    p = gaussian_hmc(start=starts(3000), burn_in=50, thin=1, leapfrog=2).sample(3000 * 20, generator=generator())
    inside = 0
    for block in range(100):
        rows = p.group // 30 == block
        estimate = chain_average(p.x[rows, 0, 0], p.group[rows])
        inside += abs(estimate.value - 1.0) < estimate.stderr
    assert abs(inside - 68.3) < 4 * math.sqrt(100 * 0.683 * 0.317)


def test_proposal_of_a_markov_chain():
    sampler = gaussian_hmc(system="oracle")
    assert isinstance(sampler, Sampler)
    before = GAUSSIAN.n_gradient
    p = sampler.sample(85, generator=generator(3))
    assert p.density is Density.UNNORMALISED and len(p) == 85
    assert p.group.tolist() == [k % 40 for k in range(85)]
    torch.testing.assert_close(p.log_q, -GAUSSIAN.u(p.x), rtol=0, atol=1e-12)
    assert (p.origin.method, p.origin.system, p.origin.seed) == ("hmc", "oracle", 3)
    assert p.cost.gradient == GAUSSIAN.n_gradient - before == 40 * (1 + 5 * (100 + 3 * 2))


def test_same_seed_same_numbers():
    a, b, c = (gaussian_hmc(burn_in=20).sample(100, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.x, b.x) and torch.equal(a.log_q, b.log_q)
    assert not torch.equal(a.x, c.x)


@pytest.mark.parametrize("acceptance", [0.6, 0.8, 0.95])
def test_step_size_reaches_the_wanted_acceptance(acceptance):
    seen = []
    sampler = gaussian_hmc(acceptance=acceptance, burn_in=400, progress=lambda done, total, text: seen.append(text))
    sampler.sample(4000, generator=generator())
    rates = [float(text.split("acceptance ")[1]) for text in seen if text.startswith("sampling")]
    assert sum(rates) / len(rates) == pytest.approx(acceptance, abs=0.08)


def test_step_is_not_adapted_after_burn_in():
    seen = []
    gaussian_hmc(progress=lambda done, total, text: seen.append((done, total, text))).sample(400, generator=generator())
    steps = {text.split("step ")[1].split(",")[0] for _, _, text in seen if text.startswith("sampling")}
    assert len(steps) == 1
    assert seen[-1][:2] == (120, 120) and len(seen) == 120


def test_without_burn_in_the_first_guess_is_used():
    assert StepSize(0.3, rungs=2, acceptance=0.8).freeze().tolist() == pytest.approx([0.3, 0.3])


def test_tempering_crosses_a_barrier_that_hmc_does_not():
    """Wells 8 apart with std .7: a barrier of 16 kT; all chains start on the left, where only half of the weight is."""
    options = {"target": two_wells(), "start": starts(60, d=1, at=-4.0), "burn_in": 100, "thin": 5, "leapfrog": 5, "step": 0.3}
    stuck = HMC(**options).sample(600, generator=generator())
    assert (stuck.x > 0).double().mean() < 0.05
    p = ParallelTempering(betas=(1.0, 0.4, 0.15, 0.05), **options).sample(3000, generator=generator())
    right = chain_average((p.x[:, 0, 0] > 0).double(), p.group)
    assert right.stderr < 0.03 and abs(right.value - 0.5) < 4 * right.stderr
    spread = chain_average((p.x[:, 0, 0].abs() - 4.0) ** 2, p.group)
    assert abs(spread.value - 0.49) < 4 * spread.stderr
    assert p.origin.method == "parallel-tempering"
    torch.testing.assert_close(p.log_q, -two_wells().u(p.x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("betas", [(), (0.9, 0.5), (1.0, 0.5, 0.7), (1.0, 0.0)])
def test_bad_ladders_are_refused(betas):
    with pytest.raises(ValueError, match="betas must start at 1 and decrease"):
        ParallelTempering(target=GAUSSIAN, start=starts(2), betas=betas)


@pytest.mark.parametrize("n", [0, -3, True, 2.0])
def test_bad_counts_are_refused(n):
    with pytest.raises(ValueError, match="positive integer"):
        gaussian_hmc().sample(n, generator=generator())


@pytest.mark.parametrize("options", [{"thin": 0}, {"leapfrog": 0}, {"burn_in": -1}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        gaussian_hmc(**options).sample(10, generator=generator())


def test_overlapping_start_is_refused():
    target = LennardJones(3)
    with pytest.raises(ValueError, match="2 of 2 chains start where u is not finite"):
        HMC(target=target, start=torch.zeros(2, 3, 3)).sample(2, generator=generator())


def test_chains_survive_a_step_that_is_far_too_long():
    """Trajectories that blow up are rejected, and the chain stays at a finite energy on the space."""
    target = LennardJones(5)
    start = STARTS["lattice"](target, 6, spacing=1.0, generator=generator())
    p = HMC(target=target, start=start, burn_in=0, thin=1, leapfrog=5, step=30.0).sample(30, generator=generator())
    assert bool(torch.isfinite(p.log_q).all())
    target.space.check(p.x)


CLUSTER_STARTS = ("lattice", "quenched", "icosahedral")  # for those of angles see test_torsional_system


def test_a_start_anywhere_needs_a_space_of_finite_volume():
    with pytest.raises(ValueError, match="infinite volume"):
        STARTS["uniform"](LennardJones(13), 3, spacing=1.0, generator=generator(5))


@pytest.mark.parametrize("kind", CLUSTER_STARTS)
def test_starts(kind):
    target = LennardJones(13)
    x, again = (STARTS[kind](target, 3, spacing=1.0, generator=generator(5)) for _ in range(2))
    assert x.shape == (3, 13, 3) and torch.equal(x, again) and not torch.equal(x[0], x[1])
    target.space.check(x)
    assert bool(torch.isfinite(target.u(x)).all())


def test_starts_differ_in_kind():
    target = LennardJones(13)
    u = {kind: target.u(make(target, 8, spacing=1.0, generator=generator())).mean().item()
         for kind, make in STARTS.items() if kind in CLUSTER_STARTS}
    assert u["lattice"] > u["quenched"] + 20 > u["icosahedral"] + 20


def test_icosahedron_of_55_is_the_known_minimum():
    """The global minimum of LJ55 is the Mackay icosahedron at -279.248 pair depths (Wales and Doye 1997)."""
    target = LennardJones(55, depth=1.0, trap=1e-9)
    x = STARTS["icosahedral"](target, 1, spacing=1.0, generator=generator())

    def energy(flat):
        u, grad = target.u_and_grad(torch.from_numpy(flat).view(1, 55, 3))
        return u.item(), grad.flatten().numpy()

    relaxed = minimize(energy, x.flatten().numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-6})
    assert relaxed.fun == pytest.approx(-279.248470, abs=1e-4)


def test_icosahedron_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="13 or 55 particles"):
        STARTS["icosahedral"](LennardJones(7), 1, spacing=1.0, generator=generator())
