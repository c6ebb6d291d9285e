"""Particles that are not identical: kinds of particles and of pairs, and what a field may learn about each kind.

Distances of a kind of pair are measured on its own scale, s = asinh((dist - centre) / spread): a stiff bond is resolved finely around its
length, and coarsely everywhere else, with one set of Gaussians in s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bgwork.fields.radial import FLOOR, LARGEST_EXPONENT

REACH = 6.0  # of the Gaussians in s: distances up to sinh(6) = 200 spreads away from the centre


@dataclass(frozen=True, kw_only=True, eq=False)
class Species:
    """Kinds of particles and of pairs.

    Args:
        node: kind of each particle, [n], counted from 0.
        pair: kind of each pair, [n, n], symmetric, counted from 0; the diagonal is not used.
        centre, spread: typical distance of each kind of pair and its standard deviation (unit of the configurations), [P].
    """

    node: Tensor
    pair: Tensor
    centre: Tensor
    spread: Tensor

    def __post_init__(self) -> None:
        kinds, n = len(self.centre), len(self.node)
        if self.pair.shape != (n, n) or not torch.equal(self.pair, self.pair.T) or int(self.pair.max()) >= kinds:
            raise ValueError(f"pair kinds must be a symmetric [{n}, {n}] table of kinds below {kinds}, got shape {tuple(self.pair.shape)}")
        if not bool((self.spread > 0).all()):
            raise ValueError(f"spreads of pair distances must be positive, got {float(self.spread.min())}")


def every_atom_its_own_kind(x: Tensor) -> Species:
    """Species in which every particle, and so every pair, is a kind of its own; distances as in x [B, n, d]."""
    n = x.shape[1]
    low, high = torch.triu_indices(n, n, 1)
    pair = torch.zeros(n, n, dtype=torch.int64)
    pair[low, high] = pair[high, low] = torch.arange(len(low))
    centre, spread = pair_distances(x, pair, len(low))
    return Species(node=torch.arange(n), pair=pair, centre=centre, spread=spread)


def pair_distances(x: Tensor, pair: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the distances of each kind of pair in x [B, n, d]; no smaller spread than 1 % of the mean."""
    dist = torch.cdist(x, x)
    upper = torch.ones_like(pair).triu(1).bool()
    count, total, squares = (torch.zeros(kinds, dtype=dist.dtype).index_add_(0, pair[upper], y[upper]) for y in (
        torch.ones_like(dist[0]), dist.mean(0), (dist * dist).mean(0)))
    centre = total / count.clamp(min=1)
    variance = squares / count.clamp(min=1) - centre**2
    return centre, torch.maximum(variance.clamp(min=0).sqrt(), 0.01 * centre).clamp(min=1e-6)


class PairScale(nn.Module):
    """Gaussians b_a(s) of s = asinh((dist - centre) / spread), each kind of pair on its own scale.

    Centres and spreads are saved with the weights, but not trained.
    """

    def __init__(self, species: Species, n_basis: int) -> None:
        super().__init__()
        self.register_buffer("pair", species.pair.clone(), persistent=False)
        self.centre = nn.Parameter(species.centre.clone().float(), requires_grad=False)
        self.spread = nn.Parameter(species.spread.clone().float(), requires_grad=False)
        self.register_buffer("positions", torch.linspace(-REACH, REACH, n_basis), persistent=False)
        self.sharpness = 0.5 / (2 * REACH / (n_basis - 1)) ** 2

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Take centres and spreads from configurations [B, n, d]."""
        centre, spread = pair_distances(x.double(), self.pair, len(self.centre))
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def _scaled(self, dist: Tensor) -> tuple[Tensor, Tensor]:
        spread = self.spread[self.pair][..., None]
        return (dist - self.centre[self.pair][..., None]) / spread, spread

    def forward(self, dist: Tensor) -> Tensor:
        """[B, n, n, n_basis] from distances [B, n, n, 1]."""
        offset = torch.asinh(self._scaled(dist)[0]) - self.positions
        return torch.exp((-self.sharpness * offset * offset).clamp(min=-LARGEST_EXPONENT))

    def value_and_slope(self, dist: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussians and their derivatives with respect to dist."""
        z, spread = self._scaled(dist)
        offset = torch.asinh(z) - self.positions
        basis = torch.exp((-self.sharpness * offset * offset).clamp(min=-LARGEST_EXPONENT))
        return basis, -2 * self.sharpness * offset * (basis - FLOOR) / (spread * torch.sqrt(z * z + 1))


class PairForces(nn.Module):
    """phi_ij = sum_a c_a(kind of ij, t) b_a(s_ij): what depends on one distance and the time alone, learned for each kind of pair.

    The coefficients are linear in the time features; zero at initialisation.
    """

    def __init__(self, species: Species, n_basis: int, time_width: int) -> None:
        super().__init__()
        self.register_buffer("pair", species.pair.clone(), persistent=False)
        self.table = nn.Parameter(torch.zeros(len(species.centre), n_basis, time_width + 1))

    def forward(self, basis: Tensor, temb: Tensor) -> Tensor:
        """[B, n, n, 1] from Gaussians or their slopes [B, n, n, n_basis] and time features [B, time_width]."""
        coefficients = torch.einsum("pkt,bt->bpk", self.table[..., 1:], temb) + self.table[..., 0]
        return (coefficients[:, self.pair] * basis).sum(-1, keepdim=True)
