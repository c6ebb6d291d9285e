"""What the tests of annealing share: kernels, spaces, generators of independent rows, and a half line."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from oracles import LineOracle, propose

from bgwork.records import Density, Estimate
from bgwork.samplers.moves import CrankNicolson, Hamiltonian
from bgwork.spaces import Euclidean, MeanFree

SPACES = [Euclidean(n=3, d=2), MeanFree(n=4, d=2)]
PLANE = Euclidean(n=1, d=2)
KERNELS = [Hamiltonian(), Hamiltonian(leapfrog=1, transitions=2), CrankNicolson(transitions=2)]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=["hmc", "mala", "crank-nicolson"])
every_space = pytest.mark.parametrize("space", SPACES, ids=["euclidean", "mean-free"])


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def exactly(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0)


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum((1, 2))


def right(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0, 0] > 0).double()


@dataclass
class Drawn:
    """A sampler of independent rows of anything that `propose` takes."""

    source: object
    density: Density = Density.EXACT

    @property
    def space(self):
        return self.source.space

    def sample(self, n, *, generator):
        return replace(propose(self.source, n, seed=int(torch.randint(2**31, (), generator=generator)), density=self.density), note="drawn")


def walls(*, outside: float) -> LineOracle:
    """u = x^2 / 2 for x > 0, and something else on the other half of the line; log Z = log(2 pi) / 2 - log 2."""
    return LineOracle(lambda x: torch.where(x > 0, x.square() / 2, outside), name="wall")
