"""Systems that the torch energy has no twin for are refused by name."""

from __future__ import annotations

import openmm
import pytest
from peptides import peptide

from bgwork.spaces import Euclidean, MeanFree
from bgwork.targets.molecular_mechanics import MolecularMechanics, UnsupportedForce


def changed(what: str) -> openmm.System:
    """A System that has no torch twin."""
    if what == "CustomGBForce":
        return peptide(solvent="custom-obc2").system
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(peptide(solvent="obc2").system))
    force = {type(f).__name__: f for f in system.getForces()}
    if what == "constraints":
        system.addConstraint(0, 1, 0.1)
    elif what == "RBTorsionForce":
        system.addForce(openmm.RBTorsionForce())
    elif what == "virtual":
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    elif what == "cutoff":
        force["NonbondedForce"].setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    elif what == "Born cutoff":
        force["GBSAOBCForce"].setNonbondedMethod(openmm.GBSAOBCForce.CutoffNonPeriodic)
    elif what == "periodic":
        force["HarmonicBondForce"].setUsesPeriodicBoundaryConditions(True)
    elif what == "offset":
        force["NonbondedForce"].addGlobalParameter("lambda", 1.0)
        force["NonbondedForce"].addParticleParameterOffset("lambda", 0, 1.0, 0.0, 0.0)
    return system


@pytest.mark.parametrize(("what", "message"), [
    ("CustomGBForce", r"a CustomGBForce has no torch twin .*GBSAOBCForce of radius or \+ 0.009 nm"),
    ("constraints", "1 constraints.*constraints=None"),
    ("RBTorsionForce", "a RBTorsionForce has no torch twin .*OpenMMTarget"), ("virtual", "virtual sites"),
    ("cutoff", "NonbondedForce has a cutoff.*NoCutoff"), ("Born cutoff", "GBSAOBCForce has a cutoff"),
    ("periodic", "HarmonicBondForce has periodic boundaries"), ("offset", "parameter offsets")])
def test_systems_without_a_twin_are_refused_by_name(what, message):
    with pytest.raises(UnsupportedForce, match="peptide: .*" + message):
        MolecularMechanics(changed(what), space=MeanFree(n=22, d=3), kT=1.0, name="peptide")


def test_wrong_space_or_units_are_refused():
    system = peptide().system
    with pytest.raises(ValueError, match="22 particles in 3 dimensions"):
        MolecularMechanics(system, space=MeanFree(n=21, d=3), kT=1.0)
    with pytest.raises(ValueError, match="kT and nm must be positive"):
        MolecularMechanics(system, space=Euclidean(n=22, d=3), kT=0.0)
