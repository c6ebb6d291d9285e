"""Molecules as systems: their tables of system.toml, their topology, and the observables that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import openmm
import torch
from openmm import app
from pydantic import Field
from torch import Tensor

from bgwork import units
from bgwork.conformation import has_positive_phi
from bgwork.observables import Atoms, dihedral
from bgwork.processes import cores
from bgwork.protocols import Target
from bgwork.spaces import MeanFree, Space
from bgwork.targets.energies import Count, Positive, Section
from bgwork.targets.force_fields import ForceFieldError, molecule_system, positions_nm, read_pdb
from bgwork.targets.molecular_mechanics import MolecularMechanics
from bgwork.targets.openmm import OpenMMTarget
from bgwork.targets.torsion_angles import TorsionAngles, rotatable_bonds
from bgwork.targets.xtb import TightBinding, XtbTarget, default_cache
from bgwork.topology import Stereocentre, Topology, backbone_torsions, free_torsions, molecules, same_chirality, stereocentres

Observable = Callable[[Tensor], Tensor]


class ParametrisedSection(Section):
    """What the forms of [energy] with a force field share.

    Attributes:
        topology: PDB file with every atom, in the order of the configurations; relative to the system's folder.
        forcefield: files shipped with OpenMM, or files in the system's folder.
        solvent: "vacuum" or "obc2".
        temperature: in K; u = U/RT.
    """

    topology: str
    forcefield: Annotated[list[str], Field(min_length=1)]
    solvent: Literal["vacuum", "obc2"]
    temperature: Positive

    def within(self, folder: Path) -> Self:
        """The same with the paths of files that lie in the system's folder."""
        files = [str(folder / name) if (folder / name).is_file() else name for name in self.forcefield]
        return self.model_copy(update={"topology": str(folder / self.topology), "forcefield": files})

    def pdb(self) -> app.PDBFile:
        return read_pdb(Path(self.topology))

    def system(self) -> openmm.System:
        """The OpenMM System, unconstrained."""
        return molecule_system(self.pdb(), forcefield=self.forcefield, solvent=self.solvent)

    def torch(self, space: Space, name: str) -> Target:
        return MolecularMechanics(self.system(), space=space, kT=units.kT(self.temperature), name=name)

    def openmm(self, space: Space, name: str) -> Target:
        return OpenMMTarget(self.system(), space=space, kT=units.kT(self.temperature), name=name)


class ForceFieldSection(ParametrisedSection):
    """[energy] with form = "force-field": keys as in `ParametrisedSection`."""

    form: Literal["force-field"]


class TorsionAnglesSection(ParametrisedSection):
    """[energy] with form = "torsion-angles": the force field's energy as a function of all rotatable torsions of the PDB file's structure,
    with the same keys; the space is a torus with n = 1 and d torsions.
    """

    form: Literal["torsion-angles"]

    def torch(self, space: Space, name: str) -> Target:
        return self._of_torsions(super().torch, space, name)

    def openmm(self, space: Space, name: str) -> Target:
        return self._of_torsions(super().openmm, space, name)

    def _of_torsions(self, engine: Callable[[Space, str], Target], space: Space, name: str) -> TorsionAngles:
        topology, positions = read_topology(self)
        made = TorsionAngles(engine(MeanFree(n=len(positions), d=3), name), positions, rotatable_bonds(topology), name=name)
        if made.space != space:
            raise ForceFieldError(f"{self.topology} has {made.space.d} rotatable torsions, so its energy lives on {made.space}, not on "
                                  f'{space}; set [space] kind = "torus", n = 1, d = {made.space.d}')
        return made


class TightBindingSection(Section):
    """[energy] with form = "tight-binding": GFN2-xTB through tblite.

    Attributes:
        topology: PDB file with every atom and its bonds, relative to the system's folder.
        method: "GFN2-xTB", "GFN1-xTB" or "IPEA1-xTB".
        charge: total charge in units of e.
        offset: E_0 in kJ/mol; u = (E - E_0) / RT.
        temperature: in K.
    """

    form: Literal["tight-binding"]
    topology: str
    method: Literal["GFN2-xTB", "GFN1-xTB", "IPEA1-xTB"]
    charge: int = 0
    offset: float = 0.0
    temperature: Positive

    def within(self, folder: Path) -> TightBindingSection:
        """The same with the PDB file's path from the system's folder."""
        return self.model_copy(update={"topology": str(folder / self.topology)})

    def pdb(self) -> app.PDBFile:
        return read_pdb(Path(self.topology))

    def tblite(self, space: Space, name: str) -> Target:
        molecule = TightBinding(elements=read_topology(self)[0].elements, charge=self.charge, method=self.method)
        return XtbTarget(molecule, space=space, kT=units.kT(self.temperature), offset=self.offset, workers=cores(),
                         cache=default_cache(name), name=name)


class GivenSection(Section):
    """[reference] with sampler = "given": data are not made here, but brought from elsewhere, so that by default none are asked for."""

    sampler: Literal["given"]
    chains: ClassVar[int] = 0
    draws: ClassVar[int] = 0


MolecularSection = ForceFieldSection | TightBindingSection


class MetadynamicsSection(Section):
    """[reference] with sampler = "metadynamics": how equilibrium data of a molecule are made (`bgwork.reference_md`).

    Attributes:
        chains: independent walkers under the frozen bias.
        draws: equilibrium configurations per walker that are asked for by default.
        burn_in: time steps of each walker that are discarded.
        thin: time steps between kept configurations of a walker.
        surplus: configurations kept under the bias for each one that is handed over.
        decorrelation: time steps of the Hamiltonian Monte Carlo transition that moves each resampled configuration on.
        torsions: names of the backbone torsions to bias, at most three; by default every phi and psi, or every phi if those are too many.
        time_step: in ps.
        friction: in 1/ps.
        filling: time steps of metadynamics.
        level: height in kT that the frozen bias leaves of every barrier and basin above the lowest one.
        temperatures: ladder of the replica exchange that cross-checks, in K; the first is the system's.
        exchange: time steps between exchanges.
        exchanges: rounds of exchange of each ladder that are kept, after a fifth as many that are discarded.
        ladders: independent replica exchanges.
        most_ladders: as many again are run while a Delta F(phi) is too uncertain to compare, or differs, until there are so many.
    """

    sampler: Literal["metadynamics"]
    chains: Annotated[int, Field(ge=4)] = 20
    draws: Count = 5000
    burn_in: Annotated[int, Field(ge=0)] = 50_000
    thin: Count = 100
    surplus: Count = 3
    decorrelation: Count = 40
    torsions: list[str] = []
    time_step: Positive = 0.001
    friction: Positive = 1.0
    filling: Count = 3_000_000
    level: Positive = 3.0
    temperatures: Annotated[list[Positive], Field(min_length=2)] = [300.0, 365.0, 445.0, 540.0, 660.0, 805.0, 980.0, 1200.0]
    exchange: Count = 500
    exchanges: Count = 1000
    ladders: Annotated[int, Field(ge=4)] = 6
    most_ladders: Count = 24


class TransferSection(Section):
    """[reference] with sampler = "transfer": equilibrium data of another energy of the same molecule are brought to this one, step by step
    (`bgwork.reference_transfer`).

    Attributes:
        start: name of the system with that energy; `bgwork reference` must have been run on it.
        chains: independent islands, no more than the chains or walkers of those data.
        draws: configurations per island that are asked for by default.
        leapfrog: gradients of a Hamiltonian Monte Carlo transition.
        transitions: of every configuration at every step from one energy to the other.
        relaxation: transitions at the last step, after configurations were resampled by weight.
        keep: conditional effective fraction that each step leaves.
        pilot: configurations of the run on which steps are learned.
    """

    sampler: Literal["transfer"]
    start: str
    chains: Annotated[int, Field(ge=4)] = 20
    draws: Count = 100
    leapfrog: Count = 3
    transitions: Count = 2
    relaxation: Count = 4
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.8
    pilot: Annotated[int, Field(ge=2)] = 32


def read_topology(section: MolecularSection | TorsionAnglesSection) -> tuple[Topology, Tensor]:
    """Atoms and bonds of the section's PDB file, and its structure [n, 3] in nm."""
    pdb = section.pdb()
    return topology_of(pdb.topology, Path(section.topology)), torch.tensor(positions_nm(pdb), dtype=torch.float64)


def topology_of(topology: app.Topology, path: Path) -> Topology:
    """OpenMM's topology as plain data.

    Raises:
        ForceFieldError: if an atom has no element, or the bonds do not make one molecule of all atoms.
    """
    atoms = list(topology.atoms())
    nameless = [atom.name for atom in atoms if atom.element is None]
    if nameless:
        raise ForceFieldError(f"{path}: the elements of {', '.join(nameless)} are unknown; fill in columns 77-78 of the PDB file")
    bonds = sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds())
    made = Topology(
        names=tuple(atom.name for atom in atoms), elements=tuple(atom.element.symbol for atom in atoms),
        residues=tuple(atom.residue.name for atom in atoms), residue_of=tuple(atom.residue.index for atom in atoms),
        bonds=tuple(dict.fromkeys(bonds)), path=path)
    pieces = molecules(made)
    if len(pieces) > 1:
        first = f"{made.residues[pieces[1][0]]} {made.residue_of[pieces[1][0]] + 1}"
        raise ForceFieldError(f"{path} holds {len(pieces)} molecules (the second starts at residue {first}), which nothing keeps together: "
                              "exp(-u) has no finite integral; keep one, without water and ions, or add bonds as CONECT records")
    return made


def molecular_observables(topology: Topology, reference: Tensor) -> dict[str, Observable]:
    """Observables by name: phi_positive (1 where 0 < phi <= 2 rad), cos and sin of every backbone torsion, phi_basin, same_chirality.

    phi_basin is an integer: bit k is set where the k-th phi is positive in this sense. A phi in a ring, as proline's, has no basins.

    Args:
        topology: of the molecule.
        reference: [n, 3] a structure with the right handedness.
    """
    torsions = backbone_torsions(topology)
    functions: dict[str, Observable] = {}
    for name, atoms in torsions.items():
        functions |= {f"{name}_cos": partial(_cosine, atoms=atoms), f"{name}_sin": partial(_sine, atoms=atoms)}
    phis = {name: atoms for name, atoms in free_torsions(topology).items() if name.startswith("phi")}
    functions |= {f"{name}_positive": partial(_positive_phi, phi=atoms) for name, atoms in phis.items()}
    if phis:
        functions["phi_basin"] = partial(phi_basin, phis=tuple(phis.values()))
    centres = stereocentres(topology, reference)
    if centres:
        functions["same_chirality"] = partial(_same_chirality, centres=centres)
    return functions


def torsion_observables(target: TorsionAngles, topology: Topology) -> dict[str, Observable]:
    """`molecular_observables` of the configurations that torsions [B, 1, K] stand for."""
    functions = molecular_observables(topology, target.structure)
    return {name: partial(_of_torsions, function=function, target=target) for name, function in functions.items()}


def _of_torsions(phi: Tensor, *, function: Observable, target: TorsionAngles) -> Tensor:
    return function(target.cartesian(phi.double()))


def phi_basin(x: Tensor, *, phis: tuple[Atoms, ...]) -> Tensor:
    """Sum over k of 2^k where the k-th phi lies in (0, 2] rad, [B]."""
    return sum(2**k * has_positive_phi(x, phi=phi).double() for k, phi in enumerate(phis))


def _positive_phi(x: Tensor, *, phi: Atoms) -> Tensor:
    return has_positive_phi(x, phi=phi).double()


def _cosine(x: Tensor, *, atoms: Atoms) -> Tensor:
    return dihedral(x, atoms=atoms).cos()


def _sine(x: Tensor, *, atoms: Atoms) -> Tensor:
    return dihedral(x, atoms=atoms).sin()


def _same_chirality(x: Tensor, *, centres: tuple[Stereocentre, ...]) -> Tensor:
    return same_chirality(x, centres).double()
