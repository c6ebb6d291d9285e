"""Force-field files: which work, which bring a solvent or a script, and what they include."""

from __future__ import annotations

import openmm
import pytest
import torch

from bgwork.spaces import MeanFree
from bgwork.system import load_system
from bgwork.targets.force_field_files import RECOMMENDED, ForceFieldError, check_solvent, read_force_field
from bgwork.targets.force_fields import molecule_system, read_pdb
from bgwork.targets.molecular_mechanics import MolecularMechanics
from bgwork.targets.openmm import OpenMMTarget


@pytest.fixture(scope="module")
def pdb():
    return read_pdb(load_system("ala2-vacuum").path / "topology.pdb")


@pytest.mark.parametrize("solvent", ["vacuum", "obc2"])
@pytest.mark.parametrize("name", RECOMMENDED)
def test_what_errors_recommend_works(pdb, name, solvent):
    system = molecule_system(pdb, forcefield=(name,), solvent=solvent)
    x, space = load_system("ala2-vacuum").structure[None], MeanFree(n=22, d=3)
    u = OpenMMTarget(system, space=space, kT=1.0).u(x)
    assert torch.isfinite(u).all() and abs(u - MolecularMechanics(system, space=space, kT=1.0, name="twin").u(x)) < 1e-3


@pytest.mark.parametrize("solvent", ["vacuum", "obc2"])
@pytest.mark.parametrize("name", ["amber99_obc.xml", "implicit/obc2.xml", "implicit/gbn2.xml", "amoeba2018_gk.xml"])
def test_no_second_solvent(name, solvent):
    """Files with generalized Born in them would count beside OBC2, or make a vacuum none."""
    with pytest.raises(ForceFieldError, match=f"force field {name} brings an implicit solvent.*leave it out.*only vacuum and obc2 are"):
        read_force_field(("amber99sbildn.xml", name), solvent)


@pytest.mark.parametrize("kind", ["GBSAOBCForce", "CustomGBForce", "AmoebaGeneralizedKirkwoodForce"])
def test_no_solvent_in_files_of_ones_own(tmp_path, kind):
    (tmp_path / "water.xml").write_text(f"<ForceField><{kind}></{kind}></ForceField>")
    (tmp_path / "mine.xml").write_text("<ForceField><Include file='water.xml'/></ForceField>")
    with pytest.raises(ForceFieldError, match=rf"mine.xml \(through water.xml\) brings .* \({kind}\)"):
        read_force_field((str(tmp_path / "mine.xml"),), "vacuum")


@pytest.mark.parametrize(("forces", "solvent", "message"), [
    ([openmm.GBSAOBCForce], "vacuum", "makes GBSAOBCForce, but solvent 'vacuum' stands for none"),
    ([openmm.GBSAOBCForce, openmm.GBSAOBCForce], "obc2", "makes GBSAOBCForce, GBSAOBCForce, but solvent 'obc2' stands for GBSAOBCForce"),
    ([openmm.CustomGBForce], "obc2", "makes CustomGBForce, but"), ([], "obc2", "makes no force of an implicit solvent"),
])
def test_the_solvent_is_what_it_is_called(forces, solvent, message):
    system = openmm.System()
    for force in forces:
        system.addForce(force())
    with pytest.raises(ForceFieldError, match=message):
        check_solvent(system, solvent)


def test_a_script_is_found_wherever_openmm_finds_the_file(tmp_path, monkeypatch):
    """An <Include> that is not beside its file is looked for in the working folder."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "there.xml").write_text(f"<ForceField><Script>open({str(tmp_path / 'ran')!r}, 'w')</Script></ForceField>")
    (tmp_path / "mine.xml").write_text("<ForceField><Include file='there.xml'/></ForceField>")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ForceFieldError, match="there.xml holds a <Script>"):
        read_force_field((str(tmp_path / "mine.xml"),), "vacuum")


@pytest.mark.parametrize(("file", "message"), [
    ("gone.xml", "mine.xml includes 'gone.xml', which is neither beside it nor shipped"), ("mine.xml", "includes itself"),
    ("./back.xml", "includes itself"),
])
def test_includes_that_end_nowhere(tmp_path, file, message):
    (tmp_path / "back.xml").write_text("<ForceField><Include file='./mine.xml'/></ForceField>")
    (tmp_path / "mine.xml").write_text(f"<ForceField><Include file='{file}'/></ForceField>")
    with pytest.raises(ForceFieldError, match=message):
        read_force_field((str(tmp_path / "mine.xml"),), "vacuum")
