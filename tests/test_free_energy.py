"""Free energies against oracles: BAR, MBAR, forward ESS and basins, with the coverage of every error bar."""

import logging
import math
from dataclasses import replace

import pymbar
import pytest
import torch
from basins import covered, exact, left, quadrature_difference, right
from oracles import LINE, GaussianOracle, MissingMode, binomial_bounds, chains, double_well, gaussian_mixture, propose

from bgwork.free_energy import forward_ess, free_energy_difference, log_z_bar
from bgwork.multistate import mbar
from bgwork.reweighting import ess, log_z, weigh
from bgwork.spaces import MeanFree


def against(q, target, n: int, n_reference: int, *, seed: int) -> tuple:
    """Weighted samples of q, and log q and u at independent reference samples of the target."""
    x = target.sample(n_reference, generator=torch.Generator().manual_seed(seed + 10_000))
    return weigh(propose(q, n, seed=seed), target), q.log_prob(x), target.u(x)


def test_bar_and_forward_ess_of_a_wrong_scale():
    target, q = GaussianOracle(std=1.0, offset=5.0), GaussianOracle(std=1.25)
    sets = against(q, target, 10_000, 10_000, seed=0)
    assert abs(log_z_bar(*sets).z(exact(target.log_z))) < 4
    assert abs(forward_ess(*sets).z(exact(target.ess_from(1.25)))) < 4
    assert log_z_bar(*sets).stderr < log_z(sets[0]).stderr


def test_bar_agrees_with_pymbars_own():
    sets = against(GaussianOracle(std=1.4), GaussianOracle(), 500, 700, seed=1)
    ours, theirs = log_z_bar(*sets), pymbar.bar(-sets[0].log_w.numpy(), (-sets[2] - sets[1]).numpy(), iterated_solution=True)
    assert ours.value == pytest.approx(-theirs["Delta_f"], abs=1e-5)
    assert ours.stderr == pytest.approx(theirs["dDelta_f"], rel=0.05)


def test_bar_takes_zero_weights_where_pymbars_own_returns_nought():
    """pymbar.bar answers 0 +- 0 to an infinite work value, so the solver must not be that one."""
    weighted, log_q, u = against(GaussianOracle(std=1.25), GaussianOracle(offset=2.0), 4000, 4000, seed=2)
    energies = torch.where(weighted.x[:, 0, 0] > 0, weighted.u, math.inf)  # the target restricted to half of space
    there = target_half(log_q, u, seed=2)
    estimate = log_z_bar(replace(weighted, u=energies), *there)
    assert abs(estimate.z(exact(GaussianOracle(offset=2.0).log_z - math.log(2)))) < 4


def target_half(log_q: torch.Tensor, u: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = GaussianOracle().sample(len(u), generator=torch.Generator().manual_seed(seed + 10_000))
    rows = x[:, 0, 0] > 0
    return log_q[rows], u[rows]


@pytest.mark.parametrize(("n", "n_reference"), [(300, 300), (300, 1500), (1500, 300)])
def test_error_bars_of_bar_and_forward_ess_cover_and_are_not_too_long(n, n_reference):
    space, replicates = MeanFree(n=3, d=2), 100
    target, q = GaussianOracle(space=space), GaussianOracle(space=space, std=1.2)
    runs = [against(q, target, n, n_reference, seed=seed) for seed in range(replicates)]
    low, _ = binomial_bounds(replicates, 0.9545)
    for estimates, truth in (([log_z_bar(*r) for r in runs], target.log_z), ([forward_ess(*r) for r in runs], target.ess_from(1.2))):
        assert covered(estimates, truth) > low
        spread = torch.tensor([e.value for e in estimates]).std().item()
        claimed = torch.tensor([e.stderr for e in estimates]).mean().item()
        assert claimed == pytest.approx(spread, rel=4 / math.sqrt(2 * replicates))


def test_bar_error_bars_know_the_chains_of_the_reference():
    target, q, n = GaussianOracle(), GaussianOracle(std=1.2), 80
    grouped, naive = [], []
    for seed in range(n):
        reference = chains(target, 30, 30, memory=0.95, seed=seed)
        sets = (weigh(propose(q, 400, seed=seed), target), q.log_prob(reference.x), target.u(reference.x))
        grouped.append(log_z_bar(*sets, group=reference.group))
        naive.append(log_z_bar(*sets))
    low, _ = binomial_bounds(n, 0.945)
    assert covered(naive, target.log_z) < low < covered(grouped, target.log_z)


def test_forward_ess_sees_the_missing_mode_that_reverse_ess_does_not():
    sets = against(MissingMode(), gaussian_mixture(), 3000, 3000, seed=3)
    assert ess(sets[0]).value > 0.999
    assert forward_ess(*sets).value < 1e-6
    assert abs(log_z_bar(*sets).z(exact(0.0))) < 4  # BAR is right where log Z from q alone is log 0.7
    assert abs(log_z_bar(*sets).z(log_z(sets[0]))) > 4


def test_forward_ess_is_zero_where_the_generator_cannot_go():
    weighted, log_q, u = against(GaussianOracle(std=1.2), GaussianOracle(), 100, 100, seed=0)
    log_q[0] = -math.inf
    assert forward_ess(weighted, log_q, u).value == 0.0


def test_references_that_cannot_be_used_are_errors():
    weighted, log_q, u = against(GaussianOracle(std=1.2), GaussianOracle(), 100, 100, seed=0)
    with pytest.raises(ValueError, match="log q is unknown at 2 of 100"):
        forward_ess(weighted, log_q.index_fill(0, torch.tensor([3, 4]), math.nan), u)
    with pytest.raises(ValueError, match="not samples of the target"):
        log_z_bar(weighted, log_q, u.index_fill(0, torch.tensor([3]), math.inf))
    with pytest.raises(ValueError, match="both be"):
        log_z_bar(weighted, log_q[:0], u[:0])
    markov = weigh(chains(GaussianOracle(), 10, 10, memory=0.5, seed=0), GaussianOracle())
    with pytest.raises(ValueError, match="only up to a constant"):
        log_z_bar(markov, log_q, u)


def test_mbar_puts_md_at_other_temperatures_on_the_generators_absolute_scale():
    """A flow with known log q beside 'MD' at two scales: three states, the answers in closed form, error bars that cover."""
    q, cold, hot = GaussianOracle(std=1.2), GaussianOracle(std=1.0, offset=3.0), GaussianOracle(std=1.5, offset=-2.0)
    estimates, n = [], 40
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        x = torch.cat([state.sample(m, generator=generator) for state, m in ((q, 300), (cold, 200), (hot, 400))])
        estimates.append(mbar(torch.stack([-q.log_prob(x), cold.u(x), hot.u(x)]), (300, 200, 400)))
    low, _ = binomial_bounds(n, 0.9545)
    assert all(e[0].value == 0.0 for e in estimates)
    assert covered([e[1] for e in estimates], cold.log_z) > low and covered([e[2] for e in estimates], hot.log_z) > low
    assert abs(sum(e[1].value for e in estimates) / n - cold.log_z) < 4 * estimates[0][1].stderr / math.sqrt(n)


@pytest.mark.parametrize("offset", [-1000.0, 50.0, 300.0])
def test_states_that_overlap_may_lie_far_apart_in_energy(offset):
    """From f = 0 pymbar's solver stops at once, reports success and is wrong by tens of kT."""
    target = GaussianOracle(offset=offset)
    assert abs(log_z_bar(*against(GaussianOracle(std=1.25), target, 1000, 1000, seed=0)).z(exact(target.log_z))) < 4


def test_a_solution_that_did_not_converge_is_an_error_and_pymbar_may_speak_again(monkeypatch):
    solver, logger = pymbar.MBAR, logging.getLogger("pymbar")
    monkeypatch.setattr(pymbar, "MBAR", lambda *pool, **_: solver(*pool, maximum_iterations=1, solver_protocol=({"method": "adaptive"},)))
    logger.setLevel(logging.WARNING)
    with pytest.raises(ValueError, match="MBAR did not converge: the shares of a state sum to its count only within"):
        log_z_bar(*against(GaussianOracle(std=1.25), GaussianOracle(offset=50.0), 300, 300, seed=0))
    assert logger.level == logging.WARNING


def test_mbar_refuses_nonsense():
    u = torch.zeros(2, 10, dtype=torch.float64)
    with pytest.raises(ValueError, match="counts"):
        mbar(u, (10, 0))
    with pytest.raises(ValueError, match="NaN"):
        mbar(u.index_fill(1, torch.tensor([2]), math.nan), (5, 5))
    with pytest.raises(ValueError, match="every state"):
        mbar(u.index_fill(1, torch.tensor([2]), math.inf), (5, 5))


def test_states_without_overlap_are_an_error():
    with pytest.raises(ValueError, match="hardly overlap"):
        log_z_bar(*against(GaussianOracle(std=0.01), GaussianOracle(), 100, 100, seed=0))


def test_difference_between_basins_covers():
    target, q, n = double_well(), GaussianOracle(space=LINE, std=2.5), 300
    runs = [free_energy_difference(weigh(propose(q, 600, seed=seed), target), left, right) for seed in range(n)]
    low, high = binomial_bounds(n, 0.9545)
    assert low < covered(runs, quadrature_difference(target)) < high


def test_difference_from_mcmc_and_its_sign():
    """The well at x = -2 is lower in u (tilt x/4), so going right costs free energy."""
    target = double_well()
    weighted = weigh(propose(target, 20_000, seed=0), target)
    there, back = free_energy_difference(weighted, left, right), free_energy_difference(weighted, right, left)
    assert there.value > 0.5 and there.value == pytest.approx(-back.value) and there.stderr == pytest.approx(back.stderr)
    with pytest.raises(ValueError, match="basin b"):
        free_energy_difference(weighted, left, lambda x: x[:, 0, 0] > 100)
