"""Velocities to regress on with less noise in them: what forces tell of the configuration behind a noisy one.

x_t = (1-t) x0 + t x1 leaves x1, and with it the velocity (x1 - x_t) / (1-t), as uncertain as the posterior pi(x1 | x_t). Its score has mean
zero along every field of x_t that stays inside its support (Stein's identity), so that

    v' = x1 - x0 + C(x_t) s(x1, x_t) / (1-t),    s = grad_x1 log pi(x1 | x_t)
has the conditional mean of x1 - x0, whatever the matrix C; and with a C that depends on x1 so has

    v' = x1 - x0 + (C s + div C) / (1-t),    (div C)_i = sum_j dC_ij/dx1_j
With C the inverse Hessian of -log pi it is a Newton step from x1 towards the posterior's mean, and hardly any noise is left where the
posterior is close to a Gaussian: near the data. The Hessian is that at x1, where bonds point as they do; at x_t they point elsewhere, and
forces along them would move soft directions. Without pairing, and with C scalar, this is target score matching (De Bortoli et al. 2024);
the rest here is what pairing changes.

Pairs aligned by `couplings.SoftMolecularAlignment` have x_t^T x1 symmetric (taking triples of hydrogens as a whole), which is linear in x1:
the posterior lives in a plane, with
    log pi = -u(x1) - |x0|^2 / (2 s0^2) + log det(tr(S) 1 - S) + log P(turns),    x0 = (x_t - t x1) / (1-t),    S = x0^T x1
where the determinant is that of the change of volume under rotations, and P(turns) the chance of the way in which triples were turned. The
determinant vanishes where another rotation becomes as good, and its logarithm is too steep there for a variance: steps keep to x_t^T d = 0,
along which S changes no more than x1 does, and leave the noise of six directions as it was. Were the best turns taken
(`couplings.MolecularAlignment`), the posterior would end where others become as good, and the mean of s would not vanish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgwork.couplings import SoftMolecularAlignment, random_turns, volume_form
from bgwork.objectives.stiffness import Stiffness
from bgwork.priors import Gaussian

PAIRS = 200  # that the damping is found from
WIDTHS = (0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0)  # of soft directions, in units of the prior's std, that are tried

class Pairs(NamedTuple):
    """Aligned pairs at times t [B], and the gradient of the reduced energy at x1; all [B, n, 3] float64."""

    t: Tensor
    x0: Tensor
    x1: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ForceTargets:
    """(C s + div C) / (1-t) of aligned pairs, C^-1 = H(x1) + (t / (s0 (1-t)))^2 + damping.

    Args:
        prior: of training, of standard deviation s0.
        stiffness: Hessian H of the reduced energy, roughly.
        coupling: that aligned the pairs.
        after: time from which on forces are used; before, the posterior is no Gaussian, and the step is zero.
        damping: precision of directions that H leaves soft, in inverse squares of the length unit; any is right, few take out much noise.
    """

    prior: Gaussian
    stiffness: Stiffness
    coupling: SoftMolecularAlignment
    after: float
    damping: float

    @classmethod
    def of(cls, data: Tensor, gradient: Tensor, *, prior: Gaussian, stiffness: Stiffness, coupling: SoftMolecularAlignment,
           after: float) -> ForceTargets:
        """With the damping that leaves the least noise in the velocities of some pairs with data [N, n, 3] soon after the first time.

        Their squares are compared: targets with the same conditional mean differ in them by their noise.
        """
        generator = torch.Generator().manual_seed(0)
        t = after + (1 - after) * torch.linspace(0.02, 0.6, PAIRS, dtype=torch.float64)
        rows, turn = torch.randint(len(data), (PAIRS,), generator=generator), random_turns(PAIRS, 3, generator=generator)
        x0, x1 = coupling(prior.sample(PAIRS, generator=generator), data[rows].double() @ turn, generator=generator)
        pairs = Pairs(t=t, x0=x0, x1=x1, gradient=gradient[rows] @ turn)
        tried = [cls(prior=prior, stiffness=stiffness, coupling=coupling, after=after, damping=(width * prior.std) ** -2)
                 for width in WIDTHS]
        return min(tried, key=lambda targets: (x1 - x0 + targets(pairs)).square().sum().item())

    def __call__(self, pairs: Pairs) -> Tensor:
        """What to add to x1 - x0, [B, n, 3]."""
        late = pairs.t >= self.after
        added = torch.zeros_like(pairs.x1)
        if late.any():
            added[late] = self._steps(Pairs(*(column[late] for column in pairs)))
        return added

    def _steps(self, pairs: Pairs) -> Tensor:
        t, x1 = pairs.t[:, None, None], pairs.x1
        known = (t / (self.prior.std * (1 - t))).square() + self.damping
        precision = self.stiffness(x1) + known * torch.eye(x1[0].numel(), dtype=x1.dtype)
        inverse = inverse_within(precision, steadfast(self.coupling.whole((1 - t) * pairs.x0 + t * x1)))
        newton = (inverse @ self.score(pairs).flatten(1)[:, :, None]).squeeze(2)
        return (newton + self.stiffness.divergence(x1, inverse)).view_as(x1) / (1 - t)

    def score(self, pairs: Pairs) -> Tensor:
        """Gradient of log pi(x1 | x_t) by x1, [B, n, 3]."""
        t = pairs.t[:, None, None]
        x = (1 - t) * pairs.x0 + t * pairs.x1
        with torch.enable_grad():
            x1 = pairs.x1.detach().requires_grad_(True)
            x0 = (x - t * x1) / (1 - t)
            paired = log_volume(self.coupling.whole(x0), x1) + self.coupling.log_chance(x0, x1)
            pairing, = torch.autograd.grad(paired.sum(), x1)
        return pairing - pairs.gradient + t * pairs.x0 / (self.prior.std**2 * (1 - t))


def log_volume(x0: Tensor, x1: Tensor) -> Tensor:
    """log det(tr(S) 1 - S) [B], S = x0^T x1, symmetric for aligned pairs: their share of all orientations' volume."""
    return torch.linalg.slogdet(volume_form(x0, x1))[1]


def steadfast(x: Tensor) -> Tensor:
    """Normals [B, 12, 3n] of the steps d with x^T d = 0 and no centre of mass."""
    normals = x.new_zeros(len(x), 12, *x.shape[1:])
    for a in range(3):
        normals[:, a, :, a] = 1
        for b in range(3):
            normals[:, 3 + 3 * a + b, :, b] = x[:, :, a]
    return normals.flatten(2)


def inverse_within(precision: Tensor, normals: Tensor) -> Tensor:
    """C [B, m, m] such that C g is the maximum of g . y - y^T precision y / 2 over the plane normals y = 0.

    Args:
        precision: [B, m, m], positive definite.
        normals: [B, c, m].
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    back = inverse @ normals.mT
    return inverse - back @ torch.linalg.solve(normals @ back, back.mT)
