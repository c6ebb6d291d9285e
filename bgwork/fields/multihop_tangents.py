"""Closed-form derivatives of the multi-hop field.

Tangents of node features are kept channels first, [B, F, k, m] for scalars and [B, C, k, a, m] for vectors: feature F of node k along direction m. In a *full*
Jacobian m runs over (e, i): particle i moves along axis e. A linear layer is then one matrix product, and a hop is a batched product over
(B, F) of the filter matrix [k, j] with the tangents [j, m]. For the divergence only two contractions of the last hop's tangents are needed,
    pair   x_i moves along r_ik          (n directions)
    own    x_k itself moves along axis e (d directions)
so the node network of the last hop sees n + d directions instead of n d, and the readout one tangent a pair.
Features are translation invariant, so a node's derivative with respect to itself is minus the sum over the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bgwork.fields.radial import Pairs, pairs_of, silu_and_slope

if TYPE_CHECKING:
    from bgwork.fields.multihop import Hop, HopTrace, MultiHop, NodeState


class Tangents(NamedTuple):
    """Tangents of node scalars [B, F, k, m] and vectors [B, C, k, a, m]."""

    h: Tensor
    V: Tensor


class Filters(NamedTuple):
    """Filter values and their slopes in distance, channels first [B, F, k, j], zero on the diagonal."""

    g: Tensor
    slope: Tensor


class Geometry(NamedTuple):
    """Pair geometry with the radial features, and its channels-first views.

    Attributes:
        pairs, f, f_slope: as in the forward pass, [B, i, j, .].
        u: direction u_ki,e as [B, 1, k, e, i].
        dist: [B, 1, k, i].
        r: r_ik,e = x_i - x_k as [B, 1, k, e, i].
    """

    pairs: Pairs
    f: Tensor
    f_slope: Tensor
    u: Tensor
    dist: Tensor
    r: Tensor


def _apply(weight: Tensor, x: Tensor) -> Tensor:
    """weight [out, F] on the channels of x [B, F, ...]."""
    B = len(x)
    y = torch.bmm(weight.expand(B, -1, -1), x.reshape(B, x.shape[1], -1))
    return y.view(B, weight.shape[0], *x.shape[2:])


def _channels_first(weight: Tensor, x: Tensor) -> Tensor:
    """weight [out, F] on the last axis of x [B, i, j, F], giving [B, out, i, j]."""
    B, n = x.shape[:2]
    return torch.bmm(weight.expand(B, -1, -1), x.reshape(B, n * x.shape[2], -1).transpose(1, 2)).view(B, -1, n, x.shape[2])


def _nodes_first(x: Tensor) -> Tensor:
    """Node scalars [B, n, F] as [B, F, n, 1]."""
    return x.transpose(1, 2)[..., None]


def _set_own(J: Tensor, k: int, i: int) -> Tensor:
    """Fill d(node k)/d(x_k) (zero so far) with minus the sum over the other particles."""
    J.diagonal(dim1=k, dim2=i).copy_(-J.sum(i).movedim(k, -1))
    return J


def geometry(field: MultiHop, temb: Tensor, x: Tensor) -> Geometry:
    pairs = pairs_of(x)
    f, f_slope = field.radial.value_and_slope(pairs.dist, temb)
    u = pairs.u.transpose(2, 3)[:, None].contiguous()
    return Geometry(pairs, f, f_slope, u, pairs.dist[..., 0][:, None], -pairs.r.transpose(2, 3)[:, None].contiguous())


def filters(hop: Hop, geo: Geometry, mask: Tensor) -> Filters:
    mask = mask[..., 0][:, None]
    bias = hop.filters.bias[:, None, None]
    return Filters((_channels_first(hop.filters.weight, geo.f) + bias) * mask, _channels_first(hop.filters.weight, geo.f_slope) * mask)


def through_distance(a: Tensor, u: Tensor) -> Tensor:
    """Tangents [B, F, k, e, i] of sum_j G(r_kj), given a_ki = G'(r_ki) [B, F, k, i]."""
    return _set_own(-u * a[:, :, :, None], 2, 4)


def through_direction(g: Tensor, slope: Tensor, geo: Geometry) -> Tensor:
    """Tangents [B, C, k, a, e, i] of sum_j g(r_kj) u_kj."""
    over = g / geo.dist
    uu = geo.u[:, :, :, :, None] * geo.u[:, :, :, None]
    eye = torch.eye(uu.shape[3], dtype=uu.dtype, device=uu.device)[:, :, None]
    return _set_own(-(uu * (slope - over)[:, :, :, None, None] + eye * over[:, :, :, None, None]), 2, 5)


def first_aggregate(hop: Hop, w: Filters, geo: Geometry) -> Tangents:
    """Tangents of s and dV of the first hop, where messages are constant."""
    (gs, g1), (ds, d1) = (y.split([hop.S, hop.C], 1) for y in w)
    return Tangents(through_distance(ds, geo.u), through_direction(g1, d1, geo))


def next_aggregate(hop: Hop, w: Filters, geo: Geometry, trace: HopTrace, before: Tangents) -> Tangents:
    """Tangents of s and dV of a later hop: through the filters, and through the neighbours' features."""
    (gs, g1, g2), (ds, d1, d2) = (y.split([hop.S, hop.C, hop.C], 1) for y in w)
    b, b1, b2 = (m.transpose(1, 2) for m in trace.messages)
    B, _, n, _, d = *gs.shape, geo.u.shape[3]
    Jb, Jb1, Jb2 = _apply(hop.send.weight, before.h).split([hop.S, hop.C, hop.C], 1)
    V = trace.before.V.permute(0, 3, 1, 2)
    Js = through_distance(ds * b[:, :, None], geo.u) + torch.matmul(gs, Jb.view(B, hop.S, n, d * n)).view(B, hop.S, n, d, n)
    JVb = before.V * b2[..., None, None, None] + V[..., None, None] * Jb2[:, :, :, None]
    g1u = (g1[:, :, :, None] * geo.u).view(B, hop.C, n * d, n)
    carried = torch.matmul(g1u, Jb1.view(B, hop.C, n, d * n)).view(B, hop.C, n, d, d, n)
    carried = carried + torch.matmul(g2, JVb.view(B, hop.C, n, d * d * n)).view(B, hop.C, n, d, d, n)
    Vb = (V * b2[..., None]).transpose(2, 3)[:, :, None, :, None]
    sent = _set_own(-(d2[:, :, :, None] * geo.u)[:, :, :, None] * Vb, 2, 5)
    return Tangents(Js, through_direction(g1 * b1[:, :, None], d1 * b1[:, :, None], geo) + sent + carried)


def _flat(J: Tangents) -> Tangents:
    """(e, i) as one axis of directions."""
    return Tangents(J.h.flatten(3), J.V.flatten(4))


def contract(J: Tangents, r: Tensor) -> Tangents:
    """Full tangents [.., e, i] to the n pair and d own directions, [.., n + d]."""
    h = torch.cat([(J.h * r).sum(3), J.h.diagonal(dim1=2, dim2=4).transpose(2, 3)], -1)
    V = torch.cat([(J.V * r[:, :, :, None]).sum(4), J.V.diagonal(dim1=2, dim2=5).permute(0, 1, 4, 2, 3)], -1)
    return Tangents(h, V)


def node_update(hop: Hop, trace: HopTrace, sums: Tangents, before: Tangents | None) -> Tangents:
    """Tangents after the node network, along any set of directions."""
    scale = trace.V.shape[1] ** -0.5
    Js, JV = sums.h * scale, sums.V * scale
    JV = JV if before is None else before.V + JV
    V, W1, W2, W3 = (y.permute(0, 3, 1, 2)[..., None] for y in (trace.V, *trace.mixed))
    J1, J2, J3 = _apply(hop.mix.weight, JV).split(hop.C, 1)
    invariants = [Js, (J1 * W2 + J2 * W1).sum(3), 2 * (JV * V).sum(3)] + ([] if before is None else [before.h])
    _, slope = silu_and_slope(trace.hidden)
    Jy = _apply(hop.node_in.weight, torch.cat(invariants, 1)) * _nodes_first(slope)
    Jo, Jgate = _apply(hop.node_out.weight, Jy).split([hop.H, hop.C], 1)
    _, slope = silu_and_slope(trace.out)
    Jh = Jo * _nodes_first(slope)
    gate = _nodes_first(trace.gate)[:, :, :, None]
    return Tangents(Jh if before is None else before.h + Jh, JV + gate * J3 + W3 * Jgate[:, :, :, None])


def aggregate(field: MultiHop, k: int, geo: Geometry, trace: HopTrace, before: Tangents | None) -> Tangents:
    """Full tangents of the neighbour sums of hop k."""
    hop = field.hops[k]
    w = filters(hop, geo, field.mask)
    return first_aggregate(hop, w, geo) if before is None else next_aggregate(hop, w, geo, trace, before)


def full_tangents(field: MultiHop, geo: Geometry, traces: list[HopTrace]) -> Tangents | None:
    """Full tangents [.., e, i] after the hops in `traces`; None if there are none."""
    n, d, J = field.n, field.d, None
    for k, trace in enumerate(traces):
        J = node_update(field.hops[k], trace, _flat(aggregate(field, k, geo, trace, J)), None if J is None else _flat(J))
        J = Tangents(J.h.unflatten(-1, (d, n)), J.V.unflatten(-1, (d, n)))
    return J


def contracted_tangents(field: MultiHop, geo: Geometry, traces: list[HopTrace]) -> Tangents:
    """Tangents [.., n + d] after all hops, along the n pair and d own directions of each node."""
    J = full_tangents(field, geo, traces[:-1])
    sums = contract(aggregate(field, len(traces) - 1, geo, traces[-1], J), geo.r)
    return node_update(field.hops[-1], traces[-1], sums, None if J is None else contract(J, geo.r))


def run_hops(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Geometry, NodeState, list[HopTrace]]:
    """The forward pass up to the readout, with what the tangents need."""
    temb, state, traces = field.time(t, len(x)), None, []
    geo = geometry(field, temb, x.to(field.mask.dtype))
    for hop in field.hops:
        state, trace = hop(geo.f, geo.pairs, state, temb, field.mask)
        traces.append(trace)
    return geo, state, traces


def value_and_divergence(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v and sum_i dv_i/dx_i: phi_ij needs its derivative along r_ij only, since v_i contains phi_ij r_ij."""
    geo, state, traces = run_hops(field, t, x)
    J, ro, n = contracted_tangents(field, geo, traces), field.readout, field.n
    p, slope = silu_and_slope(ro.first_layer(geo.f, geo.pairs.u, state))
    y, slope2 = silu_and_slope(ro.hidden(p))
    dp = pair_tangent(field, geo, state, J) * slope
    dphi = (nn.functional.linear(dp, ro.hidden.weight) * slope2) @ ro.out.weight[0]
    phi, gamma = ro.out(y) * field.mask, ro.gamma(state.h)
    v = (phi * geo.pairs.r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, gamma)
    own_gamma = torch.einsum("bfie,cf->biec", J.h[..., n:], ro.gamma.weight)
    div = (field.d * phi.sum((1, 2, 3)) + (dphi * field.mask[..., 0]).sum((1, 2))) / n
    div = div + torch.einsum("bic,bciaa->b", gamma, J.V[..., n:]) + torch.einsum("biec,biec->b", own_gamma, state.V)
    return v - v.mean(1, keepdim=True), div


def pair_tangent(field: MultiHop, geo: Geometry, state: NodeState, J: Tangents) -> Tensor:
    """Tangent of the pair network's first pre-activation as x_i moves along r_ij, [B, i, j, H]."""
    ro, n, (r, dist, u), V = field.readout, field.n, geo.pairs, state.V
    d_dist = (r * r).sum(-1, keepdim=True) / dist
    d_u = u * (1 - d_dist / dist)
    own_h, own_V = J.h[..., n:].permute(0, 2, 3, 1), J.V[..., n:].permute(0, 2, 4, 3, 1)
    tj_h, tj_V = J.h[..., :n].permute(0, 3, 2, 1), J.V[..., :n].permute(0, 4, 2, 3, 1)
    ti_V = torch.matmul(r, own_V.flatten(3)).unflatten(-1, V.shape[2:])
    products = torch.cat([
        torch.einsum("bijac,bija->bijc", ti_V, u) + torch.einsum("biac,bija->bijc", V, d_u),
        torch.einsum("bijac,bija->bijc", tj_V, u) + torch.einsum("bjac,bija->bijc", V, d_u),
        (ti_V * V[:, None]).sum(3) + (tj_V * V[:, :, None]).sum(3)], -1)
    linear = nn.functional.linear
    return (torch.matmul(r, linear(own_h, ro.P.weight)) + linear(tj_h, ro.Q.weight)
            + linear(geo.f_slope * d_dist, ro.R.weight) + linear(products, ro.A.weight))


class PairAdjoint(NamedTuple):
    """Derivatives of phi_ij with respect to what it is made of: h_i, h_j [B, i, j, H], V_i, V_j [B, i, j, a, C], r_ij [B, i, j, e]."""

    hi: Tensor
    hj: Tensor
    Vi: Tensor
    Vj: Tensor
    r: Tensor


def pair_adjoint(field: MultiHop, geo: Geometry, state: NodeState) -> tuple[Tensor, PairAdjoint]:
    """phi [B, i, j, 1] and its adjoint, by one reverse pass through the pair network."""
    ro, (_, dist, u), V = field.readout, geo.pairs, state.V
    p, slope = silu_and_slope(ro.first_layer(geo.f, u, state))
    y, slope2 = silu_and_slope(ro.hidden(p))
    p_bar = ((slope2 * ro.out.weight[0] * field.mask) @ ro.hidden.weight) * slope
    a, b, c = (p_bar @ ro.A.weight).split(field.config.vectors, -1)
    Vi_bar = a[:, :, :, None] * u[..., None] + c[:, :, :, None] * V[:, None]
    Vj_bar = b[:, :, :, None] * u[..., None] + c[:, :, :, None] * V[:, :, None]
    u_bar = torch.einsum("bijc,biac->bija", a, V) + torch.einsum("bijc,bjac->bija", b, V)
    dist_bar = ((p_bar @ ro.R.weight) * geo.f_slope).sum(-1, keepdim=True)
    r_bar = dist_bar * u + (u_bar - u * (u * u_bar).sum(-1, keepdim=True)) / dist
    return ro.out(y) * field.mask, PairAdjoint(p_bar @ ro.P.weight, p_bar @ ro.Q.weight, Vi_bar, Vj_bar, r_bar)


def value_and_jacobian(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v and the full Jacobian [B, n d, n d] with index i d + a."""
    geo, state, traces = run_hops(field, t, x)
    J, (B, n, d) = _flat(full_tangents(field, geo, traces)), x.shape
    phi, bar = pair_adjoint(field, geo, state)
    gamma, r = field.readout.gamma(state.h), geo.pairs.r
    v = (phi * r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, gamma)
    own_gamma = torch.einsum("bfim,cf->bicm", J.h, field.readout.gamma.weight)
    jac = through_nodes(r / n, bar, J) + torch.einsum("bic,bciam->biam", gamma, J.V) + torch.matmul(state.V, own_gamma)
    jac = jac.view(B, n, d, d, n).transpose(3, 4) + through_pairs(r / n, phi / n, bar.r)
    jac = jac - jac.mean(1, keepdim=True)
    return v - v.mean(1, keepdim=True), jac.reshape(B, n * d, n * d)


def through_nodes(r: Tensor, bar: PairAdjoint, J: Tangents) -> Tensor:
    """sum_j r_ij,a d phi_ij/dx_m through the features of i and of j, [B, i, a, m]."""
    (B, n, _, d), C = r.shape, J.V.shape[1]
    at_i = torch.matmul(r.transpose(2, 3), bar.hi)
    via_i = torch.matmul(at_i, J.h.transpose(1, 2))
    at_i = torch.matmul(r.transpose(2, 3), bar.Vi.flatten(3))
    via_i = via_i + torch.matmul(at_i, J.V.permute(0, 2, 3, 1, 4).reshape(B, n, d * C, -1))
    hj = (r.transpose(2, 3)[:, :, :, None] * bar.hj.transpose(2, 3)[:, :, None]).reshape(B, n * d, -1)
    Vj = (r.transpose(2, 3)[:, :, :, None, :, None] * bar.Vj.permute(0, 1, 4, 2, 3)[:, :, None]).reshape(B, n * d, -1)
    via_j = torch.bmm(hj, J.h.flatten(1, 2)) + torch.bmm(Vj, J.V.flatten(1, 3))
    return via_i + via_j.view(B, n, d, -1)


def through_pairs(r: Tensor, phi: Tensor, r_bar: Tensor) -> Tensor:
    """sum_j [phi_ij delta_ae + r_ij,a dphi_ij/dr_ij,e] (delta_im - delta_jm), [B, i, a, m, e]."""
    n, d = r.shape[2:]
    eye = torch.eye(d, dtype=r.dtype, device=r.device)
    block = (phi[..., None] * eye + r[..., None] * r_bar[:, :, :, None]).transpose(2, 3)
    own = torch.eye(n, dtype=r.dtype, device=r.device)[:, None, :, None]
    return own * block.sum(3, keepdim=True) - block
