"""Drifts on curved spaces: a network of ambient (or normal) coordinates whose output is lifted to the tangent space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgwork.spaces import Space

FREQUENCIES = 4


class AmbientDrifts(nn.Module):
    """Forward and backward drift of a diffusion on a curved space, f = v + t p and b = v - t p.

        v, p = lift(x, W_out h_L),    h_l = h_{l-1} + silu(W_l h_{l-1} + b_l)
        h_0 = silu(W_in [coordinates(x) / scale, tau(t)] + b_in),    tau(t) = (t, sin pi t, cos pi t, ..., cos 4 pi t)

    with `lift` and `coordinates` of the space, on spheres projection and ambient coordinates. v is the velocity of the probability flow,
    and t p that of the score, which vanishes at t = 0 as the noise does. Both are zero at the start.

    Args:
        space: Sphere or Hyperboloid.
        hidden: width of the layers.
        depth: number of hidden layers L + 1, at least 1.
        scale: length that coordinates are divided by at the input.
    """

    def __init__(self, space: Space, *, hidden: int = 128, depth: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        if depth < 1 or hidden < 1 or not scale > 0:
            raise ValueError(f"depth and hidden must be at least 1 and scale positive, got depth={depth}, hidden={hidden}, scale={scale}")
        self.n, self.d, self.space, self.scale = space.n, space.d, space, scale
        size = space.n * space.d
        self.first = nn.Linear(size + 1 + 2 * FREQUENCIES, hidden)
        self.middle = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(depth - 1)])
        self.last = nn.Linear(hidden, 2 * size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward drift, each [B, n, d] in the dtype of x, so that they are tangent to its precision; t is a scalar or [B]."""
        dtype = self.last.weight.dtype
        time = torch.as_tensor(t, dtype=dtype, device=x.device).expand(len(x))[:, None]
        angles = time * (math.pi * torch.arange(1, FREQUENCIES + 1, dtype=dtype, device=x.device))
        place = self.space.coordinates(x).to(dtype).flatten(1) / self.scale
        h = F.silu(self.first(torch.cat([place, time, torch.sin(angles), torch.cos(angles)], 1)))
        for layer in self.middle:
            h = h + F.silu(layer(h))
        velocity, pull = (self.space.lift(x, out.view(x.shape).to(x)) for out in self.last(h).chunk(2, 1))
        pull = time[:, :, None].to(x) * pull
        return velocity + pull, velocity - pull
