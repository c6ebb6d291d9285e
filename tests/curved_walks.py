"""Spaces, priors and a drift in closed form, for the tests of flow sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgwork.curved import Hyperboloid, Sphere
from bgwork.priors import Uniform, WrappedNormal
from bgwork.records import Origin
from bgwork.spaces import Euclidean, MeanFree
from bgwork.targets.hyperbolic_mixture import HyperbolicMixture
from bgwork.targets.spin_chain import SpinChain
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture

ORIGIN = Origin(method="test", system="oracle")
SPACES = {
    "S2": Sphere(n=1, d=3), "S4": Sphere(n=1, d=5, curvature=0.5), "two points on S2": Sphere(n=2, d=3),
    "H2": Hyperboloid(n=1, d=3), "H4": Hyperboloid(n=1, d=5, curvature=-2.0), "R3": Euclidean(n=1, d=3), "mean-free": MeanFree(n=3, d=2)}
TARGETS = {
    "vMF on S2": VonMisesFisherMixture.random(3, 3, concentration=2.0, seed=1),
    "vMF on S4": VonMisesFisherMixture.random(3, 5, concentration=2.0, seed=1),
    "Gaussians on H2": HyperbolicMixture.ring(2, radius=0.6, std=0.6),
    "Gaussians on H4": HyperbolicMixture.ring(2, 4, radius=0.6, std=0.4),
    "Heisenberg pair": SpinChain(2, coupling=1.0)}


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def near_pole(space, n: int, at: int) -> Tensor:
    pole = space.project(torch.eye(space.n, space.d, dtype=torch.float64) * (0.1 if isinstance(space, Hyperboloid) else 1.0))
    return WrappedNormal(space=space, mean=pole, std=0.6).sample(n, generator=seed(at))


def prior_of(space):
    if isinstance(space, Sphere):
        return Uniform(space=space)
    return WrappedNormal(space=space, mean=space.origin(torch.zeros(space.n, space.d)), std=0.7)


class ExactDrift(nn.Module):
    """f = v + gamma t score of flow sampling from N(0, s0^2) to N(0, s1^2), or a factor times it."""

    def __init__(self, space, *, s0: float, s1: float, gamma: float, factor: float = 1.0) -> None:
        super().__init__()
        self.n, self.d, self.space, self.s0, self.s1, self.gamma, self.factor = space.n, space.d, space, s0, s1, gamma, factor

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of v and of g^2/2 score, as multiples of x."""
        t = torch.as_tensor(t, dtype=torch.float64)
        square = ((1 - t) * self.s0) ** 2 + (t * self.s1) ** 2
        return (t * self.s1**2 - (1 - t) * self.s0**2) / square, -self.gamma * t / square

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.factor * sum(self.rates(t)).reshape(-1, 1, 1) * self.space.project(x)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        size = self.n * self.d
        projection = self.space.project(torch.eye(size, dtype=torch.float64).view(size, self.n, self.d)).view(size, size)
        return self(t, x), (self.factor * sum(self.rates(t))).reshape(-1, 1, 1) * projection.expand(len(x), size, size)
