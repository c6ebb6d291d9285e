"""A molecule's field refined in its own frame, where nothing is left of the symmetry that a multilayer perceptron would have to learn.

    v(t, x) = [v0 + fade P F(t, y, v0)] R^T,    y = x R in the frame (`frames`),  v0 = v0(t, y) an equivariant field,  P the mean-free part
F sees the configuration, the velocity v0 and the end point it points at, y + (1 - t) v0, all of them at once, which hops between pairs of
atoms learn slowly: how the whole hangs together. It costs a few matrix products. v is as equivariant as v0, and smooth: F fades where the
frame is ambiguous. In the frame (where L dy is the turn's w, and G(y) w what it does to y)
    dv = J0 + P F (d fade)^T + fade P [F_y (P + G(y) L) + F_v (J0 + G(v0) L)] - fade G(P F) L
with the two Jacobians of F by one reverse pass through its layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from bgwork.fields.frames import Frame
from bgwork.fields.radial import TimeFeatures, silu_and_slope
from bgwork.protocols import Field

TIME_WIDTH = 16
FINE = 0.1  # of the prior's standard deviation: scale of end points about the template, and of the refinement


class Refinement(nn.Module):
    """F(t, y, v), zero at the start.

        F = FINE length W_out h_L,    h_l = h_{l-1} + (1 + G_l tau) silu(W_l h_{l-1} + b_l),    tau features of the time,
        h_0 = silu(W_in [y, v, (y + (1 - t) v - Y) / FINE] / length + W_t tau)

    Args:
        size: of y and of v.
        hidden, depth: width and number of layers after the first.
        length: standard deviation of the prior.
        nearest: as in `MultiHopConfig`.
    """

    def __init__(self, size: int, *, hidden: int, depth: int, length: float, nearest: float) -> None:
        super().__init__()
        self.size, self.length = size, length
        self.time = TimeFeatures(TIME_WIDTH, nearest=nearest)
        self.first, self.first_time = nn.Linear(3 * size, hidden), nn.Linear(TIME_WIDTH, hidden, bias=False)
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(depth)])
        self.gates = nn.ModuleList([nn.Linear(TIME_WIDTH, hidden) for _ in range(depth)])
        self.last = nn.Linear(hidden, size)
        for layer in (self.last, *self.gates):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, y: Tensor, v: Tensor, template: Tensor) -> Tensor:
        """F [B, size] from t [B, 1] and y, v [B, size], template [size]."""
        temb = self.time(t[:, 0], len(y))
        h = silu(self.first(self._inputs(t, y, v, template)) + self.first_time(temb))
        for layer, gate in zip(self.layers, self.gates, strict=True):
            h = h + (1 + gate(temb)) * silu(layer(h))
        return FINE * self.length * self.last(h)

    def value_and_jacobians(self, t: Tensor, y: Tensor, v: Tensor, template: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F [B, size], dF/dy and dF/dv [B, size, size]."""
        temb = self.time(t[:, 0], len(y))
        h, slope = silu_and_slope(self.first(self._inputs(t, y, v, template)) + self.first_time(temb))
        slopes = [slope]
        for layer, gate in zip(self.layers, self.gates, strict=True):
            value, slope = silu_and_slope(layer(h))
            h, slopes = h + (1 + gate(temb)) * value, [*slopes, (1 + gate(temb)) * slope]
        back = self.last.weight.expand(len(y), -1, -1)
        for layer, slope in zip(reversed(self.layers), reversed(slopes[1:]), strict=True):
            back = back + (back * slope[:, None]) @ layer.weight
        of_y, of_v, of_end = ((back * slopes[0][:, None]) @ self.first.weight).split(self.size, -1)
        scale, of_end = FINE * self.length, of_end / FINE
        left = (1 - t)[:, :, None]
        return scale * self.last(h), FINE * (of_y + of_end), FINE * (of_v + left * of_end)

    def _inputs(self, t: Tensor, y: Tensor, v: Tensor, template: Tensor) -> Tensor:
        return torch.cat([y, v, (y + (1 - t) * v - template) / FINE], -1) / self.length


class Framed(nn.Module):
    """A field of a molecule and its refinement in the molecule's frame (see the module's formulae).

    Args:
        inner: v0, equivariant under rotations and translations, in three dimensions; its closed-form Jacobian is used.
        frame: of the molecule.
        hidden, depth, nearest: of the refinement.
    Raises:
        ValueError: if the template has not as many atoms as the field.

    Example:
        >>> inner = MultiHop(5, 3, MultiHopConfig(hops=1))
        >>> field = Framed(inner, Frame(torch.randn(5, 3), length=0.2), hidden=64, depth=2)
        >>> v, jacobian = field.value_and_jacobian(torch.tensor(0.5), torch.randn(8, 5, 3))
    """

    def __init__(self, inner: Field, frame: Frame, *, hidden: int, depth: int, nearest: float = 0.0) -> None:
        super().__init__()
        if frame.template.shape != (inner.n, inner.d):
            raise ValueError(f"a template of shape {list(frame.template.shape)} does not fit a field of {inner.n} particles "
                             f"in {inner.d} dimensions")
        self.n, self.d, self.inner, self.frame = inner.n, inner.d, inner, frame
        self.refinement = Refinement(inner.n * inner.d, hidden=hidden, depth=depth, length=frame.length, nearest=nearest)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d] for t scalar or [B] and x [B, n, d]."""
        turned = self.frame(x)
        v = self.inner(t, turned.y)
        fine = mean_free(self.refinement(*self._refined(t, turned.y, v))).view(x.shape)
        return ((v + turned.fade * fine) @ turned.turn.mT).to(self.dtype)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its exact divergence [B], the trace of the Jacobian."""
        v, jacobian = self.value_and_jacobian(t, x)
        return v, jacobian.diagonal(dim1=1, dim2=2).sum(-1)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, i d + a, j d + e] = dv_ia / dx_je, [B, n d, n d]."""
        turned = self.frame(x)
        v, inner = self.inner.value_and_jacobian(t, turned.y)
        flat, of_y, of_v = self.refinement.value_and_jacobians(*self._refined(t, turned.y, v))
        fine = mean_free(flat).view(x.shape)
        along, fading, of_y_turned, of_v_turned, fine_turned = (part.to(self.dtype) for part in (
            self.frame.following(turned), self.frame.fading(turned).flatten(1), *map(self.frame.generators, (turned.y, v, fine))))
        moved = mean_free(of_y) + of_v @ inner + (of_y @ of_y_turned + of_v @ of_v_turned) @ along
        moved = mean_free(moved.mT).mT - fine_turned @ along
        jacobian = inner + fine.flatten(1)[:, :, None] * fading[:, None] + turned.fade.to(self.dtype) * moved
        return ((v + turned.fade * fine) @ turned.turn.mT).to(self.dtype), turned_back(jacobian, turned.turn.to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        return self.refinement.last.weight.dtype

    def _refined(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the refinement takes, in its precision."""
        t = torch.as_tensor(t, device=y.device).expand(len(y))[:, None]
        return t.to(self.dtype), y.to(self.dtype).flatten(1), v.to(self.dtype).flatten(1), self.frame.Y.to(self.dtype).flatten()


def mean_free(x: Tensor) -> Tensor:
    """Rows [..., 3 n] of n atoms without their mean over the atoms."""
    atoms = x.unflatten(-1, (-1, 3))
    return (atoms - atoms.mean(-2, keepdim=True)).flatten(-2)


def turned_back(jacobian: Tensor, turn: Tensor) -> Tensor:
    """R J R^T in every 3 x 3 block: a Jacobian seen from the frame as it is outside."""
    blocks = jacobian.unflatten(1, (-1, 3)).unflatten(3, (-1, 3))
    return torch.einsum("Bac,Bicje,Bfe->Biajf", turn, blocks, turn).reshape(jacobian.shape)
