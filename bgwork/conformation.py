"""Conformations of a molecule: backbone angles, the basins they fall in, and whether bonds and handedness are intact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bgwork.free_energy import free_energy_difference, local_difference, pooled_difference
from bgwork.geometry import distances
from bgwork.observables import Atoms, dihedral
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import average
from bgwork.topology import Topology, backbone_torsions, handed_groups, same_chirality, stereocentres

POSITIVE_PHI = (0.0, 2.0)  # rad: the basin whose free energy is Delta F(phi)
ALPHA_PSI = (math.radians(-120), math.radians(50))  # psi of right-handed helices, as opposed to extended conformations
BASINS = ("extended", "right-handed", "left-handed")
STRETCH = 0.4  # relative change of length beyond which a bond counts as broken; thermal motion changes it by a few hundredths


@dataclass(frozen=True, kw_only=True)
class Residue:
    """The two torsions of one amino acid.

    Attributes:
        name: "" where there is one only, else "2", "3", ...: its number in the chain.
        phi, psi: four atoms each.
    """

    name: str
    phi: Atoms
    psi: Atoms


@dataclass(frozen=True, kw_only=True)
class Intactness:
    """How many samples are not the molecule they should be, and what these weigh. They stay where they are.

    Attributes:
        n: samples whose coordinates are numbers.
        n_broken, n_inverted: of them, how many have a broken bond, or a stereocentre of the wrong hand.
        n_renumbered: how many have the hydrogens of a CH3, NH3 or CH2 group numbered in the other sense (a mirror image has, too).
        broken, inverted, renumbered: their share of the weight.
    """

    n: int
    n_broken: int
    n_inverted: int
    n_renumbered: int
    broken: Estimate
    inverted: Estimate
    renumbered: Estimate


def residues(topology: Topology) -> tuple[Residue, ...]:
    """Every amino acid that has both phi and psi, in order of the chain; none in what is no peptide."""
    torsions = backbone_torsions(topology)
    names = [name.removeprefix("phi").removeprefix("_") for name in torsions if name.startswith("phi")]
    found = [(name, "psi" + (f"_{name}" if name else "")) for name in names]
    return tuple(Residue(name=name, phi=torsions[psi.replace("psi", "phi")], psi=torsions[psi]) for name, psi in found if psi in torsions)


def torsion_functions(topology: Topology) -> dict[str, Callable[[Tensor], Tensor]]:
    """Backbone torsions by name ("phi", "psi"; "phi_2", ... where there are several), configurations [B, n, 3] to radians [B]."""
    return {name: partial(dihedral, atoms=atoms) for name, atoms in backbone_torsions(topology).items()}


def ramachandran(x: Tensor, residue: Residue) -> Tensor:
    """phi and psi in radians, [B, 2]."""
    return torch.stack([dihedral(x, atoms=residue.phi), dihedral(x, atoms=residue.psi)], 1)


def has_positive_phi(x: Tensor, *, phi: Atoms) -> Tensor:
    """Whether 0 < phi <= 2 rad, [B] bool: the basin of Delta F(phi); `phi` are its four atoms."""
    angle = dihedral(x, atoms=phi)
    return (angle > POSITIVE_PHI[0]) & (angle <= POSITIVE_PHI[1])


def has_other_phi(x: Tensor, *, phi: Atoms) -> Tensor:
    """Whether phi lies elsewhere, [B] bool."""
    return ~has_positive_phi(x, phi=phi)


def basin(x: Tensor, *, residue: Residue) -> Tensor:
    """Index into `BASINS`, [B] int64: 2 where 0 < phi <= 2 rad; otherwise 1 where -120 <= psi < 50 degrees, else 0."""
    psi = dihedral(x, atoms=residue.psi)
    helical = (psi >= ALPHA_PSI[0]) & (psi < ALPHA_PSI[1])
    return torch.where(has_positive_phi(x, phi=residue.phi), 2, helical.long())


def broken_bonds(x: Tensor, *, topology: Topology, structure: Tensor) -> Tensor:
    """Number of bonds whose length differs by more than `STRETCH` from that in a reference structure, relative to the latter, [B] int64.

    Args:
        x: configurations [B, n, 3].
        topology: with the bonds.
        structure: [n, 3] intact, in the length unit of x.
    """
    bonds = torch.tensor(topology.bonds)
    rest = distances(structure[None].double(), bonds)
    return ((distances(x.double(), bonds) / rest - 1).abs() > STRETCH).sum(1)


def intactness(weighted: WeightedSamples, topology: Topology, structure: Tensor) -> Intactness:
    """Count broken bonds and what lies outside the target's chamber: inverted stereocentres and handed groups, each by itself; weigh them.

    Args:
        weighted: samples.
        topology: of the molecule.
        structure: [n, 3] intact, in the length unit of the samples.
    """
    whole = torch.isfinite(weighted.x).flatten(1).all(1)
    x = torch.where(whole[:, None, None], weighted.x, structure.double())
    broken = whole & (broken_bonds(x, topology=topology, structure=structure) > 0)
    inverted, renumbered = (whole & ~same_chirality(x, find(topology, structure)) for find in (stereocentres, handed_groups))
    return Intactness(n=int(whole.sum()), n_broken=int(broken.sum()), n_inverted=int(inverted.sum()), n_renumbered=int(renumbered.sum()),
                      broken=average(weighted, broken.double()), inverted=average(weighted, inverted.double()),
                      renumbered=average(weighted, renumbered.double()))


@dataclass(frozen=True, kw_only=True)
class DeltaF:
    """Delta F(phi) = -ln P(0 < phi <= 2 rad) + ln P(elsewhere) in kT, by every route that the samples allow.

    Attributes:
        by_route: "weights", "reference" (its samples alone), "pooled" and "local" (both together; see `free_energy`), as far as known.
        missing: why the others are not known.
    """

    by_route: Mapping[str, Estimate]
    missing: Mapping[str, str]


def delta_f(weighted: WeightedSamples, residue: Residue, *, reference: WeightedSamples | None = None,
            held_out: WeightedSamples | None = None, log_q: Tensor | None = None) -> DeltaF:
    """Delta F(phi) of one residue by every route; what cannot be had is missing with its reason.

    Args:
        weighted: samples of a generator, or MD.
        residue: whose phi.
        reference: equilibrium samples of the target, or None.
        held_out: equilibrium samples at which the generator's density is known (all or some of `reference`), or None.
        log_q: [M] that normalised log-density, or that of one path back from each.
    """
    basins = partial(has_other_phi, phi=residue.phi), partial(has_positive_phi, phi=residue.phi)
    routes = {"weights": partial(free_energy_difference, weighted)}
    missing = {}
    if reference is None:
        missing["reference"] = "there are no reference samples"
    else:
        routes["reference"] = partial(free_energy_difference, reference)
    if held_out is None or log_q is None:
        missing["pooled"] = missing["local"] = "the generator's density at reference samples is not known"
    else:
        routes |= {name: partial(f, weighted, held_out, log_q) for name, f in (("pooled", pooled_difference), ("local", local_difference))}
    by_route = {}
    for name, route in routes.items():
        try:
            by_route[name] = route(*basins)
        except ValueError as error:
            missing[name] = str(error)
    return DeltaF(by_route=by_route, missing=missing)
