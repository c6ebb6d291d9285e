"""Systems with known answers, for the tests of everything that samples, weighs or estimates.

`GaussianOracle` has closed forms on Euclidean and mean-free space; `LineOracle` is any reduced energy on the line, with log Z, averages and
exact samples by quadrature; `propose` and `chains` make proposals from them, good ones and deliberately bad ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgwork.records import Density, Origin, Proposal
from bgwork.spaces import Euclidean, MeanFree, Space

LINE = Euclidean(n=1, d=1)
DW4_SPACE = MeanFree(n=4, d=2)


class _Counted:
    """The counting half of the Target protocol, written here again so that the oracles share no code with what they test."""

    n_energy = 0
    n_gradient = 0

    def u(self, x: Tensor) -> Tensor:
        self.n_energy += len(x)
        return self.energy(x.double())

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.n_gradient += len(x)
        leaf = x.detach().double().requires_grad_()
        u = self.energy(leaf)
        return u.detach(), torch.autograd.grad(u.sum(), leaf)[0]


@dataclass
class GaussianOracle(_Counted):
    """u = |x|^2 / 2 std^2 + offset, so that log Z = dim/2 log(2 pi std^2) - offset; also its own exact sampler and density (a Prior)."""

    space: Space = DW4_SPACE
    std: float = 1.0
    offset: float = 0.0
    name: str = "gaussian-oracle"

    def energy(self, x: Tensor) -> Tensor:
        return x.square().sum((1, 2)) / (2 * self.std**2) + self.offset

    @property
    def log_z(self) -> float:
        return self.space.dim / 2 * math.log(2 * math.pi * self.std**2) - self.offset

    @property
    def mean_square(self) -> float:
        """<|x|^2> = dim std^2."""
        return self.space.dim * self.std**2

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        return self.std * self.space.project(torch.randn(n, self.space.n, self.space.d, generator=generator, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z

    def ess_from(self, std: float) -> float:
        """ESS fraction (reverse = forward) of the proposal N(0, std^2), a = (std/self.std)^2: (sqrt(2a - 1) / a)^dim, 0 if a <= 1/2."""
        a = (std / self.std) ** 2
        return (math.sqrt(2 * a - 1) / a) ** self.space.dim if a > 0.5 else 0.0


@dataclass
class LineOracle(_Counted):
    """A reduced energy of one particle on the line; every answer by quadrature on a fine grid of [-reach, reach]."""

    energy_1d: Callable[[Tensor], Tensor]
    reach: float = 12.0
    name: str = "line-oracle"
    space: Space = field(default=LINE, init=False)

    def __post_init__(self) -> None:
        self.grid = torch.linspace(-self.reach, self.reach, 200_001, dtype=torch.float64)
        self._mass = torch.exp(-self.energy_1d(self.grid))
        self._step = (self.grid[1] - self.grid[0]).item()

    def energy(self, x: Tensor) -> Tensor:
        return self.energy_1d(x[:, 0, 0])

    @property
    def log_z(self) -> float:
        return math.log(self._mass.sum().item() * self._step)

    def average(self, f: Callable[[Tensor], Tensor]) -> float:
        """<f>, f taking configurations [B, 1, 1]."""
        return ((f(self.grid[:, None, None]).double() * self._mass).sum() / self._mass.sum()).item()

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Exact draws by inverting the cumulative distribution, linear between grid points 1e-4 apart."""
        cumulative = torch.cumsum((self._mass[1:] + self._mass[:-1]) / 2, 0)
        cumulative = torch.cat([cumulative.new_zeros(1), cumulative]) / cumulative[-1]
        quantile = torch.rand(n, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(cumulative, quantile).clamp(1, len(self.grid) - 1)
        part = (quantile - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1]).clamp_min(1e-300)
        return (self.grid[right - 1] + self._step * part)[:, None, None]

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z


def double_well() -> LineOracle:
    """u = (x^2 - 4)^2 / 4 + x / 4: two unequal wells near x = -2 and x = 2, barrier 4 kT."""
    return LineOracle(lambda x: (x.square() - 4).square() / 4 + x / 4, name="double-well-oracle")


def gaussian_mixture() -> LineOracle:
    """-log of 0.7 N(-5, 1) + 0.3 N(5, 1), normalised, so that log Z = 0."""
    means, weights = torch.tensor([-5.0, 5.0], dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return -torch.logsumexp(weights.log() - (x[:, None] - means).square() / 2 - 0.5 * math.log(2 * math.pi), 1)

    return LineOracle(energy, name="mixture-oracle")



@dataclass
class MissingMode:
    """A proposal that knows only the left mode of `gaussian_mixture`, N(-5, 1): reverse ESS 1, 30 % of the target unseen."""

    space: Space = LINE

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 1, 1, generator=generator, dtype=torch.float64) - 5

    def log_prob(self, x: Tensor) -> Tensor:
        return -(x[:, 0, 0] + 5).square() / 2 - 0.5 * math.log(2 * math.pi)


def propose(source: object, n: int, *, seed: int, density: Density = Density.EXACT) -> Proposal:
    """n independent samples of anything with `space`, `sample` and `log_prob`, as a Proposal."""
    x = source.sample(n, generator=torch.Generator().manual_seed(seed))
    origin = Origin(method=type(source).__name__, system="oracle", seed=seed)
    return Proposal(x=x, log_q=source.log_prob(x), space=source.space, density=density, origin=origin)


def chains(target: GaussianOracle, n_chains: int, length: int, *, memory: float, seed: int) -> Proposal:
    """Stationary AR(1) chains of a Gaussian oracle, x' = memory x + sqrt(1 - memory^2) noise, as UNNORMALISED samples grouped by chain.

    The integrated autocorrelation time of x is (1 + memory) / (1 - memory), of |x|^2 (1 + memory^2) / (1 - memory^2).
    """
    generator = torch.Generator().manual_seed(seed)
    x = [target.sample(n_chains, generator=generator)]
    for _ in range(length - 1):
        x.append(memory * x[-1] + math.sqrt(1 - memory**2) * target.sample(n_chains, generator=generator))
    x = torch.stack(x, 1).flatten(0, 1)
    group = torch.arange(n_chains).repeat_interleave(length)
    origin = Origin(method="AR(1)", system="oracle", seed=seed)
    return Proposal(x=x, log_q=-target.energy(x), space=target.space, density=Density.UNNORMALISED, origin=origin, group=group)


def binomial_bounds(n: int, p: float, z: float = 4.0) -> tuple[float, float]:
    """Bounds that the number of successes among n trials of probability p leaves with probability below 1e-4 (z = 4)."""
    spread = z * math.sqrt(n * p * (1 - p))
    return n * p - spread, n * p + spread


@dataclass
class TwoWells(_Counted):
    """exp(-offset) times a mixture of N(-shift e_1, std^2) and N(+shift e_1, std^2) in R^d, so that log Z = -offset.

    From a wide Gaussian nearly all draws weigh nothing as d grows, and no local move crosses from one well to the other.
    """

    d: int = 10
    shift: float = 3.0
    std: float = 0.5
    right: float = 0.3
    offset: float = -4.0
    name: str = "two-wells-oracle"

    @property
    def space(self) -> Space:
        return Euclidean(n=1, d=self.d)

    @property
    def log_z(self) -> float:
        return -self.offset

    def energy(self, x: Tensor) -> Tensor:
        centre = x.new_zeros(self.d)
        centre[0] = self.shift
        squares = torch.stack([(x[:, 0] + centre).square().sum(1), (x[:, 0] - centre).square().sum(1)], 1)
        log_weights = x.new_tensor([1 - self.right, self.right]).log()
        normaliser = 0.5 * self.d * math.log(2 * math.pi * self.std**2)
        return self.offset + normaliser - torch.logsumexp(log_weights - squares / (2 * self.std**2), 1)


@dataclass
class HarmonicMolecule(_Counted):
    """A chain of n >= 3 atoms with harmonic bonds and angles and a cosine for every torsion: an ideal molecule with known log Z.

        u = sum k_r/2 (r - r0)^2 + sum k_a/2 (theta - theta0)^2 + sum k_t (1 + cos(m phi - phase))

    In bond vectors d^3 b = r^2 sin(theta) dr dtheta dphi, one atom at a time, so that Z = n^(-3/2) 8 pi^2 R^(n-1) A^(n-2) T^(n-3), each a
    one-dimensional integral. The factor n^(3/2) = det(D D^T)^(3/2), D the differences of neighbours, leads from bond vectors to orthonormal
    mean-free coordinates.
    """

    n: int = 5
    bond: tuple[float, float] = (0.15, 20_000.0)  # r0 in nm, k_r in kT/nm^2
    angle: tuple[float, float] = (1.9, 60.0)  # theta0 in rad, k_a in kT/rad^2
    torsion: tuple[int, float, float] = (2, 0.7, 1.5)  # m, phase in rad, k_t in kT
    name: str = "harmonic-molecule"

    def __post_init__(self) -> None:
        self.space = MeanFree(n=self.n, d=3)
        r = torch.linspace(0.0, 1.0, 200_001, dtype=torch.float64)
        theta, phi = (torch.linspace(low, math.pi, 100_001, dtype=torch.float64) for low in (0.0, -math.pi))
        m, phase, height = self.torsion
        self._axes = {"r": (r, r.square() * torch.exp(-self.bond[1] / 2 * (r - self.bond[0]).square())),
                      "theta": (theta, theta.sin() * torch.exp(-self.angle[1] / 2 * (theta - self.angle[0]).square())),
                      "phi": (phi, torch.exp(-height * (1 + torch.cos(m * phi - phase))))}

    def energy(self, x: Tensor) -> Tensor:
        b = x[:, 1:] - x[:, :-1]
        r = b.norm(dim=-1)
        cosine = -(b[:, 1:] * b[:, :-1]).sum(-1) / (r[:, 1:] * r[:, :-1])
        normal = torch.linalg.cross(b[:, :-1], b[:, 1:])
        unit = normal / normal.norm(dim=-1, keepdim=True)
        middle = b[:, 1:-1] / r[:, 1:-1, None]
        sine = (torch.linalg.cross(unit[:, :-1], unit[:, 1:]) * middle).sum(-1)
        phi = torch.atan2(sine, (unit[:, :-1] * unit[:, 1:]).sum(-1))
        m, phase, height = self.torsion
        stretch = self.bond[1] / 2 * (r - self.bond[0]).square().sum(1)
        bend = self.angle[1] / 2 * (torch.arccos(cosine) - self.angle[0]).square().sum(1)
        return stretch + bend + height * (1 + torch.cos(m * phi - phase)).sum(1)

    @property
    def log_z(self) -> float:
        radial, bending, turning = (math.log(torch.trapezoid(mass, grid).item()) for grid, mass in self._axes.values())
        orientation = math.log(4 * math.pi * 2 * math.pi)
        return (self.n - 1) * radial + (self.n - 2) * bending + (self.n - 3) * turning + orientation - 1.5 * math.log(self.n)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Each length, angle and torsion drawn on its own, and the whole turned at random."""
        r, theta, phi = (self._draw(axis, n, generator) for axis in ("r", "theta", "phi"))
        plane, axis = (torch.tensor(v, dtype=torch.float64).expand(n, 3) for v in ((0.0, 1, 0), (1.0, 0, 0)))
        x = [plane, torch.zeros_like(plane), r[:, :1] * axis]
        for k in range(1, self.n - 1):
            back = x[-2] - x[-1]
            along = -back / back.norm(dim=1, keepdim=True)
            up = x[-3] - x[-2] - ((x[-3] - x[-2]) * along).sum(1, keepdim=True) * along
            up = up / up.norm(dim=1, keepdim=True)
            side = torch.cos(phi[:, k, None]) * up + torch.sin(phi[:, k, None]) * torch.linalg.cross(along, up)
            x.append(x[-1] + r[:, k, None] * (torch.sin(theta[:, k, None]) * side - torch.cos(theta[:, k, None]) * along))
        turn = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)).Q
        return self.space.project(torch.stack(x[1:], 1) @ (turn * torch.linalg.det(turn)[:, None, None]))

    def _draw(self, axis: str, n: int, generator: torch.Generator) -> Tensor:
        grid, mass = self._axes[axis]
        cumulative = torch.cumsum(mass, 0) / mass.sum()
        at = torch.searchsorted(cumulative, torch.rand(n, self.n, generator=generator, dtype=torch.float64)).clamp_max(len(grid) - 1)
        return grid[at]

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z

    def average_of(self, axis: str, f: Callable[[Tensor], Tensor]) -> float:
        """<f> of a bond length "r", an angle "theta" or a torsion "phi"."""
        grid, mass = self._axes[axis]
        return ((f(grid).double() * mass).sum() / mass.sum()).item()
