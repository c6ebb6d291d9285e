"""Systems from PDB files: energies of plain OpenMM, the OBC2 swap, and every refusal."""

from __future__ import annotations

import shutil

import openmm
import pytest
import torch
from openmm import app

from bgwork.spaces import MeanFree
from bgwork.system import list_systems, load_system
from bgwork.targets.force_fields import ForceFieldError, check_system, molecule_system, read_force_field, read_pdb, swap_obc2
from bgwork.targets.openmm import OpenMMTarget

FF14SB = ("amber14/protein.ff14SB.xml",)
MOLECULES = [name for name in list_systems() if load_system(name).energy == "force-field"]


@pytest.fixture(scope="module")
def pdb():
    return read_pdb(load_system("ala2-obc2").path / "topology.pdb")


@pytest.fixture
def edited(tmp_path):
    """A copy of the PDB file of alanine dipeptide, line by line through a function that may drop lines."""
    def edit(change):
        lines = (load_system("ala2-obc2").path / "topology.pdb").read_text().splitlines()
        path = tmp_path / "my.pdb"
        path.write_text("\n".join(line for line in map(change, lines) if line is not None) + "\n")
        return path
    return edit


def plain_energy(system, x, section):
    """Energies in kJ/mol of the System that OpenMM itself makes from the same files, without the swap."""
    pdb = read_pdb(system.path / "topology.pdb")
    field = app.ForceField(*section["forcefield"], *(["implicit/obc2.xml"] if section["solvent"] == "obc2" else []))
    plain = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False)
    return OpenMMTarget(plain, space=system.space, kT=1.0).u(x)


@pytest.mark.parametrize("name", MOLECULES)
def test_shipped_systems_have_openmms_energies(name):
    import tomllib

    system = load_system(name)
    section = tomllib.loads((system.path / "system.toml").read_text())["energy"]
    noise = torch.randn(6, *system.structure.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = system.structure + 0.01 * torch.arange(6)[:, None, None] * noise
    kT = 8.31446261815324e-3 * section["temperature"]
    difference = system.target.inner.u(x) * kT - plain_energy(system, x, section)
    assert difference.abs().max() < 0.003


def test_the_swap_replaces_one_force(pdb):
    system = molecule_system(pdb, forcefield=FF14SB, solvent="obc2")
    kinds = [type(force).__name__ for force in system.getForces()]
    assert kinds.count("GBSAOBCForce") == 1 and "CustomGBForce" not in kinds
    vacuum = molecule_system(pdb, forcefield=FF14SB, solvent="vacuum")
    x, space = load_system("ala2-obc2").structure[None], MeanFree(n=22, d=3)
    solvated, bare = (OpenMMTarget(s, space=space, kT=1.0).u(x).item() for s in (system, vacuum))
    assert solvated < bare - 20  # water stabilises a dipole
    with pytest.raises(ForceFieldError, match="0 CustomGBForces, expected one"):
        swap_obc2(vacuum)


def test_missing_hydrogens(edited):
    path = edited(lambda line: None if line[12:16].strip() in ("HB2", "HB3", "H") or line.startswith("CONECT") else line)
    with pytest.raises(ForceFieldError, match=r"(?s)pdbfixer.*ALA 2: missing 3 H"):
        molecule_system(read_pdb(path), forcefield=FF14SB, solvent="vacuum")


def test_missing_heavy_atoms(edited):
    path = edited(lambda line: None if line[12:16].strip() == "CB" else line)
    with pytest.raises(ForceFieldError, match=r"(?s)pdbfixer.*ALA 2: missing 1 C"):
        molecule_system(read_pdb(path), forcefield=FF14SB, solvent="vacuum")


def test_unknown_residue(edited):
    path = edited(lambda line: line.replace("ALA", "XYZ"))
    with pytest.raises(ForceFieldError, match=r"(?s)--forcefield.*XYZ 2: unknown residue name 'XYZ'"):
        molecule_system(read_pdb(path), forcefield=FF14SB, solvent="vacuum")


def test_files_that_are_no_structures(tmp_path):
    with pytest.raises(ForceFieldError, match="no PDB file .*nowhere.pdb"):
        read_pdb(tmp_path / "nowhere.pdb")
    (tmp_path / "empty.pdb").write_text("REMARK nothing\nEND\n")
    with pytest.raises(ForceFieldError, match="holds no atoms"):
        read_pdb(tmp_path / "empty.pdb")
    (tmp_path / "broken.pdb").write_text("ATOM      1  N   ALA A   1      x.xxx   0.000   0.000  1.00  0.00           N\nEND\n")
    with pytest.raises(ForceFieldError, match="not a readable PDB file"):
        read_pdb(tmp_path / "broken.pdb")


def test_force_field_not_found(pdb):
    with pytest.raises(ForceFieldError, match="amber99/nothing.xml cannot be loaded.*such as amber14/protein.ff14SB.xml, amber19"):
        molecule_system(pdb, forcefield=("amber99/nothing.xml",), solvent="vacuum")
    with pytest.raises(ForceFieldError, match="unknown solvent 'water'; known are vacuum, obc2"):
        molecule_system(pdb, forcefield=FF14SB, solvent="water")


def test_damaged_force_field(pdb, tmp_path):
    (tmp_path / "mine.xml").write_text("<ForceField><AtomTypes>")
    with pytest.raises(ForceFieldError, match="mine.xml cannot be loaded"):
        molecule_system(pdb, forcefield=(str(tmp_path / "mine.xml"),), solvent="vacuum")


def test_force_field_with_a_script_is_not_run(pdb, tmp_path):
    """OpenMM would execute the Python in a <Script>; a file from elsewhere may hold anything."""
    (tmp_path / "mine.xml").write_text(f"<ForceField><Script>open({str(tmp_path / 'ran')!r}, 'w')</Script></ForceField>")
    with pytest.raises(ForceFieldError, match="holds a <Script>, which OpenMM would execute"):
        molecule_system(pdb, forcefield=(*FF14SB, str(tmp_path / "mine.xml")), solvent="vacuum")
    assert not (tmp_path / "ran").exists()


def test_shipped_files_may_have_scripts_and_copies_may_not(tmp_path):
    assert read_force_field(FF14SB, "obc2")
    shipped = openmm.__path__[0] + "/app/data/implicit/obc2.xml"
    assert "<Script>" in open(shipped).read()
    shutil.copy(shipped, tmp_path / "obc2.xml")
    with pytest.raises(ForceFieldError, match="<Script>"):
        read_force_field((*FF14SB, str(tmp_path / "obc2.xml")), "vacuum")


def with_force(force=None, *, constraint=False, site=False, box=False):
    system, pair = openmm.System(), openmm.NonbondedForce()
    for _ in range(3):
        system.addParticle(0.0 if site and system.getNumParticles() == 2 else 12.0)
        pair.addParticle(0.0, 0.3, 0.1)
    if box:
        pair.setNonbondedMethod(openmm.NonbondedForce.PME)
    if constraint:
        system.addConstraint(0, 1, 0.1)
    if site:
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    for each in (pair, force):
        if each is not None:
            system.addForce(each)
    return system


@pytest.mark.parametrize(("system", "message"), [
    (with_force(constraint=True), "1 constraints, .* constraints=None"),
    (with_force(site=True), "virtual sites.* remove water"),
    (with_force(openmm.CustomExternalForce("x^2")), "unsupported force terms CustomExternalForce; supported are .* such as amber14"),
    (with_force(openmm.MonteCarloBarostat(1.0, 300.0)), "unsupported force terms MonteCarloBarostat"),
    (with_force(openmm.AmoebaMultipoleForce()), "unsupported force terms AmoebaMultipoleForce"),
    (with_force(box=True), "NonbondedForce are periodic"),
])
def test_systems_whose_density_is_not_defined(system, message):
    with pytest.raises(ForceFieldError, match=message):
        check_system(system)


def test_a_plain_system_passes():
    check_system(with_force(openmm.HarmonicBondForce()))
