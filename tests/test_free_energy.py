"""Free energies against oracles: BAR, MBAR, forward ESS, basins and profiles, with the coverage of every error bar."""

import logging
import math
from dataclasses import replace

import pymbar
import pytest
import torch
from oracles import LINE, GaussianOracle, LineOracle, MissingMode, binomial_bounds, chains, double_well, gaussian_mixture, propose

from bgwork.error_bars import delta_stderr
from bgwork.free_energy import forward_ess, free_energy_difference, local_difference, log_z_bar, pooled_difference
from bgwork.multistate import mbar
from bgwork.profiles import free_energy_profile, free_energy_surface
from bgwork.records import Density, Estimate, Proposal, WeightedSamples
from bgwork.reweighting import ess, log_z, weigh
from bgwork.spaces import Euclidean, MeanFree


def right(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 0] > 0


def left(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 0] <= 0


def exact(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0)


def against(q, target, n: int, n_reference: int, *, seed: int) -> tuple:
    """Weighted samples of q, and log q and u at independent reference samples of the target."""
    x = target.sample(n_reference, generator=torch.Generator().manual_seed(seed + 10_000))
    return weigh(propose(q, n, seed=seed), target), q.log_prob(x), target.u(x)


def covered(estimates: list[Estimate], truth: float) -> int:
    return sum(abs(e.value - truth) < 2 * e.stderr for e in estimates)


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


def quadrature_difference(target: LineOracle) -> float:
    return -math.log(target.average(right) / target.average(left))


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


def test_profile_against_quadrature():
    target = double_well()
    weighted = weigh(propose(GaussianOracle(space=LINE, std=2.5), 40_000, seed=0), target)
    edges = torch.linspace(-3, 3, 13, dtype=torch.float64)
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], edges)
    density = [2 * target.average(lambda x, a=a: ((x[:, 0, 0] >= a) & (x[:, 0, 0] < a + 0.5)).double()) for a in edges[:-1].tolist()]
    z = (profile.value + torch.tensor(density, dtype=torch.float64).log()) / profile.stderr
    assert z.abs().max() < 4 and z.square().mean() < 3
    assert profile.outside == pytest.approx(target.average(lambda x: (x[:, 0, 0].abs() > 3).double()), abs=0.01)


def test_profile_of_an_empty_bin_and_of_bad_edges():
    weighted = weigh(propose(MissingMode(), 100, seed=0), gaussian_mixture())
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], torch.tensor([-9.0, 0.0, 5.0]))
    assert profile.value[1] == math.inf and math.isnan(profile.stderr[1])
    assert profile.value[0].item() == pytest.approx(math.log(9))
    with pytest.raises(ValueError, match="must rise"):
        free_energy_profile(weighted, lambda x: x[:, 0, 0], torch.tensor([0.0, 0.0]))


def test_what_is_undefined_is_an_error_only_where_there_is_weight():
    weighted = weigh(propose(GaussianOracle(space=LINE, std=2.5), 100, seed=0), double_well())
    edges = torch.tensor([-9.0, 0.0, 9.0])

    def position(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x == weighted.x[7], math.nan, x)[:, 0, 0]

    def on_the_left(x: torch.Tensor) -> torch.Tensor:
        return torch.where(position(x).isnan(), math.nan, left(x).double())

    with pytest.raises(ValueError, match="the coordinate is not finite at 1 of 100"):
        free_energy_profile(weighted, position, edges)
    with pytest.raises(ValueError, match="the indicator of basin a is not finite at 1 of 100"):
        free_energy_difference(weighted, on_the_left, right)
    with pytest.raises(ValueError, match="the indicator of basin b is not finite at 1 of 100"):
        free_energy_difference(weighted, right, on_the_left)
    weightless = replace(weighted, u=weighted.u.index_fill(0, torch.tensor([7]), math.inf))
    assert free_energy_profile(weightless, position, edges).outside == 0.0
    assert free_energy_difference(weightless, on_the_left, right) == free_energy_difference(weightless, left, right)


def md(target, n: int, *, seed: int, keep=None) -> Proposal:
    """Equilibrium samples of a line oracle as MD gives them, or those of them that `keep` picks."""
    proposal = propose(target, n, seed=seed, density=Density.UNNORMALISED)
    proposal = replace(proposal, log_q=-target.energy(proposal.x))
    if keep is None:
        return proposal
    rows = keep(proposal.x)
    return replace(proposal, x=proposal.x[rows], log_q=proposal.log_q[rows])


def joined(*proposals: Proposal) -> Proposal:
    return replace(proposals[0], x=torch.cat([p.x for p in proposals]), log_q=torch.cat([p.log_q for p in proposals]))


def pooled(target, q, n: int, reference: Proposal, *, seed: int) -> tuple:
    """The arguments of both differences but the basins."""
    return weigh(propose(q, n, seed=seed), target), weigh(reference, target), q.log_prob(reference.x)


@pytest.mark.parametrize("method", [pooled_difference, local_difference])
def test_difference_by_mbar_covers_and_is_not_too_long(method):
    target, q, n = double_well(), GaussianOracle(space=LINE, std=2.5), 60
    truth = quadrature_difference(target)
    found = [method(*pooled(target, q, 300, md(target, 400, seed=1000 + seed), seed=seed), left, right) for seed in range(n)]
    low, high = binomial_bounds(n, 0.9545)
    assert low < covered(found, truth) <= min(high, n)
    values = torch.tensor([e.value for e in found])
    assert torch.tensor([e.stderr for e in found]).mean().item() == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * n))
    assert abs(values.mean().item() - truth) < 4 * values.std().item() / math.sqrt(n)


def test_pooling_shortens_the_error_bar():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    sets = pooled(target, q, 2000, md(target, 2000, seed=1), seed=0)
    both = pooled_difference(*sets, left, right)
    assert both.stderr < min(free_energy_difference(s, left, right).stderr for s in sets[:2])
    assert both.value == pytest.approx(-pooled_difference(*sets, right, left).value)


def test_local_difference_needs_no_crossing():
    """Equal numbers of MD samples from both wells, as two runs that never cross would give: pooled is misled, local is not."""
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    reference = joined(md(target, 3000, seed=1, keep=left), md(target, 12_000, seed=2, keep=right))
    truth = exact(quadrature_difference(target))
    sets = pooled(target, q, 3000, reference, seed=0)
    assert abs(local_difference(*sets, left, right).z(truth)) < 4
    assert abs(pooled_difference(*sets, left, right).z(truth)) > 6


@pytest.mark.parametrize("method", [pooled_difference, local_difference])
def test_difference_by_mbar_knows_the_chains(method):
    """Every sample of the reference five times over, grouped: the error bar of one alone, not a smaller one."""
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    reference = md(target, 500, seed=3)
    copies = replace(joined(*[reference] * 5), group=torch.arange(500).repeat(5))
    grouped, naive = (method(*pooled(target, q, 500, r, seed=0), left, right) for r in (copies, replace(copies, group=None)))
    assert naive.stderr < 0.85 * grouped.stderr
    assert grouped.stderr == pytest.approx(method(*pooled(target, q, 500, reference, seed=0), left, right).stderr, rel=0.2)


def test_what_cannot_be_pooled_is_an_error():
    target, q = double_well(), GaussianOracle(space=LINE, std=2.5)
    own, reference, log_q = pooled(target, q, 300, md(target, 400, seed=1), seed=0)
    biased = replace(reference, u=reference.u + 0.1 * reference.x[:, 0, 0])
    for method in (pooled_difference, local_difference):
        with pytest.raises(ValueError, match="unequal weights.*resample"):
            method(own, biased, log_q, left, right)
        with pytest.raises(ValueError, match="basin b"):
            method(own, reference, log_q, left, lambda x: x[:, 0, 0] > 100)
        with pytest.raises(ValueError, match="only up to a constant"):
            method(reference, reference, log_q, left, right)
    with pytest.raises(ValueError, match="both basins"):
        local_difference(own, reference, log_q, left, lambda x: x[:, 0, 0] > -2)
    with pytest.raises(ValueError, match="no reference sample lies in basin b; start a simulation"):
        local_difference(*pooled(target, q, 300, md(target, 400, seed=1, keep=left), seed=0), left, right)


def plane(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 1]


def test_surface_of_a_gaussian():
    """Independent coordinates: F(s, t) = F(s) + F(t), each from the error function; the profile is the surface summed over t."""
    target = GaussianOracle(space=Euclidean(n=1, d=2))
    weighted = weigh(propose(GaussianOracle(space=target.space, std=1.3), 40_000, seed=0), target)
    edges = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    surface = free_energy_surface(weighted, (lambda x: x[:, 0, 0], plane), (edges, edges[::2]))
    assert surface.value.shape == (6, 3)

    def masses(e: torch.Tensor) -> torch.Tensor:
        return (torch.erf(e / math.sqrt(2)) / 2).diff()

    expected = -torch.log(torch.outer(masses(edges) / 0.5, masses(edges[::2]) / 1.0))
    z = (surface.value - expected) / surface.stderr
    assert z.abs().max() < 4 and 0.3 < z.square().mean() < 3
    profile = free_energy_profile(weighted, lambda x: x[:, 0, 0], edges)
    inside = free_energy_surface(weighted, (lambda x: x[:, 0, 0], plane), (edges, torch.tensor([-50.0, 50.0])))
    torch.testing.assert_close(inside.value[:, 0], profile.value + math.log(100))
    torch.testing.assert_close(inside.stderr[:, 0], profile.stderr)
    assert surface.outside == pytest.approx(1 - torch.erf(torch.tensor(1.5 / math.sqrt(2))).item() ** 2, abs=0.02)


def test_bands_know_the_chains_of_the_data():
    """Bin errors from the written-out square equal those of the block sums themselves."""
    markov = weigh(chains(GaussianOracle(), 20, 50, memory=0.9, seed=0), GaussianOracle())
    edges = torch.tensor([-1.0, 0.0, 0.7])
    profile = free_energy_profile(markov, lambda x: x[:, 0, 0], edges)
    s, p = markov.x[:, 0, 0], 1 / len(markov)
    for k, (a, b) in enumerate([(-1.0, 0.0), (0.0, 0.7)]):
        member = ((s >= a) & (s < b)).double()
        mass = member.mean().item()
        assert profile.stderr[k].item() == pytest.approx(delta_stderr(p * (member - mass), markov.proposal.group) / mass)
    alone = weigh(chains(GaussianOracle(), 1, 50, memory=0.9, seed=0), GaussianOracle())
    assert free_energy_profile(alone, lambda x: x[:, 0, 0], edges).stderr.isnan().all()


def without(samples: WeightedSamples, row: int) -> WeightedSamples:
    keep = torch.arange(len(samples)) != row
    proposal = replace(samples.proposal, x=samples.x[keep], log_q=samples.proposal.log_q[keep])
    return replace(samples, proposal=proposal, u=samples.u[keep])


def test_pooled_error_bar_against_the_jackknife():
    """Leaving out one sample at a time, of the generator and of the reference; the basins differ in how often the generator goes there."""
    target, q = double_well(), GaussianOracle(space=LINE, std=1.3)
    own, reference, log_q = pooled(target, q, 60, md(target, 40, seed=1), seed=0)

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0].abs() < 1.0

    def outer(x: torch.Tensor) -> torch.Tensor:
        return ~inner(x)

    variance = 0.0
    for drop, size in ((True, 60), (False, 40)):
        values = []
        for row in range(size):
            sets = (without(own, row), reference, log_q) if drop else (own, without(reference, row), log_q[torch.arange(40) != row])
            values.append(pooled_difference(*sets, inner, outer).value)
        variance += (size - 1) ** 2 / size * torch.tensor(values).var().item()
    assert pooled_difference(own, reference, log_q, inner, outer).stderr == pytest.approx(math.sqrt(variance), rel=0.1)
