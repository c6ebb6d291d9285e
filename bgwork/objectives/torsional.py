"""Torsional adjoint sampling: a controlled Brownian motion on a torus learns to end in exp(-u)/Z, from the energy alone.

    dX = sigma_t^2 v dt + sigma_t dB on the torus,  X_0 = 0
    v(t, X_t) regressed on -grad u(X_1) - grad log W(X_1; 0, nu_1),    W the wrapped normal that the uncontrolled motion ends in
The bridge to X_1 first draws the periodic image X_1 + 2 pi k that the unwrapped motion ends in, with its probability under N(0, nu_1), and
is then the Euclidean one, wrapped. One gradient an end point serves many regressions. Source: Havens et al. 2025 (arXiv:2504.11713),
section on periodic boundary conditions; design section 8. With importance weights it is `objectives.weighted_adjoint` on a torus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.objectives.replay import Regression
from bgwork.objectives.weighted_adjoint import least_noise
from bgwork.paths import GeometricBrownian, Times
from bgwork.priors import image_shares
from bgwork.protocols import Field, Target
from bgwork.records import Origin, Proposal
from bgwork.samplers.sde import PathSampler, PointPrior
from bgwork.samplers.torus import ControlledBrownianKernels, draw_image
from bgwork.spaces import Torus


@dataclass(frozen=True, kw_only=True, eq=False)
class TorsionalAdjointSampling:
    """The method (`bgwork.objectives.replay.EnergyMethod`).

    Args:
        space: torus.
        brownian: base process, in radians; one that covers the torus needs a std of pi or so.
        stops: times [K+1] of the walk that fills the buffer, from 0 to 1.
        clip: largest derivative with respect to an angle that is regressed on, in kT per radian.
        times: distribution of t.
    """

    space: Torus
    brownian: GeometricBrownian
    stops: Tensor
    clip: float
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        if not isinstance(self.space, Torus):
            raise ValueError(f"torsional adjoint sampling needs a torus, got {self.space}; flat spaces have adjoint sampling")

    def sampler(self, model: Field) -> PathSampler:
        """The controlled motion in as many steps as there are stops."""
        kernels = ControlledBrownianKernels(space=self.space, control=model, brownian=self.brownian, stops=self.stops)
        origin = Origin(method="torsional adjoint sampling", system="training")
        return PathSampler(start=PointPrior(space=self.space), kernels=kernels, origin=origin)

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """x, u, gradient and path log-weight: one gradient a sample.

        Raises:
            ValueError: if the target lives on another space.
        """
        if target.space != self.space:
            raise ValueError(f"{target.name} lives on {target.space}, the method on {self.space}; give both the same space")
        u, gradient = target.u_and_grad(proposal.x)
        return {"x": proposal.x, "u": u, "gradient": gradient, "log_w": -u - proposal.log_q}

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Points of wrapped bridges, with -grad u - grad log W at their ends, the gradient of u clipped per angle."""
        gradient, clipped = self._clipped(rows)
        t, unwrapped, _ = self._bridged(rows["x"], generator=generator)
        value = self._by_gradient(rows["x"], gradient)
        return Regression(t=t, x=self.space.project(unwrapped), value=value, weight=torch.ones_like(t), clipped=clipped)

    def _clipped(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """The gradient of u, clipped per angle, and the share of angles where that did something."""
        return rows["gradient"].clamp(-self.clip, self.clip), (rows["gradient"].abs() > self.clip).double().mean().item()

    def _bridged(self, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Times [B], points of unwrapped bridges, and the images of x1 that they end in."""
        t = self.times.sample(len(x1), generator=generator)
        noise = torch.randn(x1.shape, generator=generator, dtype=torch.float64)
        lifted = draw_image(self.space, x1, variance=self.brownian.std**2, generator=generator)
        return t, self.brownian.bridge(t, lifted, noise), lifted

    def _by_gradient(self, x1: Tensor, gradient: Tensor) -> Tensor:
        variance = self.brownian.std**2
        images, shares = image_shares(self.space, x1, variance=variance)
        return (shares * images).sum(0) / variance - gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedTorsionalAdjointSampling(TorsionalAdjointSampling):
    """The same from end points drawn by their tempered path weights, with both identities of the fixed point: that of the gradient, and
    bridge matching, (lifted X_1 - X_t) / (nu_1 - nu_t), for rows drawn by their tempered weights (`ReplaySettings.effective`).
    """

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Points of wrapped bridges with the combination of least noise, weighed by its inverse variance."""
        gradient, clipped = self._clipped(rows)
        t, unwrapped, lifted = self._bridged(rows["x"], generator=generator)
        mixing = least_noise(self.brownian, t, curvature=gradient.square().mean())
        value = mixing.value(self._by_gradient(rows["x"], gradient), lifted - unwrapped)
        return Regression(t=t, x=self.space.project(unwrapped), value=value, weight=mixing.weight, clipped=clipped)
