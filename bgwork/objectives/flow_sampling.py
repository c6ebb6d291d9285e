"""Flow sampling: learn a diffusion from the energy alone, conditional on its starting point, on flat and curved spaces.

Along the geodesic X_t from a prior draw X_0 to an end point X_1 of the current model, X_0 drawn independently of X_1, regress
    f = dX_t/dt + (g_t^2/2) grad log p_{t|0}(X_t | X_0),    b = dX_t/dt - (g_t^2/2) grad log p_{t|0}(X_t | X_0),    g_t^2 = 2 gamma t
the drifts of dX = f dt + g dB and of its time reversal. On flat space f = X_1 - X_0 + gamma grad r(X_1) with r = -u: the conditional
density is that of X_1, rescaled. On a space of constant curvature kappa and dimension m, s = sqrt|kappa|, theta = s dist(X_0, X_1),
e the unit vector at X_1 away from X_0, parallel and orthogonal to e (sinh and coth for sin and cot where kappa < 0):
    t grad log p_{t|0} = transport_{X_1 -> X_t} [(P_par + t sin(theta)/sin(t theta) P_orth)
                                                 (grad r(X_1) - (m-1) s (t cot(t theta) - cot(theta)) e)]
One energy gradient at an end point serves as many updates as the buffer keeps it for.
Source: design section 8, where these were checked against finite differences of p_{t|0}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bgwork.curved import ConstantCurvature
from bgwork.fields.drift_reversal import check_gamma
from bgwork.objectives.replay import Regression
from bgwork.paths import Times
from bgwork.protocols import Prior, Target
from bgwork.records import Origin, Proposal
from bgwork.samplers.geodesic import Drifts, GeodesicKernels, WalkGrid
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Space, Torus

SERIES_BELOW = 0.1  # angle below which 1 - theta cot theta is summed as a series, exact to round-off


def conditional_drifts(space: Space, t: Tensor, x0: Tensor, x1: Tensor, ascent: Tensor, *,
                       gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """X_t and the drifts that the model regresses on.

    Args:
        space: Euclidean, MeanFree, Sphere or Hyperboloid.
        t: times [B] in [0, 1].
        x0, x1: prior draws and end points [B, n, d].
        ascent: Riemannian gradient of r = -u at x1, tangent, [B, n, d].
        gamma: noise strength, in squared length units.
    Returns:
        X_t, forward drift f and backward drift b at X_t, each [B, n, d].
    """
    t = t[:, None, None]
    back = space.log(x1, x0)
    x = space.exp(x1, (1 - t) * back)
    velocity = space.transport(x1, x, -back)
    pull = gamma * space.transport(x1, x, _times_score(space, t, back, ascent))
    return x, velocity + pull, velocity - pull


def _times_score(space: Space, t: Tensor, back: Tensor, ascent: Tensor) -> Tensor:
    """t grad log p_{t|0}, carried back to X_1; back = log_{X_1} X_0."""
    if not isinstance(space, ConstantCurvature):
        return ascent
    s, square = space.scale, space.square(back)[..., None]
    theta = s * square.sqrt()
    volume = (space.m - 1) * space.curvature * (_cotangent_defect(space, theta) - t**2 * _cotangent_defect(space, t * theta)) * back
    force = ascent + volume
    along = torch.where(square > 0, space.inner(back, force)[..., None] / square.clamp_min(1e-300), 0.0) * back
    return along + space.sine_ratio(theta) / space.sine_ratio(t * theta) * (force - along)


def _cotangent_defect(space: ConstantCurvature, theta: Tensor) -> Tensor:
    """|1 - theta cot(theta)| / theta^2 (coth where the curvature is negative), 1/3 at 0."""
    sign = math.copysign(1.0, space.curvature)
    z = sign * theta.square()
    series = 1 / 3 + z * (1 / 45 + z * (2 / 945 + z * (1 / 4725 + z * 2 / 93555)))
    safe = theta.clamp_min(SERIES_BELOW)
    closed = sign * (1 - space.cosine(safe) / space.sine_ratio(safe)) / safe.square()
    return torch.where(theta < SERIES_BELOW, series, closed)


def walk_grid(gamma: float, stops: Tensor) -> WalkGrid:
    """A walk with the noise of g_t^2 = 2 gamma t: variance gamma (t_{k+1}^2 - t_k^2), positive in the first step too.

    Args:
        gamma: noise strength, in squared length units.
        stops: times [K+1] from 0 to 1.
    """
    return WalkGrid(times=tuple(stops.tolist()), stds=tuple((gamma * stops.square().diff()).sqrt().tolist()))


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowSampling:
    """The method (`bgwork.objectives.replay.EnergyMethod`) for a model of the forward drift alone: on flat space the other follows from it.

    Args:
        prior: p0, a Gaussian whose standard deviation is a parameter of the method.
        drifts: model -> forward and backward drift (`fields.drift_reversal.GaussianStartDrifts`), for the walk that fills the buffer.
        gamma: noise strength, in squared length units. Too much of it makes the iteration jump over narrow modes.
        stops: times [K+1] of that walk, from 0 to 1.
        clip: largest gradient of a particle that is regressed on, in kT per length unit.
        times: distribution of t.
    Raises:
        ValueError: for a prior on a torus, where the density of X_t jumps at the cut locus.
    """

    prior: Prior
    drifts: Callable[[nn.Module], Drifts]
    gamma: float
    stops: Tensor
    clip: float = math.inf
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if isinstance(self.prior.space, Torus):
            raise ValueError("flow sampling's interpolant has no smooth density on a torus; use torsional adjoint sampling there")

    def sampler(self, model: nn.Module) -> PathSampler:
        """The walk along the model's drifts."""
        kernels = GeodesicKernels(space=self.prior.space, drifts=self.drifts(model), grid=walk_grid(self.gamma, self.stops))
        return PathSampler(start=self.prior, kernels=kernels, origin=Origin(method="flow sampling", system="training"))

    def measure(self, target: Target, proposal: Proposal) -> dict[str, Tensor]:
        """x, u, gradient in ambient coordinates and path log-weight: one gradient a sample.

        Raises:
            ValueError: if the target lives on another space, or its energy or gradient has the wrong shape.
        """
        if target.space != self.prior.space:
            raise ValueError(f"{target.name} lives on {target.space}, the prior on {self.prior.space}; give both the same space")
        u, gradient = target.u_and_grad(proposal.x)
        if u.shape != (len(proposal),) or gradient.shape != proposal.x.shape:
            raise ValueError(f"{target.name} returned an energy of shape {tuple(u.shape)} and a gradient of shape {tuple(gradient.shape)} "
                             f"at configurations of shape {tuple(proposal.x.shape)}; expected [N] and [N, n, d]")
        return {"x": proposal.x, "u": u, "gradient": gradient, "log_w": -u - proposal.log_q}

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Conditional forward drifts at points between new prior draws and the rows."""
        made, _ = self._conditional(rows, generator=generator)
        return made

    def _conditional(self, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> tuple[Regression, Tensor]:
        """The regression of the forward drift, and the backward drift at the same points."""
        space, x1 = self.prior.space, rows["x"]
        ascent, clipped = clip_per_particle(space, -space.gradient(x1, rows["gradient"]), self.clip)
        x0 = self.prior.sample(len(x1), generator=generator)
        t = self.times.sample(len(x1), generator=generator)
        x, forward, backward = conditional_drifts(space, t, x0, x1, ascent, gamma=self.gamma)
        return Regression(t=t, x=x, value=forward, weight=torch.ones_like(t), clipped=clipped), backward


class CurvedFlowSampling(FlowSampling):
    """The method for a model of both drifts (`fields.ambient.AmbientDrifts`, say), on any space but a torus; the loss is `DriftsLoss`."""

    def regression(self, target: Target, rows: Mapping[str, Tensor], *, generator: torch.Generator) -> Regression:
        """Conditional forward and backward drifts, stacked, [B, 2, n, d]."""
        made, backward = self._conditional(rows, generator=generator)
        return replace(made, value=torch.stack([made.value, backward], 1))


def clip_per_particle(space: Space, v: Tensor, largest: float) -> tuple[Tensor, float]:
    """Each particle's tangent vector shortened to at most `largest`, and the share of particles for which that made a difference."""
    square = space.inner(v, v).clamp_min(0) if isinstance(space, ConstantCurvature) else v.square().sum(-1)
    norm = square.sqrt()[..., None]
    return v * (largest / norm).clamp_max(1.0), (norm > largest).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class DriftsLoss:
    """Mean square error of both drifts per dimension, in the metric of the space, for models that return both.

    Args:
        space: of the drifts.
    """

    space: Space

    def __call__(self, model: nn.Module, batch: Regression) -> Tensor:
        error = torch.stack(model(batch.t, batch.x), 1) - batch.value
        return self.space.square(error).sum(-1).mean() / self.space.dim
