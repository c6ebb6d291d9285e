"""Adjoint sampling: a controlled Brownian motion from the origin learns to end in exp(-u)/Z (Havens et al. 2025, arXiv:2504.11713).

    dX = sigma_t^2 v dt + sigma_t dB,  X_0 = 0
    v(t, X_t) regressed on X_1 / nu_1 - grad u(X_1),  X_1 from the current sampler,  X_t | X_1 ~ N(g X_1, nu_1 g (1 - g))   (eq. 19)

This is reciprocal adjoint matching: the energy is asked once at each sample, and the bridge gives any number of regressions from it. The
fixed point is the control whose end points follow the target; there, by partial integration, v = E[X_1 / nu_1 - grad u | X_t] =
E[(X_1 - X_t) / (nu_1 - nu_t) | X_t]. The second form needs samples of the target and no gradient (bridge matching);
`BridgeMatchingData` pretrains with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.couplings import random_rotations
from bgwork.objectives.replay import Regression, clip_per_particle
from bgwork.paths import GeometricBrownian, Times
from bgwork.protocols import Field, Target
from bgwork.records import Origin, Proposal
from bgwork.samplers.kernels import FieldKernels, KernelTable
from bgwork.samplers.sde import PathSampler, PointPrior
from bgwork.spaces import MeanFree, Space

EARLIEST = 1e-3  # of the times that are trained on


@dataclass(frozen=True, kw_only=True, eq=False)
class AdjointSampling:
    """The method (`bgwork.objectives.replay.EnergyMethod`).

    Args:
        space: flat.
        brownian: base process.
        table: kernels of the sampler that fills the buffer (`bgwork.samplers.kernels.control_table`).
        clip: largest gradient of a particle that is regressed on, in kT per length unit.
        scale: length that makes the loss dimensionless; the target's spread.
        times: distribution of t.
    """

    space: Space
    brownian: GeometricBrownian
    table: KernelTable
    clip: float
    scale: float
    times: Times = field(default_factory=Times)

    def sampler(self, model: Field) -> PathSampler:
        """The controlled process in as many steps as the table has."""
        kernels = FieldKernels(space=self.space, field=model, table=self.table)
        return PathSampler(start=PointPrior(space=self.space), kernels=kernels, origin=Origin(method="adjoint sampling", system="training"))

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """x, u, gradient and path log-weight: one gradient a sample."""
        u, gradient = target.u_and_grad(proposal.x)
        return {"x": proposal.x, "u": u, "gradient": gradient, "log_w": -u - proposal.log_q}

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Points of bridges, with X_1 / nu_1 - grad u(X_1), the gradient clipped per particle."""
        gradient, clipped = clip_per_particle(rows["gradient"], self.clip)
        t, x = bridged(self, rows["x"], generator=generator)
        value = rows["x"] / self.brownian.std**2 - self.space.project(gradient)
        return Regression(t=t, x=x, value=value, weight=torch.full_like(t, self.scale**2), clipped=clipped)


def bridged(method: AdjointSampling, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times [B] and points [B, n, d] of bridges from the origin to x1.

    No walk stops between 0 and its first step, and there the input scale of `ControlPreconditioning` lets all particles fall into one
    point, so that a rare early time would cost a loss beyond all others: t is at least `EARLIEST`.
    """
    t = method.times.sample(len(x1), generator=generator).clamp_min(EARLIEST)
    noise = method.space.project(torch.randn(x1.shape, generator=generator, dtype=torch.float64))
    return t, method.brownian.bridge(t, x1, noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeMatchingData:
    """Pretraining from data: regressions of v on (X_1 - X_t) / (nu_1 - nu_t), as a function of the step number.

    The weight (nu_1 - nu_t)^2 / scale^2 makes this a regression on X_1, which is never steep.

    Args:
        x1: configurations of the target [N, n, d].
        method: whose process is to be pretrained.
        batch: a step.
        seed: together with the step, seeds everything drawn.
    """

    x1: Tensor
    method: AdjointSampling
    batch: int
    seed: int

    def __call__(self, step: int) -> Regression:
        started, method = time.process_time(), self.method
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + step)
        x1 = self.x1[torch.randint(len(self.x1), (self.batch,), generator=generator)].double()
        if isinstance(method.space, MeanFree):
            x1 = x1 @ random_rotations(self.batch, method.space.d, generator=generator)
        t, x = bridged(method, x1, generator=generator)
        left = method.brownian.std**2 - method.brownian.variance(t)
        value = (x1 - x) / left[:, None, None]
        return Regression(t=t.float(), x=x.float(), value=value.float(), weight=((left / method.scale) ** 2).float(),
                          seconds=time.process_time() - started)
