"""Couplings: how prior draws x0 are paired with data x1 for flow matching.

A coupling leaves both marginals as they were, up to symmetries that both densities share: independent pairs, optimal transport within the
minibatch, and equivariant optimal transport (Klein, Kraemer, Noe 2023), which moves x0 by the permutation and the rotation or
reflection that bring it nearest to x1, alternating the two (assignment, then Kabsch), for each drawn pair or for the best pairs
of small groups. Molecules may only be rotated, and have the hydrogens of a methyl group moved round.
Shorter pairs make straighter paths, hence fewer evaluations, and a regression target with less noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Independent:
    """x0 and x1 as drawn."""

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return x0, x1


@dataclass(frozen=True, kw_only=True)
class OptimalTransport:
    """The pairing of the minibatch with the least sum of |x0 - x1|^2 (Tong et al. 2023; Pooladian et al. 2023)."""

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        cost = -(x0.flatten(1) @ x1.flatten(1).T).numpy()
        rows, columns = linear_sum_assignment(cost)
        return x0[rows], x1[columns]


@dataclass(frozen=True, kw_only=True)
class EquivariantOptimalTransport:
    """Every x0 is permuted and rotated or reflected onto its x1; within groups, all pairs are aligned and the best pairing is kept.

    Args:
        sweeps: alternations of assignment and rotation; the first starts from the orientation as drawn and, in groups, chooses the partner.
        group: number of configurations among which partners are exchanged; 1 keeps the drawn pairs.

    Requires identical particles and a prior and a target that are invariant under permutations, rotations and reflections.
    """

    sweeps: int = 2
    group: int = 1

    def __post_init__(self) -> None:
        if self.sweeps < 1 or self.group < 1:
            raise ValueError(f"sweeps and group must be at least 1, got {self.sweeps} and {self.group}")

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.group == 1:
            return align(x0, x1, sweeps=self.sweeps), x1
        if len(x1) % self.group:
            raise ValueError(f"a batch of {len(x1)} does not divide into groups of {self.group}; choose a multiple")
        return align(self._best_partners(x0, x1), x1, sweeps=self.sweeps - 1), x1

    def _best_partners(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Every x0 of a group aligned to every x1 of it by one sweep; the assignment with the least total distance."""
        g, shape = self.group, x1.shape[1:]
        every_x0 = x0.view(-1, g, 1, *shape).expand(-1, -1, g, *shape).reshape(-1, *shape)
        every_x1 = x1.view(-1, 1, g, *shape).expand(-1, g, -1, *shape).reshape(-1, *shape)
        moved = align(every_x0, every_x1, sweeps=1).view(-1, g, g, *shape)
        costs = ((moved - x1.view(-1, 1, g, *shape)) ** 2).sum((-1, -2)).transpose(1, 2)
        partner = torch.from_numpy(np.stack([linear_sum_assignment(cost.numpy())[1] for cost in costs]))
        rows = torch.arange(len(moved))[:, None]
        return moved[rows, partner, torch.arange(g)].view(-1, *shape)


@dataclass(frozen=True, kw_only=True)
class MolecularAlignment:
    """Every x0 is rotated onto its x1 and has its equivalent triples moved round, alternately; partners stay as drawn.

    Args:
        triples: three indices each, of atoms that a turn of their group exchanges (the hydrogens of a methyl group).
        sweeps: alternations, from the rotation of x0 as drawn.

    Requires a prior and a target that are invariant under rotations and under cyclic permutations of the triples. Reflections and odd
    permutations are left out: they change the handedness of a molecule.
    """

    triples: tuple[tuple[int, int, int], ...] = ()
    sweeps: int = 2

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = turn_onto(x0, x1)
        for _ in range(self.sweeps):
            x0 = turn_onto(self._cycle_onto(x0, x1), x1)
        return x0, x1

    def _cycle_onto(self, x0: Tensor, x1: Tensor) -> Tensor:
        x0 = x0.clone()
        for triple in map(list, self.triples):
            orders = turned(x0[:, triple])
            best = ((orders - x1[:, None, triple]) ** 2).sum((2, 3)).argmin(1)
            x0[:, triple] = orders[torch.arange(len(x0)), best]
        return x0


@dataclass(frozen=True, kw_only=True)
class SoftMolecularAlignment:
    """Every x0 is rotated onto its x1, equivalent triples taken as a whole, and then has these moved round at random, nearer ways likelier.

        P(turn k of a triple) ~ exp(-|x0_k - x1|^2 / (2 width^2)),    x0_k its atoms in x0 after k turns
    The chances are smooth in x0 and x1, where the best turn jumps, and the rotation does not depend on the turns: `log_chance` and the
    rotation's volume are all that pairing adds to the density of a pair, which is what `objectives.force_targets` need to know.

    Args:
        triples: three indices each, of atoms that a turn of their group exchanges (the hydrogens of a methyl group).
        width: in the system's length unit; the best turn is taken at zero, any turn at infinity.

    Requires what `MolecularAlignment` does.
    """

    triples: tuple[tuple[int, int, int], ...]
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width must be positive, got {self.width}; MolecularAlignment takes the best turn")

    def __call__(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = x0 @ turn_between(self.whole(x0), x1)
        for triple in map(list, self.triples):
            turn = torch.multinomial(self.log_chances(x0[:, triple], x1[:, triple]).exp(), 1, generator=generator)
            x0[:, triple] = torch.take_along_dim(turned(x0[:, triple]), turn[:, :, None, None], dim=1).squeeze(1)
        return x0, x1

    def log_chance(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Of leaving all triples as they are, [B]."""
        chances = (self.log_chances(x0[:, list(triple)], x1[:, list(triple)])[:, 0] for triple in self.triples)
        return sum(chances, x0.new_zeros(len(x0)))

    def whole(self, x: Tensor) -> Tensor:
        """x [B, n, d] with the atoms of each triple at their centre."""
        x = x.clone()
        for triple in map(list, self.triples):
            x[:, triple] = x[:, triple].mean(1, keepdim=True)
        return x

    def log_chances(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Of the three turns of a triple at x0 [B, 3, d] whose partner is at x1, [B, 3]."""
        away = (turned(x0) - x1[:, None]).square().sum((2, 3))
        return torch.log_softmax(-away / (2 * self.width**2), 1)


def turned(x: Tensor) -> Tensor:
    """The three cyclic orders of triples [B, 3, d], as they are first, [B, 3, 3, d]."""
    return torch.stack([x.roll(k, 1) for k in range(3)], 1)


def align(x0: Tensor, x1: Tensor, *, sweeps: int) -> Tensor:
    """x0 permuted and rotated or reflected towards x1, pair by pair, by alternating assignment and Kabsch.

    Each half-step lowers |x0 - x1|^2, so the result is a local minimum approached from the drawn orientation.

    Args:
        x0, x1: [B, n, d], mean-free.
        sweeps: number of alternations.
    Returns:
        [B, n, d].
    """
    for _ in range(sweeps):
        x0 = rotate_onto(permute_onto(x0, x1), x1)
    return x0


def permute_onto(x0: Tensor, x1: Tensor) -> Tensor:
    """The permutation of each x0's particles with the least |x0 - x1|^2."""
    costs = -torch.einsum("bia,bja->bij", x1, x0).double().numpy()
    order = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
    return torch.gather(x0, 1, torch.from_numpy(order)[:, :, None].expand_as(x0))


def rotate_onto(x0: Tensor, x1: Tensor) -> Tensor:
    """The rotation or reflection of each x0 with the least |x0 - x1|^2 (Kabsch 1976, without the sign constraint)."""
    u, _, vh = torch.linalg.svd(torch.einsum("bia,bic->bac", x0, x1))
    return x0 @ (u @ vh)


def turn_onto(x0: Tensor, x1: Tensor) -> Tensor:
    """Each x0 rotated as near to x1 as can be, reflections excluded."""
    return x0 @ turn_between(x0, x1)


def turn_between(x0: Tensor, x1: Tensor) -> Tensor:
    """R [B, d, d] of SO(d) with the least |x0 R - x1|^2 (Kabsch 1976)."""
    u, _, vh = torch.linalg.svd(torch.einsum("bia,bic->bac", x0, x1))
    sign = torch.linalg.det(u @ vh).sign()
    return torch.cat([u[..., :-1], u[..., -1:] * sign[:, None, None]], -1) @ vh


def volume_form(x0: Tensor, x1: Tensor) -> Tensor:
    """tr(S) 1 - S [B, 3, 3], S = x0^T x1 for pairs that make it symmetric; positive where no other rotation of x0 is nearer to x1."""
    s = x0.mT @ x1
    s = (s + s.mT) / 2
    return s.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(3, dtype=s.dtype) - s


def random_rotations(n: int, d: int, *, generator: torch.Generator) -> Tensor:
    """n Haar-distributed rotations and reflections of O(d), [n, d, d] float64 (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=torch.float64))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


def random_turns(n: int, d: int, *, generator: torch.Generator) -> Tensor:
    """n Haar-distributed rotations of SO(d), without reflections, [n, d, d] float64."""
    q = random_rotations(n, d, generator=generator)
    return torch.cat([q[..., :-1], q[..., -1:] * torch.linalg.det(q)[:, None, None]], -1)
