"""Chains of classical spins (the O(d) model in one dimension): an interacting system on a product of spheres with an exact log Z."""

from __future__ import annotations

import math

import torch
from scipy.special import ive
from torch import Tensor

from bgwork.curved import Sphere
from bgwork.priors import Uniform
from bgwork.targets.counting import CountedTarget
from bgwork.targets.von_mises_fisher import sample_von_mises_fisher


class SpinChain(CountedTarget):
    """n unit vectors in R^d, each coupled to its neighbours in an open chain: Heisenberg's for d = 3.

        u(x) = -J sum_{i=1}^{n-1} x_i . x_{i+1},    Z = A [ (2 pi)^(d/2) I_(d/2-1)(J) / J^(d/2-1) ]^(n-1),
        A the area of the unit sphere; <x_i . x_{i+1}> = I_(d/2)(J) / I_(d/2-1)(J), which is coth J - 1/J for d = 3

    The energy is invariant under rotation of all spins together, so that no direction is preferred and the chain's modes are joined.
    Source: Fisher 1964, American Journal of Physics 32:343; Stanley 1969, Physical Review 179:570.

    Args:
        n: spins, at least 2.
        d: components of a spin.
        coupling: J in kT, positive for aligned neighbours.
        name: printed with every figure.
    """

    def __init__(self, n: int, d: int = 3, *, coupling: float, name: str = "spin-chain") -> None:
        if n < 2 or not (coupling != 0 and math.isfinite(coupling)):
            raise ValueError(f"a chain needs at least 2 spins and a finite coupling other than 0, got n = {n}, coupling = {coupling}")
        super().__init__(name, Sphere(n=n, d=d))
        self.coupling = coupling

    @property
    def log_z(self) -> float:
        """Log of the integral of exp(-u) over the product of spheres."""
        d, strength = self.space.d, abs(self.coupling)
        bond = d / 2 * math.log(2 * math.pi) + math.log(ive(d / 2 - 1, strength)) + strength - (d / 2 - 1) * math.log(strength)
        return Sphere(n=1, d=d).log_volume + (self.space.n - 1) * bond

    @property
    def alignment(self) -> float:
        """<x_i . x_{i+1}>, the same for every bond."""
        d, strength = self.space.d, abs(self.coupling)
        return math.copysign(ive(d / 2, strength) / ive(d / 2 - 1, strength), self.coupling)

    def _energy(self, x: Tensor) -> Tensor:
        return -self.coupling * (x[:, 1:] * x[:, :-1]).sum((1, 2))

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Independent exact draws [n, spins, d] float64: each spin given its neighbour is von Mises-Fisher."""
        strength = torch.full((n,), abs(self.coupling), dtype=torch.float64)
        spins = [Uniform(space=Sphere(n=1, d=self.space.d)).sample(n, generator=generator)[:, 0]]
        for _ in range(self.space.n - 1):
            spins.append(sample_von_mises_fisher(math.copysign(1, self.coupling) * spins[-1], strength, generator=generator))
        return torch.stack(spins, 1)
