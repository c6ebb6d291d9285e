"""Annealing between a flow and its target, in the flow's latent space.

The target pulled back through the executed map T is u(T(z)) - log|det DT(z)|. The geometric path from p0 to it is that from q to exp(-u)
seen from latent space, p0(z) w(T(z))^beta with w = exp(-u)/q, so that log q is never needed where no preimage is known.
Proper weights for the pulled-back target are proper for u once z is pushed forward, since T is injective.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.records import Cost, Density, Proposal
from bgwork.samplers.batches import in_batches
from bgwork.samplers.executed import ExecutedMap, Pushed
from bgwork.samplers.moves import CrankNicolson, Kernel
from bgwork.samplers.schedules import Schedule
from bgwork.samplers.smc import SMC, Tempering
from bgwork.spaces import Space

CERTIFIED = 64  # samples of the flow itself, drawn for its certificate


class PulledBack:
    """The target seen from a flow's latent space, u(T(z)) - log|det DT(z)|; energies are counted by the target itself.

    Args:
        flow: whose executed map T it is pulled back through.
        target: reduced energy of x = T(z).

    Attributes:
        n_pushed: configurations sent through the map so far.
    """

    def __init__(self, flow: ExecutedMap, target: Target) -> None:
        self.flow, self.target, self.space, self.n_pushed = flow, target, flow.space, 0
        self.name = f"{target.name} in latent space"

    @property
    def n_energy(self) -> int:
        return self.target.n_energy

    @property
    def n_gradient(self) -> int:
        return self.target.n_gradient

    def u(self, z: Tensor) -> Tensor:
        """[B] float64, NaN where the map diverged; not differentiable: see `u_and_grad`."""
        pushed = self.push(z)
        usable = torch.isfinite(pushed.x).flatten(1).all(1)
        u = torch.full_like(pushed.log_det, torch.nan)
        u[usable] = self.target.u(pushed.x[usable]) - pushed.log_det[usable]
        return u

    def u_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u [B] and its gradient [B, n, d], through the map and its determinants by reverse mode: several times the cost of u."""
        parts = [self._u_and_grad(z[rows]) for rows in in_batches(len(z), self.flow.rows, None)]
        u, grad = (torch.cat(column) for column in zip(*parts, strict=True))
        return u, grad

    def push(self, z: Tensor) -> Pushed:
        """T(z) with its determinants, batch by batch."""
        self.n_pushed += len(z)
        parts = [self.flow.push(z[rows]) for rows in in_batches(len(z), self.flow.rows, None)]
        return Pushed(**{name: torch.cat([getattr(part, name) for part in parts]) for name in Pushed.__dataclass_fields__})

    def _u_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.n_pushed += len(z)
        with torch.enable_grad():
            x = leaf = z.detach().double().requires_grad_()
            log_det = leaf.new_zeros(len(leaf))
            for step in self.flow.steps:
                x, jacobian = step.with_jacobian(x)
                log_det = log_det + torch.linalg.slogdet(jacobian)[1]
            u = self.target.u(x) - log_det
            (grad,) = torch.autograd.grad(u.sum(), leaf)
        return u.detach(), grad


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnealedFlow(Tempering):
    """Sequential Monte Carlo from a flow to its target in latent space.

    Every transition of `CrankNicolson` costs one more sample of the flow with its density, so this pays only where the flow's effective
    fraction is so low that drawing more samples is hopeless; `Rejuvenated` costs energies alone. Arguments as
    in `Tempering`, and

    Args:
        flow: generator with a Gaussian prior and the density of its executed map.
        target: reduced energy.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.priors import Gaussian
        >>> from bgwork.records import Origin
        >>> from bgwork.samplers.flow import Flow
        >>> from bgwork.spaces import Euclidean
        >>> from bgwork.targets.gaussian_mixture import GaussianMixture
        >>> flow = Flow(prior=Gaussian(space=Euclidean(n=1, d=2)), field=MLP(1, 2), origin=Origin(method="flow", system="plane"))
        >>> annealed = AnnealedFlow(flow=flow, target=GaussianMixture(torch.ones(1, 2), std=1.0), islands=4, pilot=32)
        >>> annealed.sample(64, generator=torch.Generator().manual_seed(0)).density
        <Density.PATH: 'path'>
    """

    flow: ExecutedMap
    target: Target
    kernel: Kernel = CrankNicolson()

    @property
    def space(self) -> Space:
        return self.flow.space

    def tune(self, *, generator: torch.Generator) -> Schedule:
        """As `SMC.tune`."""
        return self._latent(PulledBack(self.flow, self.target)).tune(generator=generator)

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n rows with proper weights.

        Args:
            n: number of rows, at least one for each island.
            generator: source of everything random.
        Returns:
            Proposal, density PATH if the flow's certificate and the determinants at all rows are clean, else UNCERTIFIED. Its cost is
            that of sampling; the certificate's own work is in the note.
        Raises:
            ValueError: as `SMC.sample`.
        """
        began, pulled = time.perf_counter(), PulledBack(self.flow, self.target)
        latent = self._latent(pulled).sample(n, generator=generator)
        pushed = pulled.push(latent.x)
        evaluations = pulled.n_pushed * self.flow.evaluations
        cost = Cost(network=evaluations, jacobian=evaluations, energy=latent.cost.energy, gradient=latent.cost.gradient,
                    seconds=time.perf_counter() - began)
        own = self.flow.sample(CERTIFIED, generator=generator)
        certificate = replace(own.certificate, n=n + own.certificate.n, n_negative=int(pushed.folded.sum()) + own.certificate.n_negative)
        origin = replace(own.origin, method=f"{own.origin.method}+annealed", config_hash="")
        return replace(
            latent, x=pushed.x, log_q=latent.log_q - pushed.log_det, sign=pushed.sign, certificate=certificate, cost=cost, origin=origin,
            density=Density.PATH if certificate.clean else Density.UNCERTIFIED, note=f"in latent space, {latent.note}; {own.note}")

    def _latent(self, pulled: PulledBack) -> SMC:
        return SMC(prior=self.flow.prior, target=pulled, **self.tempering)
