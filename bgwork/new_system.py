"""A system's folder made from a user's PDB file: topology.pdb, system.toml and recipes, checked by loading them."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from bgwork import store
from bgwork.molecule import molecular_observables, topology_of
from bgwork.recipes import load_recipe
from bgwork.spaces import MeanFree
from bgwork.system import SystemFileError, is_shipped, load_system
from bgwork.targets.force_field_files import files_to_copy, find_file, portable_name
from bgwork.targets.force_fields import ForceFieldError, check_one_structure, molecule_system, positions_nm, read_pdb
from bgwork.topology import Topology

LADDER = 8  # rungs of the replica exchange, up to four times the temperature
ROOM = 1.5  # reach of the radial basis over the longest distance in the structure, since molecules stretch out
BASIS = 16  # radial functions per nm
LONGEST = 0.3  # nm; no covalent bond reaches it
BATCH, ATOMS = 128, 22  # of the shipped alanine dipeptide; memory and time of a step grow with the batch times the pairs of atoms
RECIPE_ABOUT = """# Flow matching from MD data: rotations aligned, every atom a kind of its own, late velocities freed from noise by
# forces on the data, which must be an equilibrium set of the very energy (forces_after = 1 does without). A start, not tuned for
# this molecule: more steps give more effective samples. compiled = true needs a C++ compiler such as g++.
"""
FRAMED_ABOUT = """# The generator of recipe fm trained on, refined in the frame of the molecule, its early targets averaged over `pool` of
# the data. It begins with what `bgwork train` wrote for fm with seed 0 (training.initial).
"""


@dataclass(frozen=True, kw_only=True)
class NewSystem:
    """What `new-system` is asked for.

    Attributes:
        pdb: with one molecule and all its hydrogens; its order of atoms becomes the system's.
        forcefield: files shipped with OpenMM, or paths, which are copied into the folder with all that they include.
        solvent: "vacuum" or "obc2".
        temperature: in K.
        name: of the system; by default that of the PDB file.
    """

    pdb: Path
    forcefield: tuple[str, ...] = ("amber14/protein.ff14SB.xml",)
    solvent: str = "obc2"
    temperature: float = 300.0
    name: str = ""

    @property
    def system_name(self) -> str:
        return self.name or Path(self.pdb).stem.lower()


def new_system(wanted: NewSystem, *, folder: Path = Path("systems")) -> Path:
    """Make folder/name with topology.pdb, system.toml and its recipes; they load, or nothing is left behind.

    Args:
        wanted: the molecule, its force field, solvent and temperature.
        folder: where systems lie.
    Returns:
        The new folder.
    Raises:
        SystemFileError: if the name cannot be a folder's or is taken.
        ForceFieldError: if the PDB file cannot be used (missing atoms, unknown residues, several molecules), the force field is not found
            or makes a System whose density is not exp(-U/kT), or the energy of the structure is not finite.
    """
    name, folder = wanted.system_name, Path(folder)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise SystemFileError(f"{name!r} cannot name a system; use lower-case letters, digits, dots and hyphens (--name)")
    if (folder / name).exists():
        raise SystemFileError(f"{folder / name} exists; choose another name (--name), or delete it")
    if is_shipped(name):
        raise SystemFileError(f"{name!r} is the name of a shipped system, which yours would hide; choose another name (--name)")
    if not (wanted.temperature > 0 and math.isfinite(wanted.temperature)):
        raise SystemFileError(f"temperature must be positive and finite, got {wanted.temperature} K")
    with store.no_folders_left_empty(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemFileError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
            _made(Path(scratch) / name, wanted).rename(folder / name)
    return folder / name


def _made(path: Path, wanted: NewSystem) -> Path:
    """The system's folder with all that belongs there, tried out."""
    path.mkdir()
    _fill(path, wanted)
    system = load_system(path)
    first = _recipe(system.structure)
    for name, about, values in (("fm", RECIPE_ABOUT, first), ("fm-framed", FRAMED_ABOUT, _framed(first, wanted.system_name))):
        store.write_text(path / "recipes" / f"{name}.toml", about + tomli_w.dumps(values))
        load_recipe(system, name)
    u = system.target.u(system.structure[None])
    if not bool(torch.isfinite(u).all()):
        raise ForceFieldError(f"u = {u.item()} at the structure in {wanted.pdb}: atoms overlap; minimise its energy first")
    return path


def _fill(path: Path, wanted: NewSystem) -> None:
    """Write topology.pdb, force-field files of the user's own and system.toml; all is tried where it lies first: errors name it so."""
    check_one_structure(wanted.pdb)
    pdb = read_pdb(wanted.pdb)
    molecule_system(pdb, forcefield=wanted.forcefield, solvent=wanted.solvent)
    topology, structure = topology_of(pdb.topology, wanted.pdb), torch.tensor(positions_nm(pdb), dtype=torch.float64)
    _check_structure(topology, structure)
    shutil.copyfile(wanted.pdb, path / "topology.pdb")
    for place, source in files_to_copy(wanted.forcefield).items():
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path / place)
    store.write_text(path / "system.toml", tomli_w.dumps(_settings(wanted, topology, structure)))


def _check_structure(topology: Topology, x: torch.Tensor) -> None:
    """Refuse a structure [n, 3] in nm that nothing can start from.

    Raises:
        ForceFieldError: if there is one atom alone, coordinates are not numbers, two atoms coincide, or a bond is too long to be one, as
            where residues of a chain are missing.
    """
    if len(topology) < 2:
        raise ForceFieldError(f"{topology.path} holds a single atom, which has nothing to sample; give a molecule")
    if not bool(torch.isfinite(x).all()):
        raise ForceFieldError(f"{topology.path} has coordinates that are not numbers; repair its columns 31-54")
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    if distances.min() == 0:
        first, second = divmod(int(distances.argmin()), len(x))
        raise ForceFieldError(f"{topology.path}: {topology.labels[first]} and {topology.labels[second]} lie in one place: "
                              "atoms overlap; minimise its energy first, or move one")
    first, second = max(topology.bonds, key=lambda bond: distances[bond].item())
    if distances[first, second] > LONGEST:
        raise ForceFieldError(f"{topology.path}: the bond of {topology.labels[first]} and {topology.labels[second]} is "
                              f"{distances[first, second]:.2f} nm long; complete missing residues, or end the first chain with TER")


def _recipe(structure: torch.Tensor) -> dict[str, Any]:
    """The content of recipes/fm.toml for a molecule with this structure [n, 3]: that of alanine dipeptide, with sizes that follow it."""
    reach = round(max(1.5, ROOM * torch.cdist(structure, structure).max().item()), 2)
    batch = max(8, min(BATCH, round(BATCH * (ATOMS / len(structure)) ** 2 / 8) * 8))
    return {
        "objective": "flow-matching", "description": "late velocities freed from noise by forces, from nothing",
        "field": {"kind": "molecular", "hops": 2, "hidden": 64, "message": 64, "vectors": 16, "node_hidden": 96,
                  "n_basis": round(BASIS * reach), "kind_basis": 24, "r_max": reach, "softening": 0.002, "nearest": 0.003},
        "coupling": {"kind": "soft-molecular"},
        "training": {"steps": 12_000, "optimiser": "soap", "batch": batch, "late_times": 0.4, "logarithmic_times": 0.3,
                     "forces_after": 0.94, "learning_rate": 2e-3, "bfloat16": 0.6, "compiled": True, "evaluate_every": 4000,
                     "evaluate_samples": 200},
        "sampler": {"integrator": "midpoint", "steps": 12, "power": 2.0, "ease": 1.3, "stretch": 1.04}}


def _framed(first: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of recipes/fm-framed.toml of a system called so, from that of fm.toml: that of tri-alanine, as far as sizes allow."""
    training = {"initial": f"runs/{name}/fm-0/generator.safetensors", "pool": 128, "early_times": 0.1, "late_times": 0.2,
                "logarithmic_times": 0.2, "forces_after": 0.78, "learning_rate": 1e-3}
    return first | {
        "description": "fm refined in the frame of the molecule, its early velocities averaged over pools of data",
        "field": first["field"] | {"kind": "framed-molecular"}, "training": first["training"] | training}


def _settings(wanted: NewSystem, topology: Topology, structure: torch.Tensor) -> dict[str, Any]:
    """The content of system.toml."""
    forcefield = [portable_name(find_file(name)) for name in wanted.forcefield]
    energy = {"form": "force-field", "topology": "topology.pdb", "forcefield": forcefield, "solvent": wanted.solvent,
              "temperature": float(wanted.temperature)}
    space = MeanFree(n=len(topology), d=3)
    spread = (space.project(structure[None]).square().sum() / space.dim).sqrt().item()
    functions = molecular_observables(topology, structure)
    populations = [name for name in functions if name.endswith("_positive")]
    where = {"vacuum": "in vacuum", "obc2": "in implicit water (OBC2)"}[wanted.solvent]
    ladder = [round(wanted.temperature * 4.0 ** (k / (LADDER - 1)), 1) for k in range(LADDER)]
    return {
        "name": wanted.system_name, "description": f"{wanted.pdb.name}, {len(topology)} atoms {where} at {wanted.temperature:g} K",
        "source": f"{wanted.pdb.name}; {', '.join(wanted.forcefield)}, by bgwork new-system", "length_unit": "nm", "energy_unit": "kT",
        "recipe": "fm", "observables": ["u", "radius_of_gyration", *populations], **({"basins": "phi_basin"} if populations else {}),
        "space": {"kind": "mean-free", "n": len(topology), "d": 3}, "energy": energy,
        "engines": {"target": "openmm", "differentiable_target": "torch"}, "prior": {"std": round(spread, 4)},
        "reference": {"sampler": "metadynamics", "temperatures": [float(wanted.temperature), *ladder[1:]]}}
