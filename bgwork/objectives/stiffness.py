"""How stiff a molecule is along each direction, as its data tell it: a Hessian with derivatives of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bgwork.geometry import coordinate_hessian, coordinates_of, wrap
from bgwork.internal_coordinates import Tree, spanning_tree
from bgwork.topology import Topology

STIFF = 0.9  # mean resultant length above which a torsion counts as stiff


@dataclass(frozen=True, kw_only=True, eq=False)
class Stiffness:
    """Hessian of a molecule's energy as its data have it: the precision of lengths, angles and stiff torsions, soft ones left out.

        H(x) = J(x)^T Sigma^-1 J(x),    J the derivative of the coordinates, Sigma their covariance
    Args:
        tree: of the coordinates.
        stiff: [3n-6] which of them.
        root: [K, K] with root^T root = Sigma^-1.
    """

    tree: Tree
    stiff: Tensor
    root: Tensor

    @classmethod
    def of(cls, topology: Topology, x: Tensor) -> Stiffness:
        """That of configurations [N, n, 3], of which there must be more than coordinates."""
        tree = spanning_tree(topology)
        lengths, bends, turns = tree.internal(x.double())
        mean = torch.polar(torch.ones_like(turns), turns).mean(0)
        values = torch.cat([lengths, bends, wrap(turns - mean.angle())], 1)
        stiff = torch.cat([torch.ones(lengths.shape[1] + bends.shape[1], dtype=torch.bool), mean.abs() > STIFF])
        if len(x) <= int(stiff.sum()):
            raise ValueError(f"{len(x)} configurations are too few for the covariance of {int(stiff.sum())} coordinates; give more data")
        precision = torch.linalg.inv(torch.cov(values[:, stiff].T))
        return cls(tree=tree, stiff=stiff, root=torch.linalg.cholesky(precision, upper=True))

    def __call__(self, x: Tensor) -> Tensor:
        """H [B, 3n, 3n]."""
        rows = self.root @ self.tree.jacobian(x)[:, self.stiff]
        return rows.mT @ rows

    def divergence(self, x: Tensor, inverse: Tensor) -> Tensor:
        """sum_j dC_ij/dx_j [B, 3n] of C = (H(x) + constant)^-1, or of that inverse within a plane, from its values [B, 3n, 3n].

            -C sum_m (Hess(q_m) k_m + J_m l_m),    k_m = (Sigma^-1 J C)_m,    l = Sigma^-1 tr(Hess(q) C)
        over the stiff coordinates q with their derivatives J, since dC = -C dH C.
        """
        precision = self.root.mT @ self.root
        jacobian = self.tree.jacobian(x)[:, self.stiff]
        k, traces, total = precision @ jacobian @ inverse, [], torch.zeros_like(inverse[:, 0])
        for (coordinate, atoms), rows in zip(self._stiff_parts, k.split([len(atoms) for _, atoms in self._stiff_parts], 1), strict=True):
            hessian, own = coordinate_hessian(coordinate, x, atoms), coordinates_of(atoms)
            along = torch.einsum("btij,btj->bti", hessian, rows.gather(2, own.expand(len(x), -1, -1)))
            total.index_add_(1, own.flatten(), along.flatten(1))
            traces.append((hessian * inverse[:, own[:, :, None], own[:, None]]).sum((2, 3)))
        total = total + torch.einsum("bmi,bm->bi", jacobian, torch.cat(traces, 1) @ precision)
        return -(inverse @ total[:, :, None]).squeeze(2)

    @cached_property
    def _stiff_parts(self) -> tuple[tuple[Callable[[Tensor, Tensor], Tensor], Tensor], ...]:
        """`Tree.parts` without the soft ones."""
        parts = self.tree.parts
        kept = self.stiff.split([len(atoms) for _, atoms in parts])
        return tuple((coordinate, atoms[keep]) for (coordinate, atoms), keep in zip(parts, kept, strict=True))
