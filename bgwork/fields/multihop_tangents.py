"""Tangents of the multi-hop field's node features, in closed form.

Tangents of node k along direction m are [B, k, m, F] for scalars (channels last: network layers are matrix products on rows) and
[B, C, k, a, m] for vectors (channels first). In a *full* Jacobian m runs over (e, i): particle i moves along axis e. A hop is a batched
product over (B, F) of the filter matrix [k, j] with the neighbours' tangents [j, m]. For the divergence only two contractions of the last
hop are needed,
    pair   x_i moves along r_ik = x_i - x_k   (n directions)
    own    x_k itself moves along axis e      (d directions)
so its node network sees n + d directions instead of n d, and the readout one tangent a pair.

Two facts save most of the work. Features are translation invariant: a node's derivative with respect to itself is minus the sum over the
others. And a neighbour sum depends on x_i through one pair only, so the first hop's Jacobians have the structure
    dV_k / dx_i = -(u u^T alpha + 1 beta),  alpha = g' - g / dist,  beta = g / dist      (u = u_ki, i != k)
which is pushed through the node network as one radial part and d transversal ones. Sums are accumulated in place where the summand is new:
these tensors are large, and touching fresh memory costs more than the arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bgwork.fields.radial import Pairs, pairs_of, silu_and_slope

if TYPE_CHECKING:
    from bgwork.fields.multihop import Hop, HopTrace, MultiHop, NodeState


class Tangents(NamedTuple):
    """Tangents of node scalars [B, k, ..., F] and vectors [B, C, k, a, ...], full (... = e, i) or along listed directions (... = m)."""

    h: Tensor
    V: Tensor

    def flat(self) -> Tangents:
        """(e, i) as one axis of directions."""
        return Tangents(self.h.flatten(2, 3), self.V.flatten(4))


class Filters(NamedTuple):
    """Filter values and slopes in distance, times n^-1/2, channels first [B, F, k, j], zero on the diagonal."""

    g: Tensor
    slope: Tensor


class Geometry(NamedTuple):
    """Pair geometry with the radial features, and channels-first views of it.

    Attributes:
        pairs, f, f_slope: as in the forward pass, [B, i, j, .].
        force, force_slope: the part of phi that depends on the kind of pair, [B, i, j, 1] or zero.
        u: direction u_ki,e as [B, 1, k, e, i].
        uu: u_a u_e as [B, 1, k, a, e, i].
        dist: [B, 1, k, i].
        r: r_ik,e = x_i - x_k as [B, 1, k, e, i].
        d_dist: change of dist_ki as x_i moves along r_ik, |r|^2 / dist, [B, 1, k, i].
    """

    pairs: Pairs
    f: Tensor
    f_slope: Tensor
    force: Tensor | float
    force_slope: Tensor | float
    u: Tensor
    uu: Tensor
    dist: Tensor
    r: Tensor
    d_dist: Tensor


def geometry(field: MultiHop, temb: Tensor, x: Tensor) -> Geometry:
    pairs = pairs_of(x, field.config.softening)
    (f, force), (f_slope, force_slope) = field.pair_features_and_slopes(pairs.dist, temb)
    u, r = (y.transpose(2, 3)[:, None].contiguous() for y in (pairs.u, -pairs.r))
    dist = pairs.dist[..., 0][:, None]
    return Geometry(pairs, f, f_slope, force, force_slope, u, u[:, :, :, :, None] * u[:, :, :, None], dist, r, (r * r).sum(3) / dist)


def filters(hop: Hop, geo: Geometry, mask: Tensor) -> Filters:
    mask = mask[..., 0][:, None] * mask.shape[1] ** -0.5
    bias = hop.filters.bias[:, None, None]
    return Filters((_channels_first(hop.filters.weight, geo.f) + bias) * mask, _channels_first(hop.filters.weight, geo.f_slope) * mask)


def _apply(weight: Tensor, x: Tensor) -> Tensor:
    """weight [out, F] on the channels of x [B, F, ...]."""
    y = torch.bmm(weight.expand(len(x), -1, -1), x.reshape(len(x), x.shape[1], -1))
    return y.view(len(x), weight.shape[0], *x.shape[2:])


def _channels_first(weight: Tensor, x: Tensor) -> Tensor:
    """weight [out, F] on the last axis of x [B, ..., F], giving [B, out, ...]."""
    y = torch.bmm(weight.expand(len(x), -1, -1), x.flatten(1, -2).transpose(1, 2))
    return y.view(len(x), -1, *x.shape[1:-1])


def _rows(weight: Tensor, x: Tensor) -> Tensor:
    """weight [out, F] on the channels of x [B, F, ...], channels last: [B, ..., out]."""
    y = torch.bmm(x.flatten(2).transpose(1, 2), weight.T.expand(len(x), -1, -1))
    return y.view(len(x), *x.shape[2:], -1)


def _scalars(x: Tensor) -> Tensor:
    """Node scalars [B, n, F] as [B, F, n, 1]."""
    return x.transpose(1, 2)[..., None]


def _vectors(x: Tensor) -> Tensor:
    """Node vectors [B, n, d, C] as [B, C, n, d]."""
    return x.permute(0, 3, 1, 2)


def _set_own(J: Tensor, k: int, i: int) -> Tensor:
    """Fill d(node k)/d(x_k) (zero so far) with minus the sum over the other particles."""
    J.diagonal(dim1=k, dim2=i).copy_(-J.sum(i).movedim(k, -1))
    return J


def _along(J: Tensor, r: Tensor) -> Tensor:
    """sum_e J[..., e, i] r[..., e, i]."""
    y = J[..., 0, :] * r[..., 0, :]
    for e in range(1, J.shape[-2]):
        y.addcmul_(J[..., e, :], r[..., e, :])
    return y


def contract(J: Tangents, r: Tensor) -> Tangents:
    """Full tangents [..., e, i] to the n pair and d own directions, [..., n + d]."""
    r_last = r[:, 0, ..., None]
    pair = J.h[:, :, 0] * r_last[:, :, 0]
    for e in range(1, J.h.shape[2]):
        pair.addcmul_(J.h[:, :, e], r_last[:, :, e])
    h = torch.cat([pair, J.h.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)], 2)
    return Tangents(h, contract_vectors(J.V, r))


def contract_vectors(JV: Tensor, r: Tensor) -> Tensor:
    """[B, C, k, a, e, i] to [B, C, k, a, n + d]."""
    return torch.cat([_along(JV, r[:, :, :, None]), JV.diagonal(dim1=2, dim2=5).permute(0, 1, 4, 2, 3)], -1)


def triple_partners(mixed: list[Tensor]) -> list[Tensor]:
    """d[W4.(W5 x W6)] = W4'.(W5 x W6) + W5'.(W6 x W4) + W6'.(W4 x W5): the three partners, for vectors [B, C, k, a]; none if not chiral."""
    return [torch.linalg.cross(mixed[(m + 1) % 3], mixed[(m + 2) % 3], dim=3) for m in range(len(mixed))]


def through_direction(alpha: Tensor, beta: Tensor, geo: Geometry) -> Tensor:
    """-(u u^T alpha + 1 beta), [B, C, k, a, e, i], with the own entries filled in."""
    J = geo.uu * -alpha[:, :, :, None, None]
    J.diagonal(dim1=3, dim2=4).sub_(beta[..., None])
    return _set_own(J, 2, 5)


def first_hop(hop: Hop, w: Filters, geo: Geometry, trace: HopTrace) -> Tangents:
    """Full tangents [..., e, i] after the first hop, by its radial and transversal parts."""
    S, C, gate = hop.S, hop.C, _scalars(trace.gate)
    slope, g1, d1 = w.slope[:, :S].permute(0, 2, 3, 1), w.g[:, S:], w.slope[:, S:]
    beta = g1 / geo.dist
    alpha = d1 - beta
    V, W1, W2, W3, *triple = (_vectors(y) for y in (trace.V, *trace.mixed))
    partners = triple_partners(triple)
    uV, uW1, uW2, *uY = (torch.einsum("bcka,bkai->bcki", y, geo.u[:, 0]) for y in (V, W1, W2, *partners))
    (A1, A2, A3, *A), (B1, B2, B3, *B) = (_apply(hop.mix.weight, y).split(C, 1) for y in (alpha, beta))
    W_s, W_v = hop.node_in.weight.split([S, hop.invariants - S], 1)
    along = [A1 * uW2 + A2 * uW1, 2 * alpha * uV] + ([sum(a * y for a, y in zip(A, uY, strict=True))] if hop.chiral else [])
    radial = torch.nn.functional.linear(slope, W_s) + _rows(W_v, torch.cat(along, 1))
    W1, W2, V2 = W1[..., None], W2[..., None], 2 * V[..., None]
    across = [B1[:, :, :, None] * W2 + B2[:, :, :, None] * W1, beta[:, :, :, None] * V2]
    across += [sum(b[:, :, :, None] * y[..., None] for b, y in zip(B, partners, strict=True))] if hop.chiral else []
    across = torch.cat(across, 1)
    Jy = _set_own(_rows(W_v, across).addcmul_(geo.u[:, 0, ..., None], radial[:, :, None]), 1, 3)
    Jy.mul_(-silu_and_slope(trace.hidden)[1][:, :, None, None])
    W_h, W_gate = hop.node_out.weight.split([hop.H, C])
    Jh = torch.nn.functional.linear(Jy, W_h).mul_(silu_and_slope(trace.out)[1][:, :, None, None])
    Jgate = _channels_first(W_gate, Jy)
    JV = through_direction(alpha + gate * A3, beta + gate * B3, geo)
    return Tangents(Jh, JV.addcmul_(W3[..., None, None], Jgate[:, :, :, None]))


class Sent(NamedTuple):
    """What arrives at a later hop: filters split by use, messages, and tangents carried from the neighbours [..., e, i]."""

    filters: tuple[Tensor, Tensor, Tensor]
    slopes: tuple[Tensor, Tensor, Tensor]
    messages: tuple[Tensor, Tensor]  # b, b1, [B, F, 1, j]
    Vb: Tensor  # V_j b2_j, [B, C, j, a]
    scalars: Tensor  # carried to s, [B, S, k, e, i]
    vectors: Tensor  # carried to dV, [B, C, k, a, e, i]


def send(hop: Hop, w: Filters, geo: Geometry, trace: HopTrace, before: Tangents) -> Sent:
    """Messages of a later hop, and their tangents carried along it: two batched products with the filter matrices."""
    sizes = [hop.S, hop.C, hop.C]
    (gs, g1, g2), slopes = w.g.split(sizes, 1), w.slope.split(sizes, 1)
    B, C, n, _, d = *g1.shape, geo.u.shape[3]
    b, b1, b2 = (m.transpose(1, 2) for m in trace.messages)
    Jb, Jb1, Jb2 = _channels_first(hop.send.weight, before.h).split(sizes, 1)
    V = _vectors(trace.before.V)
    JVb = (before.V * b2[..., None, None, None]).addcmul_(V[..., None, None], Jb2[:, :, :, None])
    scalars = torch.matmul(gs, Jb.flatten(3)).unflatten(-1, (d, n))
    turned = torch.bmm((g1[:, :, :, None] * geo.u).view(B * C, n * d, n), Jb1.reshape(B * C, n, d * n)).view(B * C, n, -1)
    vectors = torch.baddbmm(turned, g2.reshape(B * C, n, n), JVb.view(B * C, n, -1)).view(B, C, n, d, d, n)
    return Sent((gs, g1, g2), slopes, (b[:, :, None], b1[:, :, None]), V * b2[..., None], scalars, vectors)


def full_sums(sent: Sent, geo: Geometry) -> tuple[Tensor, Tensor]:
    """Tangents of a later hop's neighbour sums, all directions: s [B, S, k, m], dV [B, C, k, a, m]."""
    (_, g1, _), (ds, d1, d2), (b, b1) = sent.filters, sent.slopes, sent.messages
    Js = _set_own(-geo.u * (ds * b)[:, :, :, None], 2, 4).add_(sent.scalars)
    beta = g1 * b1 / geo.dist
    J = geo.uu * (beta - d1 * b1)[:, :, :, None, None]
    J.diagonal(dim1=3, dim2=4).sub_(beta[..., None])
    J.addcmul_((d2[:, :, :, None] * geo.u)[:, :, :, None], sent.Vb.transpose(2, 3)[:, :, None, :, None], value=-1)
    return Js.flatten(3), _set_own(J, 2, 5).add_(sent.vectors).flatten(4)


def contracted_sums(sent: Sent, geo: Geometry) -> tuple[Tensor, Tensor]:
    """Tangents of a later hop's neighbour sums along the pair and own directions: s [B, S, k, n + d], dV [B, C, k, a, n + d]."""
    (_, g1, _), (ds, d1, d2), (b, b1) = sent.filters, sent.slopes, sent.messages
    over = g1 / geo.dist
    pair_s = ds * b * geo.d_dist
    along_u = b1 * (d1 * geo.d_dist + g1 * (1 - geo.d_dist / geo.dist))
    pair_V = torch.addcmul(along_u[:, :, :, None] * geo.u, (d2 * geo.d_dist)[:, :, :, None], sent.Vb.transpose(2, 3)[:, :, None])
    own_s = torch.einsum("bskj,bkej->bske", ds * b, geo.u[:, 0])
    own_V = torch.einsum("bckj,bkaej->bckae", (d1 - over) * b1, geo.uu[:, 0])
    own_V = own_V + torch.einsum("bckej,bcja->bckae", d2[:, :, :, None] * geo.u, sent.Vb)
    own_V.diagonal(dim1=3, dim2=4).add_((over * b1).sum(-1)[..., None])
    pair_s = pair_s + _along(sent.scalars, geo.r)
    own_s = own_s + sent.scalars.diagonal(dim1=2, dim2=4).transpose(2, 3)
    return torch.cat([pair_s, own_s], -1), contract_vectors(sent.vectors, geo.r) + torch.cat([pair_V, own_V], -1)


def later_hop(hop: Hop, trace: HopTrace, sums: tuple[Tensor, Tensor], before: Tangents) -> Tangents:
    """Tangents after a later hop's node network, along any list of directions m."""
    V, W1, W2, W3, *triple = (_vectors(y)[..., None] for y in (trace.V, *trace.mixed))
    Js, JV = sums[0], before.V + sums[1]
    J1, J2, J3, *J = _apply(hop.mix.weight, JV).split(hop.C, 1)
    invariants = [Js, torch.addcmul(J1 * W2, J2, W1).sum(3), 2 * (JV * V).sum(3)]
    invariants += [sum(j * y for j, y in zip(J, triple_partners(triple), strict=True)).sum(3)] if hop.chiral else []
    invariants = torch.cat(invariants, 1)
    W_sums, W_before = hop.node_in.weight.split([hop.invariants, hop.H], 1)
    Jy = torch.nn.functional.linear(before.h, W_before)
    Jy.flatten(1, 2).baddbmm_(invariants.flatten(2).transpose(1, 2), W_sums.T.expand(len(Jy), -1, -1))
    Jy.mul_(silu_and_slope(trace.hidden)[1][:, :, None])
    W_h, W_gate = hop.node_out.weight.split([hop.H, hop.C])
    Jh = torch.nn.functional.linear(Jy, W_h).mul_(silu_and_slope(trace.out)[1][:, :, None]).add_(before.h)
    Jgate = _channels_first(W_gate, Jy)[:, :, :, None]
    return Tangents(Jh, torch.addcmul(JV, _scalars(trace.gate)[:, :, :, None], J3).addcmul_(W3, Jgate))


def full_tangents(field: MultiHop, geo: Geometry, traces: list[HopTrace]) -> Tangents:
    """Full tangents [..., e, i] after the hops in `traces`."""
    J = first_hop(field.hops[0], filters(field.hops[0], geo, field.mask), geo, traces[0])
    for hop, trace in zip(field.hops[1:], traces[1:], strict=False):
        sums = full_sums(send(hop, filters(hop, geo, field.mask), geo, trace, J), geo)
        h, V = later_hop(hop, trace, sums, J.flat())
        J = Tangents(h.view_as(J.h), V.view_as(J.V))
    return J


def contracted_tangents(field: MultiHop, geo: Geometry, traces: list[HopTrace]) -> Tangents:
    """Tangents [..., n + d] after all hops, along the n pair and d own directions of each node."""
    if len(traces) == 1:
        return contract(full_tangents(field, geo, traces), geo.r)
    J, hop = full_tangents(field, geo, traces[:-1]), field.hops[-1]
    sent = send(hop, filters(hop, geo, field.mask), geo, traces[-1], J)
    return later_hop(hop, traces[-1], contracted_sums(sent, geo), contract(J, geo.r))


def run_hops(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Geometry, NodeState, list[HopTrace]]:
    """The forward pass up to the readout, with what the tangents need."""
    temb, state, traces = field.time(t, len(x)), None, []
    geo = geometry(field, temb, x.to(field.mask.dtype))
    for hop in field.hops:
        state, trace = hop(geo.f, geo.pairs, state, temb, field.mask)
        traces.append(trace)
    return geo, state, traces
