"""Why a force field does not fit a molecule: residues without a template, grouped, each with what helps."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from openmm import app

from bgwork.targets.force_field_files import RECOMMENDED

Residue = app.topology.Residue

SHOWN = 4  # residues of a kind, or atoms, that are named one by one
SITE = "?"  # of a virtual site, which is no element
LONGEST = 12  # lines of the explanation
ALONE = "remove water, ions and other molecules: bgwork takes one"
PDBFIXER = "add missing atoms with `pdbfixer in.pdb --add-atoms=all --output=out.pdb` (conda-forge pdbfixer)"
OTHER_FILES = "add a file that has the residue (--forcefield, repeatable), or choose another force field"
RENAME = "give atoms the names that the PDB has for them, or write their bonds as CONECT records"


def why_no_system(field: app.ForceField, topology: app.Topology, *, names: Sequence[str], error: Exception) -> str:
    """An explanation of a failed `ForceField.createSystem`.

    Args:
        field: the force field.
        topology: of the molecule.
        names: of the force-field files.
        error: what OpenMM raised.
    Returns:
        One line for each kind of residue that has no template, with its remedy; OpenMM's own words if that is not what is wrong.
    """
    residues = _unmatched(field, topology, str(error))
    files = ", ".join(names)
    if not residues:
        others = ", ".join(RECOMMENDED)
        return f"{files} cannot make a System of this molecule: {error}; choose another force field, such as {others}"
    groups: dict[tuple[str, str], list[Residue]] = defaultdict(list)
    remedies: dict[str, None] = {}
    for residue in residues:
        reason, remedy = _reason(field, residue)
        groups[residue.name, reason].append(residue)
        remedies[remedy] = None
    lines = [f"  {_label(group)}: {reason}" for (_, reason), group in groups.items()]
    if len(lines) > LONGEST:
        lines = [*lines[:LONGEST], f"  and {len(lines) - LONGEST} kinds more"]
    count = "1 residue does" if len(residues) == 1 else f"{len(residues)} residues do"
    return "\n".join([f"{count} not match the force field {files}; {'; '.join(remedies)}:", *lines])


def _unmatched(field: app.ForceField, topology: app.Topology, error: str) -> list[Residue]:
    """Residues without a template; with patches in the force field, which may make up for that, only the one that OpenMM gave up at."""
    stopped = re.match(r"No template found for residue (\d+) ", error)
    if not stopped:
        return []
    if field._patches:
        return [residue for residue in topology.residues() if residue.index == int(stopped[1])]
    return field.getUnmatchedResidues(topology)


def _label(residues: Sequence[Residue]) -> str:
    """Such as "ALA 2, ALA 5" or "74 times HOH"."""
    if len(residues) <= SHOWN:
        return ", ".join(f"{residue.name} {residue.id}" for residue in residues)
    return f"{len(residues)} times {residues[0].name}"


def _reason(field: app.ForceField, residue: Residue) -> tuple[str, str]:
    """What is wrong with a residue, and what helps."""
    others = residue.chain.topology.getNumResidues() > 1
    if others and _is_water(residue):
        return "water", ALONE
    if others and len(list(residue.atoms())) == 1 and not list(residue.bonds()):
        return "an atom or ion of its own", ALONE
    template, loose = _template(field, residue), _loose(residue)
    if template is None and loose:
        reason = f"unknown residue name {residue.name!r}, no bonds known of {_listed(loose)}"
        return reason, f"{OTHER_FILES}, and write its bonds as CONECT records"
    if template is None:
        return f"unknown residue name {residue.name!r}", OTHER_FILES
    known = [atom.name for atom in template.atoms]
    if set(loose) - set(known):
        free = [name for name in known if name not in {atom.name for atom in residue.atoms()}]
        return f"no bonds known of {_listed(loose)}" + (f", and no atoms named {_listed(free)}" if free else ""), RENAME
    return _other_atoms(residue, template)


def _is_water(residue: Residue) -> bool:
    return sorted(_symbol(atom.element) for atom in residue.atoms() if atom.element is not None) == ["H", "H", "O"]


def _loose(residue: Residue) -> list[str]:
    """Names of atoms that are bonded to none."""
    bonded = {atom.index for bond in residue.bonds() for atom in bond}
    return [atom.name for atom in residue.atoms() if atom.element is not None and atom.index not in bonded]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _template(field: app.ForceField, residue: Residue) -> app.forcefield.ForceField._TemplateData | None:
    """The template of the residue's name: that of a chain's end where it lies at one and has the name's bonds to one side only."""
    chain = list(residue.chain.residues())
    outward = len(list(residue.external_bonds()))
    ends = [prefix for prefix, end in (("N", chain[0]), ("C", chain[-1])) if residue is end and len(chain) > 1 and outward == 1]
    known = [field._templates.get(prefix + residue.name) for prefix in [*ends, ""]]
    return next((template for template in known if template is not None), None)


def _other_atoms(residue: Residue, template: app.forcefield.ForceField._TemplateData) -> tuple[str, str]:
    """A residue whose atoms, or else whose bonds, are not those of its template, and what helps."""
    wanted = Counter(_symbol(atom.element) for atom in template.atoms)
    found = Counter(_symbol(atom.element) for atom in residue.atoms())
    if (wanted - found)[SITE]:
        return "has virtual sites in the force field, whose positions are not free", "choose a force field without virtual sites"
    if found[SITE]:
        return f"{found[SITE]} atoms without an element", "remove virtual sites, and fill in columns 77-78 of the PDB file for others"
    missing, extra = (", ".join(f"{count} {symbol}" for symbol, count in sorted(more.items())) for more in (wanted - found, found - wanted))
    if missing and not extra:
        return f"missing {missing}", PDBFIXER
    if extra:
        reason = f"missing {missing}; too many: {extra}" if missing else f"too many: {extra}"
        return reason, "remove atoms, or choose a force field that has the residue so"
    return ("its bonds differ from the template's",
            "cap the chain's ends (ACE, NME) or complete them (H2 and H3, OXT), and write bonds between side chains as CONECT records")


def _symbol(element: app.Element | None) -> str:
    return SITE if element is None else element.symbol
