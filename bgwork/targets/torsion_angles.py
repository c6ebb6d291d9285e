"""A molecule's energy as a function of its rotatable torsions alone, at fixed bond lengths, bond angles and other torsions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.spaces import Torus
from bgwork.targets.counting import CountedTarget
from bgwork.topology import Topology, beyond


@dataclass(frozen=True, kw_only=True)
class RotatableBond:
    """A bond that one side of the molecule turns about.

    Attributes:
        atoms: (i, j, k, l) of the torsion that names its angle; the bond is j-k.
        moved: atoms on the side of k, without k.
    """

    atoms: tuple[int, int, int, int]
    moved: tuple[int, ...]


def rotatable_bonds(topology: Topology) -> tuple[RotatableBond, ...]:
    """Every bond whose removal leaves two pieces of more than one atom each, amide bonds and methyl groups included.

    The smaller piece is the one that moves; i and l are the first other neighbours of j and k.
    """
    found = []
    for first, second in topology.bonds:
        side = beyond(topology, first, second)
        if first in side:
            continue  # a ring
        j, k = (first, second) if 2 * len(side) <= len(topology) else (second, first)
        moved = side if k == second else set(range(len(topology))) - side
        if len(moved) > 1 and len(topology) - len(moved) > 1:
            i, last = (next(a for a in topology.neighbours[b] if a != other) for b, other in ((j, k), (k, j)))
            found.append(RotatableBond(atoms=(i, j, k, last), moved=tuple(sorted(moved - {k}))))
    return tuple(found)


class TorsionAngles(CountedTarget):
    """u(phi) = u_molecule(x(phi)), x(phi) the reference structure with every rotatable bond turned by its angle, on a torus.

    All angles 0 is the reference structure. Densities are with respect to d phi; the gradient is the vector-Jacobian product
    of the internal-to-Cartesian map with the molecule's own gradient. An evaluation is one of the molecule's, counted here and there.

    Args:
        target: the molecule's reduced energy.
        structure: [n, 3] reference structure, in the target's length unit.
        bonds: rotatable ones, K of them; coordinates are [B, 1, K] in radians.
        name: printed with every figure.
    """

    def __init__(self, target: Target, structure: Tensor, bonds: tuple[RotatableBond, ...], *, name: str = "") -> None:
        if not bonds:
            raise ValueError(f"{target.name} has no rotatable bond; its torsions have nothing to sample")
        super().__init__(name or f"{target.name} torsions", Torus(n=1, d=len(bonds)))
        self.molecule, self.structure, self.bonds = target, structure.double(), bonds

    def cartesian(self, phi: Tensor) -> Tensor:
        """Configurations x(phi) of the molecule, on its own space, [B, n, 3]; differentiable.

        Args:
            phi: [B, 1, K] in radians.
        """
        x = self.structure.expand(len(phi), -1, -1)
        for bond, angle in zip(self.bonds, phi[:, 0].unbind(1), strict=True):
            x = turned(x, bond, angle)
        return self.molecule.space.project(x)

    def _energy(self, phi: Tensor) -> Tensor:
        return self.molecule.u(self.cartesian(phi))

    def _energy_and_grad(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = phi.detach().requires_grad_()
            x = self.cartesian(leaf)
            u, force = self.molecule.u_and_grad(x.detach())
            (gradient,) = torch.autograd.grad(x, leaf, grad_outputs=force)
        return u, gradient


def turned(x: Tensor, bond: RotatableBond, angle: Tensor) -> Tensor:
    """x [B, n, 3] with the moved atoms of a bond turned about it by angles [B], so that its torsion grows by them (Rodrigues' formula)."""
    _, j, k, _ = bond.atoms
    moved = list(bond.moved)
    axis = (x[:, k] - x[:, j])[:, None]
    axis = axis / axis.norm(dim=-1, keepdim=True)
    arm, cosine, sine = x[:, moved] - x[:, k, None], angle.cos()[:, None, None], angle.sin()[:, None, None]
    along = (axis * arm).sum(-1, keepdim=True) * axis
    new = x[:, k, None] + along + cosine * (arm - along) + sine * torch.linalg.cross(axis.expand_as(arm), arm)
    return x.index_copy(1, torch.tensor(moved), new)
