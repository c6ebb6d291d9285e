"""Pair terms without cutoff: Lennard-Jones and Coulomb with exceptions, and the OBC model of implicit water; nm in, kJ/mol out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import openmm
import torch
from torch import Tensor

from bgwork.geometry import distances
from bgwork.targets.bonded import Term, plain, table_of

COULOMB = 138.93545764438198  # N_A e^2 / (4 pi eps_0) in kJ nm / mol, as OpenMM has it
OFFSET = 0.009  # nm, taken off every radius in the Born integral (Onufriev, Bashford & Case 2004)
PROBE = 0.14  # nm, radius of a water molecule
ALPHA, BETA, GAMMA = 1.0, 0.8, 4.85  # OBC II


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """sum_{i<j} 4 epsilon s6 (s6 - 1) + charge / r, s6 = (sigma / r)^6.

    Args:
        atoms: [T, 2] the pairs that interact.
        charge: [T] q_i q_j COULOMB in kJ nm / mol.
        sigma: [T] in nm.
        epsilon: [T] in kJ/mol.
    """

    atoms: Tensor
    charge: Tensor
    sigma: Tensor
    epsilon: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        r = distances(x, self.atoms)
        s2 = (self.sigma / r).square()
        s6 = s2 * s2 * s2
        return (4 * self.epsilon * (s6 * (s6 - 1)) + self.charge / r).sum(1)


@dataclass(frozen=True, kw_only=True)
class BornOBC:
    """Generalised Born energy with OBC II radii and a surface term.

        U = -1/2 screening sum_ij q_i q_j / f_ij + 4 pi surface sum_i (rho_i + .14)^2 (rho_i / R_i)^6,
        f^2 = r^2 + R_i R_j exp(-r^2 / 4 R_i R_j),  1/R_i = 1/(rho_i - .009) - tanh(psi - .8 psi^2 + 4.85 psi^3) / rho_i

    psi_i = I_i (rho_i - .009), I_i the descreening integral over the other atoms. Source: Onufriev, Bashford & Case 2004 (OBC II);
    Hawkins, Cramer & Truhlar 1995 for I; Schaefer, Bartels & Karplus 1998 for the surface.

    Args:
        charge: [n] in elementary charges.
        radius: [n] rho in nm.
        scale: [n] of the descreening spheres.
        screening: COULOMB (1/eps_solute - 1/eps_solvent), kJ nm / mol.
        surface: kJ / (mol nm^2).
    """

    charge: Tensor
    radius: Tensor
    scale: Tensor
    screening: float
    surface: float

    def __call__(self, x: Tensor) -> Tensor:
        square = (x[:, :, None] - x[:, None]).square().sum(-1)
        born = self._born_radii(square)
        product = born[:, :, None] * born[:, None]
        f = (square + product * torch.exp(-square / (4 * product))).sqrt()
        polar = -0.5 * self.screening * (self.charge[:, None] * self.charge / f).sum((1, 2))
        return polar + 4 * math.pi * self.surface * ((self.radius + PROBE).square() * (self.radius / born) ** 6).sum(1)

    def _born_radii(self, square: Tensor) -> Tensor:
        """R [B, n]."""
        own = self.radius - OFFSET
        psi = own * self._descreening(square)
        return 1 / (1 / own - torch.tanh(ALPHA * psi - BETA * psi**2 + GAMMA * psi**3) / self.radius)

    def _descreening(self, square: Tensor) -> Tensor:
        """I [B, n]: integral of |r - x_i|^-4 / 4 pi over the spheres of the others, beyond an atom's own radius."""
        itself = torch.eye(len(self.radius), dtype=torch.bool, device=square.device)
        r = torch.where(itself, 1.0, square).sqrt()  # anything but zero, whose root has no slope
        own, sphere = (self.radius - OFFSET)[:, None], self.scale * (self.radius - OFFSET)
        near, far = torch.maximum(own.expand_as(r), (r - sphere).abs()), r + sphere
        shell = 1 / near - 1 / far + 0.25 * (r - sphere**2 / r) * (1 / far**2 - 1 / near**2) + torch.log(near / far) / (2 * r)
        buried = torch.where(own < sphere - r, 2 * (1 / own - 1 / near), 0.0)  # the atom lies wholly inside the other's sphere
        return 0.5 * torch.where((own < far) & ~itself, shell + buried, 0.0).sum(2)


def pairs(force: openmm.NonbondedForce) -> Term:
    """Read a NonbondedForce: Lorentz-Berthelot rules, overridden by its exceptions; pairs without interaction are left out.

    Raises:
        ValueError: if it has a cutoff, or parameters that depend on the Context.
    """
    if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
        raise ValueError("the NonbondedForce has a cutoff; create the System with nonbondedMethod=NoCutoff")
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise ValueError("the NonbondedForce has parameter offsets, which depend on the Context; set the parameters themselves")
    atom = table_of((force.getParticleParameters(k) for k in range(force.getNumParticles())), columns=3)
    i, j = torch.triu_indices(len(atom), len(atom), offset=1)
    (q_i, s_i, e_i), (q_j, s_j, e_j) = atom[i].unbind(1), atom[j].unbind(1)
    values = torch.stack([q_i * q_j, (s_i + s_j) / 2, (e_i * e_j).sqrt()], 1)
    row_of = {pair: row for row, pair in enumerate(zip(i.tolist(), j.tolist()))}
    for k in range(force.getNumExceptions()):
        a, b, *changed = force.getExceptionParameters(k)
        values[row_of[min(a, b), max(a, b)]] = torch.tensor([plain(v) for v in changed], dtype=torch.float64)
    active = (values[:, 0] != 0) | (values[:, 2] != 0)
    charge, sigma, epsilon = values[active].unbind(1)
    return Pairs(atoms=torch.stack([i, j], 1)[active], charge=COULOMB * charge, sigma=sigma, epsilon=epsilon)


def born_obc(force: openmm.GBSAOBCForce) -> Term:
    """Read a GBSAOBCForce.

    Raises:
        ValueError: if it has a cutoff.
    """
    if force.getNonbondedMethod() != openmm.GBSAOBCForce.NoCutoff:
        raise ValueError("the GBSAOBCForce has a cutoff; create the System with nonbondedMethod=NoCutoff")
    charge, radius, scale = table_of((force.getParticleParameters(k) for k in range(force.getNumParticles())), columns=3).unbind(1)
    screening = COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric())
    return BornOBC(charge=charge, radius=radius, scale=scale, screening=screening, surface=plain(force.getSurfaceAreaEnergy()))
