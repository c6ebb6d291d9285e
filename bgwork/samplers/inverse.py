"""Newton inversion of one executed Runge-Kutta step: which z has T(z) = x, and the log-determinant there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.records import Cost

StepWithJacobian = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Preimages under the executed map, and how well they were found.

    Attributes:
        z: [B, n, d] prior-side configurations, NaN where none was found.
        log_prob: [B] float64 log-density at the configurations handed in, NaN where none was found.
        converged: [B] bool: Newton converged in every step, at a positive determinant, and pushing z forward again came back within the
            tolerance.
        iterations: [B] Newton iterations, summed over the steps.
        error: [B] max-norm distance between the configuration and T(z), NaN where none was found.
        cost: work done.
    """

    z: Tensor
    log_prob: Tensor
    converged: Tensor
    iterations: Tensor
    error: Tensor
    cost: Cost

    def __post_init__(self) -> None:
        if not len(self.z) == len(self.log_prob) == len(self.converged) == len(self.iterations) == len(self.error):
            raise ValueError("z, log_prob, converged, iterations and error must have the same length")


def invert_step(
    step: StepWithJacobian, x: Tensor, guess: Tensor, *, tolerance: Tensor, max_iterations: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve T(z) = x for each row by damped Newton, z <- z - alpha DT(z)^-1 (T(z) - x).

    alpha is halved until the residual falls, so a row never moves to a worse point. A row without a solution nearby stays unconverged, and
    so does one whose solution has det DT <= 0, where the step folds.

    Args:
        step: z [B, n, d] -> (T(z) [B, n, d], DT [B, nd, nd]).
        x: [B, n, d] float64, finite.
        guess: [B, n, d] starting points (the reverse-time step).
        tolerance: [B] largest max-norm residual that counts as solved.
        max_iterations: evaluations of (T, DT) per row.
    Returns:
        z [B, n, d] and log det DT(z) [B] (both NaN where unconverged), iterations [B].
    """
    z = torch.full_like(x, torch.nan)
    log_det = x.new_full((len(x),), torch.nan)
    iterations = torch.zeros(len(x), dtype=torch.int64)
    rows = torch.arange(len(x))
    trial, best = guess, guess
    best_residual, damping = x.new_full((len(x),), torch.inf), x.new_ones(len(x))
    move = torch.zeros_like(x)
    for _ in range(max_iterations):
        image, jacobian = step(trial)
        iterations[rows] += 1
        off = image - x[rows]
        residual = off.abs().amax((1, 2))
        solved = residual <= tolerance[rows]
        newton = newton_move(jacobian, off)
        sign, log_abs_det = torch.linalg.slogdet(jacobian[solved])
        upright = (sign > 0)[:, None, None]  # beyond a fold x has further preimages, and the density of one branch is not that at x
        z[rows[solved]] = torch.where(upright, (trial - newton)[solved], torch.nan)
        log_det[rows[solved]] = torch.where(sign > 0, log_abs_det, torch.nan)
        better = residual < best_residual
        best, best_residual = torch.where(better[:, None, None], trial, best), torch.where(better, residual, best_residual)
        move = torch.where(better[:, None, None], newton, move)
        damping = torch.where(better, 1.0, damping / 2)
        open_ = ~solved & torch.isfinite(best_residual) & (damping > 1e-4)
        rows, best, best_residual, move, damping = (value[open_] for value in (rows, best, best_residual, move, damping))
        if not len(rows):
            break
        trial = best - damping[:, None, None] * move
    return z, log_det, iterations


def newton_move(jacobian: Tensor, off: Tensor) -> Tensor:
    """DT^-1 (T(z) - x), shaped [B, n, d]; not finite where DT is singular."""
    solution, info = torch.linalg.solve_ex(jacobian, off.flatten(1))
    return torch.where((info == 0)[:, None], solution, torch.nan).view_as(off)
