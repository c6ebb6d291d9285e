"""Flow maps known in closed form, and random ones, for the tests of everything that uses U(t, s, x)."""

from __future__ import annotations

import torch
from simple_fields import randomise
from torch import Tensor, nn

from bgwork.fields.egnn import EGNN
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.two_times import AverageVelocity

SMALL = {"hidden": 8, "message": 6, "vectors": 4, "node_hidden": 10, "n_basis": 6}
NETS = {
    "mlp": lambda times: MLP(1, 2, hidden=16, depth=3, times=times),
    "egnn": lambda times: EGNN(4, 2, layers=2, hidden=8, reach=1.0, times=times),
    "two hops": lambda times: MultiHop(4, 2, MultiHopConfig(**SMALL, times=times)),
    "two hops, logarithmic": lambda times: MultiHop(4, 2, MultiHopConfig(**SMALL, times=times, nearest=0.01)),
}


def random_average(name: str, *, seed: int = 0, size: float = 0.5) -> AverageVelocity:
    """U with random weights everywhere, float64."""
    torch.manual_seed(0)
    return AverageVelocity(randomise(NETS[name](2), seed=seed, size=size))


class Breathing(nn.Module):
    """The flow between N(0, prior^2) and N(0, data^2) with independent coupling, x_t = c(t) x_0 / prior: a net of (t, s - t).

        c(t)^2 = (1-t)^2 prior^2 + t^2 data^2,    v = c'(t)/c(t) x,    X_{t->s}(x) = c(s)/c(t) x
    x keeps its mean, as on mean-free space. `factor` multiplies U, so that 1 is the truth.
    """

    def __init__(self, n: int = 4, d: int = 2, *, prior: float = 1.0, data: float = 0.4) -> None:
        super().__init__()
        self.n, self.d, self.prior, self.data = n, d, prior, data
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def scale(self, t: Tensor) -> Tensor:
        """c(t)."""
        return torch.sqrt((1 - t) ** 2 * self.prior**2 + t**2 * self.data**2)

    def rate(self, t: Tensor) -> Tensor:
        """c'(t)/c(t)."""
        return (t * self.data**2 - (1 - t) * self.prior**2) / self.scale(t) ** 2

    def slope(self, pair: Tensor) -> Tensor:
        """U / x, [B, 1, 1] or [1, 1, 1]."""
        t, length = pair.double().unbind(-1)
        along = torch.where(length == 0, 1.0, length)
        mean = torch.where(length == 0, self.rate(t), (self.scale(t + length) / self.scale(t) - 1) / along)
        return self.factor * mean.view(-1, 1, 1)

    def forward(self, pair: Tensor, x: Tensor) -> Tensor:
        return self.slope(pair) * (x - x.mean(1, keepdim=True))

    def value_and_jacobian(self, pair: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean_free = torch.eye(self.n, dtype=torch.float64) - 1 / self.n
        jacobian = self.slope(pair) * torch.kron(mean_free, torch.eye(self.d, dtype=torch.float64))
        return self(pair, x), jacobian.expand(len(x), -1, -1)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x), t scalar or [B]."""
        return self.rate(torch.as_tensor(t, dtype=torch.float64)).view(-1, 1, 1) * x


class Steady(nn.Module):
    """A net of (t, s - t) that ignores both: X_{t->s} is one Euler step of a field from `simple_fields`, folds and squashes included."""

    def __init__(self, field: object) -> None:
        super().__init__()
        self.field, self.n, self.d = field, field.n, field.d

    def forward(self, pair: Tensor, x: Tensor) -> Tensor:
        return self.field(pair[..., 0], x)

    def value_and_jacobian(self, pair: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.value_and_jacobian(pair[..., 0], x)
