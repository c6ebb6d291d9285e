"""A user's PDB file becomes a system, or is refused and leaves nothing behind."""

from __future__ import annotations

import shutil

import pytest
import torch
from openmm import app

from bgwork import store
from bgwork.new_system import NewSystem, _recipe, new_system
from bgwork.recipes import Request, default_recipe, load_recipe
from bgwork.system import SystemFileError, load_system, reference_samples
from bgwork.targets.chamber import Chamber
from bgwork.targets.force_fields import ForceFieldError


@pytest.fixture
def pdb(tmp_path):
    """A copy of alanine dipeptide under another name; `pdb(change)` passes its lines through a function that may drop some."""
    def make(change=lambda line: line, name="my.pdb"):
        lines = (load_system("ala2-vacuum").path / "topology.pdb").read_text().splitlines()
        (tmp_path / name).write_text("\n".join(line for line in map(change, lines) if line is not None) + "\n")
        return tmp_path / name
    return make


def test_the_new_system_is_the_shipped_one(pdb, tmp_path):
    path = new_system(NewSystem(pdb=pdb(), solvent="vacuum", name="mine"), folder=tmp_path / "systems")
    mine, shipped = load_system(path), load_system("ala2-vacuum")
    x = shipped.structure + 0.01 * torch.randn(5, 22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(mine.target.u(x), shipped.target.u(x))
    assert isinstance(mine.target, Chamber) and mine.topology.bonds == shipped.topology.bonds
    assert mine.basins == "phi_basin" and "phi_positive" in mine.observables
    assert 0.5 * shipped.prior.std < mine.prior.std < 2 * shipped.prior.std
    assert load_system("mine", folder=tmp_path / "systems").name == "mine"


def test_the_new_system_has_a_recipe_that_trains(pdb, tmp_path):
    """The one shipped for the same molecule, whose batches are those that a step of the new system's takes up."""
    system, shipped = (load_system(path) for path in (new_system(NewSystem(pdb=pdb(), solvent="vacuum"), folder=tmp_path), "ala2-vacuum"))
    recipe, known = load_recipe(system), load_recipe(shipped, "fm-scratch")
    assert default_recipe(system) == "fm" and recipe.model_dump() == known.model_dump()
    job = load_recipe(system, overrides=["training.batch=2", "field.hidden=8"]).job(
        Request(system=system, name="fm", folder=tmp_path, seed=0, data=reference_samples(shipped).x))
    assert job.data.forces is not None and torch.isfinite(job.loss(job.model, job.data(0)))


def test_the_new_system_has_a_recipe_to_go_on_with(tmp_path):
    """That of tri-alanine, but for the sizes that follow the structure and what is drawn more often; it begins with fm's generator."""
    shipped = load_system("ala3-obc2")
    system = load_system(new_system(NewSystem(pdb=shipped.path / "topology.pdb", solvent="obc2", name="mine"), folder=tmp_path))
    made, known = (load_recipe(of, "fm-framed").model_dump() for of in (system, shipped))
    assert made["training"].pop("initial") == "runs/mine/fm-0/generator.safetensors"
    sized = {"field": ("n_basis", "r_max"), "coupling": (), "sampler": (), "training": ("batch", "oversample", "initial")}
    for table, free in sized.items():
        assert {k: v for k, v in made[table].items() if k not in free} == {k: v for k, v in known[table].items() if k not in free}
    request = Request(system=system, name="fm-framed", folder=tmp_path, seed=0, data=reference_samples(shipped).x[:300])
    with pytest.raises(store.FileError, match="no checkpoint runs/mine/fm-0/generator.safetensors to start from; train it first"):
        load_recipe(system, "fm-framed", overrides=["training.forces_after=1.0"]).job(request)


def test_the_recipe_follows_the_size_of_the_molecule():
    """A chain twice as long as the shipped one's reach needs a longer radial basis and smaller batches."""
    chain = torch.zeros(60, 3, dtype=torch.float64)
    chain[:, 0] = torch.linspace(0, 4.0, 60)
    made = _recipe(chain)
    assert made["field"]["r_max"] == 6.0 and made["field"]["n_basis"] == 96 and made["training"]["batch"] == 16


def test_temperature_scales_energy_and_ladder(pdb, tmp_path):
    hot = load_system(new_system(NewSystem(pdb=pdb(), solvent="vacuum", temperature=450.0), folder=tmp_path))
    assert hot.name == "my" and hot.reference.temperatures[0] == 450.0 and hot.reference.temperatures[-1] == pytest.approx(1800)
    x = hot.structure[None]
    assert hot.target.u(x).item() == pytest.approx(load_system("ala2-vacuum").target.u(x).item() / 1.5)


def test_a_force_field_of_ones_own_is_copied(pdb, tmp_path, monkeypatch):
    shutil.copy(app.__path__[0] + "/data/amber99sbildn.xml", tmp_path / "own.xml")
    path = new_system(NewSystem(pdb=pdb(), forcefield=(str(tmp_path / "own.xml"),), solvent="vacuum"), folder=tmp_path / "s")
    (tmp_path / "own.xml").unlink()
    monkeypatch.chdir("/")
    u = load_system(path).target.u(load_system(path).structure[None])
    assert torch.isfinite(u).all() and (path / "own.xml").exists()


def test_what_a_force_field_includes_is_copied_too(pdb, tmp_path):
    """In its place relative to the copy; what OpenMM ships is not."""
    shutil.copy(app.__path__[0] + "/data/amber99sbildn.xml", tmp_path / "base.xml")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "types.xml").write_text("<ForceField><Include file='../base.xml'/><Include file='tip3p.xml'/></ForceField>")
    (tmp_path / "own.xml").write_text("<ForceField><Include file='sub/types.xml'/></ForceField>")
    path = new_system(NewSystem(pdb=pdb(), forcefield=(str(tmp_path / "own.xml"),), solvent="vacuum"), folder=tmp_path / "s")
    shutil.move(path, tmp_path / "elsewhere" / "my")
    for file in ("base.xml", "own.xml", "sub/types.xml"):
        (tmp_path / file).unlink()
    assert load_system(tmp_path / "elsewhere" / "my").structure.shape == (22, 3)
    found = {file.relative_to(tmp_path / "elsewhere" / "my").as_posix() for file in (tmp_path / "elsewhere").rglob("*.xml")}
    assert found == {"base.xml", "own.xml", "sub/types.xml"}


@pytest.mark.parametrize("given", ["amber14/protein.ff14SB.xml", app.__path__[0] + "/data/amber14/protein.ff14SB.xml"])
def test_shipped_force_fields_go_by_their_names(pdb, tmp_path, given):
    path = new_system(NewSystem(pdb=pdb(), forcefield=(given,), solvent="vacuum"), folder=tmp_path / "s")
    assert 'forcefield = [\n    "amber14/protein.ff14SB.xml",\n]' in (path / "system.toml").read_text() and not list(path.glob("*.xml"))


@pytest.mark.parametrize(("files", "given", "message"), [
    ({"a/ff.xml": "", "b/ff.xml": ""}, ["a/ff.xml", "b/ff.xml"], "a/ff.xml and b/ff.xml would both be called ff.xml"),
    ({"a/amber99sbildn.xml": ""}, ["a/amber99sbildn.xml"], "would both be called amber99sbildn.xml"),
    ({"a/ff.xml": "tip3p.xml", "b/tip3p.xml": ""}, ["a/ff.xml", "b/tip3p.xml"], "would both be called tip3p.xml"),
    ({"a/ff.xml": "../b/more.xml", "b/more.xml": ""}, ["a/ff.xml"], "a/ff.xml includes '../b/more.xml', which could not be found"),
    ({"a/ff.xml": "b/more.xml", "b/more.xml": ""}, ["a/ff.xml"], "a/ff.xml includes 'b/more.xml', which could not be found from a copy"),
    ({"a/ff.xml": "{here}/more.xml", "more.xml": ""}, ["a/ff.xml"], "more.xml', which could not be found from a copy"),
])
def test_force_fields_that_cannot_be_copied(pdb, tmp_path, monkeypatch, files, given, message):
    """Two files of one name, the second of which would replace the first, and includes that only work from where the file lies."""
    monkeypatch.chdir(tmp_path)
    for name, included in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        include = f"<Include file='{included.format(here=tmp_path)}'/>" if included else ""
        (tmp_path / name).write_text(f"<ForceField>{include}</ForceField>")
    wanted = NewSystem(pdb=pdb(), forcefield=("amber99sbildn.xml", *given), solvent="vacuum")
    with pytest.raises(ForceFieldError, match=message):
        new_system(wanted, folder=tmp_path / "systems")
    assert not (tmp_path / "systems").exists()


def test_shipped_names_are_taken(pdb, tmp_path):
    with pytest.raises(SystemFileError, match="'ala2-vacuum' is the name of a shipped system, .*--name"):
        new_system(NewSystem(pdb=pdb(name="ALA2-vacuum.PDB"), solvent="vacuum"), folder=tmp_path / "systems")
    assert not (tmp_path / "systems").exists()


def test_an_upper_case_suffix(pdb, tmp_path):
    assert load_system(new_system(NewSystem(pdb=pdb(name="MY.PDB"), solvent="vacuum"), folder=tmp_path)).name == "my"


def lacking(*names):
    return lambda line: None if line[12:16].strip() in names or line.startswith("CONECT") else line


def in_two_places(line):
    """An alternate location of an atom, with another residue name as in a mixed crystal."""
    second = line[:16] + "B" + line[17:].replace("ALA", "SER")
    return f"{line[:16]}A{line[17:]}\n{second}" if line[12:16].strip() == "CA" else line


def twice(line):
    """An atom bearing its neighbour's name, as in files of a ligand from programs that name atoms after their elements."""
    return line.replace(" HB2 ", " HB1 ")


def model(line):
    return f"MODEL        1\n{line}\nENDMDL\nMODEL        2" if line[:11] in ("ATOM      1", "HETATM    1") else line


def placed(coordinates):
    """All atoms at the same coordinates."""
    return lambda line: line[:30] + coordinates + line[54:] if line.startswith(("ATOM", "HETATM")) else line


def further(line):
    """A residue is missing before the last."""
    return f"{line[:30]}{float(line[30:38]) + 4:8.3f}{line[38:]}" if line.startswith(("ATOM", "HETATM")) and "NME" in line else line


def sodium(line):
    return "HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA" if line[:11] == "HETATM    1" else None


def overlapping(line):
    """A hydrogen of the side chain sits on the first oxygen."""
    return line[:30] + "   1.576   1.089  -0.117" + line[54:] if line[12:16].strip() == "HB1" else line


@pytest.mark.parametrize(("change", "settings", "message"), [
    (lacking("HB1", "HB2"), {}, r"(?s)pdbfixer.*ALA 2: missing 2 H"),
    (lambda line: line.replace("ALA", "LIG"), {}, r"(?s)--forcefield.*LIG 2: unknown residue name"),
    (lambda line: None, {}, "holds no atoms"),
    (in_two_places, {}, "my.pdb lists atom CA of SER 2 twice; keep one of its alternate locations"),
    (twice, {}, "my.pdb lists atom HB1 of ALA 2 twice; .* give the atoms of a residue names of their own"),
    (model, {}, "my.pdb holds 2 models, .* keep the lines of one MODEL"),
    (overlapping, {}, "atoms overlap; minimise"),
    (placed("   0.000   0.000   0.000"), {}, "my.pdb: ACE1-H1 and ACE1-CH3 lie in one place: atoms overlap"),
    (placed("     nan   0.000   0.000"), {}, "my.pdb has coordinates that are not numbers"),
    (further, {}, "my.pdb: the bond of ALA2-C and NME3-N is .* nm long; complete missing residues"),
    (sodium, {"forcefield": ("amber14/tip3p.xml",)}, "my.pdb holds a single atom, .* give a molecule"),
    (lambda line: line, {"forcefield": ("nothing.xml",)}, "nothing.xml cannot be loaded"),
    (lambda line: line, {"solvent": "ethanol"}, "unknown solvent 'ethanol'"),
    (lambda line: line, {"forcefield": ("amoeba2018.xml",)}, "unsupported force terms Amoeba|do not match the force field"),
])
def test_files_that_cannot_be_systems(pdb, tmp_path, change, settings, message):
    wanted = NewSystem(pdb=pdb(change), **{"solvent": "vacuum", **settings})
    with pytest.raises(ForceFieldError, match=message):
        new_system(wanted, folder=tmp_path / "systems")
    assert not (tmp_path / "systems").exists()


def test_two_molecules(pdb, tmp_path):
    text = pdb().read_text()
    moved = [line.replace(" A ", " B ")[:30] + f"{float(line[30:38]) + 9:8.3f}" + line[38:] if line.startswith(("ATOM", "HETATM")) else line
             for line in text.splitlines() if not line.startswith(("CONECT", "END", "REMARK"))]
    (tmp_path / "two.pdb").write_text("\n".join([line for line in text.splitlines() if line != "END" and "CONECT" not in line] + moved))
    with pytest.raises(ForceFieldError, match=f"{tmp_path / 'two.pdb'} holds 2 molecules .*ACE 4.* no finite integral"):
        new_system(NewSystem(pdb=tmp_path / "two.pdb", solvent="vacuum"), folder=tmp_path / "systems")


@pytest.mark.parametrize(("settings", "message"), [
    ({"name": "A B"}, "cannot name a system"), ({"name": "../x"}, "cannot name a system"),
    ({"temperature": -3.0}, "must be positive and finite, got -3"), ({"temperature": float("nan")}, "must be positive"),
])
def test_settings_out_of_range(pdb, tmp_path, settings, message):
    with pytest.raises(SystemFileError, match=message):
        new_system(NewSystem(pdb=pdb(), solvent="vacuum", **settings), folder=tmp_path / "systems")


def test_existing_systems_are_kept(pdb, tmp_path):
    wanted = NewSystem(pdb=pdb(), solvent="vacuum")
    new_system(wanted, folder=tmp_path)
    with pytest.raises(SystemFileError, match="my exists; choose another name"):
        new_system(wanted, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFileError, match="choose another folder"):
        new_system(wanted, folder=tmp_path / "file")
