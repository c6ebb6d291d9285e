"""Smooth radial features and time features, with the slopes that closed-form Jacobians need.

Distances are softened, dist = sqrt(r^2 + s^2), so that every feature is smooth where two particles overlap. With u = r_vec / dist,
    d dist / d x_i = u_ij,    d u_a / d x_ie = (delta_ae - u_a u_e) / dist    for r_vec = x_i - x_j.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# exp(-45) = 3e-20 is lost in float32 sums, while smaller Gaussians would become denormal and slow every product down
LARGEST_EXPONENT = 45.0
FLOOR = math.exp(-LARGEST_EXPONENT)


class Pairs(NamedTuple):
    """Geometry of all ordered pairs (i, j).

    Attributes:
        r: x_i - x_j, [B, n, n, d].
        dist: softened distance [B, n, n, 1].
        u: r / dist, [B, n, n, d].
    """

    r: Tensor
    dist: Tensor
    u: Tensor


def pairs_of(x: Tensor, softening: float) -> Pairs:
    """Pair geometry of x [B, n, d], with the length s below which distances are smoothed."""
    r = x[:, :, None] - x[:, None]
    dist = torch.sqrt((r * r).sum(-1, keepdim=True) + softening**2)
    return Pairs(r, dist, r / dist)


def silu_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """silu(z) and its derivative."""
    s = torch.sigmoid(z)
    y = z * s
    return y, s + y * (1 - s)


class TimeFeatures(nn.Module):
    """t -> MLP(harmonics of t), or MLP(harmonics of t and of the time left on a logarithmic scale), [B, width].

    Near the data velocities change with log(1 - t), while harmonics of t hardly tell .98 from .99.

    Args:
        width: of the result.
        times: number of times; with more than one, t is [times] or [B, times], and the features of each follow one another.
        nearest: what is left to t = 1 at the finest of the logarithmic scale; without one if zero.
    """

    def __init__(self, width: int, times: int = 1, *, nearest: float = 0.0) -> None:
        super().__init__()
        self.times, self.nearest = times, nearest
        self.net = nn.Sequential(nn.Linear((18 if nearest else 9) * times, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, t: Tensor, batch: int) -> Tensor:
        t, dtype = every_time(t, batch, self.times), self.net[0].weight.dtype
        scales = [t, logarithmic(t, self.nearest)] if self.nearest else [t]
        return self.net(torch.cat([harmonics(scale.to(dtype)) for scale in scales], -1).flatten(1))


def on_logarithmic_scale(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network whose times are on a linear scale alone, for one that has the logarithmic one too and computes the same.

    The further columns of the layer that sees the time are zero. Weights that have them, and other networks, are left as they are.
    """
    wide = dict(weights)
    for name, module in network.named_modules():
        key = f"{name}.net.0.weight"
        if isinstance(module, TimeFeatures) and module.nearest and module.times == 1 and key in wide:
            lacking = module.net[0].in_features - wide[key].shape[1]
            wide[key] = nn.functional.pad(wide[key], (0, lacking)) if lacking == 9 else wide[key]
    return wide


def logarithmic(t: Tensor, nearest: float) -> Tensor:
    """log(1 + (1 - t) / nearest) / log(1 + 1 / nearest): 1 at t = 0, 0 at t = 1, even in log(1 - t) between."""
    return torch.log1p((1 - t) / nearest) / math.log1p(1 / nearest)


def harmonics(t: Tensor) -> Tensor:
    """[t, sin(k pi t), cos(k pi t), k = 1..4] along the last dimension, from t [..., 1] to [..., 9]."""
    phase = torch.arange(1, 5, dtype=t.dtype, device=t.device) * math.pi * t
    return torch.cat([t, torch.sin(phase), torch.cos(phase)], -1)


def fourier(t: Tensor, batch: int, times: int, dtype: torch.dtype) -> Tensor:
    """Harmonics of each time, [batch, 9 times].

    Args:
        t: scalar or [batch]; with several times, [times] or [batch, times].
    """
    return harmonics(every_time(t, batch, times).to(dtype)).flatten(1)


def every_time(t: Tensor, batch: int, times: int) -> Tensor:
    """[batch, times, 1], from what `fourier` takes."""
    return (t[..., None] if times == 1 else t).expand(batch, times)[..., None]


class RadialFeatures(nn.Module):
    """f_ij = silu(W rbf(dist_ij) + W_t temb(t) + what depends on the kind of pair), Gaussians evenly spaced on [0, r_max]."""

    def __init__(self, width: int, n_basis: int, r_max: float, time_width: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0, r_max, n_basis))
        self.sharpness = 0.5 / (r_max / (n_basis - 1)) ** 2
        self.of_distance, self.of_time = nn.Linear(n_basis, width), nn.Linear(time_width, width, bias=False)

    def _basis(self, dist: Tensor) -> tuple[Tensor, Tensor]:
        offset = dist - self.centres
        return torch.exp((-self.sharpness * offset * offset).clamp(min=-LARGEST_EXPONENT)), offset

    def forward(self, dist: Tensor, temb: Tensor, of_kind: Tensor | float = 0.0) -> Tensor:
        """Features [B, n, n, width]; `of_kind` is added before the nonlinearity."""
        basis, _ = self._basis(dist)
        return nn.functional.silu(self.of_distance(basis) + self.of_time(temb)[:, None, None] + of_kind)

    def value_and_slope(
        self, dist: Tensor, temb: Tensor, of_kind: Tensor | float = 0.0, of_kind_slope: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Features and their derivative with respect to dist, both [B, n, n, width]."""
        basis, offset = self._basis(dist)
        f, slope = silu_and_slope(self.of_distance(basis) + self.of_time(temb)[:, None, None] + of_kind)
        basis_slope = -2 * self.sharpness * offset * (basis - FLOOR)
        return f, slope * (nn.functional.linear(basis_slope, self.of_distance.weight) + of_kind_slope)
