"""MBAR: free energies of several states from samples pooled over all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bgwork.error_bars import delta_stderr
from bgwork.records import Estimate

MIN_SHARED = 1.0  # sum over samples of p(1-p), p the chance that a sample came from the other state: below one, nothing links the two
MAX_INCONSISTENT = 1e-6  # relative error of a state's shares against its count; converged solutions reach 1e-12


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The solved equations of MBAR.

    Attributes:
        f: [K] free energies, f_0 = 0.
        share: [K, N] chance that pooled sample n was drawn from state k.
        counts: rows drawn from each state, in the order of the states.
    """

    f: Tensor
    share: Tensor
    counts: tuple[int, ...]

    @property
    def state(self) -> Tensor:
        """The state each pooled sample was drawn from, [N]."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))

    def influence(self) -> Tensor:
        """First-order effect of every pooled sample on f_1 .. f_{K-1}, [N, K-1]: H^-1 times its score, H = sum_n diag(p_n) - p_n p_n^T.

        The score of a sample of state s is e_s - p_n less its mean over the state, since the counts were chosen, not drawn.

        Raises:
            ValueError: if the states do not overlap.
        """
        score = self.centred(torch.eye(len(self.counts), dtype=torch.float64)[self.state] - self.share.T)
        hessian = (torch.diag(self.share.sum(1)) - self.share @ self.share.T)[1:, 1:]
        shared = torch.linalg.eigvalsh(hessian)[0].item()
        if shared < MIN_SHARED:
            raise ValueError(f"the states hardly overlap ({shared:.2g} samples' worth, {MIN_SHARED} needed), so their free energies cannot "
                             "be compared; draw more samples, train the generator further or put states between")
        return torch.linalg.solve(hessian, score[:, 1:].T).T

    def centred(self, values: Tensor) -> Tensor:
        """Values less their mean over the samples of the same state, [N, ...]."""
        return torch.cat([part - part.mean(0) for part in values.split(list(self.counts))])

    def stderr(self, influence: Tensor, group: Tensor | None) -> float:
        """Standard error of a sum of influences [N] over samples drawn separately from each state.

        Args:
            influence: [N] first-order effect of each sample, centred.
            group: [N] labels of correlated rows, or None.
        """
        labels = [None] * len(self.counts) if group is None else group.split(list(self.counts))
        return math.hypot(*(delta_stderr(part, label) for part, label in zip(influence.split(list(self.counts)), labels, strict=True)))


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
    solution = solve(u, counts)
    log_mixture = torch.logsumexp(torch.tensor(counts, dtype=torch.float64).log()[:, None] + solution.f[:, None] - u, 0)
    n_eff = [1 / torch.softmax(-u_k - log_mixture, 0).square().sum().item() for u_k in u]
    stderr = [0.0, *(solution.stderr(column, group) for column in solution.influence().T)]
    return tuple(Estimate(value=0.0 - f_k, stderr=s, n_eff=n) for f_k, s, n in zip(solution.f.tolist(), stderr, n_eff, strict=True))


def solve(u: Tensor, counts: Sequence[int]) -> Solution:
    """Solve the equations of MBAR by pymbar and check the solution.

    Args, Raises: as `mbar`.
    """
    _check(u, counts)
    with quiet("pymbar"):  # it advises on its own installation at import
        from pymbar import MBAR  # takes a second

        f = torch.from_numpy(MBAR(u.numpy(), np.array(counts), initial_f_k=_first_guess(u).numpy()).f_k.copy()).double()
    drawn = torch.tensor(counts, dtype=torch.float64)
    share = torch.softmax(drawn.log()[:, None] + f[:, None] - u, 0)
    off = (share.sum(1) / drawn - 1).abs().max().item()
    if not off < MAX_INCONSISTENT:
        raise ValueError(f"MBAR did not converge: the shares of a state sum to its count only within {off:.2g} of it, {MAX_INCONSISTENT:g} "
                         "is needed; check the energies for outliers, draw more samples or put states between")
    return Solution(f=f, share=share, counts=tuple(counts))


def _first_guess(u: Tensor) -> Tensor:
    """Median of u_k - u_0 over the pool, [K]; from f = 0, pymbar's solver stops short of states that are tens of kT apart."""
    difference = u - u[0]
    return torch.where(torch.isfinite(difference), difference, math.nan).nanmedian(1).values.nan_to_num()


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """A logger that speaks of errors only, for as long as the block runs; what its warnings would say is checked here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(u: Tensor, counts: Sequence[int]) -> None:
    if u.ndim != 2 or u.shape != (len(counts), sum(counts)) or min(counts) < 1:
        raise ValueError(f"u has shape {tuple(u.shape)} for {len(counts)} states with counts {tuple(counts)}; it must be "
                         f"[{len(counts)}, {sum(counts)}], with samples from every state")
    if torch.isnan(u).any() or (u == -math.inf).any():
        raise ValueError("u holds NaN or -inf; leave failed samples out of the pool and say how many")
    if (u == math.inf).all(0).any():
        raise ValueError("a pooled sample has u = +inf in every state, so no state can have produced it; check the energies")
