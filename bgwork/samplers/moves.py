"""Moves along an annealing path: kernels that leave exp(-u_beta) invariant, with settings fixed before they are used.

    u_beta(x) = (1 - beta) u_0(x) + beta u(x)

with u_0 = -log p0 (geometric path from a prior), another reduced energy, or 0 (inverse temperatures of the target).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bgwork.priors import Gaussian
from bgwork.protocols import Prior, Target
from bgwork.samplers.mcmc import ChainState, StepSize, hmc_step
from bgwork.spaces import Euclidean, MeanFree, Space

TUNING = 20  # transitions of the pilot at each temperature, from which its step size is learned


@dataclass(frozen=True, kw_only=True)
class Walkers:
    """Configurations x [B, n, d] with both end energies there, u_0 [B] and u [B]."""

    x: Tensor
    u_0: Tensor
    u: Tensor

    def take(self, rows: Tensor) -> Walkers:
        """The walkers of some rows (indices or a mask)."""
        return Walkers(x=self.x[rows], u_0=self.u_0[rows], u=self.u[rows])

    def put(self, rows: Tensor, others: Walkers) -> Walkers:
        """A copy in which the walkers of a mask [B] are replaced."""
        where = rows.nonzero().flatten()
        return Walkers(x=self.x.index_copy(0, where, others.x), u_0=self.u_0.index_copy(0, where, others.u_0),
                       u=self.u.index_copy(0, where, others.u))


@dataclass(frozen=True, kw_only=True)
class Path:
    """The family u_beta = (1 - beta) u_0 + beta u, beta in [0, 1].

    Args:
        target: the reduced energy u at beta = 1.
        prior: p0 of a geometric path, u_0 = -log p0, differentiable for Hamiltonian moves.
        other: reduced energy u_0 to start from; with neither, u_0 = 0.

    Raises:
        ValueError: if both are given, if they and the target live on different spaces, or on one that is not flat.
    """

    target: Target
    prior: Prior | None = None
    other: Target | None = None

    def __post_init__(self) -> None:
        if self.prior is not None and self.other is not None:
            raise ValueError("a path starts from a prior or from another energy; give one of them")
        for name, start in (("prior", self.prior), ("other energy", self.other)):
            if start is not None and start.space != self.target.space:
                raise ValueError(f"the {name} lives on {start.space}, the target {self.target.name} on "
                                 f"{self.target.space}; give both one space")
        if not isinstance(self.target.space, Euclidean | MeanFree):
            raise ValueError(f"annealing moves are written for Euclidean and mean-free space, not for {self.target.space}")

    def u_0(self, x: Tensor) -> Tensor:
        """[B] float64."""
        if self.other is not None:
            return self.other.u(x)
        return x.new_zeros(len(x), dtype=torch.float64) if self.prior is None else -self.prior.log_prob(x)

    def u_0_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u_0 [B] and its gradient [B, n, d], both detached.

        Raises:
            ValueError: if the prior's density cannot be differentiated.
        """
        if self.other is not None:
            return self.other.u_and_grad(x)
        if self.prior is None:
            return self.u_0(x), torch.zeros_like(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self.u_0(leaf)
            if not value.requires_grad:
                raise ValueError(f"log_prob of {type(self.prior).__name__} has no gradient, which Hamiltonian moves need; "
                                 "anneal a flow with AnnealedFlow, or refresh its samples with Rejuvenated")
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), grad


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One temperature of a path, as much of a Target as `hmc_step` asks for."""

    path: Path
    beta: float

    @property
    def space(self) -> Space:
        return self.path.target.space

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u_beta [B] and its gradient [B, n, d]."""
        (u_0, grad_0), (u, grad) = self.path.u_0_and_grad(x), self.path.target.u_and_grad(x)
        return (1 - self.beta) * u_0 + self.beta * u, self.space.project((1 - self.beta) * grad_0 + self.beta * grad)

    def walkers(self, x: Tensor, u_beta: Tensor) -> Walkers:
        """Walkers at x from u_beta there: u = (u_beta - (1 - beta) u_0) / beta takes no further energy."""
        u_0 = self.path.u_0(x)
        return Walkers(x=x, u_0=u_0, u=(u_beta - (1 - self.beta) * u_0) / self.beta)


class Kernel(Protocol):
    """A Markov kernel that leaves exp(-u_beta) invariant for any fixed step size; a dataclass.

    Attributes:
        transitions: of each move.
        first_step: guess with which tuning starts.
        acceptance: mean acceptance that tuning aims at.
    """

    transitions: int
    first_step: float
    acceptance: float

    def move(self, path: Path, beta: float, walkers: Walkers, step: float, *, generator: torch.Generator) -> tuple[Walkers, Tensor]:
        """The walkers moved (all start at finite u_0 and u; 0 < beta <= 1), and the mean acceptance probability of each [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hamiltonian:
    """Hamiltonian Monte Carlo (`hmc_step`); one leapfrog step makes it the Metropolis-adjusted Langevin algorithm.

    Args:
        leapfrog: gradients a transition.
        transitions: of each move; a move of B walkers costs B (1 + leapfrog transitions) gradients.
        first_step: guess of the leapfrog step, in the system's length unit.
        acceptance: wanted in tuning.
        jitter: the step of every walker is drawn anew each transition, uniformly within this relative distance.

    Raises:
        ValueError: if a setting is out of range.
    """

    leapfrog: int = 5
    transitions: int = 1
    first_step: float = 0.05
    acceptance: float = 0.8
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.leapfrog < 1:
            raise ValueError(f"a trajectory needs at least one leapfrog step, got {self.leapfrog}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"the jitter must be at least 0 and below 1, got {self.jitter}; above, steps would turn negative")
        check_kernel(self.transitions, self.first_step, self.acceptance)

    def move(self, path: Path, beta: float, walkers: Walkers, step: float, *, generator: torch.Generator) -> tuple[Walkers, Tensor]:
        """As `Kernel.move`."""
        rung = Rung(path=path, beta=beta)
        state, one = ChainState.at(rung, walkers.x), walkers.u.new_ones(len(walkers.x))
        probability = torch.zeros_like(one)
        for _ in range(self.transitions):
            spread = 1.0 + self.jitter * (2.0 * torch.rand(len(one), generator=generator, dtype=torch.float64) - 1.0)
            probability = probability + hmc_step(rung, state, one, step * spread, self.leapfrog, generator=generator)
        return rung.walkers(state.x, state.u), probability / self.transitions


@dataclass(frozen=True, kw_only=True)
class CrankNicolson:
    """Preconditioned Crank-Nicolson moves, which need no gradient; the path must start from a Gaussian prior.

        x' = (x + s xi) / sqrt(1 + s^2), xi ~ p0, accept with min(1, exp(-beta [(u - u_0)(x') - (u - u_0)(x)]))

    The proposal leaves p0 invariant, so that only the likelihood ratio is left to accept; s -> infinity gives independent proposals.
    Source: Neal 1999; Cotter, Roberts, Stuart and White 2013, eq. 4.6, with s = b / sqrt(1 - b^2).

    Args:
        transitions: of each move; a move of B walkers costs B transitions energies.
        first_step: guess of s.
        acceptance: wanted in tuning.

    Raises:
        ValueError: if a setting is out of range.
    """

    transitions: int = 1
    first_step: float = 0.5
    acceptance: float = 0.4

    def __post_init__(self) -> None:
        check_kernel(self.transitions, self.first_step, self.acceptance)

    def move(self, path: Path, beta: float, walkers: Walkers, step: float, *, generator: torch.Generator) -> tuple[Walkers, Tensor]:
        """As `Kernel.move`.

        Raises:
            ValueError: if the path does not start from a Gaussian prior.
        """
        if not isinstance(path.prior, Gaussian):
            raise ValueError(f"Crank-Nicolson moves need a Gaussian prior, got {path.prior!r}; take Hamiltonian moves")
        total, n = torch.zeros_like(walkers.u), len(walkers.x)
        for _ in range(self.transitions):
            x = (walkers.x + step * path.prior.sample(n, generator=generator)) / (1 + step**2) ** 0.5
            with torch.no_grad():
                proposed = Walkers(x=x, u_0=path.u_0(x), u=path.target.u(x))
            change = beta * ((proposed.u - proposed.u_0) - (walkers.u - walkers.u_0))
            probability = torch.exp(-change.clamp_min(0.0)).nan_to_num(nan=0.0)
            accept = torch.rand(n, generator=generator, dtype=torch.float64) < probability
            walkers, total = walkers.put(accept, proposed.take(accept)), total + probability
        return walkers, total / self.transitions


def check_kernel(transitions: int, first_step: float, acceptance: float) -> None:
    """Raise ValueError unless a kernel's settings are in range."""
    if transitions < 1 or not first_step > 0 or not 0 < acceptance < 1:
        raise ValueError("transitions must be at least 1, first_step positive and acceptance between 0 and 1, got "
                         f"{transitions}, {first_step} and {acceptance}")


def tuned_step(kernel: Kernel, path: Path, beta: float, walkers: Walkers, first: float, *,
               generator: torch.Generator) -> tuple[Walkers, float]:
    """A step size at which the kernel accepts as often as it wants to, learned on walkers that are to be thrown away.

    Args:
        kernel: whose step is sought.
        path, beta: what it leaves invariant.
        walkers: of a pilot run, at finite energies.
        first: guess of the step.
        generator: of the moves.
    Returns:
        The walkers moved, and the step.
    """
    sizes, kernel = StepSize(first, rungs=1, acceptance=kernel.acceptance), replace(kernel, transitions=1)
    for _ in range(TUNING):
        walkers, probability = kernel.move(path, beta, walkers, sizes.log_step.exp().item(), generator=generator)
        sizes.update(probability[:, None])
    return walkers, sizes.freeze().item()
