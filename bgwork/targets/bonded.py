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
class Harmonic:
    """sum k/2 (q - q0)^2, for bonds (q a length in nm) or angles (in rad).

    Args:
        coordinate: (x, atoms) -> q [B, T].
        atoms: [T, 2] or [T, 3].
        rest: [T] q0.
        stiffness: [T] k in kJ/mol per squared unit of q.
    """

    coordinate: Callable[[Tensor, Tensor], Tensor]
    atoms: Tensor
    rest: Tensor
    stiffness: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (0.5 * self.stiffness * (self.coordinate(x, self.atoms) - self.rest).square()).sum(1)


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
    return Harmonic(coordinate=distances, atoms=table[:, :2].long(), rest=table[:, 2], stiffness=table[:, 3])


def harmonic_angles(force: openmm.HarmonicAngleForce) -> Term:
    """Read a HarmonicAngleForce."""
    table = table_of((force.getAngleParameters(k) for k in range(force.getNumAngles())), columns=5)
    return Harmonic(coordinate=angles, atoms=table[:, :3].long(), rest=table[:, 3], stiffness=table[:, 4])


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
