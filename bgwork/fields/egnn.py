"""The E(n)-equivariant graph network of Satorras, Hoogeboom and Welling (2021), eqs 3-6: the baseline that papers use as a flow's field."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgwork.fields.divergence import BruteForce


class EGNN(BruteForce):
    """v = x_L - x_0 minus its mean over the particles, as in equivariant flow matching (Klein, Kraemer and Noe 2023, appendix).

        m_ij = a(m) m, m = phi_e(h_i, h_j, |x_i - x_j|^2, |x0_i - x0_j|^2)       a: attention, a logistic gate
        x_i <- x_i + sum_j (x_i - x_j) / (|x_i - x_j| + 1) phi_x(m_ij)           phi_x is bounded by a tanh, zero at the start
        h_i <- h_i + phi_h(h_i, sum_j m_ij)                                      h_i starts from the time alone

    Equivariant to permutations, rotations and reflections, invariant to translations. Divergence and Jacobian are brute force.

    Args:
        n, d: particles and dimensions.
        layers: message-passing steps.
        hidden: width of features and messages.
        reach: largest move per pair, summed over the layers, in the system's length unit.
        times: number of times that t holds; with more than one, t is [times] or [B, times].
    """

    def __init__(self, n: int, d: int, layers: int = 4, hidden: int = 64, *, reach: float = 15.0, times: int = 1) -> None:
        if layers < 1 or hidden < 1 or not reach > 0:
            raise ValueError(f"layers and hidden must be at least 1 and reach positive, got {layers=}, {hidden=}, {reach=}")
        super().__init__(n, d, bytes_per_sample=2 * 6 * 4 * n * n * hidden)
        self.node_in = nn.Linear(times, hidden)
        self.layers = nn.ModuleList([EGNNLayer(hidden, reach / layers) for _ in range(layers)])
        self.updates = nn.ModuleList([
            nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(layers - 1)])

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] in the network's dtype; t is a scalar or [B]."""
        dtype = self.node_in.weight.dtype
        start = position = x.to(dtype)
        time, times = torch.as_tensor(t, dtype=dtype, device=x.device), self.node_in.in_features
        time = (time[..., None] if times == 1 else time).expand(len(x), times)
        h = self.node_in(time[:, None]).expand(-1, self.n, -1)
        start_square = pair_differences(start)[1]
        position, received = self.layers[0](h, position, start_square)
        for update, layer in zip(self.updates, self.layers[1:], strict=True):
            h = h + update(torch.cat([h, received], -1))
            position, received = layer(h, position, start_square)
        v = position - start
        return v - v.mean(1, keepdim=True)


class EGNNLayer(nn.Module):
    """One message-passing step on all pairs."""

    def __init__(self, hidden: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.from_node, self.to_node = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.from_distance = nn.Linear(2, hidden, bias=False)
        self.edge = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.attention = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid())
        self.move = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False), nn.Tanh())
        nn.init.zeros_(self.move[2].weight)

    def forward(self, h: Tensor, x: Tensor, start_square: Tensor) -> tuple[Tensor, Tensor]:
        """(h [B, n, hidden], x [B, n, d], squared starting distances [B, n, n, 1]) -> moved x, and sum_j m_ij [B, n, hidden]."""
        r, square = pair_differences(x)
        distances = self.from_distance(torch.cat([square, start_square], -1))
        m = self.edge(self.from_node(h)[:, :, None] + self.to_node(h)[:, None] + distances)
        m = self.attention(m) * m * (1 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device))[..., None]
        return x + (r / (torch.sqrt(square + 1e-8) + 1) * self.reach * self.move(m)).sum(2), m.sum(2)


def pair_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """x_i - x_j [B, n, n, d] and its square [B, n, n, 1]."""
    r = x[:, :, None] - x[:, None]
    return r, (r * r).sum(-1, keepdim=True)
