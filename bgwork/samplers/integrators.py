"""Explicit Runge-Kutta steps of dx/dt = v(t, x) on a fixed grid, with the Jacobian of each step or the divergence integral along it.

A step of s stages is k_i = v(t + c_i h, x + h sum_j a_ij k_j), T(x) = x + h sum_i b_i k_i. The chain rule through the stages,
K_i = J(x_i) (I + h sum_j a_ij K_j), DT = I + h sum_i b_i K_i, gives the exact Jacobian of the map that was executed
(midpoint: DT = I + h J(x_m)(I + h/2 J(x))). Positions, Jacobians and integrals are float64; the field computes in its own dtype.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bgwork.protocols import Field

Time = float | Tensor


@dataclass(frozen=True, kw_only=True)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method (Hairer, Norsett and Wanner, Solving ODEs I, section II.1)."""

    a: tuple[tuple[float, ...], ...]  # row i: weights of the earlier stages
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int

    @property
    def stages(self) -> int:
        return len(self.b)


TABLEAUS = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,), order=1),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2),
    "heun": Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2),
    "rk4": Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0), order=4),
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An integrator and the times it stops at.

    Args:
        integrator: euler, midpoint, heun or rk4.
        steps: number of steps K; each costs one evaluation per stage (midpoint: 2).
        times: K + 1 increasing times from 0 to 1; uniform if not given.
    """

    integrator: str = "midpoint"
    steps: int = 16
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.integrator not in TABLEAUS:
            raise ValueError(f"unknown integrator {self.integrator!r}; choose one of {', '.join(TABLEAUS)}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a positive integer, got {self.steps!r}")
        if self.times is not None:
            self._check_times(self.times)

    def _check_times(self, times: tuple[float, ...]) -> None:
        if len(times) != self.steps + 1:
            raise ValueError(f"times has {len(times)} entries; {self.steps} steps need {self.steps + 1}")
        if times[0] != 0.0 or times[-1] != 1.0 or any(not s < t for s, t in itertools.pairwise(times)):
            raise ValueError(f"times must increase from 0 to 1, got {times}")

    @property
    def tableau(self) -> Tableau:
        return TABLEAUS[self.integrator]

    @property
    def evaluations(self) -> int:
        """Network forward passes per sample."""
        return self.steps * self.tableau.stages

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """(t_k, h_k) of every step, in order."""
        times = self.times or tuple(k / self.steps for k in range(self.steps + 1))
        return tuple((s, t - s) for s, t in itertools.pairwise(times))

    @property
    def reversed(self) -> tuple[tuple[float, float], ...]:
        """(t_k, h_k) of the same grid walked from t=1 to t=0: negative steps."""
        return tuple((t + h, -h) for t, h in self.intervals[::-1])

    def doubled(self) -> Grid:
        """The grid with every step halved."""
        times = [time for t, h in self.intervals for time in (t, t + h / 2)] + [1.0]
        return Grid(integrator=self.integrator, steps=2 * self.steps, times=tuple(times))


class LearnedGrid(nn.Module):
    """A grid whose step sizes are parameters: h_k = softmax(logits)_k, uniform at the start.

    Args:
        integrator: as for `Grid`.
        steps: number of steps K.
        symmetric: whether h_k = h_{K-1-k}, so that the grid reads the same in reverse time.

    Example:
        >>> LearnedGrid(integrator="midpoint", steps=4, symmetric=True).fixed() == Grid(steps=4, times=(0.0, 0.25, 0.5, 0.75, 1.0))
        True
    """

    def __init__(self, *, integrator: str = "midpoint", steps: int = 16, symmetric: bool = False) -> None:
        super().__init__()
        uniform = Grid(integrator=integrator, steps=steps)
        self.integrator, self.steps, self.tableau, self.symmetric = integrator, steps, uniform.tableau, symmetric
        self.logits = nn.Parameter(torch.zeros((steps + 1) // 2 if symmetric else steps))

    def times(self) -> Tensor:
        """K + 1 times from 0 to 1, float64, differentiable in the logits."""
        logits = self.logits.double()
        if self.symmetric:
            logits = torch.cat([logits, logits[: self.steps // 2].flip(0)])
        inner = torch.softmax(logits, 0).cumsum(0)[:-1]
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

    @property
    def intervals(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """(t_k, h_k) of every step, in order, as scalar tensors."""
        times = self.times()
        return tuple(zip(times[:-1], times.diff(), strict=True))

    def fixed(self) -> Grid:
        """The grid as it stands, for samplers."""
        return Grid(integrator=self.integrator, steps=self.steps, times=tuple(self.times().tolist()))


def step(field: Field, tableau: Tableau, t: Time, h: Time, x: Tensor) -> Tensor:
    """One step T(x).

    Args:
        field: the velocity v(t, x).
        tableau: Runge-Kutta coefficients.
        t, h: start and (signed) length of the step, numbers or scalar tensors in which T is differentiable.
        x: [B, n, d] float64.
    Returns:
        [B, n, d] float64.
    """
    slopes: list[Tensor] = []
    for a, c in zip(tableau.a, tableau.c, strict=True):
        slopes.append(field(_time(t + c * h, x), _advance(x, h, a, slopes)).double())
    return _advance(x, h, tableau.b, slopes)


def step_with_divergence(field: Field, tableau: Tableau, t: Time, h: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step T(x) [B, n, d] and int tr J dt over it [B], by the same quadrature: the augmented ODE of Chen et al. (2018), eq. 8."""
    slopes: list[Tensor] = []
    traces: list[Tensor] = []
    for a, c in zip(tableau.a, tableau.c, strict=True):
        v, trace = field.value_and_divergence(_time(t + c * h, x), _advance(x, h, a, slopes))
        slopes.append(v.double())
        traces.append(trace.double())
    return _advance(x, h, tableau.b, slopes), h * sum(b * trace for b, trace in zip(tableau.b, traces, strict=True))


def step_with_jacobian(field: Field, tableau: Tableau, t: Time, h: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step T(x) [B, n, d] and its Jacobian DT [B, nd, nd], both float64: K_i = J(x_i)(I + h sum_j a_ij K_j)."""
    slopes: list[Tensor] = []
    tangents: list[Tensor] = []
    identity = torch.eye(x[0].numel(), dtype=torch.float64)
    for a, c in zip(tableau.a, tableau.c, strict=True):
        v, jacobian = field.value_and_jacobian(_time(t + c * h, x), _advance(x, h, a, slopes))
        inner = _advance(identity, h, a, tangents)
        slopes.append(v.double())
        tangents.append(jacobian.double() @ inner if slopes[1:] else jacobian.double())
    return _advance(x, h, tableau.b, slopes), _advance(identity, h, tableau.b, tangents)


def _time(t: Time, x: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64, device=x.device)


def _advance(x: Tensor, h: Time, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + (h * weight) * slope
    return x
