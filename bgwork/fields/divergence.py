"""Divergence and Jacobian of any velocity field: exact by batched forward mode, or estimated with random probes.

For a field without a closed form the exact divergence of nd coordinates costs about nd tangents
(benchmarks/field_cost.py); that is what fields like `bgwork.fields.multihop` avoid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bgwork.fields.forward_mode import FORWARD_MODE
from bgwork.protocols import Field

Velocity = Callable[[Tensor], Tensor]


class BruteForce(nn.Module):
    """Base of fields without a closed form: define `forward(t, x)` and inherit exact divergence and Jacobian.

    Tangents are pushed through `forward` together, as many at a time as fit the memory bound.

    Args:
        n, d: particles and dimensions.
        bytes_per_sample: memory one tangent of one configuration takes in `forward`, roughly.
        memory: bytes that tangents may take at once.
    """

    def __init__(self, n: int, d: int, *, bytes_per_sample: int, memory: int = 2**28) -> None:
        super().__init__()
        self.n, self.d, self.bytes_per_sample, self.memory = n, d, bytes_per_sample, memory

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its divergence [B], exact and differentiable in the parameters."""
        return value_and_divergence(lambda y: self(t, y), self._cast(x), chunk=self._chunk(x))

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and J[b, i, j] = dv_i/dx_j [B, nd, nd], exact and differentiable in the parameters."""
        return value_and_jacobian(lambda y: self(t, y), self._cast(x), chunk=self._chunk(x))

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters()).dtype)

    def _chunk(self, x: Tensor) -> int:
        return max(1, self.memory // (self.bytes_per_sample * max(1, len(x))))


def value_and_jacobian(velocity: Velocity, x: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """v(x) and its Jacobian, one forward-mode tangent per coordinate.

    Args:
        velocity: [B, n, d] -> [B, n, d], rows independent of each other.
        x: [B, n, d].
        chunk: tangents evaluated together.
    Returns:
        v [B, n, d] and J[b, i, j] = dv_i/dx_j [B, nd, nd].
    """
    v, columns = _columns(velocity, x, chunk, lambda tangent, column: column.flatten(1))
    return v, columns.movedim(0, 2)


def value_and_divergence(velocity: Velocity, x: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """v(x) [B, n, d] and its divergence [B]; arguments as for `value_and_jacobian`, memory without the factor nd."""
    v, diagonal = _columns(velocity, x, chunk, lambda tangent, column: (tangent * column).sum((1, 2)))
    return v, diagonal.sum(0)


def _columns(velocity: Velocity, x: Tensor, chunk: int, reduce: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """v(x), and reduce(e_k, J e_k) for each coordinate k, stacked along axis 0."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).view(-1, 1, *x.shape[1:])

    def column(direction: Tensor) -> Tensor:
        tangent = direction.expand_as(x)
        return reduce(tangent, torch.func.jvp(velocity, (x,), (tangent,))[1])

    with FORWARD_MODE:
        return velocity(x), torch.vmap(column, chunk_size=chunk)(basis)


def rademacher(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Independent signs +-1, float64: the probe of least variance for a trace (Hutchinson 1990)."""
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


class Hutchinson:
    """A field seen through probes: its divergence is eps . J eps for each probe, unbiased, and noisy.

    Args:
        field: any velocity v(t, x).
        probes: [B, P, n, d], kept for the whole trajectory so that the integrand is smooth in t (Grathwohl et al. 2019).
    """

    def __init__(self, field: Field, probes: Tensor) -> None:
        self.n, self.d, self.field, self.probes = field.n, field.d, field, probes

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field(t, x)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and one estimate of the divergence per probe [B, P]."""
        def along(probe: Tensor) -> Tensor:
            return (probe * torch.func.jvp(lambda y: self.field(t, y), (x,), (probe,))[1]).sum((1, 2))

        with FORWARD_MODE:
            return self.field(t, x), torch.vmap(along, in_dims=1, out_dims=1)(self.probes.to(x.dtype))
