"""A multilayer perceptron for low dimensions, whose Jacobian is carried forward through the layers in closed form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgwork.fields.radial import fourier, silu_and_slope


class MLP(nn.Module):
    """v(t, x) = W_out h_L, h_l = h_{l-1} + silu(W_l h_{l-1} + b_l), h_0 = silu(W_in [w(x / scale), tau(t)] + b_in), zero at the start.

        w(y) = (y, sin k pi y / 2, cos k pi y / 2; k = 1..m),    tau(t) = (t, sin pi t, cos pi t, ..., cos 4 pi t)
    Waves (Fourier features) let it see structure much finer than `scale`, which a plain multilayer perceptron learns last (Tancik et
    al. 2020). It has no symmetry and no mean subtraction: use it on Euclidean space. One tangent per coordinate passes through the
    layers, so the Jacobian costs 1 + nd forward passes of matrix products and no autograd.

    Args:
        n, d: particles and dimensions.
        hidden: width of the layers.
        depth: number of hidden layers L + 1, at least 1.
        scale: length that x is divided by at the input, in the system's length unit.
        waves: m; 0 for none.
        times: number of times that t holds; with more than one, t is [times] or [B, times].
    """

    def __init__(self, n: int, d: int, hidden: int = 128, depth: int = 4, *, scale: float = 1.0, waves: int = 0, times: int = 1) -> None:
        super().__init__()
        if depth < 1 or hidden < 1 or waves < 0 or not scale > 0:
            raise ValueError("depth and hidden must be at least 1, waves at least 0 and scale positive, "
                             f"got depth={depth}, hidden={hidden}, waves={waves}, scale={scale}")
        self.n, self.d, self.scale, self.waves, self.times = n, d, scale, waves, times
        self.first = nn.Linear(self.place_width + 9 * times, hidden)
        self.middle = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(depth - 1)])
        self.last = nn.Linear(hidden, n * d)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def place_width(self) -> int:
        """Number of inputs that x makes, before those of t."""
        return (1 + 2 * self.waves) * self.n * self.d

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] in the network's dtype; t is a scalar or [B]."""
        h = F.silu(self.first(self._inputs(t, x)))
        for layer in self.middle:
            h = h + F.silu(layer(h))
        return self.last(h).view(x.shape)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its divergence [B], exact and differentiable in the parameters."""
        h, tangents = self._features(t, x)
        return self.last(h).view(x.shape), torch.einsum("bih,ih->b", tangents, self.last.weight)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, i, j] = dv_i/dx_j [B, nd, nd], exact and differentiable in the parameters."""
        h, tangents = self._features(t, x)
        return self.last(h).view(x.shape), self.last.weight @ tangents.mT

    def _features(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden layer [B, hidden] and its tangents [B, nd, hidden]: row i is dh/dx_i."""
        y, along = self._waves(x)
        h, slope = silu_and_slope(self.first(torch.cat([y.flatten(1), self._time(t, x)], 1)))
        weight = self.first.weight[:, : self.place_width].T.view(1 + 2 * self.waves, self.n * self.d, -1)
        tangents = slope[:, None] * torch.einsum("bwi,wih->bih", along, weight) / self.scale
        for layer in self.middle:
            change, slope = silu_and_slope(layer(h))
            h, tangents = h + change, tangents + slope[:, None] * (tangents @ layer.weight.T)
        return h, tangents

    def _inputs(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.cat([self._waves(x)[0].flatten(1), self._time(t, x)], 1)

    def _time(self, t: Tensor, x: Tensor) -> Tensor:
        return fourier(torch.as_tensor(t, device=x.device), len(x), self.times, self.last.weight.dtype)

    def _waves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """w(y) and dw/dy, [B, 1 + 2 waves, nd] each."""
        y = (x.to(self.last.weight.dtype).flatten(1) / self.scale)[:, None]
        number = torch.arange(1, self.waves + 1, dtype=y.dtype, device=y.device)[:, None] * (math.pi / 2)
        sin, cos = torch.sin(number * y), torch.cos(number * y)
        return torch.cat([y, sin, cos], 1), torch.cat([torch.ones_like(y), number * cos, -number * sin], 1)
