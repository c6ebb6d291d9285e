"""A four-atom chain with known torsion populations: bonds and angles do not depend on the torsion, so P(phi) = exp(-V(phi)/kT) / Z."""

from __future__ import annotations

import math

import numpy as np
import openmm
import torch

from bgwork import units
from bgwork.spaces import MeanFree
from bgwork.targets.openmm import OpenMMTarget

KT = units.kT(300.0)
ATOMS = (0, 1, 2, 3)
TERMS = ((1, 0.5, 2.0), (2, 2.6, 8.0))  # periodicity, phase in rad, strength in kJ/mol: two unequal wells, barriers near 6 kT


def chain_target(kT: float = KT) -> OpenMMTarget:
    """The chain as a target at 300 K, in nm."""
    system = openmm.System()
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for _ in ATOMS:
        system.addParticle(12.0)
    for k in range(3):
        bond.addBond(k, k + 1, 0.15, 100_000.0)
    for k in range(2):
        angle.addAngle(k, k + 1, k + 2, 1.95, 400.0)
    for periodicity, phase, strength in TERMS:
        torsion.addTorsion(*ATOMS, periodicity, phase, strength)
    for force in (bond, angle, torsion):
        system.addForce(force)
    return OpenMMTarget(system, space=MeanFree(n=4, d=3), kT=kT, name="chain")


def chain_start() -> torch.Tensor:
    """[4, 3] a trans chain near its bond lengths and angles."""
    c, s = 0.15 * math.cos(1.95 - math.pi / 2), 0.15 * math.sin(1.95 - math.pi / 2)
    x = torch.tensor([[0, 0, 0], [s, c, 0], [0.15 + s, c, 0], [0.15 + 2 * s, 0, 0]], dtype=torch.float64)
    x[3, 2] += 0.05
    return x - x.mean(0)


def population(low: float, high: float, kT: float = KT) -> float:
    """P(low < phi <= high) by quadrature."""
    phi = np.linspace(-np.pi, np.pi, 20_001)[:-1]
    mass = np.exp(-sum(k * (1 + np.cos(n * phi - phase)) for n, phase, k in TERMS) / kT)
    return float(mass[(phi > low) & (phi <= high)].sum() / mass.sum())
