"""An OpenMM System from a PDB file and force-field files: no constraints, no cutoff, vacuum or implicit solvent.

`implicit/obc2.xml` describes the OBC2 model by a CustomGBForce, which is interpreted and slow on the Reference platform; the same energy is
swapped in as the built-in GBSAOBCForce.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openmm
from openmm import app, unit

from bgwork.targets.force_field_files import RECOMMENDED, ForceFieldError, check_solvent, read_force_field
from bgwork.targets.residues import why_no_system

__all__ = ["ForceFieldError", "check_one_structure", "check_system", "molecule_system", "positions_nm", "read_force_field", "read_pdb",
           "swap_obc2"]

OFFSET = 0.009  # nm by which OBC2 shrinks intrinsic radii (Onufriev, Bashford and Case 2004)
KNOWN_FORCES = (
    openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce, openmm.NonbondedForce, openmm.GBSAOBCForce,
    openmm.CMAPTorsionForce)


def read_pdb(path: Path) -> app.PDBFile:
    """A PDB file with its topology and first model.

    Raises:
        ForceFieldError: if there is no such file, or it holds no atoms.
    """
    if not any(line.startswith(("ATOM", "HETATM")) for line in _lines(path)):
        raise ForceFieldError(f"{path} holds no atoms; give a PDB file with ATOM records")
    try:
        return app.PDBFile(str(path))
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise ForceFieldError(f"{path} is not a readable PDB file: {error}; give plain text in the PDB format, not mmCIF") from error


def _lines(path: Path) -> list[str]:
    if not Path(path).is_file():
        raise ForceFieldError(f"no PDB file {path}")
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ForceFieldError(f"{path} is not a readable PDB file: {error}; give plain text in the PDB format, not mmCIF") from error


def check_one_structure(path: Path) -> None:
    """Refuse a PDB file of which `read_pdb` would keep some atoms or models alone.

    Args:
        path: of the PDB file.
    Raises:
        ForceFieldError: if the file cannot be read, there are several models, or an atom stands in it twice.
    """
    lines = _lines(path)
    models = sum(line[:6].rstrip() == "MODEL" for line in lines)
    if models > 1:
        raise ForceFieldError(f"{path} holds {models} models, and a system starts from one structure; keep the lines of one MODEL")
    seen = set()
    for line in lines:
        if line.startswith(("ATOM", "HETATM")):
            elsewhere = line[16:17].strip()  # an alternate location, whose residue may have another name
            atom = line[12:16], line[21:27], "" if elsewhere else line[17:20]
            if atom in seen:
                name, residue = line[12:16].strip(), f"{line[17:20].strip()} {line[22:27].strip()}"
                raise ForceFieldError(f"{path} lists atom {name} of {residue} twice; keep one of its alternate locations, "
                                      "or give the atoms of a residue names of their own")
            seen.add(atom)


def molecule_system(pdb: app.PDBFile, *, forcefield: Sequence[str], solvent: str) -> openmm.System:
    """The unconstrained System of a molecule, all pairs interacting.

    Args:
        pdb: topology, with every hydrogen.
        forcefield: files shipped with OpenMM, or paths.
        solvent: "vacuum" or "obc2".
    Raises:
        ForceFieldError: if atoms are missing or residues unknown, the force field is not found, or the System cannot be a target.
    """
    field = read_force_field(forcefield, solvent)
    try:
        system = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)
    except Exception as error:  # OpenMM raises plain Exception too
        raise ForceFieldError(why_no_system(field, pdb.topology, names=forcefield, error=error)) from error
    if solvent == "obc2":
        swap_obc2(system)
    check_solvent(system, solvent)
    check_system(system)
    return system


def swap_obc2(system: openmm.System) -> None:
    """Replace the CustomGBForce of `implicit/obc2.xml` by the GBSAOBCForce with the same energy, in place.

        radius = or + 0.009 nm,  scale = sr / or,  surface term of the ACE model

    Raises:
        ForceFieldError: if the System holds no such force.
    """
    custom = [k for k, force in enumerate(system.getForces()) if isinstance(force, openmm.CustomGBForce)]
    if len(custom) != 1:
        raise ForceFieldError(f"the OBC2 files made {len(custom)} CustomGBForces, expected one; this version of OpenMM is not known")
    old, new = system.getForce(custom[0]), openmm.GBSAOBCForce()
    names = [old.getPerParticleParameterName(k) for k in range(old.getNumPerParticleParameters())]
    for k in range(old.getNumParticles()):
        values = dict(zip(names, old.getParticleParameters(k), strict=True))
        new.addParticle(values["charge"], values["or"] + OFFSET, values["sr"] / values["or"])
    globals_ = {old.getGlobalParameterName(k): old.getGlobalParameterDefaultValue(k) for k in range(old.getNumGlobalParameters())}
    new.setSoluteDielectric(globals_.get("soluteDielectric", 1.0))
    new.setSolventDielectric(globals_.get("solventDielectric", 78.5))
    new.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    system.removeForce(custom[0])
    system.addForce(new)


def check_system(system: openmm.System) -> None:
    """Refuse a System whose density on the space of all coordinates is not exp(-U/kT).

    Raises:
        ForceFieldError: for constraints, virtual sites, massless particles or force terms beyond bonds, angles, torsions, CMAP,
            nonbonded without a cutoff and OBC2.
    """
    if system.getNumConstraints():
        raise ForceFieldError(f"the System has {system.getNumConstraints()} constraints, on which the density is degenerate; "
                              "build it with constraints=None and rigidWater=False")
    if any(system.isVirtualSite(k) for k in range(system.getNumParticles())):
        raise ForceFieldError("the System has virtual sites, whose positions are not free; remove water, or use a force field without them")
    unknown = sorted({type(force).__name__ for force in system.getForces() if not isinstance(force, KNOWN_FORCES)})
    if unknown:
        known = ", ".join(force.__name__ for force in KNOWN_FORCES)
        raise ForceFieldError(f"unsupported force terms {', '.join(unknown)}; supported are {known}: choose a force field made of these, "
                              f"such as {', '.join(RECOMMENDED)}")
    periodic = [type(force).__name__ for force in system.getForces() if force.usesPeriodicBoundaryConditions()]
    if periodic:
        raise ForceFieldError(f"{', '.join(periodic)} are periodic; molecules are simulated without a box")


def positions_nm(pdb: app.PDBFile) -> list[list[float]]:
    """Coordinates of the first model, [n][3] in nm."""
    return pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer).tolist()
