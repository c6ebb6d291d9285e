"""OpenMM decides whether a force field fits a molecule; where it does not, every kind of residue is explained once."""

from __future__ import annotations

import pytest

from bgwork.system import load_system
from bgwork.targets.force_fields import ForceFieldError, molecule_system, read_pdb

FF14SB = ("amber14/protein.ff14SB.xml",)
WATER = """HETATM{n:5d}  O   HOH B{r:4d}       7.329   3.814   2.705  1.00  0.00           O
HETATM{n:5d}  H1  HOH B{r:4d}       8.017   3.161   2.831  1.00  0.00           H
HETATM{n:5d}  H2  HOH B{r:4d}       6.862   3.522   1.922  1.00  0.00           H"""
TWO_RESIDUES = """HETATM    1  C   AAA A   1       0.000   0.000   0.000  1.00  0.00           C
HETATM    2  C   BBB A   2       1.500   0.000   0.000  1.00  0.00           C
HETATM    3  O   BBB A   2       2.000   1.300   0.000  1.00  0.00           O
CONECT    1    2
CONECT    2    3
END
"""
NONBONDED = """<NonbondedForce coulomb14scale="0.8" lj14scale="0.5"><UseAttributeFromResidue name="charge"/>
<Atom type="c" sigma="0.3" epsilon="0.4"/><Atom type="o" sigma="0.3" epsilon="0.4"/></NonbondedForce>"""
TYPES = """<AtomTypes><Type name="c" class="c" element="C" mass="12"/><Type name="o" class="o" element="O" mass="16"/></AtomTypes>"""
WHOLE = """<Residues><Residue name="ALL"><Atom name="A" type="c" charge="0"/><Atom name="B" type="c" charge="0"/>
<Atom name="O" type="o" charge="0"/><Bond atomName1="A" atomName2="B"/><Bond atomName1="B" atomName2="O"/></Residue></Residues>"""
PATCHED = """<Residues><Residue name="AAA"><Atom name="C" type="c" charge="0"/><ExternalBond atomName="C"/></Residue>
<Residue name="BBB"><Atom name="C" type="c" charge="0"/><ExternalBond atomName="C"/><AllowPatch name="OXIDE"/></Residue></Residues>
<Patches><Patch name="OXIDE"><AddAtom name="O" type="o" charge="0"/><AddBond atomName1="C" atomName2="O"/></Patch></Patches>"""


@pytest.fixture
def edited(tmp_path):
    """The PDB file of alanine dipeptide, read after its text was replaced; its bonds are written out only if asked for."""
    def edit(*changes, more="", bonds=False):
        lines = (load_system("ala2-vacuum").path / "topology.pdb").read_text().splitlines()
        text = "\n".join(line for line in lines if line != "END" and (bonds or not line.startswith("CONECT"))) + f"\n{more}\nEND\n"
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "my.pdb").write_text(text)
        return read_pdb(tmp_path / "my.pdb")
    return edit


def own(tmp_path, templates):
    (tmp_path / "own.xml").write_text(f"<ForceField>{TYPES}{templates}{NONBONDED}</ForceField>")
    (tmp_path / "two.pdb").write_text(TWO_RESIDUES)
    return read_pdb(tmp_path / "two.pdb"), (str(tmp_path / "own.xml"),)


@pytest.mark.parametrize("templates", [WHOLE, PATCHED])
def test_whatever_openmm_builds_is_built(tmp_path, templates):
    """A template of the whole molecule, or of a residue without its patch, matches no residue as it stands."""
    pdb, files = own(tmp_path, templates)
    assert molecule_system(pdb, forcefield=files, solvent="vacuum").getNumParticles() == 3


def test_patches_are_not_complained_about(tmp_path):
    """Where one residue fails, others that need patches are not listed beside it."""
    _, files = own(tmp_path, PATCHED)
    (tmp_path / "two.pdb").write_text(TWO_RESIDUES.replace("0.00           C", "0.00           N", 1))
    with pytest.raises(ForceFieldError, match=r"1 residue does not match .*own.xml.*:\n  AAA 1: missing 1 C; too many: 1 N$"):
        molecule_system(read_pdb(tmp_path / "two.pdb"), forcefield=files, solvent="vacuum")


def test_openmm_speaks_where_residues_are_not_at_fault(edited):
    with pytest.raises(ForceFieldError, match="charmm36.xml cannot make a System of this molecule: Multiple.*such as amber14"):
        molecule_system(edited(), forcefield=("charmm36.xml",), solvent="vacuum")


def test_water_and_ions_are_one_line_each(edited):
    sodium = "HETATM  999 NA    NA C   1      10.921   2.053  -8.706  1.00  0.00          NA"
    water = "\n".join(WATER.format(n=30 + k, r=k) for k in range(1, 75))
    with pytest.raises(ForceFieldError) as caught:
        molecule_system(edited(more=f"{water}\n{sodium}"), forcefield=FF14SB, solvent="vacuum")
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  74 times HOH: water", "  NA 1: an atom or ion of its own"]
    assert "remove water, ions and other molecules: bgwork takes one:" in lines[0] and "pdbfixer" not in lines[0]


@pytest.mark.parametrize(("change", "message"), [
    ((" HB1 ALA", " HQ1 ALA"), r"(?s)names that the PDB has.*ALA 2: no bonds known of HQ1, and no atoms named HB1"),
    (("ALA", "LIG"), r"(?s)write its bonds as CONECT.*LIG 2: unknown residue name 'LIG', no bonds known of N, H, CA, HA and 5 more"),
    (("  1.00  0.00           H", "  1.00  0.00          EP"), r"(?s)remove virtual sites, and fill in columns 77-78.*without an element"),
    (("  1.00  0.00           N", "  1.00  0.00           O"), r"(?s)remove atoms, or .*ALA 2: missing 1 N; too many: 1 O"),
])
def test_the_remedy_is_that_of_the_fault(edited, change, message):
    with pytest.raises(ForceFieldError, match=message) as caught:
        molecule_system(edited(change), forcefield=FF14SB, solvent="vacuum")
    assert "pdbfixer" not in str(caught.value)


def test_virtual_sites_of_the_force_field(edited):
    with pytest.raises(ForceFieldError, match="(?s)choose a force field without virtual sites.*has virtual sites"):
        molecule_system(water_molecule(edited), forcefield=("amber14/tip4pew.xml",), solvent="vacuum")


def water_molecule(edited):
    path = load_system("ala2-vacuum").path / "topology.pdb"
    lines = path.read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    return edited(("\n".join(atoms), WATER.format(n=1, r=1)))


def test_chain_ends_that_are_cut_off(edited):
    """Without its cap the alanine is a chain's end, and an OXT is missing."""
    lines = (load_system("ala2-vacuum").path / "topology.pdb").read_text().splitlines()
    cap = [line for line in lines if "NME" in line]
    with pytest.raises(ForceFieldError, match=r"(?s)pdbfixer.*ALA 2: missing 1 O"):
        molecule_system(edited(*((line, "") for line in cap)), forcefield=FF14SB, solvent="vacuum")
