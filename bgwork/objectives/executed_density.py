"""Derivatives of the exact density of an executed map T = T_K o ... o T_1: in x, and in the parameters at fixed x or at fixed z.

With A_k = DT_k(z_k), z_{k+1} = T_k(z_k) and s_0 = grad log p0(z_0), the gradient of log q travels along the trajectory,
    s_{k+1} = A_k^-T (s_k - grad log|det A_k|),    s_K = grad_x log q(x)    (Vaitl, Nicoli, Nakajima and Kessel 2022, for flows)
and the gradient in the parameters theta at fixed x = T(z), by the implicit function theorem in every step (dz_k = -A_k^-1 dT_k), is
    d log q(x) = -sum_k [d log|det A_k(z_k)| + s_{k+1} . dT_k(z_k)]    with every z_k held fixed.
Both need one step's graph at a time, so memory does not grow with K, and no preimage is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bgwork.protocols import Prior
from bgwork.samplers.executed import Step
from bgwork.samplers.inverse import invert_step

CORRECTIONS = 8  # defect corrections before a row is left to Newton


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Images of prior points under an executed map, with the density there and its gradient; everything detached.

    Attributes:
        x: T(z) [B, n, d].
        log_q: log p0(z) - sum_k log|det A_k| [B].
        score: grad_x log q at x [B, n, d].
        starts: z_k, where each step started, [K, B, n, d].
        singular: smallest singular value of A_k times the sign of its determinant, [K, B]: continuous where a step begins to fold.
        parameter_gradient: of sum_b log q(x_b) at fixed x, one tensor a parameter asked for.
    """

    x: Tensor
    log_q: Tensor
    score: Tensor
    starts: Tensor
    singular: Tensor
    parameter_gradient: tuple[Tensor, ...] = ()

    @property
    def folded(self) -> Tensor:
        """[B] bool: some step's determinant is zero, negative or not finite, so that log q is not the density at x."""
        return ~(self.singular > 0).all(0)


def push(steps: Sequence[Step], z: Tensor) -> Tensor:
    """T(z) [B, n, d], differentiable in parameters and z; steps are recomputed in the backward pass to save memory."""
    for step in steps:
        z = checkpoint(step.__call__, z, use_reentrant=False)
    return z


def push_with_log_det(steps: Sequence[Step], z: Tensor) -> tuple[Tensor, Tensor]:
    """T(z) [B, n, d] and sum_k log|det A_k| [B], float64, differentiable in the parameters, the times of the steps and z."""
    log_det = z.new_zeros(len(z))
    for step in steps:
        z, jacobian = checkpoint(step.with_jacobian, z, use_reentrant=False)
        log_det = log_det + torch.linalg.slogdet(jacobian).logabsdet
    return z, log_det


def score(steps: Sequence[Step], prior: Prior, z: Tensor, *, parameters: Sequence[Tensor] = (), rows: int = 16) -> Scored:
    """Push z and differentiate the density of the executed map there.

    Args:
        steps: T_1 ... T_K.
        prior: p0.
        z: [B, n, d] float64.
        parameters: what to differentiate log q in at fixed x, besides x.
        rows: configurations in memory at once.
    """
    parts = [_score(steps, prior, part, tuple(parameters)) for part in z.detach().split(rows)]
    gradients = zip(*(part.parameter_gradient for part in parts), strict=True)
    columns = {name: torch.cat([getattr(part, name) for part in parts], axis)
               for name, axis in (("x", 0), ("log_q", 0), ("score", 0), ("starts", 1), ("singular", 1))}
    return Scored(**columns, parameter_gradient=tuple(sum(parts) for parts in gradients))


def _score(steps: Sequence[Step], prior: Prior, z: Tensor, parameters: tuple[Tensor, ...]) -> Scored:
    log_q, s = _value_and_gradient(prior, z)
    starts, singular, gradient = [], [], [torch.zeros_like(p) for p in parameters]
    for step in steps:
        starts.append(z)
        y = z.clone().requires_grad_()
        image, jacobian = step.with_jacobian(y)
        sign, log_det = torch.linalg.slogdet(jacobian)
        shrink, *slopes = _gradients(log_det.sum(), (y, *parameters))
        s = _solve_transposed(jacobian.detach(), s - shrink)
        moved = _gradients((image * s).sum(), parameters) if parameters else ()
        for total, *parts in zip(gradient, slopes, moved, strict=True):
            total.sub_(sum(parts))
        singular.append(sign.detach() * _smallest_singular_value(jacobian.detach()))
        log_q, z = log_q - log_det.detach(), image.detach()
    return Scored(x=z, log_q=log_q, score=s, starts=torch.stack(starts), singular=torch.stack(singular),
                  parameter_gradient=tuple(gradient))


def _value_and_gradient(prior: Prior, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    log_p = prior.log_prob(leaf)
    return log_p.detach(), torch.autograd.grad(log_p.sum(), leaf)[0]


def _solve_transposed(jacobian: Tensor, s: Tensor) -> Tensor:
    """A^-T s, NaN where A is singular or not finite."""
    solution, info = torch.linalg.solve_ex(jacobian.mT, s.flatten(1))
    return torch.where((info == 0)[:, None], solution, torch.nan).view_as(s)


def _gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Zero with respect to what the value does not depend on (the determinant of a linear map, say)."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(p) for p in inputs)
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def _smallest_singular_value(jacobian: Tensor) -> Tensor:
    finite = torch.isfinite(jacobian).flatten(1).all(1)
    smallest = torch.linalg.svdvals(torch.where(finite[:, None, None], jacobian, 0.0))[:, -1]
    return torch.where(finite, smallest, torch.nan)


def signed_singular_value(step: Step, z: Tensor) -> Tensor:
    """sign(det A) sigma_min(A) of one step at z, [B], differentiable in the parameters.

    d sigma = p . dA q for the singular vectors p and q, here held fixed (Magnus 1985); the sign makes it pass smoothly through a fold.
    """
    _, jacobian = step.with_jacobian(z)
    left, _, right = torch.linalg.svd(jacobian.detach())
    return torch.linalg.slogdet(jacobian.detach()).sign * torch.einsum("bi,bij,bj->b", left[..., -1], jacobian, right[:, -1])


@torch.no_grad()
def preimages(steps: Sequence[Step], x: Tensor, *, tolerance: float) -> tuple[Tensor, Tensor]:
    """Points z with T(z) = x, for training: max-norm residual of each step below `tolerance`.

    Each step is undone by defect correction with its own reverse R, z <- z - (R(T(z)) - R(x)), which costs no Jacobian and contracts as
    R undoes T up to the integrator's order; rows that it does not bring home go to damped Newton (`invert_step`).

    Args:
        steps: T_1 ... T_K.
        x: [B, n, d].
        tolerance: in the system's length unit.
    Returns:
        z [B, n, d] and found [B] bool; where no preimage was found, z is what the reversed steps alone give.
    """
    z, found = x.double(), torch.ones(len(x), dtype=torch.bool)
    for step in reversed(steps):
        guess = step.backward(z)
        solution, solved = _corrected(step, z, guess, tolerance)
        left = found & ~solved
        if left.any():
            solution[left], log_det, _ = invert_step(
                step.with_jacobian, z[left], guess[left], tolerance=z.new_full((int(left.sum()),), tolerance))
            solved[left] = torch.isfinite(log_det)
        found &= solved
        z = torch.where(found[:, None, None], solution, guess)
    return z, found


def _corrected(step: Step, x: Tensor, guess: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Defect correction: the points it ends at, and whether their images are within the tolerance of x."""
    z, solved = guess.clone(), torch.zeros(len(x), dtype=torch.bool)
    rows = torch.arange(len(x))
    for _ in range(CORRECTIONS):
        image = step(z[rows])
        home = (image - x[rows]).abs().amax((1, 2)) <= tolerance
        solved[rows[home]] = True
        rows, image = rows[~home], image[~home]
        if not len(rows):
            break
        z[rows] = z[rows] - step.backward(image) + guess[rows]
    return z, solved
