"""What the pictures of molecules show: the numbers of the records, one colour scale, angles in degrees."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ala2 import generated, simulated
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from bgwork.conformation import residues
from bgwork.figures import profile_curve
from bgwork.figures_molecular import (
    CEILING,
    as_generated,
    bond_lengths,
    circle,
    molecular_pictures,
    profiles,
    ramachandran_maps,
    sample_sets,
    surfaces,
    torsion_profile,
)
from bgwork.pareto import unseen_weight
from bgwork.profiles import Profile
from bgwork.records import WeightedSamples
from bgwork.reweighting import normalised_weights, weigh
from bgwork.system import System, load_system


@pytest.fixture(scope="module")
def system() -> System:
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def sets(system) -> dict[str, WeightedSamples]:
    return sample_sets(generated(system, 300), weigh(simulated(system, 300), system.target))


def test_raw_samples_weigh_the_same_but_for_failures(system):
    weighted = generated(system, 20)
    failing = replace(weighted, u=weighted.u.index_fill(0, torch.tensor([3]), math.nan).index_fill(0, torch.tensor([5]), math.inf))
    weight = normalised_weights(as_generated(failing))
    assert weight[3] == 0 and torch.allclose(weight[weight > 0], torch.tensor(1 / 19, dtype=torch.float64))


def test_maps_share_one_scale_and_degrees(system, sets):
    maps = surfaces(sets, residues(system.topology)[0])
    figure = ramachandran_maps(maps, name="residue 2")
    panels = figure.axes[: len(maps)]
    assert [axes.get_title(loc="left") for axes in panels] == ["generated, raw", "reweighted", "reference"]
    for axes, surface in zip(panels, maps.values(), strict=True):
        (mesh,) = axes.collections
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, CEILING) and axes.get_xlim() == axes.get_ylim() == (-180, 180)
        shown = np.ma.masked_invalid(mesh.get_array()).reshape(surface.value.T.shape)
        phi_bin, psi_bin = (surface.value == surface.value.min()).nonzero()[0].tolist()
        assert shown[psi_bin, phi_bin] == 0 and shown.mask.sum() == int((surface.value == math.inf).sum())
        assert shown.max() == pytest.approx((surface.value[surface.value < math.inf].max() - surface.value.min()).item())


def test_phi_lies_along_x_in_the_maps(system, sets):
    """Wells of the made-up samples: (-80, 80), (-150, 160), (60, -60) degrees; nothing where phi and psi are exchanged."""
    surface = surfaces(sets, residues(system.topology)[0], bins=18)["reference"]

    def at(phi: float, psi: float) -> float:
        i, j = (int((angle + 180) // 20) for angle in (phi, psi))
        return surface.value[i, j].item()

    assert max(at(-80, 80), at(-150, 160), at(60, -60)) < math.inf
    assert at(160, -150) == math.inf == at(60, 60)
    assert surface.outside == 0.0


def test_profile_draws_the_records(system, sets):
    curves = profiles(sets, residues(system.topology)[0])
    axes = torsion_profile(curves).axes[0]
    for line, (label, profile) in zip(axes.lines, curves.items(), strict=True):
        x, y = line.get_data()
        assert line.get_label() == label and x[0] == pytest.approx(-175) and x[-1] == pytest.approx(175)
        finite = (profile.value < math.inf).numpy()
        np.testing.assert_allclose(y[finite], (profile.value - profile.value.min())[profile.value < math.inf])
        assert np.isnan(y[~finite]).all()
    assert sum(isinstance(band, PolyCollection) for band in axes.collections) == 2 * len(curves)


def test_a_bin_without_neighbours_has_bars():
    """A band of no width is not seen."""
    profile = Profile(edges=circle(5), value=torch.tensor([1.0, 2.0, math.inf, 3.0, math.inf]), outside=0.0,
                      stderr=torch.tensor([0.1, 0.1, math.nan, 0.5, math.nan]))
    axes = Figure().subplots()
    profile_curve(axes, np.arange(5.0), profile, colour="k", label="one")
    bars = [line.get_segments() for line in axes.collections if isinstance(line, LineCollection)]
    assert [segments[0][:, 1].tolist() for segments in bars] == [[1.0, 3.0], [1.5, 2.5]] and all(len(s) == 1 for s in bars)


def test_a_profile_whose_error_is_infinite_has_no_band_and_says_so(system, sets):
    heavy = generated(system, 300, noise=5.0)
    assert unseen_weight(heavy) == math.inf
    axes = torsion_profile(profiles(sample_sets(heavy, None), residues(system.topology)[0])).axes[0]
    assert [line.get_label() for line in axes.lines] == ["generated, raw", "reweighted (no band: infinite)"]
    assert [len(band.get_paths()) > 0 for band in axes.collections] == [True, True, False, False]
    assert np.isfinite(axes.get_ylim()).all()


def test_bond_lengths_and_the_words_beside_them(system, sets):
    figure = bond_lengths(sets, system.topology, system.structure)
    assert [text.get_text().split("\n")[0] for text in figure.legends[0].get_texts()] == list(sets)
    weighted = sets["reweighted"]
    x = weighted.x.clone()
    x[0, 0] += 1.0
    broken = replace(weighted, proposal=replace(weighted.proposal, x=x))
    shown = molecular_pictures(broken, None, system.topology, system.structure)
    assert len(shown) == 3 and "Of 300 samples, 1 have a broken bond, 0 a stereocentre" in shown[2][1]
