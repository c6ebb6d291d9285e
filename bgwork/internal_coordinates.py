"""Bond lengths, bond angles and torsions along a spanning tree of a molecule: there and back again, with the volume element.

    d^{3n}x = dX dOmega prod_i r_i^2 prod_i sin(theta_i) dr dtheta dphi    (Herschbach et al. 1959; Chang, Potter and Gilson 2003)
X is the mean of all atoms and Omega the orientation of the frame of the first three, so that a change of the internal coordinates which
leaves X and Omega alone has the ratio of the products as its determinant.

A torsion belongs to each atom beyond the third. The first atom placed beyond a bond gets the torsion about it, and its siblings their
torsions relative to that one, so that a methyl group has one coordinate that turns and two that hardly move ("phase angles").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgwork.geometry import angles, coordinate_jacobian, distances, torsions
from bgwork.topology import Topology, molecules


class Internal(NamedTuple):
    """Internal coordinates of configurations along a tree of n atoms.

    Attributes:
        lengths: [B, n-1], in the unit of x.
        angles: [B, n-2] in (0, pi).
        torsions: [B, n-3] in radians.
    """

    lengths: Tensor
    angles: Tensor
    torsions: Tensor

    @property
    def log_volume(self) -> Tensor:
        """log of prod r^2 prod sin(theta), [B]."""
        return 2 * self.lengths.log().sum(1) + self.angles.sin().log().sum(1)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Which atoms each atom is placed by.

    Attributes:
        root: the three atoms of the frame, two bonds.
        placed: (i, b, c, d) for every other atom in order: bond i-b, angle i-b-c, torsion i-b-c-d.

    Example:
        >>> tree = Tree(root=(0, 1, 2), placed=((3, 2, 1, 0),))
        >>> x = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]], dtype=torch.float64)
        >>> torch.allclose(tree.cartesian(tree.internal(x), x), x)
        True
    """

    root: tuple[int, int, int]
    placed: tuple[tuple[int, int, int, int], ...]

    def __len__(self) -> int:
        return 3 + len(self.placed)

    @property
    def bonds(self) -> Tensor:
        """[n-1, 2] atoms of every length."""
        first, second, third = self.root
        return torch.tensor([(second, first), (third, second), *(row[:2] for row in self.placed)])

    @property
    def bends(self) -> Tensor:
        """[n-2, 3] atoms of every angle."""
        first, second, third = self.root
        return torch.tensor([(third, second, first), *(row[:3] for row in self.placed)])

    def internal(self, x: Tensor) -> Internal:
        """Internal coordinates of configurations [B, n, 3]."""
        return Internal(distances(x, self.bonds), angles(x, self.bends), torsions(x, torch.tensor(self.placed)))

    @property
    def parts(self) -> tuple[tuple[Callable[[Tensor, Tensor], Tensor], Tensor], ...]:
        """Lengths, angles and torsions, each with the atoms that it takes."""
        return (distances, self.bonds), (angles, self.bends), (torsions, torch.tensor(self.placed))

    def jacobian(self, x: Tensor) -> Tensor:
        """Derivatives of lengths, angles and torsions, in this order, [B, 3n-6, 3n]."""
        return torch.cat([coordinate_jacobian(coordinate, x, atoms) for coordinate, atoms in self.parts], 1)

    def cartesian(self, internal: Internal, like: Tensor) -> Tensor:
        """Configurations [B, n, 3] with these coordinates, in the place and orientation of others.

        Args:
            internal: coordinates.
            like: [B, n, 3], whose mean of all atoms and whose frame are taken over.
        """
        lengths, bends, turns = internal
        first, second, third = self.root
        along, across = _frame(like[:, second] - like[:, first], like[:, third] - like[:, second])
        atoms = {first: torch.zeros_like(along), second: lengths[:, :1] * along}
        atoms[third] = atoms[second] + lengths[:, 1:2] * (across * bends[:, :1].sin() - along * bends[:, :1].cos())
        for k, (i, b, c, d) in enumerate(self.placed):
            r, bend, turn = lengths[:, k + 2, None], bends[:, k + 1, None], turns[:, k, None]
            axis, out = _frame(atoms[b] - atoms[c], atoms[d] - atoms[c])
            aside = out * turn.cos() + torch.linalg.cross(axis, out) * turn.sin()
            atoms[i] = atoms[b] + r * (aside * bend.sin() - axis * bend.cos())
        x = torch.stack([atoms[k] for k in range(len(self))], 1)
        return x + (like - x).mean(1, keepdim=True)


def spanning_tree(topology: Topology) -> Tree:
    """A tree that starts in the middle of the molecule, along its longest branches first; ring bonds that close one are left out.

    Args:
        topology: of one connected molecule of at least four atoms.
    Raises:
        ValueError: if it has fewer atoms or several pieces.
    """
    pieces = len(molecules(topology))
    if len(topology) < 4 or pieces > 1:
        raise ValueError(f"internal coordinates want one molecule of at least 4 atoms, got {len(topology)} atoms in {pieces} pieces")
    root = _root(topology)
    placed: dict[int, tuple[int, int, int, int]] = {}
    behind = {root[0]: root[1], root[1]: root[0], root[2]: root[1]}  # the atom c of whatever is bonded to it
    sibling = {(root[1], root[0]): root[2]}
    queue = list(root)
    for b in queue:
        c = behind[b]
        for i in _bushy_first(topology, topology.neighbours[b]):
            if i in behind:
                continue
            d = sibling.setdefault((b, c), i)
            placed[i] = (i, b, c, d if d != i else _other_neighbour(topology, c, b, behind))
            behind[i] = b
            queue.append(i)
    return Tree(root=root, placed=tuple(placed.values()))


def _root(topology: Topology) -> tuple[int, int, int]:
    """The atom nearest to all others, between the two neighbours at which most of the molecule branches off."""
    middle = min((k for k in range(len(topology)) if len(topology.neighbours[k]) > 1), key=lambda k: (_total_distance(topology, k), k))
    first, third = _bushy_first(topology, topology.neighbours[middle])[:2]
    return first, middle, third


def _total_distance(topology: Topology, start: int) -> int:
    """Number of bonds to every other atom, added up."""
    steps, edge, total, k = {start}, {start}, 0, 0
    while edge:
        edge = {j for i in edge for j in topology.neighbours[i]} - steps
        steps |= edge
        k += 1
        total += k * len(edge)
    return total


def _bushy_first(topology: Topology, atoms: Iterable[int]) -> list[int]:
    """Atoms by the number of their neighbours that have others in turn, so that torsions are those of the chain and not of hydrogens."""
    def branches(k: int) -> int:
        return sum(len(topology.neighbours[j]) > 1 for j in topology.neighbours[k])

    return sorted(atoms, key=lambda k: (-branches(k), k))


def _other_neighbour(topology: Topology, c: int, b: int, placed: dict[int, int]) -> int:
    """A neighbour of c, other than b, that is there already."""
    return next(d for d in _bushy_first(topology, topology.neighbours[c]) if d != b and d in placed)


def _frame(axis: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vector along the axis, and one across it towards the other vector, [B, 3] each."""
    axis = axis / axis.norm(dim=-1, keepdim=True)
    across = other - (other * axis).sum(-1, keepdim=True) * axis
    return axis, across / across.norm(dim=-1, keepdim=True)
