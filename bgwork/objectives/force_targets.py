"""Velocities to regress on with less noise in them: what forces tell of the configuration behind a noisy one.

x_t = (1-t) x0 + t x1 leaves x1, and with it the velocity (x1 - x_t) / (1-t), as uncertain as the posterior pi(x1 | x_t). Its score has mean
zero along every field of x_t that stays inside its support (Stein's identity), so that

    v' = x1 - x0 + C(x_t) s(x1, x_t) / (1-t),    s = grad_x1 log pi(x1 | x_t)
has the conditional mean of x1 - x0, whatever the matrix C. With C the inverse Hessian of -log pi it is a Newton step from x1 towards the
posterior's mean, and hardly any noise is left where the posterior is close to a Gaussian: near the data. Without pairing, and with
C scalar, this is target score matching (De Bortoli et al. 2024); the rest here is what pairing changes.

Pairs aligned by `couplings.SoftMolecularAlignment` have x_t^T x1 symmetric (taking triples of hydrogens as a whole), which is linear in x1:
the posterior lives in a plane, with
    log pi = -u(x1) - |x0|^2 / (2 s0^2) + log det(tr(S) 1 - S) + log P(turns),    x0 = (x_t - t x1) / (1-t),    S = x0^T x1
where the determinant is that of the change of volume under rotations, and P(turns) the chance of the way in which triples were turned. The
determinant vanishes where another rotation becomes as good, and its logarithm is too steep there for a variance: steps keep to x_t^T d = 0,
along which S changes no more than x1 does, and leave the noise of six directions as it was. Were the best turns taken
(`couplings.MolecularAlignment`), the posterior would end where others become as good, and the mean of s would not vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgwork.couplings import SoftMolecularAlignment
from bgwork.geometry import wrap
from bgwork.internal_coordinates import Tree, spanning_tree
from bgwork.topology import Topology

STIFF = 0.9  # mean resultant length above which a torsion counts as stiff


@dataclass(frozen=True, kw_only=True, eq=False)
class Stiffness:
    """Hessian of a molecule's energy as its data have it: the precision of lengths, angles and stiff torsions, soft ones left out.

        H(x) = J(x)^T Sigma^-1 J(x),    J the derivative of the coordinates, Sigma their covariance
    Args:
        tree: of the coordinates.
        stiff: [3n-6] which of them.
        root: [K, K] with root^T root = Sigma^-1.
    """

    tree: Tree
    stiff: Tensor
    root: Tensor

    @classmethod
    def of(cls, topology: Topology, x: Tensor) -> Stiffness:
        """That of configurations [N, n, 3], of which there must be more than coordinates."""
        tree = spanning_tree(topology)
        lengths, bends, turns = tree.internal(x.double())
        mean = torch.polar(torch.ones_like(turns), turns).mean(0)
        values = torch.cat([lengths, bends, wrap(turns - mean.angle())], 1)
        stiff = torch.cat([torch.ones(lengths.shape[1] + bends.shape[1], dtype=torch.bool), mean.abs() > STIFF])
        if len(x) <= int(stiff.sum()):
            raise ValueError(f"{len(x)} configurations are too few for the covariance of {int(stiff.sum())} coordinates; give more data")
        precision = torch.linalg.inv(torch.cov(values[:, stiff].T))
        return cls(tree=tree, stiff=stiff, root=torch.linalg.cholesky(precision, upper=True))

    def __call__(self, x: Tensor) -> Tensor:
        """H [B, 3n, 3n]."""
        rows = self.root @ self.tree.jacobian(x)[:, self.stiff]
        return rows.mT @ rows


class Pairs(NamedTuple):
    """Aligned pairs at times t [B], and the gradient of the reduced energy at x1; all [B, n, 3] float64."""

    t: Tensor
    x0: Tensor
    x1: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ForceTargets:
    """C s / (1-t) of aligned pairs.

    Args:
        std: of the prior in training.
        hessian: x [B, n, 3] -> [B, 3n, 3n], of the reduced energy, roughly.
        coupling: that aligned them.
        after: time from which on forces are used; before, the noisy configuration is no guide to the Hessian, and the step is zero.
    """

    std: float
    hessian: Callable[[Tensor], Tensor]
    coupling: SoftMolecularAlignment
    after: float

    def __call__(self, pairs: Pairs) -> Tensor:
        """What to add to x1 - x0, [B, n, 3]."""
        late = pairs.t >= self.after
        added = torch.zeros_like(pairs.x1)
        if late.any():
            added[late] = self._steps(Pairs(*(column[late] for column in pairs)))
        return added

    def _steps(self, pairs: Pairs) -> Tensor:
        t = pairs.t[:, None, None]
        x = (1 - t) * pairs.x0 + t * pairs.x1
        precision = self.hessian(x)
        precision = precision + (t / (self.std * (1 - t))).square() * torch.eye(precision.shape[1], dtype=precision.dtype)
        return newton(precision, steadfast(self.coupling.whole(x)), self.score(pairs).flatten(1)).view_as(x) / (1 - t)

    def score(self, pairs: Pairs) -> Tensor:
        """Gradient of log pi(x1 | x_t) by x1, [B, n, 3]."""
        t = pairs.t[:, None, None]
        x = (1 - t) * pairs.x0 + t * pairs.x1
        with torch.enable_grad():
            x1 = pairs.x1.detach().requires_grad_(True)
            x0 = (x - t * x1) / (1 - t)
            paired = log_volume(self.coupling.whole(x0), x1) + self.coupling.log_chance(x0, x1)
            pairing, = torch.autograd.grad(paired.sum(), x1)
        return pairing - pairs.gradient + t * pairs.x0 / (self.std**2 * (1 - t))


def log_volume(x0: Tensor, x1: Tensor) -> Tensor:
    """log det(tr(S) 1 - S) [B], S = x0^T x1, symmetric for aligned pairs: their share of all orientations' volume."""
    return torch.linalg.slogdet(volume_form(x0, x1))[1]


def volume_form(x0: Tensor, x1: Tensor) -> Tensor:
    """tr(S) 1 - S [B, 3, 3], S = x0^T x1 for pairs that make it symmetric; positive where no other rotation of x0 is nearer to x1."""
    s = x0.mT @ x1
    s = (s + s.mT) / 2
    return s.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(3, dtype=s.dtype) - s


def steadfast(x: Tensor) -> Tensor:
    """Normals [B, 12, 3n] of the steps d with x^T d = 0 and no centre of mass."""
    normals = x.new_zeros(len(x), 12, *x.shape[1:])
    for a in range(3):
        normals[:, a, :, a] = 1
        for b in range(3):
            normals[:, 3 + 3 * a + b, :, b] = x[:, :, a]
    return normals.flatten(2)


def newton(precision: Tensor, normals: Tensor, slope: Tensor) -> Tensor:
    """The maximum of slope . y - y^T precision y / 2 over the plane normals y = 0, [B, m].

    Args:
        precision: [B, m, m], positive definite.
        normals: [B, c, m].
        slope: [B, m].
    """
    solved = torch.cholesky_solve(torch.cat([slope[:, :, None], normals.mT], 2), torch.linalg.cholesky(precision))
    free, back = solved[:, :, :1], solved[:, :, 1:]
    return (free - back @ torch.linalg.solve(normals @ back, normals @ free)).squeeze(2)
