"""Markov chain Monte Carlo as samplers: Hamiltonian Monte Carlo and parallel tempering, many chains in one batch; log_q = -u."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.samplers.chains import ChainSampler, Kept


@dataclass(kw_only=True)
class ChainState:
    """Positions [C, n, d] with the reduced energy [C] and gradient [C, n, d] there."""

    x: Tensor
    u: Tensor
    grad: Tensor

    @classmethod
    def at(cls, target: Target, x: Tensor) -> ChainState:
        """The state at x.

        Raises:
            ValueError: if the energy of some start is not finite.
        """
        x = target.space.project(x.double())
        u, grad = target.u_and_grad(x)
        if not bool(torch.isfinite(u).all()):
            raise ValueError(f"{int((~torch.isfinite(u)).sum())} of {len(u)} chains start where u is not finite; choose other starts")
        return cls(x=x, u=u, grad=grad)


def hmc_step(target: Target, state: ChainState, beta: Tensor, step: Tensor, leapfrog: int, *, generator: torch.Generator) -> Tensor:
    """One Hamiltonian Monte Carlo transition of every chain towards exp(-beta u), in place.

        H(x, p) = beta u(x) + |p|^2 / 2, accept with min(1, exp(H - H')), source: Duane et al. 1987; Neal 2011.

    A trajectory that meets a non-finite energy is rejected.

    Args:
        target: the reduced energy.
        state: of the chains, changed in place.
        beta: inverse temperature of each chain, [C].
        step: leapfrog step of each chain, [C].
        leapfrog: number of leapfrog steps.
        generator: of the momenta and acceptances.
    Returns:
        acceptance probabilities [C].
    """
    h, b = step[:, None, None], beta[:, None, None]
    momentum = target.space.project(torch.randn(state.x.shape, generator=generator, dtype=torch.float64))
    kinetic = 0.5 * (momentum * momentum).sum((1, 2))
    x, grad = state.x, state.grad
    momentum = momentum - 0.5 * h * b * grad
    for k in range(leapfrog):
        x = x + h * momentum
        u, grad = target.u_and_grad(x)
        momentum = momentum - (h if k < leapfrog - 1 else 0.5 * h) * b * grad
    change = beta * (u - state.u) + 0.5 * (momentum * momentum).sum((1, 2)) - kinetic
    probability = torch.exp(-change.clamp_min(0.0)).nan_to_num(nan=0.0)
    accept = torch.rand(len(u), generator=generator, dtype=torch.float64) < probability
    state.u = torch.where(accept, u, state.u)
    state.x = torch.where(accept[:, None, None], target.space.project(x), state.x)
    state.grad = torch.where(accept[:, None, None], grad, state.grad)
    return probability


class StepSize:
    """Step sizes by dual averaging towards a mean acceptance, one per rung of equal temperature.

    Source: Hoffman and Gelman 2014 (NUTS), section 3.2, on the acceptance averaged over the chains of a rung.

    Args:
        initial: first guess, in the system's length unit.
        rungs: number of step sizes.
        acceptance: wanted mean acceptance.
    """

    def __init__(self, initial: float, *, rungs: int, acceptance: float) -> None:
        self.acceptance = acceptance
        self.centre = math.log(10.0 * initial)
        self.count, self.error = 0, torch.zeros(rungs, dtype=torch.float64)
        self.log_step = torch.full((rungs,), math.log(initial), dtype=torch.float64)
        self.log_average = torch.zeros(rungs, dtype=torch.float64)

    def update(self, probability: Tensor) -> None:
        """Learn from the acceptance probabilities [C, rungs] of one transition."""
        self.count += 1
        eta = 1.0 / (self.count + 10.0)
        self.error = (1.0 - eta) * self.error + eta * (self.acceptance - probability.mean(0))
        self.log_step = self.centre - math.sqrt(self.count) / 0.05 * self.error
        weight = self.count**-0.75
        self.log_average = weight * self.log_step + (1.0 - weight) * self.log_average

    def freeze(self) -> Tensor:
        """The step sizes [rungs] to sample with: the averaged iterates, or the first guess if there was no burn-in."""
        return (self.log_average if self.count else self.log_step).exp()


@dataclass(frozen=True, kw_only=True)
class ParallelTempering(ChainSampler):
    """Replica exchange: HMC at each rung of a temperature ladder, neighbours swapped after every transition.

        swap (a, b) with min(1, exp((beta_a - beta_b)(u_a - u_b))), even and odd pairs in turn
        source: Geyer 1991; Hukushima and Nemoto 1996

    Only configurations of the first rung (beta = 1) are handed over. Step sizes, one per rung, are adapted in the burn-in, which is
    discarded, and fixed from then on.

    Args:
        target: the reduced energy.
        start: first configurations of the chains, [C, n, d]; each is copied to all rungs.
        betas: inverse temperatures, first 1, decreasing.
        burn_in: transitions discarded.
        thin: transitions between kept configurations.
        leapfrog: leapfrog steps a transition.
        step: first guess of the leapfrog step, in the system's length unit.
        acceptance: wanted mean acceptance.
        jitter: the step is drawn anew each transition, uniformly within this relative distance, which breaks periodic orbits.
        system, progress: as in `ChainSampler`.

    Raises:
        ValueError: if betas are not a ladder down from 1, or a setting is out of range.
    """

    betas: tuple[float, ...] = (1.0, 0.7, 0.45, 0.25)
    burn_in: int = 500
    thin: int = 10
    leapfrog: int = 10
    step: float = 0.05
    acceptance: float = 0.8
    jitter: float = 0.2

    def __post_init__(self) -> None:
        falling = all(b < a for a, b in zip(self.betas, self.betas[1:], strict=False))
        if not self.betas or self.betas[0] != 1.0 or not falling or self.betas[-1] <= 0:
            raise ValueError(f"betas must start at 1 and decrease towards 0, got {self.betas}")
        if self.thin < 1 or self.leapfrog < 1 or self.burn_in < 0:
            raise ValueError(f"thin and leapfrog must be positive, burn_in not negative; got {self.thin}, {self.leapfrog}, {self.burn_in}")

    @property
    def method(self) -> str:
        return "hmc" if len(self.betas) == 1 else "parallel-tempering"

    def _run(self, draws: int, generator: torch.Generator) -> Kept:
        before, chains, rungs = self.target.n_gradient, len(self.start), len(self.betas)
        state = ChainState.at(self.target, self.start.repeat_interleave(rungs, 0))
        sizes = StepSize(self.step, rungs=rungs, acceptance=self.acceptance)
        kept_x, kept_u = torch.empty(draws, *self.start.shape, dtype=torch.float64), torch.empty(draws, chains, dtype=torch.float64)
        total = self.burn_in + draws * self.thin
        for k in range(total):
            adapting = k < self.burn_in
            step = sizes.log_step.exp() if adapting else sizes.freeze()
            probability = self._transition(state, step, parity=k % 2, generator=generator)
            if adapting:
                sizes.update(probability)
            elif (k - self.burn_in + 1) % self.thin == 0:
                draw = (k - self.burn_in) // self.thin
                kept_x[draw], kept_u[draw] = state.x[::rungs], state.u[::rungs]
            text = f"{'burn-in' if adapting else 'sampling'}, step {step[0]:.3g}, acceptance {probability[:, 0].mean():.2f}"
            self.progress(k + 1, total, text)
        return Kept(x=kept_x, log_q=-kept_u, gradients=self.target.n_gradient - before)

    def _transition(self, state: ChainState, step: Tensor, *, parity: int, generator: torch.Generator) -> Tensor:
        """One HMC transition of all replicas, then swaps; acceptance probabilities [C, rungs]."""
        chains, rungs = len(self.start), len(self.betas)
        beta = torch.tensor(self.betas, dtype=torch.float64).repeat(chains)
        spread = 1.0 + self.jitter * (2.0 * torch.rand(chains * rungs, generator=generator, dtype=torch.float64) - 1.0)
        probability = hmc_step(self.target, state, beta, step.repeat(chains) * spread, self.leapfrog, generator=generator)
        if rungs > 1:
            self._swap(state, parity=parity, generator=generator)
        return probability.view(chains, rungs)

    def _swap(self, state: ChainState, *, parity: int, generator: torch.Generator) -> None:
        """Exchange the configurations of neighbouring rungs (parity, parity + 1), (parity + 2, ...), ..., in place."""
        chains, rungs = len(self.start), len(self.betas)
        betas = torch.tensor(self.betas, dtype=torch.float64)
        lower = torch.arange(parity, rungs - 1, 2)
        u = state.u.view(chains, rungs)
        log_ratio = (betas[lower] - betas[lower + 1]) * (u[:, lower] - u[:, lower + 1])
        swap = torch.rand(log_ratio.shape, generator=generator, dtype=torch.float64).log() < log_ratio
        source = torch.arange(rungs).repeat(chains, 1)
        source[:, lower] += swap.long()
        source[:, lower + 1] -= swap.long()
        flat = (source + rungs * torch.arange(chains)[:, None]).flatten()
        state.x, state.u, state.grad = state.x[flat], state.u[flat], state.grad[flat]


@dataclass(frozen=True, kw_only=True)
class HMC(ParallelTempering):
    """Hamiltonian Monte Carlo with many parallel chains: one rung, at beta = 1. Arguments as in `ParallelTempering`, without betas.

    Example:
        >>> import torch
        >>> from bgwork.targets.double_well import DoubleWell
        >>> start = torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(1))
        >>> hmc = HMC(target=DoubleWell(4), start=start, burn_in=20, thin=1)
        >>> hmc.sample(16, generator=torch.Generator().manual_seed(0)).x.shape
        torch.Size([16, 4, 2])
    """

    betas: tuple[float, ...] = field(default=(1.0,), init=False)
