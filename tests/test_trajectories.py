"""A user's own trajectory: what is taken over, and every refusal."""

from __future__ import annotations

import dataclasses
import math

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from frames import without_memory

from bgwork import units
from bgwork.export import export_samples
from bgwork.reference import save
from bgwork.reference_checks import ReferenceError
from bgwork.reference_trajectory import bond_temperature_check, force_checks, from_trajectory, slowest_correlation
from bgwork.reweighting import weigh
from bgwork.samplers.md import decorrelate
from bgwork.system import load_system, reference_samples
from bgwork.targets.openmm import OpenMMTarget
from bgwork.topology import backbone_torsions
from bgwork.trajectories import TrajectoryError, check_structure, read_trajectory

SETTINGS = {"frame_time": 0.2, "temperature": 300.0}


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def x(system):
    return without_memory(system)


@pytest.fixture
def written(system, tmp_path):
    """Writes configurations as a trajectory in any format."""
    def write(x, name, scale=1.0):
        top = mdtraj.load(str(system.topology.path)).topology
        mdtraj.Trajectory(np.asarray(x) * scale, top).save(str(tmp_path / name))
        return tmp_path / name
    return write


@pytest.mark.parametrize(("name", "tolerance"), [("a.dcd", 1e-6), ("a.xtc", 6e-4), ("a.pdb", 6e-5)])
def test_formats_come_back(system, written, x, name, tolerance):
    back = read_trajectory(written(x[:9], name), topology=system.topology)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, x[:9], rtol=0, atol=tolerance)


def test_hdf5_comes_back(system, x, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coordinates"] = x[:9].numpy()
    assert torch.equal(read_trajectory(tmp_path / "a.h5", topology=system.topology), x[:9])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["positions"] = x[:9].numpy()
    with pytest.raises(TrajectoryError, match="no `coordinates`.*found positions"):
        read_trajectory(tmp_path / "b.h5", topology=system.topology)


def test_equilibrium_trajectory_is_taken_over(system, written, x, tmp_path):
    made = from_trajectory(system, written(x, "a.dcd"), top=system.topology.path, **SETTINGS)
    assert [c.name for c in made.checks if not c.passed] == []
    assert made.proposal.group.unique().numel() == made.made["blocks"] >= 4
    assert 0 <= made.made["correlation_time_ps"] < 0.1 and "correlation time" in made.proposal.note
    torch.testing.assert_close(-made.proposal.log_q, system.target.u(made.proposal.x))
    assert abs(made.estimates["virial"].value - 63) < 4 * made.estimates["virial"].stderr
    save(made, tmp_path / "out")
    assert (tmp_path / "out" / "samples.npz").exists()


def test_another_temperature_shows_in_the_bonds(system, written, x, tmp_path):
    """Frames of 400 K that claim to be of 300 K."""
    hot = OpenMMTarget(system.target.inner.system(), space=system.space, kT=units.kT(400.0))
    for seed in range(3):
        x, _ = decorrelate(hot, x, steps=20, step=0.001, generator=torch.Generator().manual_seed(seed))
    made = from_trajectory(system, written(x, "hot.dcd"), **SETTINGS)
    assert any("temperature of the bonds" in c.name for c in made.checks if not c.passed)
    with pytest.raises(ReferenceError, match="temperature of the bonds"):
        save(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frames_of_another_solvent_are_noticed(system, written, tmp_path):
    """Implicit water leaves bonds at their temperature, and pulls at those with charges."""
    frames = reference_samples(load_system("ala2-obc2")).x
    made = from_trajectory(system, written(frames, "wet.dcd"), **SETTINGS)
    lost = {c.name: c for c in made.checks if not c.passed}
    assert "forces along bonds, standard errors off balance" in lost and "temperature of the bonds, relative deviation" not in lost
    assert "between ALA2-C and ALA2-O" in str(lost["forces along bonds, standard errors off balance"])
    with pytest.raises(ReferenceError, match="make the system with the force field, solvent and temperature of the trajectory"):
        save(made, tmp_path / "out")


def test_torsional_terms_of_another_force_field_are_noticed(system, written, x):
    """A term of 10 kJ/mol on phi: bonds vibrate as before, and torques about N-CA do not balance."""
    other = system.target.inner.system()
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(*backbone_torsions(system.topology)["phi"], 2, 0.3, 10.0)
    other.addForce(force)
    target = OpenMMTarget(other, space=system.space, kT=system.target.kT)
    moved = resampled(x, system, target)
    for seed in range(3):
        moved, _ = decorrelate(target, moved, steps=40, step=0.001, generator=torch.Generator().manual_seed(seed))
    made = from_trajectory(system, written(moved, "other.dcd"), **SETTINGS)
    lost = {c.name: c for c in made.checks if not c.passed}
    assert "torques about bonds, most standard errors off balance" in lost
    assert "ALA2-N" in str(lost["torques about bonds, most standard errors off balance"])
    assert not any("along bonds" in name or "of the bonds" in name for name in lost)


def resampled(x, system, target):
    """Frames of the system's energy drawn by weight for another's."""
    log_w = system.target.u(x) - target.u(x)
    return x[torch.multinomial(torch.softmax(log_w, 0), len(x), replacement=True, generator=torch.Generator().manual_seed(9))]


def test_a_basin_that_was_never_left_is_told_and_compared(system, written, x):
    """Frames of one basin are in equilibrium within it; the values kept with the system know of the other."""
    inside = x[system.functions["phi_positive"](x) == 0]
    made = from_trajectory(system, written(inside.repeat(3, 1, 1), "one.dcd"), **SETTINGS)
    assert "phi is never between 0 and 2 rad, so that these frames say nothing of the populations" in made.proposal.note
    lost = [c.name for c in made.checks if not c.passed]
    assert "the values kept with ala2-vacuum agree on phi_positive, difference in standard errors" in lost
    assert all(name.startswith("the values kept with ala2-vacuum") for name in lost)
    nothing_known = dataclasses.replace(system, references={})
    made = from_trajectory(nothing_known, written(inside, "two.dcd"), **SETTINGS)
    assert all(c.passed for c in made.checks) and "phi is never between" in made.proposal.note


def test_temperature_of_the_bonds_is_judged_by_its_error(system, x):
    """Forces 6 % too strong: nothing that fifty frames could tell, too much for a thousand; 30 % is too much for any."""
    gradient = system.target.u_and_grad(x)[1]
    proposal = dataclasses.replace(reference_samples(system).take(torch.arange(1000)), x=x, log_q=-system.target.u(x), group=None)

    def check(n, factor):
        return bond_temperature_check(system, weigh(proposal.take(torch.arange(n)), system.target), factor * gradient[:n])

    assert check(50, 1.06).passed and check(1000, 1.0).passed
    assert not check(1000, 1.06).passed and not check(50, 1.3).passed and check(10, 1.0).limit == pytest.approx(0.1)


def test_frames_of_the_other_hand_alone_fail_a_check(system, x):
    """Not a bare error about a slice: nothing is left to look at forces with."""
    nought = torch.zeros(20, dtype=torch.float64)
    mirrored = dataclasses.replace(reference_samples(system).take(torch.arange(20)), x=-x[:20], log_q=nought, group=None)
    weighted = dataclasses.replace(weigh(mirrored, system.target), u=torch.full((20,), math.inf, dtype=torch.float64))
    (only,) = force_checks(system, weighted)
    assert not only.passed and "0 of 20" in str(only)


@pytest.mark.parametrize("kind", ["dcd", "hdf5"])
def test_exports_of_a_generators_samples_are_no_dynamics(system, x, tmp_path, kind):
    """Drawn by weight or not: they would confirm themselves."""
    proposal = dataclasses.replace(reference_samples(system).take(torch.arange(40)), x=x[:40], log_q=-system.target.u(x[:40]), group=None)
    exported = export_samples(weigh(proposal, system.target), system, tmp_path / "mine", kind=kind)[0]
    with pytest.raises(TrajectoryError, match="is an export of bgwork"):
        from_trajectory(system, exported, **SETTINGS)


def test_constrained_bonds_are_noticed(system, written, x):
    """Hydrogens put back to their mean bond lengths, as constraints would hold them."""
    stiff = x.clone()
    for i, j in system.topology.bonds:
        heavy, light = (j, i) if system.topology.elements[i] == "H" else (i, j)
        if system.topology.elements[light] == "H":
            bond = stiff[:, light] - stiff[:, heavy]
            length = bond.norm(dim=1, keepdim=True)
            stiff[:, light] = stiff[:, heavy] + bond / length * length.mean()
    made = from_trajectory(system, written(stiff, "stiff.dcd"), **SETTINGS)
    assert any("temperature of the bonds" in c.name for c in made.checks if not c.passed)


def test_correlation_time_of_a_known_process(system, x):
    """Frames repeated k times in a row have k times the statistical inefficiency."""
    one, four = (slowest_correlation(system, x.repeat_interleave(k, 0))[0] for k in (1, 4))
    assert one < 1.6 and four == pytest.approx(4 * one, rel=0.3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": 310.0, "frame_time": 0.2}, "run at 310 K, ala2-vacuum is at 300 K"),
    ({"temperature": math.nan, "frame_time": 0.2}, "run at nan K, ala2-vacuum is at 300 K"),
    ({"temperature": 300.0, "frame_time": 0.0}, "must be positive, got 0.0 ps"),
    ({"temperature": 300.0, "frame_time": math.inf}, "must be positive, got inf ps"),
])
def test_settings_that_do_not_match(system, written, x, settings, message):
    with pytest.raises(TrajectoryError, match=message):
        from_trajectory(system, written(x[:20], "a.dcd"), **settings)


def test_too_short(system, written, x):
    with pytest.raises(TrajectoryError, match=r"too short: correlation time .* ps .*need at least \d+ frames"):
        from_trajectory(system, written(x[:12], "a.dcd"), **SETTINGS)


def test_clusters_take_no_trajectories(tmp_path):
    with pytest.raises(TrajectoryError, match="lj13 is not a molecule"):
        from_trajectory(load_system("lj13"), tmp_path / "a.dcd", **SETTINGS)


def test_another_number_of_atoms(system, written, x, tmp_path):
    smaller = mdtraj.load(str(system.topology.path)).atom_slice(range(12))
    smaller.save(str(tmp_path / "small.dcd"))
    smaller.save(str(tmp_path / "small.pdb"))
    with pytest.raises(TrajectoryError, match="small.dcd has 12 atoms, .*topology.pdb has 22"):
        read_trajectory(tmp_path / "small.dcd", topology=system.topology)
    for path, top in ((tmp_path / "small.dcd", tmp_path / "small.pdb"), (tmp_path / "small.pdb", None)):
        with pytest.raises(TrajectoryError, match="small.pdb has 12 atoms, .*topology.pdb has 22"):
            read_trajectory(path, topology=system.topology, top=top)


def test_another_order_of_atoms(system, written, x, tmp_path):
    order = [1, 0, *range(2, 22)]
    mdtraj.load(str(system.topology.path)).atom_slice(order).save(str(tmp_path / "other.pdb"))
    lines = system.topology.path.read_text().splitlines()
    first, second = (k for k, line in enumerate(lines) if line[6:11].strip() in ("1", "2") and line.startswith("HETATM"))
    lines[first], lines[second] = lines[second], lines[first]
    (tmp_path / "swapped.pdb").write_text("\n".join(line for line in lines if not line.startswith("CONECT")))
    with pytest.raises(TrajectoryError, match="atom 1 of .*swapped.pdb is ACE1-CH3, of .*topology.pdb ACE1-H1: another order"):
        read_trajectory(written(x[:5], "a.dcd"), topology=system.topology, top=tmp_path / "swapped.pdb")
    with pytest.raises(TrajectoryError, match="of the frames have broken bonds"):
        check_structure(x[:5, list(reversed(range(22)))], topology=system.topology, structure=system.structure)


def test_a_box_that_cuts_the_molecule(system, x):
    wrapped = torch.remainder(x[:20], 0.4)
    with pytest.raises(TrajectoryError, match="periodic box.*image_molecules"):
        check_structure(wrapped, topology=system.topology, structure=system.structure)


def test_hydrogens_numbered_in_the_other_sense(system, written, x):
    turned = x.clone()
    turned[:, [11, 12]] = x[:, [12, 11]]
    with pytest.raises(TrajectoryError, match="ALA2-HB1, ALA2-HB2, ALA2-HB3 .* hydrogens numbered otherwise"):
        from_trajectory(system, written(turned, "a.dcd"), **SETTINGS)


def test_mirror_images(system, written, x):
    """All but the stereocentre is right: a D amino acid."""
    mirrored = x * torch.tensor([1.0, 1.0, -1.0])
    for a, b in ((0, 2), (11, 12), (19, 20)):
        mirrored[:, [a, b]] = mirrored[:, [b, a]]
    with pytest.raises(TrajectoryError, match="around ALA2-CA in the other sense .* mirror image"):
        from_trajectory(system, written(mirrored, "a.dcd"), **SETTINGS)
    made = from_trajectory(system, written(torch.cat([x, mirrored[:3]]), "b.dcd"), **SETTINGS)
    assert [c.name for c in made.checks if not c.passed] == ["share of frames with inverted centres"]


@pytest.mark.parametrize("name", ["a.dcd", "a.xtc", "a.pdb"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.97])
def test_empty_and_truncated(system, written, x, name, share):
    path = written(x[:20], name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises((TrajectoryError, ValueError), match="empty|truncated|no atoms"):
        read_trajectory(path, topology=system.topology)


def test_cut_at_a_frame(system, written, x):
    """A DCD file of whole frames, but fewer than its header claims."""
    path = written(x[:20], "a.dcd")
    frame = 3 * (4 * 22 + 8)
    path.write_bytes(path.read_bytes()[:-frame])
    with pytest.raises(TrajectoryError, match="truncated: it claims 20 frames and holds 19"):
        read_trajectory(path, topology=system.topology)


def test_no_frames_and_no_numbers(system, written, x, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coordinates"] = np.zeros((0, 22, 3))
    with pytest.raises(TrajectoryError, match="holds no frames"):
        read_trajectory(tmp_path / "a.h5", topology=system.topology)
    broken = x[:5].clone()
    broken[3, 2] = torch.nan
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["coordinates"] = broken.numpy()
    with pytest.raises(TrajectoryError, match=r"1 of 5 frames hold NaN .*first: frame 3"):
        read_trajectory(tmp_path / "b.h5", topology=system.topology)


def test_other_files(system, tmp_path):
    with pytest.raises(TrajectoryError, match="format '.trr' are not read; known are .dcd, .xtc"):
        read_trajectory(tmp_path / "a.trr", topology=system.topology)
    with pytest.raises(TrajectoryError, match="no trajectory .*a.dcd"):
        read_trajectory(tmp_path / "a.dcd", topology=system.topology)
    with pytest.raises(ValueError, match="no PDB file"):
        (tmp_path / "a.dcd").write_bytes(b"x")
        read_trajectory(tmp_path / "a.dcd", topology=dataclasses.replace(system.topology), top=tmp_path / "none.pdb")
