"""A field on a torus: periodic in every angle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgwork.fields.divergence import BruteForce

FREQUENCIES = 4
HARMONICS = 3  # of the angles; methyl groups have a threefold barrier


class TorusMLP(BruteForce):
    """v(t, x) = W_out h_L, h_l = h_{l-1} + silu(W_l h_{l-1} + b_l), h_0 = silu(W_in [sin x, cos x, ..., sin 3x, cos 3x, tau(t)] + b_in).

    tau(t) = (t, sin pi t, cos pi t, ..., cos 4 pi t). Zero at the start; Jacobians by brute force.

    Args:
        n, d: the angles of a configuration are [n, d].
        hidden: width of the layers.
        depth: number of hidden layers L + 1, at least 1.
        gain: of the output, which spares the network large weights where controls are large.
    """

    def __init__(self, n: int, d: int, hidden: int = 128, depth: int = 4, *, gain: float = 1.0) -> None:
        if depth < 1 or hidden < 1 or not gain > 0:
            raise ValueError(f"depth and hidden must be at least 1 and gain positive, got depth={depth}, hidden={hidden}, gain={gain}")
        super().__init__(n, d, bytes_per_sample=4 * hidden * (depth + 1))
        self.gain = gain
        self.first = nn.Linear(2 * HARMONICS * n * d + 1 + 2 * FREQUENCIES, hidden)
        self.middle = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(depth - 1)])
        self.last = nn.Linear(hidden, n * d)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] in the network's dtype; t is a scalar or [B]."""
        dtype = self.last.weight.dtype
        t = torch.as_tensor(t, dtype=dtype, device=x.device).expand(len(x))[:, None]
        angles = t * (math.pi * torch.arange(1, FREQUENCIES + 1, dtype=dtype, device=x.device))
        y = x.to(dtype).flatten(1)
        waves = [wave for k in range(1, HARMONICS + 1) for wave in ((k * y).sin(), (k * y).cos())]
        h = F.silu(self.first(torch.cat([*waves, t, angles.sin(), angles.cos()], 1)))
        for layer in self.middle:
            h = h + F.silu(layer(h))
        return self.gain * self.last(h).view(x.shape)
