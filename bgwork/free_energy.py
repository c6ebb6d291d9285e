"""Free energies in kT, absolute and between basins: from weights alone, or by BAR and MBAR with the generator as a state of known f."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bgwork.error_bars import weighted_stderr
from bgwork.multistate import Solution, mbar, solve
from bgwork.pareto import unseen_weight
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import effective_number, evaluate, normalised_weights, refuse_negative

EQUAL = 1e-6  # range of log-weights that is rounding and no weighting

Indicator = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A generator's samples and the target's together, with the weights that MBAR gives them (Shirts & Chodera 2008, eq. 9).

        c_n = exp(-u_n) / (N q(x_n) + M exp(f - u_n)),  f the target's free energy by BAR

    Attributes:
        weight: [N + M] c_n over their sum, the generator's samples first.
        weighs: [N + M] whether a sample has a finite energy.
        solution: of MBAR's equations.
        group: [N + M] labels of correlated rows, or None.
    """

    weight: Tensor
    weighs: Tensor
    solution: Solution
    group: Tensor | None

    @property
    def unseen(self) -> float:
        """What one sample more may weigh: no c_n at the target's own energy is above 1 / M."""
        return max(1 / self.solution.counts[1], self.weight.max().item())

    @cached_property
    def slope(self) -> Tensor:
        """First-order effect of every sample on f, [N + M]."""
        return self.solution.influence()[:, 0]

    def stderr(self, change: Tensor) -> float:
        """Standard error of a function of averages that changes by the sum of `change` [N + M] when the samples' weights do."""
        through_f = (change * self.solution.share[1]).sum() * self.slope
        return self.solution.stderr(self.solution.centred(change - through_f), self.group)


def log_z_bar(weighted: WeightedSamples, log_q_at_reference: Tensor, u_at_reference: Tensor, *, group: Tensor | None = None) -> Estimate:
    """log Z by the Bennett acceptance ratio between the generator's samples and reference samples of the target (Bennett 1976).

    It stays right where the generator misses a mode, as long as the two sets overlap; comparing it with `log_z` shows the miss.

    Args:
        weighted: samples of the generator.
        log_q_at_reference: [M] the generator's normalised log-density at the reference samples; -inf where it cannot produce them.
        u_at_reference: [M] reduced energies of the reference samples.
        group: [M] chains of the reference samples, or None if they are independent.
    Raises:
        ValueError: UNNORMALISED samples, weights of both signs, no or not-finite reference samples, or no overlap at all.
    """
    u, counts, labels = _pooled(weighted, log_q_at_reference, u_at_reference, group)
    return mbar(u, counts, group=labels)[1]


def forward_ess(weighted: WeightedSamples, log_q_at_reference: Tensor, u_at_reference: Tensor, *, group: Tensor | None = None) -> Estimate:
    """ESS as the target sees it, Z / E_pi[w]: a mode that the generator misses has huge weights there, and the fraction goes to zero.

    E_pi[w] is the mean weight of reference samples, Z comes from BAR; the standard error knows that both use the same reference samples.

    Args:
        weighted: samples of the generator.
        log_q_at_reference: [M] the generator's normalised log-density at the reference samples; -inf where it cannot produce them.
        u_at_reference: [M] reduced energies of the reference samples.
        group: [M] chains of the reference samples, or None if they are independent.
    Returns:
        The fraction with its standard error, and n_eff = fraction x number of generated samples.
    Raises:
        ValueError: as `log_z_bar`.
    """
    u, counts, labels = _pooled(weighted, log_q_at_reference, u_at_reference, group)
    log_w = -u_at_reference - log_q_at_reference
    if (log_w == math.inf).any():
        return Estimate(value=0.0, stderr=0.0, n_eff=0.0)
    solution = solve(u, counts)
    influence = -solution.influence()[:, 0]
    influence[len(weighted) :] -= torch.softmax(log_w, 0) - 1 / len(log_w)
    value = math.exp(-solution.f[1].item() - torch.logsumexp(log_w, 0).item() + math.log(len(log_w)))
    return Estimate(value=value, stderr=value * solution.stderr(influence, labels), n_eff=value * len(weighted))


def log_z_elsewhere(weighted: WeightedSamples, log_q_at_reference: Tensor, u_at_reference: Tensor, u_elsewhere: Tensor, *,
                    group: Tensor | None = None) -> Estimate:
    """log Z of another energy u', such as that of another temperature, without samples of its own: MBAR over the sets of `log_z_bar`.

        Z' = sum_n exp(-u'_n) / (N q(x_n) + M exp(f - u_n))

    The sum runs over all N + M samples; f is the sampled target's free energy by BAR (Shirts & Chodera 2008, equation 11). n_eff tells how
    many of them matter to the other energy.

    Args:
        weighted, log_q_at_reference, u_at_reference, group: as in `log_z_bar`, with the energy that the reference was sampled with.
        u_elsewhere: [N + M] the other reduced energy at the samples and then at the reference samples.
    Raises:
        ValueError: as `log_z_bar`.
    """
    u, counts, labels = _pooled(weighted, log_q_at_reference, u_at_reference, group)
    solution = solve(u, counts)
    log_c = _log_terms(solution, u, _elsewhere(weighted, u_elsewhere, len(u[1])))
    pool = Pool(weight=torch.softmax(log_c, 0), weighs=u[1] < math.inf, solution=solution, group=labels)
    return Estimate(value=torch.logsumexp(log_c, 0).item(), stderr=pool.stderr(pool.weight), n_eff=1 / pool.weight.square().sum().item())


def free_energy_difference(weighted: WeightedSamples, in_a: Indicator, in_b: Indicator) -> Estimate:
    """F_b - F_a = -log(P_b / P_a) in kT between two sets of configurations.

    Args:
        weighted: samples.
        in_a, in_b: indicators, configurations [B, n, d] to bool [B].
    Raises:
        ValueError: if a set holds no weight, or an indicator is not finite at a sample of positive weight.
    """
    p = normalised_weights(weighted)
    indicator = [evaluate_defined(f, weighted, f"the indicator of basin {name}") for f, name in ((in_a, "a"), (in_b, "b"))]
    mass = [(p * i).sum().item() for i in indicator]
    for name, value in zip("ab", mass, strict=True):
        if value <= 0:
            raise ValueError(f"no sample of positive weight lies in basin {name}, so its free energy is unknown; draw more samples")
    change = indicator[1] / mass[1] - indicator[0] / mass[0]
    stderr = weighted_stderr(p, change, group=weighted.proposal.group, unseen=unseen_weight(weighted))
    return Estimate(value=math.log(mass[0] / mass[1]), stderr=stderr, n_eff=effective_number(weighted))


def pooled_difference(weighted: WeightedSamples, reference: WeightedSamples, log_q_at_reference: Tensor, in_a: Indicator,
                      in_b: Indicator, *, u_elsewhere: Tensor | None = None) -> Estimate:
    """F_b - F_a in kT from a generator's samples and equilibrium samples of the target together, by MBAR (Shirts & Chodera 2008, eq. 9).

        F_b - F_a = log sum_n c_n 1_a(x_n) - log sum_n c_n 1_b(x_n),  c_n as in `Pool`

    The sums run over all N + M samples. The reference must know how the basins are populated; `local_difference` does not ask for that.

    Args:
        weighted, reference, log_q_at_reference, u_elsewhere: as in `pooled`.
        in_a, in_b: indicators, configurations [B, n, d] to bool [B].
    Raises:
        ValueError: as `pooled`; also if a basin holds no weight.
    """
    pool = pooled(weighted, reference, log_q_at_reference, u_elsewhere=u_elsewhere)
    a, b = (member * pool.weight for member in _members(weighted, reference, pool.weighs, (in_a, in_b)))
    n_eff = ((a + b).sum().square() / (a + b).square().sum()).item()
    return Estimate(value=(a.sum() / b.sum()).log().item(), stderr=pool.stderr(a / a.sum() - b / b.sum()), n_eff=n_eff)


def pooled(weighted: WeightedSamples, reference: WeightedSamples, log_q_at_reference: Tensor, *,
           u_elsewhere: Tensor | None = None) -> Pool:
    """A generator's samples and equilibrium samples of the target as one weighted set, by MBAR.

    Args:
        weighted: N samples of the generator.
        reference: M samples of the target with equal weights (MD, MCMC; resample weighted ones first).
        log_q_at_reference: [M] the generator's normalised log-density at them.
        u_elsewhere: [N + M] another reduced energy at all of them, in the numerator of c_n only: averages are then that energy's.
    Raises:
        ValueError: as `log_z_bar`; also if the reference is weighted.
    """
    _refuse_weighted(reference)
    u, counts, labels = _pooled(weighted, log_q_at_reference, reference.u, reference.proposal.group)
    solution, asked = solve(u, counts), u[1] if u_elsewhere is None else _elsewhere(weighted, u_elsewhere, len(u[1]))
    return Pool(weight=torch.softmax(_log_terms(solution, u, asked), 0), weighs=asked < math.inf, solution=solution, group=labels)


def local_difference(weighted: WeightedSamples, reference: WeightedSamples, log_q_at_reference: Tensor, in_a: Indicator,
                     in_b: Indicator) -> Estimate:
    """F_b - F_a in kT where the reference need be in equilibrium within each basin only: MD that never crosses from one to the other.

    MBAR with three states: the target restricted to a, the generator, and the target restricted to b. How many of the reference samples lie
    in which basin plays no part; the generator alone links the two.

    Args, Raises: as `pooled_difference`; also if no reference sample lies in one of the basins, or one lies in both.
    """
    _refuse_weighted(reference)
    u, (n, _), labels = _pooled(weighted, log_q_at_reference, reference.u, reference.proposal.group)
    a, b = _members(weighted, reference, u[1] < math.inf, (in_a, in_b))
    if (a & b).any():
        raise ValueError(f"{int((a & b).sum())} samples lie in both basins; choose basins that do not overlap")
    in_reference = torch.arange(len(a)) >= n
    rows = [(member & in_reference).nonzero().flatten() for member in (a, b)]
    for name, found in zip("ab", rows):
        if len(found) == 0:
            raise ValueError(f"no reference sample lies in basin {name}; start a simulation there")
    order = torch.cat([rows[0], torch.arange(n), rows[1]])
    restricted = torch.stack([torch.where(a, u[1], math.inf), u[0], torch.where(b, u[1], math.inf)])[:, order]
    state_b = mbar(restricted, (len(rows[0]), n, len(rows[1])), group=None if labels is None else labels[order])[2]
    return Estimate(value=-state_b.value, stderr=state_b.stderr, n_eff=state_b.n_eff)


def evaluate_defined(f: Callable[[Tensor], Tensor], weighted: WeightedSamples, name: str) -> Tensor:
    """f where the weight is positive and zero elsewhere, [N]; a NaN would pass for "outside".

    Raises:
        ValueError: if f is not finite at a sample of positive weight; the message calls it by `name`.
    """
    values = evaluate(f, weighted)
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{name} is not finite at {bad} of {len(values)} samples, all of positive weight; define it there, or give those "
                         "configurations no weight (u = +inf)")
    return values


def _log_terms(solution: Solution, u: Tensor, asked: Tensor) -> Tensor:
    """log [exp(-u'_n) / (N q(x_n) + M exp(f - u_n))] of an energy u' that is asked for, [N + M]."""
    drawn = torch.tensor(solution.counts, dtype=torch.float64).log()
    return -asked - torch.logsumexp((drawn + solution.f)[:, None] - u, 0)


def _elsewhere(weighted: WeightedSamples, u: Tensor, total: int) -> Tensor:
    """Another energy at all pooled samples, +inf where one of them has failed."""
    if u.shape != (total,):
        raise ValueError(f"the other energy has shape {tuple(u.shape)}; give it at the samples and the reference samples, [{total}]")
    failed = torch.cat([weighted.failed, torch.zeros(total - len(weighted), dtype=torch.bool)])
    unknown = int((torch.isnan(u) & ~failed).sum())
    if unknown:
        raise ValueError(f"the other energy is NaN at {unknown} of {total} samples whose own energy is known; make it +inf there")
    return torch.where(failed, math.inf, u)


def _pooled(weighted: WeightedSamples, log_q: Tensor, u: Tensor, group: Tensor | None) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """Reduced energies [2, N + M] of both sets in the generator's state and the target's, counts, and labels of correlated rows."""
    _check_reference(weighted, log_q, u)
    normalised_weights(weighted)
    own_log_q = torch.where(weighted.failed, 0.0, weighted.proposal.log_q)
    own_u = torch.where(weighted.failed, math.inf, weighted.u)
    pooled = torch.stack([-torch.cat([own_log_q, log_q]), torch.cat([own_u, u])])
    return pooled, (len(weighted), len(u)), _joint_group(weighted, group, len(u))


def _check_reference(weighted: WeightedSamples, log_q: Tensor, u: Tensor) -> None:
    refuse_negative(weighted, "there is no density at reference samples: they may have several preimages, and BAR and forward ESS need one")
    if not weighted.proposal.density.normalised:
        raise ValueError("the samples' density is known only up to a constant, so BAR and forward ESS cannot be had; use a generator's")
    if log_q.shape != u.shape or u.ndim != 1 or len(u) == 0:
        raise ValueError(f"log q {tuple(log_q.shape)} and u {tuple(u.shape)} at the reference samples must both be [M], M > 0")
    failed = int((torch.isnan(log_q) | (log_q == math.inf)).sum())
    if failed:
        raise ValueError(f"log q is unknown at {failed} of {len(log_q)} reference samples (the inverse map, or a path back, failed there); "
                         "forward ESS and BAR need all of them: use more steps")
    infinite = int((~torch.isfinite(u)).sum())
    if infinite:
        raise ValueError(f"u is not finite at {infinite} of {len(u)} reference samples: they are not samples of the target")


def _refuse_weighted(reference: WeightedSamples) -> None:
    log_w = reference.log_w
    if not (log_w.max() - log_w.min() < EQUAL):
        raise ValueError("the reference samples have unequal weights, so they are not equilibrium samples; resample them first "
                         "(`reweighting.resample`)")


def _members(weighted: WeightedSamples, reference: WeightedSamples, weighs: Tensor, basins: tuple[Indicator, Indicator]) -> list[Tensor]:
    """Which of the N + M samples lie in each basin and weigh anything, [N + M] bool for each.

    Raises:
        ValueError: if no sample of positive weight lies in a basin.
    """
    members = []
    for inside, name in zip(basins, "ab", strict=True):
        found = torch.cat([evaluate_defined(inside, samples, f"the indicator of basin {name}") for samples in (weighted, reference)]) > 0
        if not (found & weighs).any():
            raise ValueError(f"no sample of positive weight lies in basin {name}, so its free energy is unknown; draw more samples")
        members.append(found & weighs)
    return members


def _joint_group(weighted: WeightedSamples, group: Tensor | None, n_reference: int) -> Tensor | None:
    """Labels for both sets together; the two are told apart by their state, so labels may coincide."""
    own = weighted.proposal.group
    if own is None and group is None:
        return None
    own = torch.arange(len(weighted)) if own is None else own
    return torch.cat([own, torch.arange(n_reference) if group is None else group])
