"""First configurations for Markov chains, of several kinds, so that chains can be seen to forget them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bgwork.priors import Uniform
from bgwork.protocols import Target

QUENCH_STEPS = 1000
JITTER = 0.03  # of the spacing


def lattice(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """Random sites of a cubic lattice half again as large as needed: a dilute, disordered start.

    Args:
        target: whose space is filled.
        count: number of configurations C.
        spacing: of the lattice, in the system's length unit.
        generator: of the sites and a small jitter.
    Returns:
        [C, n, d] float64.
    """
    n, d = target.space.n, target.space.d
    side = next(k for k in itertools.count(2) if k**d >= 1.5 * n)
    sites = torch.tensor(list(itertools.product(range(side), repeat=d)), dtype=torch.float64)
    chosen = torch.rand(count, len(sites), generator=generator, dtype=torch.float64).argsort(1)[:, :n]
    return _jittered(target, spacing * sites[chosen], spacing, generator)


def quenched(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """Lattice starts run downhill into local minima: a cold start. Arguments and result as in `lattice`."""
    minima = _descend(target, lattice(target, count, spacing=spacing, generator=generator), spacing)
    return _jittered(target, minima, spacing, generator)


def icosahedral(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """The Mackay icosahedron of 13 or 55 particles, relaxed: an ordered, cold start. Arguments and result as in `lattice`.

    Raises:
        ValueError: if the space is not one of 13 or 55 particles in three dimensions.
    """
    golden = 0.5 * (1 + 5**0.5)
    corners = torch.tensor([[0.0, a, b * golden] for a in (-1, 1) for b in (-1, 1)], dtype=torch.float64)
    corners = torch.cat([corners.roll(k, 1) for k in range(3)])
    edges = torch.stack([a + b for a, b in itertools.combinations(corners, 2) if 1.9 < (a - b).norm() < 2.1])
    shells = {13: [corners], 55: [corners, 2 * corners, edges]}
    if target.space.d != 3 or target.space.n not in shells:
        raise ValueError(f"an icosahedron has 13 or 55 particles in 3 dimensions, not those of {target.space}; choose another start")
    cluster = torch.cat([torch.zeros(1, 3, dtype=torch.float64), *shells[target.space.n]]) * (0.5 * spacing)
    relaxed = _descend(target, cluster[None], spacing)
    return _jittered(target, relaxed.expand(count, -1, -1), spacing, generator)


def uniform(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """Anywhere on a space of finite volume, whatever the spacing. Arguments and result as in `lattice`.

    Raises:
        ValueError: if the space has infinite volume.
    """
    return Uniform(space=target.space).sample(count, generator=generator)


def settled(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """Uniform starts run downhill, the lower half of twice as many: some end in clashes, at energies that no chain would ever leave.

    Arguments, result and errors as in `uniform`.
    """
    x = target.space.project(_descend(target, uniform(target, 2 * count, spacing=spacing, generator=generator), spacing))
    return x[target.u(x).argsort()[:count].sort().values]


def origin(target: Target, count: int, *, spacing: float, generator: torch.Generator) -> Tensor:
    """All coordinates nought, but for a jitter: the reference structure of a molecule's torsions. Arguments and result as in `lattice`."""
    return _jittered(target, torch.zeros(count, target.space.n, target.space.d, dtype=torch.float64), spacing, generator)


STARTS = {"lattice": lattice, "quenched": quenched, "icosahedral": icosahedral, "uniform": uniform, "settled": settled, "origin": origin}


def _descend(target: Target, x: Tensor, spacing: float) -> Tensor:
    """Steepest descent with moves of at most 2 % of the spacing per coordinate."""
    for _ in range(QUENCH_STEPS):
        move = 0.001 * spacing**2 * target.u_and_grad(x)[1]
        x = x - move.clamp(-0.02 * spacing, 0.02 * spacing)
    return x


def _jittered(target: Target, x: Tensor, spacing: float, generator: torch.Generator) -> Tensor:
    return target.space.project(x + JITTER * spacing * torch.randn(x.shape, generator=generator, dtype=torch.float64))
