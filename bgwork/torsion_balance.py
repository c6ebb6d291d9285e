"""Whether configurations are an equilibrium set of an energy: torques about bonds have known averages.

Turning all atoms on one side of a bond by g(theta), theta the bond's torsion, is a vector field of divergence g'(theta), hence

    <g(theta) tau> = <g'(theta)>,    tau = d u / d theta at fixed bonds, angles and other torsions,

in every basin by itself. With g = 1, sin k theta, cos k theta, this sees each term of a force field's Fourier series of torsions, which
differ between force fields whose bonds and angles are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.bond_balance import looked_at, standard_scores
from bgwork.geometry import torsions
from bgwork.targets.torsion_angles import RotatableBond, rotatable_bonds
from bgwork.topology import Topology

LIMIT = 5.0  # of the largest |z|; of the thirteen functions of some ten bonds many say the same
HARMONICS = 6  # the highest of the protein force fields that come with OpenMM


@dataclass(frozen=True, kw_only=True)
class TorsionBalance:
    """By how many standard errors torques about bonds differ from what thermal motion would balance.

    Attributes:
        z: [b, 2 HARMONICS + 1] by bond that can be turned about, and function of its torsion.
        bonds: names of the two atoms of each.
    """

    z: Tensor
    bonds: tuple[tuple[str, str], ...]

    @property
    def value(self) -> float:
        """Largest |z|; 0 if nothing can be turned."""
        return float(self.z.abs().max()) if self.bonds else 0.0

    @property
    def passed(self) -> bool:
        return self.value < LIMIT

    @property
    def largest(self) -> str:
        if not self.bonds:
            return "nothing can be turned"
        return f"{self.value:.1f}, about {' and '.join(self.bonds[int(self.z.abs().amax(1).argmax())])}"

    def __str__(self) -> str:
        return f"torques about bonds are off balance by up to {self.largest}, in standard errors; below {LIMIT:g} pass"


def torsion_balance(topology: Topology, x: Tensor, gradient: Tensor) -> TorsionBalance:
    """Means of g(theta) tau - g'(theta), in standard errors that know of the correlation between successive rows.

    Args:
        topology: with bonds.
        x: [N, n, 3], not weighted; in order of time, if they are of a trajectory.
        gradient: of the reduced energy there, [N, n, 3].

    Source: integration by parts, as in the configurational temperature (Rugh 1997; Butler et al. 1998), torsion by torsion.
    """
    x, gradient, bonds = looked_at(x), looked_at(gradient), rotatable_bonds(topology)
    found = [standard_scores(excess(x, gradient, bond)) for bond in bonds]
    return TorsionBalance(z=torch.stack(found) if found else torch.zeros(0, 2 * HARMONICS + 1),
                          bonds=tuple((topology.labels[bond.atoms[1]], topology.labels[bond.atoms[2]]) for bond in bonds))


def excess(x: Tensor, gradient: Tensor, bond: RotatableBond) -> Tensor:
    """g(theta) tau - g'(theta) for g = 1, sin theta, cos theta, sin 2 theta, ..., [N, 2 HARMONICS + 1], which averages to nought.

    Args:
        x: [N, n, 3].
        gradient: of the reduced energy there, [N, n, 3].
        bond: to turn about.
    """
    turn = torque(x, gradient, bond)[:, None]
    order = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    angle = torsions(x, torch.tensor([bond.atoms])) * order
    sines, cosines = angle.sin() * turn - order * angle.cos(), angle.cos() * turn + order * angle.sin()
    return torch.cat([turn, torch.stack([sines, cosines], 2).flatten(1)], 1)


def torque(x: Tensor, gradient: Tensor, bond: RotatableBond) -> Tensor:
    """Derivative of u when the moved side of a bond turns so that its torsion grows, e . sum_m (x_m - x_k) x grad_m u, [N]."""
    _, j, k, _ = bond.atoms
    moved = list(bond.moved)
    axis = torch.nn.functional.normalize(x[:, k] - x[:, j], dim=1)
    turning = torch.linalg.cross(x[:, moved] - x[:, k, None], gradient[:, moved]).sum(1)
    return (axis * turning).sum(1)
