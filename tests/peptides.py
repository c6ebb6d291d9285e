"""Small peptides from nothing but geometry, with OpenMM's own force fields: ACE-(ALA)k-NME, of which k = 1 is alanine dipeptide."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

FF14SB = "amber14/protein.ff14SB.xml"
OFFSET = 0.009  # nm, between a radius and the one that the Born integral uses
VIRTUAL = np.array([-0.5, 1.4, 0.0])  # Angstrom; stands in for the atom before the first


@dataclass(frozen=True, kw_only=True)
class Peptide:
    """A System without constraints, its topology, and a minimised structure.

    Attributes:
        x: [n, 3] float64 in nm, mean-free.
    """

    system: openmm.System
    topology: app.Topology
    x: Tensor

    def perturbed(self, count: int, *, std: float = 0.005, seed: int = 0) -> Tensor:
        """Structures with Gaussian noise of `std` nm on every coordinate, [count, n, 3] float64, mean-free."""
        x = self.x + std * torch.randn(count, *self.x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x - x.mean(1, keepdim=True)


def place(a: np.ndarray, b: np.ndarray, c: np.ndarray, *, r: float, angle: float, torsion: float) -> np.ndarray:
    """The atom at distance r from c, at an angle to c-b and a torsion a-b-c-atom, both in degrees (IUPAC sign)."""
    angle, torsion = math.radians(angle), math.radians(torsion)
    along = (c - b) / np.linalg.norm(c - b)
    up = (a - b) - np.dot(a - b, along) * along
    up /= np.linalg.norm(up)
    across = np.cross(along, up)
    return c + r * (-math.cos(angle) * along + math.sin(angle) * (math.cos(torsion) * up + math.sin(torsion) * across))


def heavy_atoms(alanines: int, *, phi: float, psi: float) -> list[tuple[str, str, np.ndarray]]:
    """(atom, residue, position in Angstrom) of an L-peptide without its hydrogens."""
    n, ca, c = VIRTUAL, np.zeros(3), np.array([1.52, 0, 0])
    atoms = [("CH3", "ACE", ca), ("C", "ACE", c), ("O", "ACE", place(n, ca, c, r=1.23, angle=120.5, torsion=0.0))]
    turn = 180.0
    for _ in range(alanines):
        n, before = place(n, ca, c, r=1.34, angle=116.6, torsion=turn), c
        ca, turn = place(ca, c, n, r=1.45, angle=121.7, torsion=180.0), psi
        c = place(before, n, ca, r=1.52, angle=111.0, torsion=phi)
        cb = place(before, n, ca, r=1.53, angle=110.0, torsion=phi - 122.0)
        o = place(n, ca, c, r=1.23, angle=120.5, torsion=psi + 180.0)
        atoms += [("N", "ALA", n), ("CA", "ALA", ca), ("C", "ALA", c), ("O", "ALA", o), ("CB", "ALA", cb)]
    last = place(n, ca, c, r=1.34, angle=116.6, torsion=turn)
    return [*atoms, ("N", "NME", last), ("C", "NME", place(ca, c, last, r=1.45, angle=121.7, torsion=180.0))]


def topology_of(atoms: list[tuple[str, str, np.ndarray]]) -> app.Topology:
    """A new residue begins with every N (and with ACE), bonds as the residue templates have them."""
    topology = app.Topology()
    chain, residue = topology.addChain(), None
    for name, residue_name, _ in atoms:
        if residue is None or name == "N":
            residue = topology.addResidue(residue_name, chain)
        topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
    topology.createStandardBonds()
    return topology


def swap_born(system: openmm.System) -> None:
    """GBSAOBCForce in place of the CustomGBForce of implicit/obc2.xml (design section 10)."""
    (index,) = (k for k, force in enumerate(system.getForces()) if isinstance(force, openmm.CustomGBForce))
    custom, born = system.getForce(index), openmm.GBSAOBCForce()
    for k in range(custom.getNumParticles()):
        charge, offset_radius, scaled = custom.getParticleParameters(k)
        born.addParticle(charge, offset_radius + OFFSET, scaled / offset_radius)
    system.removeForce(index)
    system.addForce(born)


@functools.cache
def peptide(alanines: int = 1, *, solvent: str = "vacuum", forcefield: str = FF14SB, phi: float = -75.0, psi: float = 145.0) -> Peptide:
    """ACE-(ALA)k-NME.

    Args:
        alanines: k.
        solvent: "vacuum", "obc2" (GBSAOBCForce) or "custom-obc2" (the CustomGBForce as OpenMM ships it).
        forcefield: an XML file shipped with OpenMM.
        phi, psi: backbone angles in degrees before minimisation.
    """
    heavy = heavy_atoms(alanines, phi=phi, psi=psi)
    implicit = [] if solvent == "vacuum" else ["implicit/obc2.xml"]
    field = app.ForceField(forcefield, *implicit)
    modeller = app.Modeller(topology_of(heavy), np.array([position for *_, position in heavy]) * unit.angstrom)
    modeller.addHydrogens(field, platform=openmm.Platform.getPlatformByName("Reference"))
    system = field.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False)
    if solvent == "obc2":
        swap_born(system)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    x = torch.from_numpy(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer).copy())
    return Peptide(system=system, topology=modeller.topology, x=x - x.mean(0))
