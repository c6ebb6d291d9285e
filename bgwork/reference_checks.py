"""What reference data are: configurations with the checks that they passed and the averages they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgwork.curved import ConstantCurvature, Hyperboloid
from bgwork.records import Estimate, Proposal
from bgwork.spaces import Space, Torus
from bgwork.store import RUNS, SAMPLES_FILE
from bgwork.system import System

Z_LIMIT = 4.0
BATCH = 4096  # bounds the memory


def data_of(name: str) -> Path:
    """Where `bgwork reference` puts a system's data, if it is told no folder."""
    return RUNS / name / "reference" / SAMPLES_FILE


class ReferenceError(ValueError):
    """Reference data that failed a check, or cannot be made as asked."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure and the limit it must stay below (NaN fails).

    Attributes:
        name: of the check.
        value: what was measured.
        limit: what it must be below.
        text: what the value was made from.
    """

    name: str
    value: float
    limit: float
    text: str = ""

    @property
    def passed(self) -> bool:
        return self.value < self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g} (must be below {self.limit:g}){' - ' + self.text if self.text else ''}"


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """Equilibrium configurations with their checks.

    Attributes:
        proposal: configurations, UNNORMALISED, `group` = chain.
        checks: all of them must have passed before `reference.save` writes anything.
        estimates: averages of all observables, "u" and "virial", with stderr over chains.
        made: how: sampler, chains, seed, number, commit, versions.
    """

    proposal: Proposal
    checks: tuple[Check, ...]
    estimates: dict[str, Estimate]
    made: dict[str, Any]


def measure(system: System, proposal: Proposal) -> dict[str, Tensor]:
    """Every observable of the system, "u" and "virial" at each configuration, [N] each."""
    parts = [system.differentiable_target.u_and_grad(x) for x in proposal.x.split(BATCH)]
    virial = torch.cat([virial_of(system.space, x, grad) for x, (_, grad) in zip(proposal.x.split(BATCH), parts, strict=True)])
    values = {"u": torch.cat([u for u, _ in parts]), "virial": virial}
    for name in (*system.observables, *([system.basins] if system.basins else [])):
        if name not in values:
            values[name] = torch.cat([system.functions[name](x) for x in proposal.x.split(BATCH)])
    return values


def virial_of(space: Space, x: Tensor, gradient: Tensor) -> Tensor:
    """A quantity [B] that averages to `space.dim` in equilibrium, by integration by parts: <v . grad u> = <div v>, whatever v.

    On flat space v = x. On curved ones v = grad f, so that v . grad u - laplacian f + dim is returned: with S the sum of the points' first
    ambient coordinates, each of Laplacian -m kappa x_0, f = S^2 / 2 on spheres, and f = sum log x_0 on hyperboloids, where it grows slowly.
    On a torus v = sin x, and v . grad u - sum cos x + dim is returned.

    Args:
        space: of the configurations.
        x: [B, n, d].
        gradient: partial derivatives of u in ambient coordinates, [B, n, d].
    """
    if isinstance(space, Torus):
        return (x.sin() * gradient - x.cos()).sum((1, 2)) + space.dim
    if not isinstance(space, ConstantCurvature):
        return (x * gradient).sum((1, 2))
    first, height = torch.zeros_like(x), x[..., 0]
    first[..., 0] = 1.0
    rise = space.gradient(x, first)
    along, steepness, pull = (rise * gradient).sum(2), space.square(rise), -space.m * space.curvature * height
    if isinstance(space, Hyperboloid):
        return (along / height - pull / height + steepness / height.square()).sum(1) + space.dim
    total = height.sum(1)
    return total * (along.sum(1) - pull.sum(1)) - steepness.sum(1) + space.dim


def virial_check(virial: Estimate, dimension: int) -> Check:
    """The virial <x . grad u> equals the dimension of the space (integration by parts), in standard errors."""
    return Check(name="virial, distance from its exact value in standard errors", limit=Z_LIMIT,
                 value=abs(virial.value - dimension) / virial.stderr, text=f"{virial}, exactly {dimension}")


def agreement(name: str, estimates: list[Estimate], *, limit: float) -> Check:
    """The largest difference between independent estimates of one number, in combined standard errors."""
    apart = max(abs(a.z(b)) for k, a in enumerate(estimates) for b in estimates[:k])
    return Check(name=f"{name}, difference in standard errors", value=apart, limit=limit, text=", ".join(map(str, estimates)))
