"""Free energies in kT: absolute by BAR and MBAR with the generator as a state of known f = 0, between basins, and along a coordinate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bgwork.error_bars import delta_stderr
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import effective_number, evaluate, normalised_weights

MIN_SHARED = 1.0  # sum over samples of p(1-p), p the chance that a sample came from the other state: below one, nothing links the two
MAX_INCONSISTENT = 1e-6  # relative error of a state's shares against its count; converged solutions reach 1e-12


@dataclass(frozen=True, kw_only=True)
class Profile:
    """F(s) = -log p(s) in kT, p the normalised density of a coordinate s averaged over each bin.

    Attributes:
        edges: [K+1] bin edges.
        value: [K] free energy; +inf in bins without weight.
        stderr: [K] standard error; NaN in bins without weight.
        outside: fraction of the weight beyond the edges (it stays in the normalisation).
    """

    edges: Tensor
    value: Tensor
    stderr: Tensor
    outside: float


def mbar(u: Tensor, counts: Sequence[int], *, group: Tensor | None = None) -> tuple[Estimate, ...]:
    """log Z of every state from samples pooled over all of them (MBAR; Shirts & Chodera 2008, equation 11).

    State 0 has log Z = 0: put the generator there, u_0 = -log q, and the others come out absolute. Values from pymbar; standard errors by
    the delta method for the reversed logistic regression that MBAR solves (Geyer 1994), because pymbar's assume independent rows.

    Args:
        u: [K, N] reduced energy of each pooled sample in each state; +inf is a zero weight.
        counts: rows drawn from each state, in the order of the states; all positive.
        group: [N] labels of correlated rows, or None.
    Returns:
        K estimates of log Z_k; the first is 0 +- 0.
    Raises:
        ValueError: if shapes and counts disagree, a state has no samples, u holds NaN or a sample no state can produce,
            the solution is not self-consistent, or the states do not overlap.
    """
    _check_mbar(u, counts)
    f, share = _solve_mbar(u, counts)
    influence = _mbar_influence(share, counts)
    log_mixture = torch.logsumexp(torch.tensor(counts, dtype=torch.float64).log()[:, None] + f[:, None] - u, 0)
    n_eff = [1 / torch.softmax(-u_k - log_mixture, 0).square().sum().item() for u_k in u]
    stderr = [0.0, *(_stratified_stderr(column, counts, group) for column in influence.T)]
    return tuple(Estimate(value=0.0 - f_k, stderr=s, n_eff=n) for f_k, s, n in zip(f.tolist(), stderr, n_eff, strict=True))


def log_z_bar(weighted: WeightedSamples, log_q_at_reference: Tensor, u_at_reference: Tensor, *, group: Tensor | None = None) -> Estimate:
    """log Z by the Bennett acceptance ratio between the generator's samples and reference samples of the target (Bennett 1976).

    It stays right where the generator misses a mode, as long as the two sets overlap; comparing it with `log_z` shows the miss.

    Args:
        weighted: samples of the generator.
        log_q_at_reference: [M] the generator's normalised log-density at the reference samples; -inf where it cannot produce them.
        u_at_reference: [M] reduced energies of the reference samples.
        group: [M] chains of the reference samples, or None if they are independent.
    Raises:
        ValueError: UNNORMALISED samples, no or not-finite reference samples, or no overlap at all.
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
    _check_mbar(u, counts)
    f, share = _solve_mbar(u, counts)
    influence = -_mbar_influence(share, counts)[:, 0]
    influence[len(weighted) :] -= torch.softmax(log_w, 0) - 1 / len(log_w)
    value = math.exp(-f[1].item() - torch.logsumexp(log_w, 0).item() + math.log(len(log_w)))
    return Estimate(value=value, stderr=value * _stratified_stderr(influence, counts, labels), n_eff=value * len(weighted))


def free_energy_difference(weighted: WeightedSamples, in_a: Callable[[Tensor], Tensor], in_b: Callable[[Tensor], Tensor]) -> Estimate:
    """F_b - F_a = -log(P_b / P_a) in kT between two sets of configurations.

    Args:
        weighted: samples.
        in_a, in_b: indicators, configurations [B, n, d] to bool [B].
    Raises:
        ValueError: if a set holds no weight, or an indicator is not finite at a sample of positive weight.
    """
    p = normalised_weights(weighted)
    indicator = [_defined(f, weighted, f"the indicator of basin {name}") for f, name in ((in_a, "a"), (in_b, "b"))]
    mass = [(p * i).sum().item() for i in indicator]
    for name, value in zip("ab", mass, strict=True):
        if value <= 0:
            raise ValueError(f"no sample of positive weight lies in basin {name}, so its free energy is unknown; draw more samples")
    influence = p * (indicator[1] / mass[1] - indicator[0] / mass[0])
    stderr = delta_stderr(influence, weighted.proposal.group)
    return Estimate(value=math.log(mass[0] / mass[1]), stderr=stderr, n_eff=effective_number(weighted))


def free_energy_profile(weighted: WeightedSamples, coordinate: Callable[[Tensor], Tensor], edges: Tensor) -> Profile:
    """F(s) = -log p(s) in kT along a coordinate, with a delta-method standard error for every bin.

    Args:
        weighted: samples.
        coordinate: configurations [B, n, d] to [B].
        edges: [K+1] rising bin edges; each bin holds its left edge, the last one both.
    Raises:
        ValueError: if the edges do not rise, or the coordinate is not finite at a sample of positive weight.
    """
    edges = torch.as_tensor(edges, dtype=torch.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges.diff() > 0).all():
        raise ValueError(f"bin edges must rise and be at least two, got {edges.tolist()}")
    p = normalised_weights(weighted)
    s = _defined(coordinate, weighted, "the coordinate")
    inside = (s >= edges[0]) & (s <= edges[-1])
    bin_of = torch.where(inside, torch.bucketize(s, edges[1:-1], right=True), -1)
    value, stderr = [], []
    for k, width in enumerate(edges.diff().tolist()):
        member = (bin_of == k).double()
        mass = (p * member).sum().item()
        value.append(-math.log(mass / width) if mass > 0 else math.inf)
        stderr.append(delta_stderr(p * (member - mass), weighted.proposal.group) / mass if mass > 0 else math.nan)
    value, stderr = torch.tensor(value, dtype=torch.float64), torch.tensor(stderr, dtype=torch.float64)
    return Profile(edges=edges, value=value, stderr=stderr, outside=p[~inside].sum().item())


def _defined(f: Callable[[Tensor], Tensor], weighted: WeightedSamples, name: str) -> Tensor:
    """f where the weight is positive and zero elsewhere, [N]; a NaN would pass for "outside"."""
    values = evaluate(f, weighted)
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{name} is not finite at {bad} of {len(values)} samples, all of positive weight; define it there, or give those "
                         "configurations no weight (u = +inf)")
    return values


def _solve_mbar(u: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """f [K] with f_0 = 0, and share[k, n], the chance that pooled sample n was drawn from state k."""
    with _quiet("pymbar"):  # it advises on its own installation at import
        from pymbar import MBAR  # takes a second

        f = torch.from_numpy(MBAR(u.numpy(), np.array(counts), initial_f_k=_first_guess(u).numpy()).f_k.copy()).double()
    drawn = torch.tensor(counts, dtype=torch.float64)
    share = torch.softmax(drawn.log()[:, None] + f[:, None] - u, 0)
    off = (share.sum(1) / drawn - 1).abs().max().item()
    if not off < MAX_INCONSISTENT:
        raise ValueError(f"MBAR did not converge: the shares of a state sum to its count only within {off:.2g} of it, {MAX_INCONSISTENT:g} "
                         "is needed; check the energies for outliers, draw more samples or put states between")
    return f, share


def _first_guess(u: Tensor) -> Tensor:
    """Median of u_k - u_0 over the pool, [K]; from f = 0, pymbar's solver stops short of states that are tens of kT apart."""
    difference = u - u[0]
    return torch.where(torch.isfinite(difference), difference, math.nan).nanmedian(1).values.nan_to_num()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A logger that speaks of errors only, for as long as the block runs; what its warnings would say is checked here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _mbar_influence(share: Tensor, counts: Sequence[int]) -> Tensor:
    """First-order effect of every pooled sample on f_1 .. f_{K-1}, [N, K-1]: H^-1 times its score, H = sum_n diag(p_n) - p_n p_n^T.

    The score of a sample of state s is e_s - p_n less its mean over the state, since the counts were chosen, not drawn.
    """
    state = _state_of(counts)
    score = torch.eye(len(counts), dtype=torch.float64)[state] - share.T
    for k in range(len(counts)):
        score[state == k] -= score[state == k].mean(0)
    hessian = (torch.diag(share.sum(1)) - share @ share.T)[1:, 1:]
    shared = torch.linalg.eigvalsh(hessian)[0].item()
    if shared < MIN_SHARED:
        raise ValueError(f"the states hardly overlap ({shared:.2g} samples' worth, {MIN_SHARED} needed), so their free energies cannot be "
                         "compared; draw more samples, train the generator further or put states between")
    return torch.linalg.solve(hessian, score[:, 1:].T).T


def _stratified_stderr(influence: Tensor, counts: Sequence[int], group: Tensor | None) -> float:
    """Standard error of a sum of influences over samples drawn separately from each state."""
    state = _state_of(counts)
    parts = [state == k for k in range(len(counts))]
    return math.hypot(*(delta_stderr(influence[rows], None if group is None else group[rows]) for rows in parts))


def _state_of(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def _pooled(weighted: WeightedSamples, log_q: Tensor, u: Tensor, group: Tensor | None) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """Reduced energies [2, N + M] of both sets in the generator's state and the target's, counts, and labels of correlated rows."""
    _check_reference(weighted, log_q, u)
    normalised_weights(weighted)
    own_log_q = torch.where(weighted.failed, 0.0, weighted.proposal.log_q)
    own_u = torch.where(weighted.failed, math.inf, weighted.u)
    pooled = torch.stack([-torch.cat([own_log_q, log_q]), torch.cat([own_u, u])])
    return pooled, (len(weighted), len(u)), _joint_group(weighted, group, len(u))


def _check_mbar(u: Tensor, counts: Sequence[int]) -> None:
    if u.ndim != 2 or u.shape != (len(counts), sum(counts)) or min(counts) < 1:
        raise ValueError(f"u has shape {tuple(u.shape)} for {len(counts)} states with counts {tuple(counts)}; it must be "
                         f"[{len(counts)}, {sum(counts)}], with samples from every state")
    if torch.isnan(u).any() or (u == -math.inf).any():
        raise ValueError("u holds NaN or -inf; leave failed samples out of the pool and say how many")
    if (u == math.inf).all(0).any():
        raise ValueError("a pooled sample has u = +inf in every state, so no state can have produced it; check the energies")


def _check_reference(weighted: WeightedSamples, log_q: Tensor, u: Tensor) -> None:
    if not weighted.proposal.density.normalised:
        raise ValueError("the samples' density is known only up to a constant, so BAR and forward ESS cannot be had; use a generator's")
    if log_q.shape != u.shape or u.ndim != 1 or len(u) == 0:
        raise ValueError(f"log q {tuple(log_q.shape)} and u {tuple(u.shape)} at the reference samples must both be [M], M > 0")
    failed = int((torch.isnan(log_q) | (log_q == math.inf)).sum())
    if failed:
        raise ValueError(f"log q is unknown at {failed} of {len(log_q)} reference samples (the inverse map failed there); forward ESS and "
                         "BAR need all of them: use more integration steps")
    infinite = int((~torch.isfinite(u)).sum())
    if infinite:
        raise ValueError(f"u is not finite at {infinite} of {len(u)} reference samples: they are not samples of the target")


def _joint_group(weighted: WeightedSamples, group: Tensor | None, n_reference: int) -> Tensor | None:
    """Labels for both sets together; the two are told apart by their state, so labels may coincide."""
    own = weighted.proposal.group
    if own is None and group is None:
        return None
    own = torch.arange(len(weighted)) if own is None else own
    return torch.cat([own, torch.arange(n_reference) if group is None else group])
