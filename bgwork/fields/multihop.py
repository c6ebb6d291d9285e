"""The multi-hop field: equivariant, many-body, and with Jacobians in closed form at a constant number of forward passes.

One rule makes that possible: a hop is *linear in the neighbours' features with radial filters*, sum_j g(r_kj, t) b(h_j); nonlinearities sit
at nodes, and once, at the end, in a pair readout (the SchNet / PaiNN family: Schuett et al. 2017, 2021). The Jacobians of all
node features then travel from hop to hop by batched matrix products (`multihop_tangents`), and no pair network is ever
re-evaluated per coordinate.

    f_ij = silu(W rbf(r_ij) + W_t temb(t)),    c = n^-1/2
    hop:      s_k  = c sum_j gs_kj b(h_j)
              dV_k = c sum_j (g1_kj b1(h_j) u_kj + g2_kj b2(h_j) V_j)
              V_k += dV_k
              [o, gate] = W_b silu(W_a [s_k, (M1 V_k).(M2 V_k), |V_k|^2, h_k, temb])
              h_k += silu(o),  V_k += gate * M3 V_k
    readout:  phi_ij = w . silu(W silu(P h_i + Q h_j + R f_ij + A [V_i.u_ij, V_j.u_ij, V_i.V_j]))
              v_i = 1/n sum_j phi_ij r_ij + sum_c gamma_c(h_i) V_ic, minus its mean over i
In the first hop b = 1 and there are no V_j. Vectors V are [B, n, d, C]; the field is E(d)-equivariant and permutation-equivariant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from bgwork.fields import multihop_derivatives
from bgwork.fields.radial import Pairs, RadialFeatures, TimeFeatures, pairs_of

TIME_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class MultiHopConfig:
    """Size of a multi-hop field.

    Args:
        hidden: scalar channels H of a node.
        message: scalar channels S carried along a hop.
        vectors: vector channels C.
        hops: number of hops (1, 2, 3).
        node_hidden: hidden width of the node networks.
        n_basis, r_max: radial Gaussians on [0, r_max] (length unit of the system).
        softening: length below which distances and directions are smoothed.
        times: number of times that t holds; with more than one, t is [times] or [B, times].
    """

    hidden: int = 64
    message: int = 64
    vectors: int = 16
    hops: int = 2
    node_hidden: int = 96
    n_basis: int = 32
    r_max: float = 6.0
    softening: float = 0.25
    times: int = 1


class NodeState(NamedTuple):
    """Node features: scalars h [B, n, H] and vectors V [B, n, d, C]."""

    h: Tensor
    V: Tensor


class HopTrace(NamedTuple):
    """What the tangents of a hop need: messages (None in the first hop), mixed vectors and pre-activations."""

    messages: tuple[Tensor, Tensor, Tensor] | None
    before: NodeState | None
    V: Tensor  # after dV, before the gate
    mixed: tuple[Tensor, Tensor, Tensor]
    hidden: Tensor  # pre-activation of the node network
    out: Tensor  # pre-activation of h, [B, n, H]
    gate: Tensor  # [B, n, C]


class Hop(nn.Module):
    """One hop: filters, messages and the node network."""

    def __init__(self, config: MultiHopConfig, *, first: bool) -> None:
        super().__init__()
        H, S, C = config.hidden, config.message, config.vectors
        self.first, self.S, self.C, self.H = first, S, C, H
        self.filters = nn.Linear(H, S + C + (0 if first else C))
        self.send = None if first else nn.Linear(H, S + 2 * C)
        self.mix = nn.Linear(C, 3 * C, bias=False)
        self.node_in = nn.Linear(S + 2 * C + (0 if first else H), config.node_hidden)
        self.node_time = nn.Linear(TIME_WIDTH, config.node_hidden, bias=False)
        self.node_out = nn.Linear(config.node_hidden, H + C)

    def aggregate(self, f: Tensor, pairs: Pairs, state: NodeState | None, mask: Tensor) -> tuple[Tensor, Tensor, tuple | None]:
        """Sums over neighbours (s [B, n, S], dV [B, n, d, C]) and the messages that went into them."""
        scale = f.shape[1] ** -0.5
        g = self.filters(f) * mask
        if self.first:
            gs, g1 = g.split([self.S, self.C], -1)
            return gs.sum(2) * scale, torch.einsum("bkjd,bkjc->bkdc", pairs.u, g1) * scale, None
        gs, g1, g2 = g.split([self.S, self.C, self.C], -1)
        b, b1, b2 = self.send(state.h).split([self.S, self.C, self.C], -1)
        s = (gs * b[:, None]).sum(2)
        dV = torch.einsum("bkjd,bkjc->bkdc", pairs.u, g1 * b1[:, None]) + torch.einsum("bkjc,bjdc->bkdc", g2, state.V * b2[:, :, None])
        return s * scale, dV * scale, (b, b1, b2)

    def forward(self, f: Tensor, pairs: Pairs, state: NodeState | None, temb: Tensor, mask: Tensor) -> tuple[NodeState, HopTrace]:
        s, dV, messages = self.aggregate(f, pairs, state, mask)
        V = dV if state is None else state.V + dV
        W1, W2, W3 = mixed = self.mix(V).split(self.C, -1)
        z = torch.cat([s, (W1 * W2).sum(2), (V * V).sum(2)] + ([] if state is None else [state.h]), -1)
        hidden = self.node_in(z) + self.node_time(temb)[:, None]
        out, gate = self.node_out(silu(hidden)).split([self.H, self.C], -1)
        h = silu(out) if state is None else silu(out) + state.h
        new = NodeState(h, V + gate[:, :, None] * W3)
        return new, HopTrace(messages, state, V, mixed, hidden, out, gate)


class PairReadout(nn.Module):
    """phi_ij and gamma_i; zero at initialisation, so that a new field is v = 0."""

    def __init__(self, config: MultiHopConfig) -> None:
        super().__init__()
        H, C = config.hidden, config.vectors
        self.P, self.Q = nn.Linear(H, H), nn.Linear(H, H, bias=False)
        self.R, self.A = nn.Linear(H, H, bias=False), nn.Linear(3 * C, H, bias=False)
        self.hidden, self.out, self.gamma = nn.Linear(H, H), nn.Linear(H, 1), nn.Linear(H, C)
        for layer in (self.out, self.gamma):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def first_layer(self, f: Tensor, u: Tensor, state: NodeState) -> Tensor:
        """Pre-activation of the pair network, [B, n, n, H]."""
        h, V = state
        Vi, Vj = torch.einsum("bidc,bijd->bijc", V, u), torch.einsum("bjdc,bijd->bijc", V, u)
        products = torch.cat([Vi, Vj, torch.einsum("bidc,bjdc->bijc", V, V)], -1)
        return self.P(h)[:, :, None] + self.Q(h)[:, None] + self.R(f) + self.A(products)

    def forward(self, f: Tensor, pairs: Pairs, state: NodeState, mask: Tensor) -> Tensor:
        phi = self.out(silu(self.hidden(silu(self.first_layer(f, pairs.u, state))))) * mask
        n = f.shape[1]
        v = (phi * pairs.r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, self.gamma(state.h))
        return v - v.mean(1, keepdim=True)


class MultiHop(nn.Module):
    """Velocity field v(t, x) of n identical particles in d dimensions (see the module's formulae).

    Args:
        n, d: particles and dimensions.
        config: sizes; the defaults suit clusters of 4 to 60 particles.

    Example:
        >>> field = MultiHop(13, 3, MultiHopConfig(hops=2))
        >>> v, div = field.value_and_divergence(torch.tensor(0.5), torch.randn(8, 13, 3))
    """

    def __init__(self, n: int, d: int, config: MultiHopConfig | None = None) -> None:
        super().__init__()
        self.n, self.d, self.config = n, d, config or MultiHopConfig()
        if self.config.hops < 1:
            raise ValueError(f"a multi-hop field needs at least one hop, got hops = {self.config.hops}")
        self.time = TimeFeatures(TIME_WIDTH, self.config.times)
        self.radial = RadialFeatures(self.config.hidden, self.config.n_basis, self.config.r_max, TIME_WIDTH)
        self.hops = nn.ModuleList([Hop(self.config, first=k == 0) for k in range(self.config.hops)])
        self.readout = PairReadout(self.config)
        self.register_buffer("mask", (1 - torch.eye(n)).view(1, n, n, 1), persistent=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] for t scalar or [B] and x [B, n, d]."""
        temb, pairs, state = self.time(t, len(x)), pairs_of(x.to(self.mask.dtype), self.config.softening), None
        f = self.radial(pairs.dist, temb)
        for hop in self.hops:
            state, _ = hop(f, pairs, state, temb, self.mask)
        return self.readout(f, pairs, state, self.mask)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its exact divergence [B]."""
        return multihop_derivatives.value_and_divergence(self, t, x)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, i d + a, j d + e] = dv_ia / dx_je, [B, n d, n d]."""
        return multihop_derivatives.value_and_jacobian(self, t, x)
