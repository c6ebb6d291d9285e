"""Divergence and full Jacobian of the multi-hop field: its hops' tangents (`multihop_tangents`) taken through the pair readout.

    v_i = 1/n sum_j phi_ij r_ij + sum_c gamma_c(h_i) V_ic
The divergence needs the derivative of phi_ij along r_ij alone, one forward tangent a pair. The full Jacobian takes one reverse pass
through the pair network, d phi_ij / d(features of i, of j, of the pair), and assembles the rest by matrix products with the nodes'
Jacobians.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bgwork.fields.multihop_tangents import Geometry, Tangents, contracted_tangents, full_tangents, run_hops
from bgwork.fields.radial import silu_and_slope

if TYPE_CHECKING:
    from bgwork.fields.multihop import MultiHop, NodeState


def value_and_divergence(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v and sum_i dv_i/dx_i: phi_ij needs its derivative along r_ij only, since v_i contains phi_ij r_ij."""
    geo, state, traces = run_hops(field, t, x)
    J, ro, n = contracted_tangents(field, geo, traces), field.readout, field.n
    p, slope = silu_and_slope(ro.first_layer(geo.f, geo.pairs.u, state))
    y, slope2 = silu_and_slope(ro.hidden(p))
    dp = pair_tangent(field, geo, state, J) * slope
    dphi = (nn.functional.linear(dp, ro.hidden.weight) * slope2) @ ro.out.weight[0]
    if field.typed:
        dphi = dphi + (geo.force_slope * geo.d_dist[:, 0, ..., None])[..., 0]
    phi, gamma = (ro.out(y) + geo.force) * field.mask, ro.gamma(state.h)
    v = (phi * geo.pairs.r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, gamma)
    own_gamma = nn.functional.linear(J.h[:, :, n:], ro.gamma.weight)
    div = (field.d * phi.sum((1, 2, 3)) + (dphi * field.mask[..., 0]).sum((1, 2))) / n
    div = div + torch.einsum("bic,bciaa->b", gamma, J.V[..., n:]) + torch.einsum("biec,biec->b", own_gamma, state.V)
    return v - v.mean(1, keepdim=True), div


def pair_tangent(field: MultiHop, geo: Geometry, state: NodeState, J: Tangents) -> Tensor:
    """Tangent of the pair network's first pre-activation as x_i moves along r_ij, [B, i, j, H]."""
    ro, n, (r, dist, u), V = field.readout, field.n, geo.pairs, state.V
    d_dist = (r * r).sum(-1, keepdim=True) / dist
    d_u = u * (1 - d_dist / dist)
    tj_h, own_h = J.h.split([n, field.d], 2)
    tj_V, own_V = J.V[..., :n].permute(0, 4, 2, 3, 1), J.V[..., n:].permute(0, 2, 4, 3, 1)
    ti_V = torch.matmul(r, own_V.flatten(3)).unflatten(-1, V.shape[2:])
    products = torch.cat([
        torch.einsum("bijac,bija->bijc", ti_V, u) + torch.einsum("biac,bija->bijc", V, d_u),
        torch.einsum("bijac,bija->bijc", tj_V, u) + torch.einsum("bjac,bija->bijc", V, d_u),
        (ti_V * V[:, None]).sum(3) + (tj_V * V[:, :, None]).sum(3)], -1)
    linear = nn.functional.linear
    return (torch.matmul(r, linear(own_h, ro.P.weight)) + linear(tj_h, ro.Q.weight).transpose(1, 2)
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
    dist_bar = ((p_bar @ ro.R.weight) * geo.f_slope).sum(-1, keepdim=True) + geo.force_slope
    r_bar = dist_bar * u + (u_bar - u * (u * u_bar).sum(-1, keepdim=True)) / dist
    return (ro.out(y) + geo.force) * field.mask, PairAdjoint(p_bar @ ro.P.weight, p_bar @ ro.Q.weight, Vi_bar, Vj_bar, r_bar)


def value_and_jacobian(field: MultiHop, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v and the full Jacobian [B, n d, n d] with index i d + a."""
    geo, state, traces = run_hops(field, t, x)
    J, (B, n, d) = full_tangents(field, geo, traces).flat(), x.shape
    phi, bar = pair_adjoint(field, geo, state)
    gamma, r = field.readout.gamma(state.h), geo.pairs.r
    v = (phi * r).sum(2) / n + torch.einsum("bidc,bic->bid", state.V, gamma)
    own_gamma = nn.functional.linear(J.h, field.readout.gamma.weight).transpose(2, 3)
    jac = through_nodes(r / n, bar, J) + torch.einsum("bic,bciam->biam", gamma, J.V) + torch.matmul(state.V, own_gamma)
    jac = jac.view(B, n, d, d, n).transpose(3, 4) + through_pairs(r / n, phi / n, bar.r)
    jac = jac - jac.mean(1, keepdim=True)
    return v - v.mean(1, keepdim=True), jac.reshape(B, n * d, n * d)


def through_nodes(r: Tensor, bar: PairAdjoint, J: Tangents) -> Tensor:
    """sum_j r_ij,a d phi_ij/dx_m through the features of i and of j, [B, i, a, m]."""
    (B, n, _, d), C = r.shape, J.V.shape[1]
    at_i = torch.matmul(r.transpose(2, 3), bar.hi)
    via_i = torch.matmul(at_i, J.h.transpose(2, 3))
    at_i = torch.matmul(r.transpose(2, 3), bar.Vi.flatten(3))
    via_i = via_i + torch.matmul(at_i, J.V.permute(0, 2, 3, 1, 4).reshape(B, n, d * C, -1))
    hj = (r.transpose(2, 3)[..., None] * bar.hj[:, :, None]).reshape(B, n * d, -1)
    Vj = (r.transpose(2, 3)[:, :, :, None, :, None] * bar.Vj.permute(0, 1, 4, 2, 3)[:, :, None]).reshape(B, n * d, -1)
    via_j = torch.bmm(hj, J.h.transpose(2, 3).flatten(1, 2)) + torch.bmm(Vj, J.V.flatten(1, 3))
    return via_i + via_j.view(B, n, d, -1)


def through_pairs(r: Tensor, phi: Tensor, r_bar: Tensor) -> Tensor:
    """sum_j [phi_ij delta_ae + r_ij,a dphi_ij/dr_ij,e] (delta_im - delta_jm), [B, i, a, m, e]."""
    n, d = r.shape[2:]
    eye = torch.eye(d, dtype=r.dtype, device=r.device)
    block = (phi[..., None] * eye + r[..., None] * r_bar[:, :, :, None]).transpose(2, 3)
    own = torch.eye(n, dtype=r.dtype, device=r.device)[:, None, :, None]
    return own * block.sum(3, keepdim=True) - block
