"""system.toml to a System: what is built, where it is looked for, and how mistakes are reported."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bgwork import commands
from bgwork.protocols import Prior, Target
from bgwork.system import SystemFileError, list_systems, load_system, load_systems, reference_samples
from bgwork.targets.openmm import OpenMMTarget


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of dw4, whose system.toml can be edited by replacing text."""
    folder = tmp_path / "systems" / "dw4"
    shutil.copytree(load_system("dw4").path, folder)

    def edit(old="", new=""):
        path = folder / "system.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return folder

    return edit


@pytest.mark.parametrize("name", ["dw4", "lj13", "lj55", "gmm40"])
def test_shipped_systems(name):
    system = load_system(name)
    assert system.name == name and isinstance(system.target, Target) and isinstance(system.prior, Prior)
    assert system.target is not system.differentiable_target
    assert system.space == system.target.space == system.differentiable_target.space == system.prior.space
    assert isinstance(system.target, OpenMMTarget) == name.startswith("lj")
    assert set(system.references) >= {*system.observables, "virial"}
    x = system.prior.sample(3, generator=torch.Generator().manual_seed(0))
    assert system.target.u(x).shape == (3,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        system.name = "other"


@pytest.mark.parametrize("name", ["dw4", "lj13", "lj55"])
def test_prior_has_the_spread_of_the_data(name):
    system = load_system(name)
    spread = (reference_samples(system).x.square().sum((1, 2)).mean() / system.space.dim).sqrt().item()
    assert system.prior.std == pytest.approx(spread, rel=0.02)


def test_list_systems(copy, tmp_path, monkeypatch):
    assert set(list_systems()) >= {"dw4", "gmm40", "lj13", "lj55"}
    copy().rename(tmp_path / "systems" / "mine")
    assert "mine" in list_systems(folder=tmp_path / "systems")
    monkeypatch.chdir(tmp_path)
    assert "mine" in list_systems() and "lj13" in list_systems()


def test_a_folder_here_is_not_mistaken_for_a_name(copy, tmp_path, monkeypatch):
    copy("r0 = 4.0", "r0 = 5.0")
    monkeypatch.chdir(tmp_path / "systems")
    for path in ("./dw4", "dw4/", Path("dw4")):
        assert load_system(path).path.resolve() == tmp_path / "systems" / "dw4"
    assert load_system("dw4").path.resolve() != tmp_path / "systems" / "dw4"


def test_one_broken_system_hides_no_others(copy, tmp_path, monkeypatch):
    copy("r0 = 4.0", "r0 = -4.0")
    monkeypatch.chdir(tmp_path)
    loaded, broken = load_systems()
    assert {"gmm40", "lj13"} <= {system.name for system in loaded} and set(broken) == {"dw4"}
    result = CliRunner().invoke(commands.app, ["systems"])
    assert result.exit_code == 0 and "lj13" in result.stdout and "Error: dw4 is left out: systems/dw4/system.toml:" in result.stderr


def test_search_order(copy, tmp_path, monkeypatch):
    mine = copy("r0 = 4.0", "r0 = 3.0")
    assert load_system("dw4").target.r0 == 4.0
    assert load_system("dw4", folder=mine.parent).target.r0 == 3.0
    for path in (mine, str(mine), mine / "system.toml"):
        assert load_system(path).target.r0 == 3.0
    monkeypatch.chdir(tmp_path)
    assert load_system("dw4").target.r0 == 3.0
    assert load_system("dw4").path.resolve() == mine


@pytest.mark.parametrize("name", ["lj14", "", "../dw4", "lj13/reference.json"])
def test_unknown_system(name):
    with pytest.raises(SystemFileError, match="no system at|unknown system .* known systems: .*dw4, gmm40, .*lj13, lj55"):
        load_system(name)


def test_unknown_system_suggests_a_near_one():
    with pytest.raises(SystemFileError, match="did you mean lj13"):
        load_system("lj31")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("r0 = 4.0\n", "", r"energy\.double-well\.r0: Field required"),
    ("[prior]\nstd = 2.13\n", "", r"prior: Field required"),
    ("r0 = 4.0", 'r0 = "4"', r"energy\.double-well\.r0: .*valid number.*got '4'"),
    ("r0 = 4.0", "r0 = -4.0", r"energy\.double-well\.r0: .*greater than 0.*got -4"),
    ("r0 = 4.0", "r0 = nan", r"energy\.double-well\.r0: "),
    ("r0 = 4.0", "r0 = true", r"energy\.double-well\.r0: "),
    ("n = 4", "n = 4.5", r"space\.n: .*integer.*got 4\.5"),
    ("r0 = 4.0", "r0 = 4.0\nr1 = 5.0", r"energy\.double-well\.r1: unknown key; allowed here: form, quartic, quadratic, r0"),
    ("thin = 10", "thining = 10", r"reference\.parallel-tempering\.thining: unknown key; allowed here: sampler, chains, .*thin, "),
    ("length_unit", "lenght_unit", r"lenght_unit: unknown key; allowed here: name, description, .*length_unit"),
    ('"double-well"', '"triple-well"', r"energy: .*'triple-well'.*'lennard-jones', 'double-well'"),
    ('"mean-free"', '"bottle"', r"space\.kind: .*'mean-free', 'euclidean', .*got 'bottle'"),
    ('"mean-free"', '"torus"', r"the prior on Torus\(n=4, d=2\) is uniform; leave out its std"),
    ('"mean-free"', '"euclidean"', r"lives on MeanFree\(n=4, d=2\), not on Euclidean"),
    ('target = "torch"', 'target = "openmm"', r"has no OpenMM engine; set engines\.target to .torch."),
    ('"pair_distance_mean"', '"pair_distance"', r"unknown observables pair_distance; known are u, .*pair_distance_mean"),
    ('"lattice", "quenched"', '"lattice"', r"at least two different `starts`"),
    ("betas = [1.0, 0.6, 0.35, 0.2]", "", r"parallel tempering needs `betas`, a ladder"),
    ('name = "dw4"', 'name = "dw5"', r"name = 'dw5', but its folder is 'dw4'"),
    ("[space]", "[space", r"not readable TOML"),
])
def test_mistakes_in_system_toml(copy, old, new, message):
    with pytest.raises(SystemFileError, match=message):
        load_system(copy(old, new))


def test_integers_pass_where_numbers_are_asked_for(copy):
    assert load_system(copy("r0 = 4.0", "r0 = 4")).target.r0 == 4.0


def test_system_without_reference(copy):
    folder = copy()
    (folder / "reference.npz").unlink()
    (folder / "reference.json").unlink()
    system = load_system(folder)
    assert system.references == {}
    with pytest.raises(SystemFileError, match="has no reference samples .* `bgwork reference dw4`"):
        reference_samples(system)


def test_reference_of_another_system(copy):
    folder = copy()
    shutil.copy(load_system("gmm40").path / "reference.npz", folder / "reference.npz")
    with pytest.raises(SystemFileError, match="does not hold plain configurations of dw4"):
        reference_samples(load_system(folder))


@pytest.mark.parametrize("text", ['{"values": {}}', '{"estimates": {"u": 3}}', '{"estimates": {"u": {"mean": 3}}}'])
def test_damaged_reference_values(copy, text):
    folder = copy()
    (folder / "reference.json").write_text(text)
    with pytest.raises(SystemFileError, match="does not hold estimates"):
        load_system(folder)


MOLECULE = """
name = "mine"
description = "a molecule"
source = "none"
length_unit = "nm"
energy_unit = "kT"
observables = ["u", "phi_positive"]
basins = "phi_basin"
space = {kind = "mean-free", n = 22, d = 3}
energy.form = "force-field"
energy.topology = "topology.pdb"
energy.forcefield = ["amber14/protein.ff14SB.xml"]
energy.solvent = "vacuum"
energy.temperature = 300.0
engines = {target = "openmm", differentiable_target = "torch"}
prior = {std = 0.2}
reference = {sampler = "metadynamics"}
"""


@pytest.fixture
def molecule(tmp_path):
    """A folder with alanine dipeptide, whose system.toml can be edited by replacing text."""
    (tmp_path / "mine").mkdir()
    shutil.copy(load_system("ala2-vacuum").path / "topology.pdb", tmp_path / "mine")

    def edit(old="", new=""):
        assert old in MOLECULE
        (tmp_path / "mine" / "system.toml").write_text(MOLECULE.replace(old, new, 1))
        return tmp_path / "mine"

    return edit


def test_molecules_know_their_atoms(molecule):
    system = load_system(molecule())
    assert system.topology.elements.count("H") == 12 and system.structure.shape == (22, 3)
    assert system.structure.mean(0).abs().max() < 1e-12
    assert set(system.observables) - {"u"} <= set(system.functions) and system.basins in system.functions
    x = system.structure[None]
    assert system.functions["phi_positive"](x).item() == 0.0
    assert abs(system.target.u(x) - system.differentiable_target.u(x)).item() < 1e-6
    assert system.target.inner is not system.differentiable_target.inner


def test_clusters_have_no_topology():
    system = load_system("dw4")
    assert system.topology is None and system.structure is None and "phi_positive" not in system.functions


@pytest.mark.parametrize(("old", "new", "message"), [
    ("n = 22", "n = 21", "22 particles in 3 dimensions"),
    ('"phi_positive"', '"phi_2_positive"', "unknown observables phi_2_positive; known are u, .*phi_positive"),
    ('"nm"', '"A"', "measured in nm"),
    ('sampler = "metadynamics"', 'sampler = "exact", chains = 4, draws = 4', "does not go with reference.sampler = 'exact'"),
    ('sampler = "metadynamics"', 'sampler = "metadynamics", rungs = 3', "rungs: unknown key; allowed here: sampler, .*temperatures"),
    ("temperature = 300.0", "temperature = 310.0", "temperatures start at 300.0 K, but energy.temperature is 310.0 K"),
    ('target = "openmm", d', 'target = "tblite", d', 'has no tblite engine; set engines.target to "torch" or "openmm"'),
    ('"topology.pdb"', '"other.pdb"', "no PDB file .*other.pdb"),
    ('solvent = "vacuum"', 'solvent = "water"', "'vacuum' or 'obc2'.*got 'water'"),
    ("amber14/protein.ff14SB.xml", "mine.xml", "mine.xml cannot be loaded"),
    ("amber14/protein.ff14SB.xml", 'amber99sbildn.xml", "amber99_obc.xml', "amber99_obc.xml brings an implicit solvent of its own"),
])
def test_mistakes_in_a_molecule(molecule, old, new, message):
    with pytest.raises(ValueError, match=message):
        load_system(molecule(old, new))


def test_tight_binding_takes_no_force_field_engine(molecule):
    path = molecule("forcefield", "method")
    text = (path / "system.toml").read_text()
    changes = {'"force-field"': '"tight-binding"', '["amber14/protein.ff14SB.xml"]': '"GFN2-xTB"', 'solvent = "vacuum"': "charge = 0"}
    for old, new in changes.items():
        text = text.replace(old, new)
    (path / "system.toml").write_text(text)
    with pytest.raises(SystemFileError, match='has no OpenMM engine; set engines.target to "tblite"'):
        load_system(path)
    text = (path / "system.toml").read_text().replace('"openmm"', '"tblite"').replace('= "torch"', '= "tblite"')
    (path / "system.toml").write_text(text)
    with pytest.raises(SystemFileError, match='choose "transfer" .* or "given" and bring a trajectory'):
        load_system(path)
    (path / "system.toml").write_text(text.replace("metadynamics", "given"))
    assert load_system(path).energy == "tight-binding"
