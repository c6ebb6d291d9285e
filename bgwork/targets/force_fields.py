"""An OpenMM System from a PDB file and force-field files: no constraints, no cutoff, vacuum or implicit solvent.

`implicit/obc2.xml` describes the OBC2 model by a CustomGBForce, which is interpreted and slow on the Reference platform; the same energy is
swapped in as the built-in GBSAOBCForce.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import openmm
from openmm import app, unit

SOLVENTS: dict[str, tuple[str, ...]] = {"vacuum": (), "obc2": ("implicit/obc2.xml",)}
SHIPPED = Path(app.__file__).parent / "data"  # OpenMM's own files
OFFSET = 0.009  # nm by which OBC2 shrinks intrinsic radii (Onufriev, Bashford and Case 2004)
KNOWN_FORCES = (
    openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce, openmm.NonbondedForce, openmm.GBSAOBCForce,
    openmm.CMAPTorsionForce)


class ForceFieldError(ValueError):
    """A PDB file or a force field that no System can be built from, with the remedy."""


def read_pdb(path: Path) -> app.PDBFile:
    """A PDB file with its topology and first model.

    Raises:
        ForceFieldError: if there is no such file, or it holds no atoms.
    """
    if not Path(path).is_file():
        raise ForceFieldError(f"no PDB file {path}")
    try:
        if not any(line.startswith(("ATOM", "HETATM")) for line in Path(path).read_text().splitlines()):
            raise ForceFieldError(f"{path} holds no atoms; give a PDB file with ATOM records")
        return app.PDBFile(str(path))
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, ForceFieldError):
            raise
        raise ForceFieldError(f"{path} is not a readable PDB file: {error}") from error


def read_force_field(names: Sequence[str], solvent: str) -> app.ForceField:
    """Force-field files shipped with OpenMM, or paths, and the solvent's.

    Raises:
        ForceFieldError: for an unknown solvent, a file that is not found, one that OpenMM cannot read, or one with a script in it.
    """
    if solvent not in SOLVENTS:
        raise ForceFieldError(f"unknown solvent {solvent!r}; known are {', '.join(SOLVENTS)}")
    for name in names:
        _refuse_script(Path(name))
    try:
        return app.ForceField(*names, *SOLVENTS[solvent])
    except Exception as error:  # OpenMM raises plain ValueError, KeyError and xml.etree errors alike
        shipped = "amber14/protein.ff14SB.xml, amber99sbildn.xml, charmm36.xml"
        raise ForceFieldError(f"force field {', '.join(names)} cannot be loaded: {error}; "
                              f"give the path of an OpenMM force-field file or the name of a shipped one, such as {shipped}") from error


def _refuse_script(path: Path) -> None:
    """Refuse a file that OpenMM would execute Python from, unless it is OpenMM's own; files that it includes are looked at too.

    Raises:
        ForceFieldError: if there is a script.
    """
    if not path.is_file() or SHIPPED in path.resolve().parents:
        return
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ForceFieldError(f"force field {path} cannot be loaded: {error}") from error
    if next(root.iter("Script"), None) is not None or next(root.iter("InitializationScript"), None) is not None:
        raise ForceFieldError(f"{path} holds a <Script>, which OpenMM would execute; take it out if the force field works without, "
                              "or use a file shipped with OpenMM")
    for included in root.iter("Include"):
        _refuse_script(path.parent / included.get("file", ""))


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
    check_residues(field, pdb.topology)
    try:
        system = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)
    except (ValueError, KeyError) as error:
        raise ForceFieldError(f"{', '.join(forcefield)} has no parameters for this molecule: {error}") from error
    if solvent == "obc2":
        swap_obc2(system)
    check_system(system)
    return system


def check_residues(field: app.ForceField, topology: app.Topology) -> None:
    """Refuse residues that the force field has no template for.

    Raises:
        ForceFieldError: naming every such residue, and saying whether the force field knows its name or hydrogens are missing.
    """
    unmatched = field.getUnmatchedResidues(topology)
    if not unmatched:
        return
    lines = [f"  {residue.name} {residue.id}: {_reason(field, residue)}" for residue in unmatched]
    remedy = "repair the file with `pdbfixer in.pdb --add-atoms=all --output=out.pdb` (conda-forge pdbfixer), or choose another force field"
    raise ForceFieldError("\n".join([f"{len(lines)} residues do not match the force field; {remedy}:", *lines]))


def _reason(field: app.ForceField, residue: app.topology.Residue) -> str:
    template = field._templates.get(residue.name)
    if template is None:
        return f"unknown residue name {residue.name!r}"
    wanted = Counter(_symbol(atom.element) for atom in template.atoms)
    found = Counter(_symbol(atom.element) for atom in residue.atoms())
    missing = ", ".join(f"{count} {symbol}" for symbol, count in sorted((wanted - found).items()))
    extra = ", ".join(f"{count} {symbol}" for symbol, count in sorted((found - wanted).items()))
    parts = [f"missing {missing}" if missing else "", f"too many: {extra}" if extra else ""]
    return "; ".join(part for part in parts if part) or "its bonds differ from the template's (chain ends, disulfide bridges)"


def _symbol(element: app.Element | None) -> str:
    return "?" if element is None else element.symbol


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
        raise ForceFieldError("the System has virtual sites, whose positions are not free; use a force field without them")
    unknown = sorted({type(force).__name__ for force in system.getForces() if not isinstance(force, KNOWN_FORCES)})
    if unknown:
        known = ", ".join(force.__name__ for force in KNOWN_FORCES)
        raise ForceFieldError(f"unsupported force terms {', '.join(unknown)}; supported are {known}")
    periodic = [type(force).__name__ for force in system.getForces() if force.usesPeriodicBoundaryConditions()]
    if periodic:
        raise ForceFieldError(f"{', '.join(periodic)} are periodic; molecules are simulated without a box")


def positions_nm(pdb: app.PDBFile) -> list[list[float]]:
    """Coordinates of the first model, [n][3] in nm."""
    return pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer).tolist()
