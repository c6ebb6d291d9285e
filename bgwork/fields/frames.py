"""The frame of a molecule: it turned as near as can be onto a template, and how that turn follows it.

R maximises tr(R^T H), H = x^T Y, over rotations (Kabsch 1976); y = x R is x as seen from its frame. S = R^T H is then symmetric. With the
antisymmetric tensor e_abc and K = tr(S) I - S, and seen from the frame,
    dR = Omega,    Omega_ab = -sum_c e_abc w_c,    w = -K^-1 gen(Y)^T dy,    gen(y)_iac = -sum_b e_bac y_ib
K is singular where two turns are equally near. What is done in the frame must fade there to be smooth:
    fade = 1 / (1 + near^2 tr K^-2),    d fade = 2 near^2 fade^2 tr(Q dH),    Q = tr(K^-3) I - K^-3,    near = |Y| length / 10
Here derivatives are in closed form; autograd has them through the singular values of H, where those differ.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bgwork.couplings import turn_between, volume_form


def _antisymmetric() -> Tensor:
    e = torch.zeros(3, 3, 3, dtype=torch.float64)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        e[a, b, c], e[b, a, c] = 1.0, -1.0
    return e


class Turned(NamedTuple):
    """Configurations as seen from their frame, all float64.

    Attributes:
        y: mean-free, turned [B, n, 3].
        turn: R [B, 3, 3], y = x R.
        fade: from 1 to 0 where the turn is ambiguous, [B, 1, 1].
        inverse: K^-1 [B, 3, 3].
    """

    y: Tensor
    turn: Tensor
    fade: Tensor
    inverse: Tensor


class Frame(nn.Module):
    """Turns configurations of three-dimensional molecules onto a template, which is saved with the weights, but not trained.

    Args:
        template: Y [n, 3], in the system's length unit.
        length: standard deviation of the configurations whose turn is least certain, those of the prior. K is then of the order of
            |Y| length, and a tenth of it counts as ambiguous.
    """

    def __init__(self, template: Tensor, *, length: float) -> None:
        super().__init__()
        self.template = nn.Parameter((template - template.mean(0)).float(), requires_grad=False)
        self.length = length
        self.register_buffer("antisymmetric", _antisymmetric(), persistent=False)

    @torch.no_grad()
    def measure(self, x: Tensor, *, sweeps: int = 10) -> None:
        """Take as template the mean of configurations [B, n, 3], each turned onto it."""
        self.template.copy_(x[0] - x[0].mean(0))
        for _ in range(sweeps):
            self.template.copy_(self(x.double()).y.mean(0))

    @property
    def Y(self) -> Tensor:
        """The template, mean-free [n, 3] float64."""
        return self.template.double() - self.template.double().mean(0)

    @property
    def near(self) -> Tensor:
        """Below which the smallest eigenvalue of K is small."""
        return self.Y.norm() * self.length / 10

    def forward(self, x: Tensor) -> Turned:
        x = x.double() - x.double().mean(1, keepdim=True)
        turn = turn_between(x, self.Y.expand_as(x))
        y = x @ turn
        inverse = torch.linalg.inv_ex(volume_form(y, self.Y)).inverse
        fade = 1 / (1 + self.near**2 * inverse.square().sum((1, 2), keepdim=True))
        return Turned(y, turn, fade, inverse)

    def following(self, turned: Turned) -> Tensor:
        """w as a linear function of dy, [B, 3, 3 n]."""
        return -turned.inverse @ self.generators(self.Y[None]).mT

    def fading(self, turned: Turned) -> Tensor:
        """d fade / dy [B, n, 3]."""
        cube = turned.inverse @ turned.inverse @ turned.inverse
        eye = torch.eye(3, dtype=cube.dtype, device=cube.device)
        Q = cube.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None] * eye - cube
        return 2 * self.near**2 * turned.fade**2 * (self.Y @ Q)

    def generators(self, y: Tensor) -> Tensor:
        """gen(y) [B, 3 n, 3]: how rows y [B, n, 3] move as they are turned, y Omega = gen(y) w."""
        return -torch.einsum("bac,Bib->Biac", self.antisymmetric.to(y), y).flatten(1, 2)
