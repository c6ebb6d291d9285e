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

Molecules add (`species`): f_ij knows the kind of pair and its distance on that kind's own scale, phi_ij gains a term of that distance and
the time alone, node networks know the kind of particle; and, if chiral, pseudo-scalars (M4 V_k) . (M5 V_k x M6 V_k), which change sign
under reflections, so that the field is equivariant under rotations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from bgwork.fields import multihop_derivatives
from bgwork.fields.radial import Pairs, RadialFeatures, TimeFeatures, pairs_of
from bgwork.fields.species import PairForces, PairScale, Species

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
        kind_basis: Gaussians on each pair kind's own scale, for fields with species.
        chiral: pseudo-scalars at nodes, in three dimensions.
        nearest: what is left to t = 1 down to which times are told apart on a logarithmic scale too; on a linear one alone if zero.
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
    kind_basis: int = 24
    chiral: bool = False
    nearest: float = 0.0


class NodeState(NamedTuple):
    """Node features: scalars h [B, n, H] and vectors V [B, n, d, C]."""

    h: Tensor
    V: Tensor


class HopTrace(NamedTuple):
    """What the tangents of a hop need: messages (None in the first hop), mixed vectors and pre-activations."""

    messages: tuple[Tensor, Tensor, Tensor] | None
    before: NodeState | None
    V: Tensor  # after dV, before the gate
    mixed: tuple[Tensor, ...]  # M1 V .. M3 V, or M1 V .. M6 V if chiral
    hidden: Tensor  # pre-activation of the node network
    out: Tensor  # pre-activation of h, [B, n, H]
    gate: Tensor  # [B, n, C]


class PairFeatures(NamedTuple):
    """What is known of a pair before any hop: features f [B, n, n, H] and the part of phi that depends on its kind [B, n, n, 1] or zero."""

    f: Tensor
    force: Tensor | float


class Hop(nn.Module):
    """One hop: filters, messages and the node network."""

    def __init__(self, config: MultiHopConfig, *, first: bool, species: Species | None = None) -> None:
        super().__init__()
        H, S, C = config.hidden, config.message, config.vectors
        self.first, self.S, self.C, self.H, self.chiral = first, S, C, H, config.chiral
        self.filters = nn.Linear(H, S + C + (0 if first else C))
        self.send = None if first else nn.Linear(H, S + 2 * C)
        self.mix = nn.Linear(C, 6 * C if config.chiral else 3 * C, bias=False)
        self.invariants = S + 2 * C + (C if config.chiral else 0)
        self.node_in = nn.Linear(self.invariants + (0 if first else H), config.node_hidden)
        self.node_time = nn.Linear(TIME_WIDTH, config.node_hidden, bias=False)
        self.node_out = nn.Linear(config.node_hidden, H + C)
        self.node_kind = None if species is None else nn.Embedding(int(species.node.max()) + 1, config.node_hidden)
        self.register_buffer("kinds", None if species is None else species.node.clone(), persistent=False)

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
        W1, W2, W3, *triple = mixed = self.mix(V).split(self.C, -1)
        z = [s, (W1 * W2).sum(2), (V * V).sum(2)]
        z += [(triple[0] * torch.linalg.cross(triple[1], triple[2], dim=2)).sum(2)] if self.chiral else []
        hidden = self.node_in(torch.cat(z if state is None else [*z, state.h], -1)) + self.node_time(temb)[:, None]
        hidden = hidden if self.node_kind is None else hidden + self.node_kind(self.kinds)
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

    def forward(self, features: PairFeatures, pairs: Pairs, state: NodeState, mask: Tensor) -> Tensor:
        phi = (self.out(silu(self.hidden(silu(self.first_layer(features.f, pairs.u, state))))) + features.force) * mask
        n = features.f.shape[1]
        v = (phi * pairs.r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, self.gamma(state.h))
        return v - v.mean(1, keepdim=True)


class MultiHop(nn.Module):
    """Velocity field v(t, x) of n particles in d dimensions (see the module's formulae).

    Args:
        n, d: particles and dimensions.
        config: sizes; the defaults suit clusters of 4 to 60 particles.
        species: kinds of particles and of pairs; without it all particles are identical.

    Example:
        >>> field = MultiHop(13, 3, MultiHopConfig(hops=2))
        >>> v, div = field.value_and_divergence(torch.tensor(0.5), torch.randn(8, 13, 3))
    """

    def __init__(self, n: int, d: int, config: MultiHopConfig | None = None, *, species: Species | None = None) -> None:
        super().__init__()
        self.n, self.d, self.config, self.typed = n, d, config or MultiHopConfig(), species is not None
        c = self.config
        if c.hops < 1:
            raise ValueError(f"a multi-hop field needs at least one hop, got hops = {c.hops}")
        if c.chiral and d != 3:
            raise ValueError(f"pseudo-scalars need three dimensions, got d = {d}; set chiral = false")
        if species is not None and len(species.node) != n:
            raise ValueError(f"species of {len(species.node)} particles do not fit a field of {n}")
        self.time = TimeFeatures(TIME_WIDTH, c.times, nearest=c.nearest)
        self.radial = RadialFeatures(c.hidden, c.n_basis, c.r_max, TIME_WIDTH)
        self.hops = nn.ModuleList([Hop(c, first=k == 0, species=species) for k in range(c.hops)])
        self.readout = PairReadout(c)
        self.register_buffer("mask", (1 - torch.eye(n)).view(1, n, n, 1), persistent=False)
        if species is not None:
            self.scale = PairScale(species, c.kind_basis)
            self.pair_kind = nn.Embedding(len(species.centre), c.hidden)
            self.of_scaled, self.forces = nn.Linear(c.kind_basis, c.hidden, bias=False), PairForces(species, c.kind_basis, TIME_WIDTH)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] for t scalar or [B] and x [B, n, d]."""
        temb, pairs, state = self.time(t, len(x)), pairs_of(x.to(self.mask.dtype), self.config.softening), None
        features = self.pair_features(pairs.dist, temb)
        for hop in self.hops:
            state, _ = hop(features.f, pairs, state, temb, self.mask)
        return self.readout(features, pairs, state, self.mask)

    def pair_features(self, dist: Tensor, temb: Tensor) -> PairFeatures:
        """From distances [B, n, n, 1] and time features."""
        if not self.typed:
            return PairFeatures(self.radial(dist, temb), 0.0)
        basis = self.scale(dist)
        f = self.radial(dist, temb, self.of_scaled(basis) + self.pair_kind(self.scale.pair))
        return PairFeatures(f, self.forces(basis, temb))

    def pair_features_and_slopes(self, dist: Tensor, temb: Tensor) -> tuple[PairFeatures, PairFeatures]:
        """The same and their derivatives with respect to dist."""
        if not self.typed:
            f, slope = self.radial.value_and_slope(dist, temb)
            return PairFeatures(f, 0.0), PairFeatures(slope, 0.0)
        basis, basis_slope = self.scale.value_and_slope(dist)
        of_kind = self.of_scaled(basis) + self.pair_kind(self.scale.pair)
        f, slope = self.radial.value_and_slope(dist, temb, of_kind, self.of_scaled(basis_slope))
        return PairFeatures(f, self.forces(basis, temb)), PairFeatures(slope, self.forces(basis_slope, temb))

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its exact divergence [B]."""
        return multihop_derivatives.value_and_divergence(self, t, x)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, i d + a, j d + e] = dv_ia / dx_je, [B, n d, n d]."""
        return multihop_derivatives.value_and_jacobian(self, t, x)
