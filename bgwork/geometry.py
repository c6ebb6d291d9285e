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
    rows = torch.arange(len(atoms))
    copies = x.detach()[:, atoms].flatten(1, 2).requires_grad_(True)  # so that no two coordinates share an atom
    with torch.enable_grad():
        values = coordinate(copies, torch.arange(atoms.numel()).view_as(atoms))
        slopes, = torch.autograd.grad(values.sum(), copies)
    jacobian = x.new_zeros(len(x), len(atoms), *x.shape[1:])
    jacobian[:, rows[:, None], atoms] = slopes.view(len(x), *atoms.shape, 3)
    return jacobian.flatten(2)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
