"""A map between the equilibria of two energies of one molecule, with its determinant in closed form.

Two energies of one molecule agree about its torsions better than about the lengths and widths of its bonds and angles, and it is those
that leave so little overlap in some sixty dimensions. With y the stiff coordinates (ln r, ln tan(theta/2), 2 tan(delta/2) of torsions that
hardly move, delta from their mean) and tau the soft torsions, the map is

    tau'_j = tau_j + g_j(tau_j; tau'_1 ... tau'_j-1),    |dg_j/dtau_j| < 1
    y' = s [m'(tau') + A (y - m(tau)) / s]
    ln|det| = sum_j ln(1 + dg_j/dtau_j) + ln|det A| + ln vol(x') - ln vol(x)

with m and m' trigonometric polynomials, s the widths of y, A a matrix, and vol the volume element in these coordinates. They fill
the real line, so that every y' is a molecule: the map is one-to-one, whatever its coefficients, as long as det A is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bgwork.geometry import wrap
from bgwork.internal_coordinates import Internal, Tree, spanning_tree
from bgwork.protocols import Target
from bgwork.topology import Topology

HARMONICS = 3  # of soft torsions: methyl groups have three minima
STEEPEST = 0.95  # |dg/dtau| stays below
HALVINGS = 54  # of an interval of length 2, down to round-off


class InternalMap(nn.Module):
    """The map T and its inverse, float64; the identity until `fit`.

    Args:
        topology: of one molecule of at least four atoms.
    Raises:
        ValueError: as `spanning_tree`.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.tree: Tree = spanning_tree(topology)
        self.stiff = [k for k, atoms in enumerate(self.tree.placed) if not _turns(topology, atoms)]
        self.soft = [k for k in range(len(self.tree.placed)) if k not in self.stiff]
        terms, width = 1 + 2 * HARMONICS * len(self.soft), 2 * len(topology) - 3 + len(self.stiff)
        self.centre = _fixed(len(self.stiff))
        self.scale = _fixed(width, value=1.0)
        self.mean = _fixed(terms, width)
        self.new_mean = nn.Parameter(torch.zeros(terms, width, dtype=torch.float64))
        self.linear = nn.Parameter(torch.eye(width, dtype=torch.float64))
        self.turn = nn.ParameterList(nn.Parameter(torch.zeros(1 + 2 * HARMONICS * j, 2 * HARMONICS, dtype=torch.float64))
                                     for j in range(len(self.soft)))

    @torch.no_grad()
    def fit(self, start: Tensor, end: Tensor) -> None:
        """Means given the soft torsions and covariances of one set of configurations become those of the other; soft torsions stay.

        A is the symmetric one, which moves configurations least: of all maps between two Gaussians, optimal transport.

        Args:
            start, end: [N, n, 3] and [M, n, 3].
        Raises:
            ValueError: if one has too few configurations to determine its moments.
        """
        fewest = 2 * max(self.mean.shape)
        if min(len(start), len(end)) < fewest:
            raise ValueError(f"{len(start)} and {len(end)} configurations do not determine the moments of {self.mean.shape[1]} stiff "
                             f"coordinates; give at least {fewest} of each")
        turns = self.tree.internal(torch.cat([start, end]).double()).torsions[:, self.stiff]
        self.centre.copy_(torch.atan2(turns.sin().mean(0), turns.cos().mean(0)))
        residuals = []
        for x, mean in ((start, self.mean), (end, self.new_mean)):
            y, tau, _ = self._coordinates(x.double())
            features = _waves(tau)
            mean.copy_(torch.linalg.lstsq(features, y, driver="gelsd").solution)
            residuals.append(y - features @ mean)
        self.scale.copy_(residuals[0].std(0))
        self.new_mean.div_(self.scale)
        self.linear.copy_(_between(*(torch.cov((rest / self.scale).T) for rest in residuals)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) [B, n, 3] and ln|det DT| [B], differentiable in x and the coefficients."""
        y, tau, volume = self._coordinates(x)
        standard = (y - _waves(tau) @ self.mean) / self.scale
        new, log_det = [], torch.linalg.slogdet(self.linear).logabsdet
        for j, turn in enumerate(self.turn):
            moved, slope = _moved(tau[:, j], _waves(torch.stack(new, 1) if new else tau[:, :0]) @ turn)
            new.append(moved)
            log_det = log_det + slope.log()
        tau = torch.stack(new, 1)
        image, new_volume = self._configurations(self.scale * (_waves(tau) @ self.new_mean + standard @ self.linear.T), tau, x)
        return image, log_det + new_volume - volume

    def inverse(self, image: Tensor) -> Tensor:
        """T^-1 [B, n, 3], differentiable as `forward` is."""
        y, tau, _ = self._coordinates(image)
        standard = torch.linalg.solve(self.linear, (y / self.scale - _waves(tau) @ self.new_mean).T).T
        old = torch.stack([_unmoved(tau[:, j], _waves(tau[:, :j]) @ turn) for j, turn in enumerate(self.turn)], 1)
        return self._configurations(_waves(old) @ self.mean + self.scale * standard, old, image)[0]

    def _coordinates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stiff coordinates [B, D], soft torsions [B, S], and the logarithm of the volume element dx / dy dtau, [B]."""
        found = self.tree.internal(x)
        tangents = 2 * (wrap(found.torsions[:, self.stiff] - self.centre) / 2).tan()
        y = torch.cat([found.lengths.log(), (found.angles / 2).tan().log(), tangents], 1)
        return y, found.torsions[:, self.soft], _volume(found, tangents)

    def _configurations(self, y: Tensor, tau: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Configurations with these coordinates, in the place and orientation of others, and their volume element's logarithm."""
        bonds, bends = like.shape[1] - 1, like.shape[1] - 2
        lengths, half, tangents = y.split([bonds, bends, len(self.stiff)], 1)
        torsions = tau.new_empty(len(tau), len(self.tree.placed))
        torsions = torsions.index_copy(1, torch.tensor(self.stiff), self.centre + 2 * (tangents / 2).atan())
        torsions = torsions.index_copy(1, torch.tensor(self.soft), tau)
        found = Internal(lengths.exp(), 2 * half.exp().atan(), torsions)
        return self.tree.cartesian(found, like), _volume(found, tangents)


def gradient_before(last: InternalMap, x: Tensor, target: Target) -> Tensor:
    """Gradient [B, n, 3] of u(T(x)) - ln|det DT(x)|: the reduced energy of what becomes an equilibrium of u once mapped.

    Args:
        last: T.
        x: [B, n, 3] float64.
        target: u.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        image, log_det = last(leaf)
        gradient = target.u_and_grad(image.detach())[1]
        return torch.autograd.grad((gradient * image).sum() - log_det.sum(), leaf)[0]


def _turns(topology: Topology, atoms: tuple[int, int, int, int]) -> bool:
    """Whether a torsion is one that turns freely: about a bond, not relative to a sibling, and not between two planar atoms (an amide)."""
    _, b, c, d = atoms
    return d in topology.neighbours[c] and not len(topology.neighbours[b]) == len(topology.neighbours[c]) == 3


def _fixed(*shape: int, value: float = 0.0) -> nn.Parameter:
    """A coefficient that is fitted but not trained; it is saved with the others."""
    return nn.Parameter(torch.full(shape, value, dtype=torch.float64), requires_grad=False)


def _volume(found: Internal, tangents: Tensor) -> Tensor:
    """ln |dx / dy dtau|: with dr = r d ln r, dtheta = sin(theta) d ln tan(theta/2) and ddelta = dy / (1 + y^2/4)."""
    return found.log_volume + found.lengths.log().sum(1) + found.angles.sin().log().sum(1) - (tangents / 2).square().log1p().sum(1)


def _waves(tau: Tensor) -> Tensor:
    """1, cosines and sines of each torsion and its multiples, [B, 1 + 2 HARMONICS S]."""
    multiples = (tau[:, :, None] * torch.arange(1, HARMONICS + 1, dtype=tau.dtype)).flatten(1)
    return torch.cat([tau.new_ones(len(tau), 1), multiples.cos(), multiples.sin()], 1)


def _moved(angle: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """tau + g(tau) and its slope 1 + dg/dtau, [B] each: sines and cosines whose slopes together stay below STEEPEST.

    Args:
        angle: [B].
        coefficients: [B, 2 HARMONICS], without bounds.
    """
    k = torch.arange(1, HARMONICS + 1, dtype=angle.dtype)
    a, b = (STEEPEST * coefficients / (1 + coefficients.abs().sum(1, keepdim=True))).chunk(2, 1)
    cosine, sine = (k * angle[:, None]).cos(), (k * angle[:, None]).sin()
    return angle + ((a * sine + b * cosine) / k).sum(1), 1 + (a * cosine - b * sine).sum(1)


def _unmoved(image: Tensor, coefficients: Tensor) -> Tensor:
    """The angle that `_moved` takes there, by halving an interval, as |g| < 1; a last step of Newton's has the right derivatives."""
    with torch.no_grad():
        low, high = image - 1, image + 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = _moved(middle, coefficients)[0] < image
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    moved, slope = _moved((low + high) / 2, coefficients)
    return (low + high) / 2 + (image - moved) / slope


def _between(start: Tensor, end: Tensor) -> Tensor:
    """The symmetric positive A with A start A = end."""
    root, inverse = _power(start, 0.5), _power(start, -0.5)
    return inverse @ _power(root @ end @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=values[-1] * 1e-12) ** exponent) @ vectors.T
