"""Average velocities U(t, s, x) of a flow between two times: the network behind a flow map X_{t->s}(x) = x + (s - t) U(t, s, x).

At s = t it is the flow's own velocity v(t, x). It works in both directions, towards the data (t < s) and back (t > s), and wraps any
field of two times, whose Jacobian it passes on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bgwork.fields.egnn import EGNN
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import TIME_WIDTH, MultiHop
from bgwork.fields.radial import TimeFeatures
from bgwork.protocols import Field


class AverageVelocity(nn.Module):
    """U(t, s, x) = net((t, s - t), x).

    Args:
        net: a field built with times=2.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> U = AverageVelocity(MLP(1, 2, hidden=8, times=2))
        >>> x = torch.randn(5, 1, 2)
        >>> torch.equal(U.move(0.0, 1.0, x), x.double())  # a new network moves nothing
        True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.n, self.d = net, net.n, net.d

    def forward(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        """U [B, n, d] in the network's dtype; t and s are scalars or [B]."""
        return self.net(_pair(t, s), x)

    def value_and_jacobian(self, t: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """U [B, n, d] and dU_i/dx_j [B, nd, nd], exact and differentiable in the parameters."""
        return self.net.value_and_jacobian(_pair(t, s), x)

    def move(self, t: Tensor | float, s: Tensor | float, x: Tensor) -> Tensor:
        """X_{t->s}(x) = x + (s - t) U(t, s, x), [B, n, d] float64; exactly x where s = t."""
        t, s = (torch.as_tensor(time, dtype=torch.float64, device=x.device) for time in (t, s))
        return x.double() + (s - t).view(-1, 1, 1) * self(t, s, x).double()

    def move_with_jacobian(self, t: float, s: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """X_{t->s}(x) [B, n, d] and its Jacobian I + (s - t) dU/dx [B, nd, nd], float64."""
        start, end = (torch.tensor(time, dtype=torch.float64, device=x.device) for time in (t, s))
        velocity, jacobian = self.value_and_jacobian(start, end, x)
        identity = torch.eye(jacobian.shape[-1], dtype=torch.float64, device=x.device)
        return x.double() + (s - t) * velocity.double(), identity + (s - t) * jacobian.double()

    @property
    def instantaneous(self) -> Instantaneous:
        """The velocity field v(t, x) = U(t, t, x)."""
        return Instantaneous(average=self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Instantaneous:
    """v(t, x) = U(t, t, x), as a field for everything that takes one."""

    average: AverageVelocity

    @property
    def n(self) -> int:
        return self.average.n

    @property
    def d(self) -> int:
        return self.average.d

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """v [B, n, d]."""
        return self.average(t, t, x)

    def value_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its divergence [B]."""
        return self.average.net.value_and_divergence(_pair(t, t), x)

    def value_and_jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v [B, n, d] and its Jacobian [B, nd, nd]."""
        return self.average.value_and_jacobian(t, t, x)


def of_two_times(field: nn.Module) -> nn.Module:
    """A copy of a field of one time that takes two, with fresh weights in the layer that sees them.

    Raises:
        ValueError: for a kind of field whose time layer is not known here.
    """
    wide = copy.deepcopy(field)
    if isinstance(wide, MultiHop):
        wide.config, wide.time = replace(wide.config, times=2), TimeFeatures(TIME_WIDTH, 2, nearest=wide.config.nearest)
    elif isinstance(wide, MLP):
        per_time = wide.first.in_features - wide.place_width
        wide.times, wide.first = 2, nn.Linear(wide.place_width + 2 * per_time, wide.first.out_features)
    elif isinstance(wide, EGNN):
        wide.node_in = nn.Linear(2, wide.node_in.out_features)
    else:
        raise ValueError(f"a {type(field).__name__} cannot be made to take two times; use a multihop, mlp or egnn field")
    return wide


def start_from(average: AverageVelocity, teacher: Field) -> None:
    """Give U the teacher's weights and zeros for the second time, so that U(t, s, x) = v(t, x) for every s.

    Time features stand last among the inputs of a layer, so a layer that takes both times has further columns on the right.

    Args:
        average: changed in place.
        teacher: a field of one time, otherwise of the same kind and sizes as `average.net`.
    Raises:
        ValueError: if some weights do not fit.
    """
    weights = dict(teacher.named_parameters())
    if weights.keys() != dict(average.net.named_parameters()).keys():
        kinds = f"{type(average.net).__name__} for {type(teacher).__name__}"
        raise ValueError(f"a student's network must be of its teacher's kind, got {kinds}")
    for name, own in average.net.named_parameters():
        given, shape = weights[name].detach(), own.shape
        if given.shape[:-1] != shape[:-1] or given.shape[-1] > shape[-1]:
            raise ValueError(f"the teacher's {name} is {tuple(given.shape)}, the student's {tuple(shape)}; give both the same [field]")
        own.data.zero_()
        own.data[..., : given.shape[-1]] = given


def _pair(t: Tensor, s: Tensor) -> Tensor:
    """(t, s - t), [2] or [B, 2]."""
    t, s = torch.as_tensor(t), torch.as_tensor(s)
    return torch.stack(torch.broadcast_tensors(t, s - t), -1)
