"""Internal coordinates of many groups of atoms at once: distances, bond angles, torsions; all differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def distances(x: Tensor, atoms: Tensor) -> Tensor:
    """|x_i - x_j|.

    Args:
        x: configurations [B, n, d].
        atoms: [T, 2] pairs of atoms.
    Returns:
        [B, T], in the length unit of x.
    """
    i, j = atoms.unbind(1)
    return (x[:, i] - x[:, j]).norm(dim=-1)


def angles(x: Tensor, atoms: Tensor) -> Tensor:
    """Angle at the second of three atoms, atan2(|a x b|, a . b), which is accurate near 0 and pi where arccos is not.

    Args:
        x: configurations [B, n, 3].
        atoms: [T, 3].
    Returns:
        [B, T] in [0, pi].
    """
    i, j, k = atoms.unbind(1)
    a, b = x[:, i] - x[:, j], x[:, k] - x[:, j]
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def torsions(x: Tensor, atoms: Tensor) -> Tensor:
    """Torsion about the middle bond of four atoms, positive clockwise looking along the bond (IUPAC 1974).

    phi = atan2(|b2| b1 . (b2 x b3), (b1 x b2) . (b2 x b3)), b the three successive bond vectors (Blondel & Karplus 1996).

    Args:
        x: configurations [B, n, 3].
        atoms: [T, 4].
    Returns:
        [B, T] in (-pi, pi].
    """
    b1, b2, b3 = x[:, atoms].diff(dim=2).unbind(2)
    normal = torch.linalg.cross(b2, b3)
    return torch.atan2(b2.norm(dim=-1) * (b1 * normal).sum(-1), (torch.linalg.cross(b1, b2) * normal).sum(-1))


def coordinate_jacobian(coordinate: Callable[[Tensor, Tensor], Tensor], x: Tensor, atoms: Tensor) -> Tensor:
    """Derivatives of coordinates that depend on a few atoms each, in a single reverse pass.

    Args:
        coordinate: `distances`, `angles` or `torsions`.
        x: configurations [B, n, 3].
        atoms: [T, k] as the coordinate takes them.
    Returns:
        [B, T, 3n].
    """
    copies = _copies(x, atoms)
    with torch.enable_grad():
        slopes, = torch.autograd.grad(_of_copies(coordinate, copies, atoms).sum(), copies)
    jacobian = x.new_zeros(len(x), len(atoms), *x.shape[1:])
    jacobian[:, torch.arange(len(atoms))[:, None], atoms] = slopes.view(len(x), *atoms.shape, 3)
    return jacobian.flatten(2)


def coordinate_hessian(coordinate: Callable[[Tensor, Tensor], Tensor], x: Tensor, atoms: Tensor) -> Tensor:
    """Second derivatives of coordinates by their own atoms, which are given as in `coordinate_jacobian`, [B, T, 3k, 3k]."""
    copies, shape = _copies(x, atoms), (len(x), len(atoms), -1)
    with torch.enable_grad():
        slopes, = torch.autograd.grad(_of_copies(coordinate, copies, atoms).sum(), copies, create_graph=True)
        columns = slopes.view(shape).sum((0, 1))
        rows = [torch.autograd.grad(column, copies, retain_graph=True)[0].view(shape) for column in columns]
    return torch.stack(rows, 2)


def coordinates_of(atoms: Tensor) -> Tensor:
    """Which of 3n coordinates are those of atoms [T, k], [T, 3k]."""
    return (3 * atoms[:, :, None] + torch.arange(3)).flatten(1)


def _copies(x: Tensor, atoms: Tensor) -> Tensor:
    """Atoms [B, T k, 3] of which no two coordinates share any, to be differentiated by."""
    return x.detach()[:, atoms].flatten(1, 2).requires_grad_(True)


def _of_copies(coordinate: Callable[[Tensor, Tensor], Tensor], copies: Tensor, atoms: Tensor) -> Tensor:
    return coordinate(copies, torch.arange(atoms.numel()).view_as(atoms))


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
