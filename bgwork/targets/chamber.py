"""A molecule's energy restricted to the handedness that its dynamics keeps.

A force field's energy is the same for a molecule and its mirror image, and for a methyl group whose hydrogens are numbered the other way
round; dynamics that break no bond never reach either. The equilibrium that a simulation samples is therefore exp(-u) on one
*chamber* of configuration space, where every handed centre has the sign it has in the reference structure:

    u_chamber(x) = u(x) if sign[(x_a - x_k) . ((x_b - x_k) x (x_c - x_k))] = s_k for every centre k, else +inf

so that samples outside keep their row and have weight zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgwork.protocols import Target
from bgwork.topology import Stereocentre, same_chirality


class Chamber:
    """A target restricted to configurations of the right handedness.

    Args:
        target: the energy without restriction; its counters are the ones read, and rows outside are counted there too.
        centres: handed centres with their signs (`bgwork.topology.stereocentres` and `handed_groups`).
    """

    def __init__(self, target: Target, centres: tuple[Stereocentre, ...]) -> None:
        self.inner, self.centres = target, centres

    def __getattr__(self, name: str) -> object:
        if name in ("inner", "centres"):
            raise AttributeError(name)  # while being unpickled, before they exist
        return getattr(self.inner, name)

    def u(self, x: Tensor) -> Tensor:
        """Reduced energy [B], +inf outside the chamber; NaN stays NaN."""
        u = self.inner.u(x)
        return torch.where(self._outside(x) & ~torch.isnan(u), torch.inf, u)

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy [B] and its gradient [B, n, d], NaN where there is none."""
        u, grad = self.inner.u_and_grad(x)
        outside = self._outside(x) & ~torch.isnan(u)
        return torch.where(outside, torch.inf, u), torch.where(outside[:, None, None], torch.nan, grad)

    def _outside(self, x: Tensor) -> Tensor:
        return ~same_chirality(x.detach(), self.centres)
