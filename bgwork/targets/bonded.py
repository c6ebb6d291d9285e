"""Bonded terms of a molecular-mechanics energy, as OpenMM defines them; each maps positions [B, n, 3] in nm to kJ/mol, [B] float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import openmm
import torch
from openmm import unit
from torch import Tensor

from bgwork.geometry import angles, distances, torsions

Term = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class HarmonicBonds:
    """sum k/2 (r - r0)^2.

    Args:
        atoms: [T, 2].
        rest: [T] r0 in nm.
        stiffness: [T] k in kJ/(mol nm^2).
    """

    atoms: Tensor
    rest: Tensor
    stiffness: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (0.5 * self.stiffness * (distances(x, self.atoms) - self.rest).square()).sum(1)


@dataclass(frozen=True, kw_only=True)
class HarmonicAngles:
    """sum k/2 (theta - theta0)^2.

    Args:
        atoms: [T, 3].
        rest: [T] theta0 in rad.
        stiffness: [T] k in kJ/(mol rad^2).
    """

    atoms: Tensor
    rest: Tensor
    stiffness: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (0.5 * self.stiffness * (angles(x, self.atoms) - self.rest).square()).sum(1)


@dataclass(frozen=True, kw_only=True)
class PeriodicTorsions:
    """sum k (1 + cos(m phi - phase)).

    Args:
        atoms: [T, 4].
        periodicity: [T] m.
        phase: [T] in rad.
        height: [T] k in kJ/mol.
    """

    atoms: Tensor
    periodicity: Tensor
    phase: Tensor
    height: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (self.height * (1 + torch.cos(self.periodicity * torsions(x, self.atoms) - self.phase))).sum(1)


def harmonic_bonds(force: openmm.HarmonicBondForce) -> Term:
    """Read a HarmonicBondForce."""
    table = table_of((force.getBondParameters(k) for k in range(force.getNumBonds())), columns=4)
    return HarmonicBonds(atoms=table[:, :2].long(), rest=table[:, 2], stiffness=table[:, 3])


def harmonic_angles(force: openmm.HarmonicAngleForce) -> Term:
    """Read a HarmonicAngleForce."""
    table = table_of((force.getAngleParameters(k) for k in range(force.getNumAngles())), columns=5)
    return HarmonicAngles(atoms=table[:, :3].long(), rest=table[:, 3], stiffness=table[:, 4])


def periodic_torsions(force: openmm.PeriodicTorsionForce) -> Term:
    """Read a PeriodicTorsionForce."""
    table = table_of((force.getTorsionParameters(k) for k in range(force.getNumTorsions())), columns=7)
    return PeriodicTorsions(atoms=table[:, :4].long(), periodicity=table[:, 4], phase=table[:, 5], height=table[:, 6])


def table_of(rows: Iterable[Iterable[object]], *, columns: int) -> Tensor:
    """OpenMM's parameters, with or without units, as numbers in nm, kJ/mol, rad and elementary charges, [T, columns] float64."""
    return torch.tensor([[plain(value) for value in row] for row in rows], dtype=torch.float64).reshape(-1, columns)


def plain(value: object) -> float:
    """A number in OpenMM's own units."""
    return float(value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value)
