"""The architecture on one page: what each part must offer, and nothing of how.

Conventions (design section 3): argument order (t, x); t=0 is the prior and t=1 the target; x is [B, n, d]; scalars per sample are [B];
u is in kT; energies, densities and weights are float64; randomness enters as `generator: torch.Generator`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bgwork.records import Proposal
from bgwork.spaces import Space


@runtime_checkable
class Target(Protocol):
    """A reduced energy u(x) = U(x)/kT. Both methods take any real dtype, return float64 and count their evaluations."""

    name: str
    space: Space
    n_energy: int  # single-configuration energy evaluations so far
    n_gradient: int  # single-configuration energy+gradient evaluations so far

    def u(self, x: Tensor) -> Tensor:
        """Reduced energy [B], differentiable with respect to x; +inf is legitimate, NaN means the evaluation failed."""
        ...

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy [B] and its gradient [B, n, d], both detached."""
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """Something with a normalised log-density."""

    space: Space

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] float64, with respect to the volume of `space`."""
        ...


@runtime_checkable
class Prior(HasLogProb, Protocol):
    """A normalised density that can be sampled directly."""

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """[n, space.n, space.d] float64."""
        ...


@runtime_checkable
class Field(Protocol):
    """A velocity v(t, x). Network arithmetic is done in the field's own dtype; results come back in it."""

    n: int
    d: int

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d]; t is a scalar or [B]."""
        ...

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and sum_ia dv_ia/dx_ia [B], exact, differentiable in the parameters."""
        ...

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, ia, jb] = dv_ia/dx_jb, [B, nd, nd], exact, differentiable in the parameters."""
        ...


class Coupling(Protocol):
    """Pairs prior draws with data: (x0, x1) -> (x0', x1'), marginals unchanged."""

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Sampler(Protocol):
    """Anything that hands over proposals: flows, flow maps, SDEs, MCMC, MD, SMC."""

    space: Space

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n samples; the proposal says how log_q was obtained."""
        ...
