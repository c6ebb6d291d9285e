"""Correction maps: an energy on the torus of two torsions, interpolated between tabulated values (as in ff19SB and CHARMM)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from bgwork.geometry import torsions
from bgwork.targets.bonded import Term, plain


@dataclass(frozen=True, kw_only=True)
class CorrectionMaps:
    """sum E_map(phi, psi), E_map the periodic bicubic spline through values at multiples of 2 pi / K.

    A bicubic spline is the spline along psi of splines along phi; in each cell it is the Hermite interpolant of values, slopes and the
    mixed derivative at the four corners, all taken from the periodic splines (OpenMM user guide, CMAPTorsionForce).

    Args:
        first, second: [T, 4] atoms of the two torsions.
        corners: per term [T, K, K, 2, 2]: derivative of order (a, b) per grid step at every grid point.
    """

    first: Tensor
    second: Tensor
    corners: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        size = self.corners.shape[1]
        position = [torch.remainder(torsions(x, atoms), 2 * math.pi) * (size / (2 * math.pi)) for atoms in (self.first, self.second)]
        cell = [p.detach().floor().long() for p in position]
        along, across = (_hermite(p - c) for p, c in zip(position, cell, strict=True))
        term = torch.arange(len(self.first), device=x.device)
        energy = 0.0
        for right in (0, 1):
            for up in (0, 1):
                table = self.corners[term, (cell[0] + right) % size, (cell[1] + up) % size]
                energy = energy + torch.einsum("bta,btac,btc->b", along[right], table, across[up])
        return energy


def _hermite(s: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of (value, slope) at the left and at the right end of a cell, at s in [0, 1] of its width, each [..., 2]."""
    s2, s3 = s * s, s * s * s
    left = torch.stack([2 * s3 - 3 * s2 + 1, s3 - 2 * s2 + s], -1)
    return left, torch.stack([3 * s2 - 2 * s3, s3 - s2], -1)


def correction_maps(force: openmm.CMAPTorsionForce) -> Term | None:
    """Read a CMAPTorsionForce; None if it holds no term.

    Raises:
        ValueError: if its maps differ in size, which no published force field has.
    """
    maps = [force.getMapParameters(k) for k in range(force.getNumMaps())]
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    if not rows:
        return None
    sizes = sorted({size for size, _ in maps})
    if len(sizes) > 1:
        raise ValueError(f"a CMAPTorsionForce has maps of sizes {sizes}; make them equal, or add one force for each")
    tables = torch.from_numpy(np.stack([_derivatives(size, energy) for size, energy in maps]))
    index = torch.tensor(rows, dtype=torch.long)
    return CorrectionMaps(first=index[:, 1:5], second=index[:, 5:9], corners=tables[index[:, 0]])


def _derivatives(size: int, energy: object) -> np.ndarray:
    """Value, slopes and mixed derivative per grid step of the periodic bicubic spline, [K, K, 2, 2] (last axes: order along phi, psi)."""
    value = np.array([plain(e) for e in energy]).reshape(size, size).T  # OpenMM lists phi fastest
    result = np.empty((size, size, 2, 2))
    result[..., 0, 0], result[..., 1, 0] = value, _slope(value, axis=0)
    result[..., 0, 1], result[..., 1, 1] = _slope(value, axis=1), _slope(_slope(value, axis=0), axis=1)
    return result


def _slope(value: np.ndarray, *, axis: int) -> np.ndarray:
    """Derivative per grid step of the periodic cubic spline through equally spaced values."""
    size = value.shape[axis]
    closed = np.concatenate([value, value.take([0], axis)], axis)
    return CubicSpline(np.arange(size + 1), closed, axis=axis, bc_type="periodic")(np.arange(size), 1)
