"""Pictures of molecules from stored samples: Ramachandran maps, profiles along phi, bond lengths; angles in degrees, energies in kT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from bgwork.conformation import POSITIVE_PHI, Residue, intactness, residues
from bgwork.figures import BINS, POOLED, RAW, REFERENCE, STYLE, WEIGHTED, histogram, profile_curve, profile_limits
from bgwork.geometry import distances
from bgwork.observables import dihedral
from bgwork.profiles import Profile, Surface, free_energy_profile, free_energy_surface
from bgwork.records import WeightedSamples
from bgwork.reweighting import normalised_weights
from bgwork.topology import Topology

MAP_BINS = 36  # of 10 degrees
PROFILE_BINS = 36
CEILING = 10.0  # kT, the top of the colour scale; nothing is known of bins without samples, which stay blank
COLOURS = {"reweighted": WEIGHTED, "generated, raw": RAW, "reference": REFERENCE, "pooled": POOLED}
TICKS = (-180, -90, 0, 90, 180)


def circle(bins: int) -> Tensor:
    """Edges of equal bins from -pi to pi, [bins + 1]."""
    return torch.linspace(-math.pi, math.pi, bins + 1, dtype=torch.float64)


def as_generated(weighted: WeightedSamples) -> WeightedSamples:
    """The same samples with equal weights, as the generator made them; rows that failed still weigh nothing. For pictures only."""
    return replace(weighted, u=torch.where(weighted.failed, math.inf, -weighted.proposal.log_q))


def sample_sets(weighted: WeightedSamples, reference: WeightedSamples | None) -> dict[str, WeightedSamples]:
    """What is compared in every picture, by its label."""
    sets = {"generated, raw": as_generated(weighted), "reweighted": weighted}
    return sets if reference is None else sets | {"reference": reference}


def surfaces(sets: Mapping[str, WeightedSamples], residue: Residue, *, bins: int = MAP_BINS) -> dict[str, Surface]:
    """F(phi, psi) of every set."""
    angles = partial(dihedral, atoms=residue.phi), partial(dihedral, atoms=residue.psi)
    return {label: free_energy_surface(samples, angles, (circle(bins), circle(bins))) for label, samples in sets.items()}


def profiles(sets: Mapping[str, WeightedSamples], residue: Residue, *, bins: int = PROFILE_BINS) -> dict[str, Profile]:
    """F(phi) of every set."""
    return {label: free_energy_profile(samples, partial(dihedral, atoms=residue.phi), circle(bins)) for label, samples in sets.items()}


def ramachandran_maps(maps: Mapping[str, Surface], *, name: str = "") -> Figure:
    """F(phi, psi) side by side on one colour scale, each map's minimum at zero; bins without samples are blank."""
    scale, colours = Normalize(0, CEILING), mpl.colormaps["viridis_r"].copy()
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.1 * len(maps) + 0.9, 3.5))
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        for axes, (label, surface) in zip(panels, maps.items(), strict=True):
            value = torch.where(surface.value < math.inf, surface.value - surface.value.min(), math.nan)
            image = axes.pcolormesh(*(torch.rad2deg(edges).numpy() for edges in surface.edges), value.T.numpy(), cmap=colours, norm=scale)
            axes.set(title=label, xlabel=r"$\phi$  [degrees]", xticks=TICKS, yticks=TICKS, aspect="equal", facecolor="#f4f4f4")
        panels[0].set_ylabel(r"$\psi$  [degrees]")
        figure.colorbar(image, ax=list(panels), label="F / kT", shrink=0.85, extend="max")
        if name:
            figure.suptitle(name)
    return figure


def torsion_profile(curves: Mapping[str, Profile], *, name: str = "") -> Figure:
    """F(phi) with bands of one and two standard errors, each curve's minimum at zero; the basin of Delta F(phi) is shaded."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0))
        axes = figure.subplots()
        axes.axvspan(*(math.degrees(edge) for edge in POSITIVE_PHI), color="#f4f4f4", lw=0, zorder=0)
        for label, profile in curves.items():
            centre = torch.rad2deg((profile.edges[1:] + profile.edges[:-1]) / 2).numpy()
            profile_curve(axes, centre, profile, colour=COLOURS[label], label=label)
        axes.set(xlabel=r"$\phi$  [degrees]", ylabel="F / kT", xticks=TICKS, xlim=(-180, 180))
        left_out = profile_limits(axes, curves.values())
        axes.set_title(name or "Free energy along phi", fontsize=10)
        axes.set_title(f"bands: one and two standard errors{left_out}", fontsize=8, loc="right", color="#777777")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def bond_lengths(sets: Mapping[str, WeightedSamples], topology: Topology, structure: Tensor) -> Figure:
    """Length of every bond over that in the reference structure, all bonds together, with the number that lie beyond the picture."""
    bonds = torch.tensor(topology.bonds)
    rest = distances(structure[None].double(), bonds)
    edges = np.linspace(0.75, 1.25, BINS + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.subplots()
        for label, samples in sets.items():
            p = normalised_weights(samples)
            ratio = (distances(samples.x, bonds) / rest)[p != 0]
            curve = histogram(ratio, p[p != 0], edges, group=None, unseen=0.0)
            beyond = abs(1 - float((curve.density * np.diff(edges)).sum()))
            axes.stairs(curve.density, edges, color=COLOURS[label], lw=1.4, label=f"{label}\n({beyond:.1%} beyond)")
        axes.set(xlabel="bond length / length in the reference structure", ylabel="density", xlim=(edges[0], edges[-1]))
        axes.set_title("Bond lengths")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def molecular_pictures(weighted: WeightedSamples, reference: WeightedSamples | None, topology: Topology,
                       structure: Tensor) -> list[tuple[Figure, str]]:
    """What a report shows of a molecule, each picture with its caption.

    Args:
        weighted: samples.
        reference: equilibrium samples of the target, or None.
        topology: of the molecule.
        structure: [n, 3] intact, in the length unit of the samples.
    """
    sets, shown = sample_sets(weighted, reference), []
    for residue in residues(topology):
        name = f"residue {residue.name}" if residue.name else ""
        shown.append((ramachandran_maps(surfaces(sets, residue), name=name), "Ramachandran maps in kT, on one colour scale."))
        shown.append((torsion_profile(profiles(sets, residue), name=name),
                      "Free energy along phi; the shaded basin is that of Delta F(phi)."))
    shown.append((bond_lengths(sets, topology, structure), intactness_text(weighted, topology, structure)))
    return shown


def intactness_text(weighted: WeightedSamples, topology: Topology, structure: Tensor) -> str:
    """How many samples have broken bonds, inverted centres or renumbered hydrogens, and what these weigh, in words."""
    found = intactness(weighted, topology, structure)
    return (f"Of {found.n} samples, {found.n_broken} have a broken bond, {found.n_inverted} a stereocentre of the wrong hand and "
            f"{found.n_renumbered} the hydrogens of a CH3, NH3 or CH2 group numbered in the other sense; they carry "
            f"{found.broken.value:.2g}, {found.inverted.value:.2g} and {found.renumbered.value:.2g} of the weight. None is left out.")
