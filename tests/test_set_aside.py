"""`bgwork reference` on a system of one's own: its last tenth judges samples, and is not trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import mdtraj
import pytest
import torch
from commands import call, files, refused
from frames import tiny_reference, without_memory

from bgwork import reference_md, reference_trajectory, store
from bgwork.records import SPLIT
from bgwork.reference_checks import Check
from bgwork.reweighting import weigh
from bgwork.samplers.diagnostics import diagnose
from bgwork.system import comes_with_package, load_system, reference_samples
from bgwork.units import GAS_CONSTANT

N, LATE = 1200, 100
QUICK = {"filling": 2000, "level": 0.2, "burn_in": 20, "exchanges": 5, "surplus": 1, "thin": 2, "decorrelation": 2}
PASSED = Check(name="all", value=0.0, limit=1.0)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A molecule below the working directory that nothing is known of; every check passes."""
    folder = tmp_path / "systems" / "my"
    shutil.copytree(load_system("ala2-vacuum").path, folder, ignore=shutil.ignore_patterns("generators", "*.npz", "reference.json"))
    text = (folder / "system.toml").read_text().split("[reference]")[0].replace('"ala2-vacuum"', '"my"')
    chosen = tiny_reference(**QUICK).reference.model_dump(exclude={"sampler", "torsions"})
    lines = [f"{name} = {value}" for name, value in chosen.items()]
    (folder / "system.toml").write_text("\n".join([text + "[reference]", 'sampler = "metadynamics"', *lines, ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference_md, "check", lambda *_: [PASSED])
    return folder


def test_the_last_tenth_is_kept_with_the_system(own):
    result = call("reference", "my", "-n", N)
    assert result.exit_code == 0, result.output
    assert "which samples are judged by; nothing of that time is in the data to train on" in " ".join(result.stdout.split())
    data, kept = store.load_samples(Path("runs/my/reference/samples.npz")), reference_samples(load_system("my"))
    assert len(kept) >= LATE and len(data) + len(kept) == N
    assert (data.ancestor // 4).max() < 270 <= (kept.ancestor // 4).min()
    assert kept.origin.edits[-1].startswith(SPLIT) and data.origin.edits[-1].startswith(SPLIT)
    assert not any("proper ones" in problem for problem in diagnose(weigh(kept, load_system("my").target)).problems)
    told, known = (store.read_json(folder / "reference.json") for folder in (Path("runs/my/reference"), own))
    assert told == known and told["set_aside"] == len(kept) and told["n"] == N
    assert load_system("my").references["u"].value == told["estimates"]["u"]["value"]


def test_the_same_command_again_changes_nothing(own):
    call("reference", "my", "-n", N)
    before = {path: store.load_samples(path) for path in (own / "reference.npz", Path("runs/my/reference/samples.npz"))}
    result = call("reference", "my", "-n", N)
    assert result.exit_code == 0, result.output
    for path, samples in before.items():
        assert torch.equal(store.load_samples(path).x, samples.x)


def test_other_data_leave_it_as_it_is_unless_their_walkers_are_the_same(own):
    call("reference", "my", "-n", N)
    before = files(own)
    refused(call("reference", "my", "-n", N + 4, "--out", "more"), "same seed (0)", "give another --seed")
    result = call("reference", "my", "-n", N + 4, "--out", "more", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert len(store.load_samples(Path("more/samples.npz"))) == N + 4 and files(own) == before


def test_too_few_are_all_left_to_train_on(own):
    assert call("reference", "my", "-n", 400).exit_code == 0
    assert len(store.load_samples(Path("runs/my/reference/samples.npz"))) == 400 and not (own / "reference.npz").exists()


def test_nothing_is_written_into_the_package(own, monkeypatch):
    monkeypatch.setattr("bgwork.system._shipped", lambda: own.parent)
    assert comes_with_package(load_system("my"))
    assert call("reference", "my", "-n", N).exit_code == 0
    assert len(store.load_samples(Path("runs/my/reference/samples.npz"))) == N and not (own / "reference.npz").exists()


def test_a_shipped_set_that_comes_from_this_very_run_is_left_out(own, monkeypatch):
    """As tri-alanine's: the command that made it makes the data to train on, too."""
    call("reference", "my", "-n", N)
    before, data = files(own), store.load_samples(Path("runs/my/reference/samples.npz"))
    monkeypatch.setattr("bgwork.system._shipped", lambda: own.parent)
    result = call("reference", "my", "-n", N, "--out", "again")
    assert result.exit_code == 0 and "is from there" in " ".join(result.stdout.split()), result.output
    assert torch.equal(store.load_samples(Path("again/samples.npz")).x, data.x) and files(own) == before
    refused(call("reference", "my", "-n", N + 4, "--out", "more"), "same seed (0)", "give another --seed")


def test_a_kept_set_that_was_no_part_of_its_run_parts_no_other(own):
    """One that was kept whole, as `ship_reference.py` does: the same settings say nothing of where its rows come from."""
    call("reference", "my", "-n", N)
    known = store.read_json(own / "reference.json")
    del known["set_aside"]
    store.write_json(own / "reference.json", known)
    assert call("reference", "my", "-n", N, "--out", "again").exit_code == 0
    assert len(store.load_samples(Path("again/samples.npz"))) == N


def test_a_trajectory_is_parted_in_time(own, monkeypatch):
    """A thousand frames: the last hundred."""
    monkeypatch.setattr(reference_trajectory, "check", lambda *_: [PASSED])
    system = load_system("my")
    x = without_memory(load_system("ala2-vacuum"))
    mdtraj.Trajectory(x.numpy(), mdtraj.load(own / "topology.pdb").topology).save_dcd("own.dcd")
    temperature = system.target.kT / GAS_CONSTANT
    result = call("reference", "my", "--from", "own.dcd", "--top", own / "topology.pdb", "--frame-time", 1, "--temperature", temperature)
    assert result.exit_code == 0, result.output
    kept, data = reference_samples(load_system("my")), store.load_samples(Path("runs/my/reference/samples.npz"))
    assert (len(kept), len(data)) == (100, 900)
    torch.testing.assert_close(data.x, system.space.project(x[:900]), rtol=0, atol=1e-6)  # single precision of DCD
    assert data.group.max() <= kept.group.min() < kept.group.max()
