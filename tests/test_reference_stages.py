"""A reference run that was interrupted or refused goes on from what it had finished, and gives the same numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, files, refused
from frames import tiny_reference

from bgwork import reference_md, reference_stages, store
from bgwork.reference import generate
from bgwork.reference_checks import Check
from bgwork.reference_md import stages_in
from bgwork.reference_stages import Stages
from bgwork.system import load_system
from bgwork.targets.openmm import OpenMMTarget
from bgwork.workflow_data import say_what_is_kept

QUICK = {"filling": 2000, "level": 0.2, "burn_in": 20, "exchanges": 5, "most_ladders": 8}
N = 16
STAGES = ["metadynamics", "walkers", "ladders-1", "equilibrium", "ladders-2"]


@pytest.fixture(autouse=True)
def never_certain(monkeypatch):
    monkeypatch.setattr(reference_md, "settled", lambda *_, **__: False)


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_md, "settled", lambda *_, **__: False)
        return generate(tiny_reference(**QUICK), N, seed=1)


class Stopped(Exception):
    """In place of Ctrl-C."""


@pytest.mark.parametrize("last", range(len(STAGES)))
def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(last, whole, tmp_path, monkeypatch):
    """Stopped in the middle of each stage, after those before it."""
    system, kept = tiny_reference(**QUICK), Stages(folder=tmp_path / "kept")
    seen: list[str] = []

    def told(done: int, total: int, text: str) -> None:
        kind = text.split(",")[0].split(" ")[0]
        if not seen or seen[-1] != kind:
            seen.append(kind)
        if len(seen) > last:
            raise Stopped

    with pytest.raises(Stopped):
        generate(system, N, seed=1, stages=kept, progress=told)
    assert sorted(kept.finished()) == sorted(STAGES[:last])
    made: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Stages, "_keep", _watched(Stages._keep, made))
        run = generate(system, N, seed=1, stages=Stages(folder=kept.folder))
    assert made == STAGES[last:]
    assert torch.equal(run.proposal.x, whole.proposal.x) and torch.equal(run.proposal.ancestor, whole.proposal.ancestor)
    assert run.made["cross_check"] == whole.made["cross_check"] and run.estimates == whole.estimates
    assert run.proposal.cost.gradient == whole.proposal.cost.gradient and run.made["stages"].keys() == set(STAGES)


def _watched(keep, made: list[str]):
    def watched(self, name, *arguments):
        made.append(name)
        return keep(self, name, *arguments)
    return watched


def test_more_ladders_after_a_refusal(whole, tmp_path):
    """A run of eight ladders after one of four: as if eight had been asked for at once."""
    folder = tmp_path / "kept"
    few = generate(tiny_reference(**QUICK | {"most_ladders": 4}), N, seed=1, stages=Stages(folder=folder))
    assert few.made["cross_check"] != whole.made["cross_check"] and torch.equal(few.proposal.x, whole.proposal.x)
    more = generate(tiny_reference(**QUICK), N, seed=1, stages=Stages(folder=folder))
    assert more.made["cross_check"] == whole.made["cross_check"]


def test_a_folder_of_stages_belongs_to_one_run(tmp_path, monkeypatch):
    """All that the numbers depend on has another; how many ladders there may be has not."""
    def folder(n=N, seed=1, system="ala2-vacuum", **settings):
        return stages_in(tmp_path, tiny_reference(system, **QUICK | settings), n, seed=seed).folder

    assert folder() == folder(most_ladders=24)
    system = tiny_reference(**QUICK)
    others = {stages_in(tmp_path, replace(system, target=target), N, seed=1).folder for target in (system.target.inner, warmer(system))}
    with monkeypatch.context() as patch:
        patch.setattr(reference_md, "versions", lambda: {"torch": "0"})
        others.add(folder())
    turned = replace(tiny_reference(**QUICK), structure=tiny_reference().structure.flip(1))
    others |= {folder(n=17), folder(seed=2), folder(thin=21), folder(system="ala2-obc2"), stages_in(tmp_path, turned, N, seed=1).folder}
    assert len(others | {folder()}) == 9


def warmer(system):
    """The same energy at another temperature."""
    inner = system.target.inner
    return OpenMMTarget(inner.system(), space=inner.space, kT=1.1 * inner.kT)


def test_a_stage_is_finished_when_all_of_it_is_written(tmp_path, monkeypatch):
    """The file that says so comes last; what a killed process leaves half-written says nothing."""
    kept = Stages(folder=tmp_path / "kept")

    def full(*_: object) -> None:
        raise store.FileError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_samples", full)
        with pytest.raises(store.FileError, match="no space left"):
            generate(tiny_reference(**QUICK), N, seed=1, stages=kept)
    (kept.folder / ".walkers.safetensors.x.safetensors").write_bytes(b"half")
    assert kept.finished() == ["metadynamics"]


def test_stages_of_other_code_and_other_settings_are_told(tmp_path, monkeypatch, capsys):
    system = tiny_reference(**QUICK)
    kept, other = stages_in(tmp_path, system, N, seed=1), stages_in(tmp_path, system, N, seed=2)
    generate(system, N, seed=1, stages=kept)
    assert kept.of_other_code() == [] and kept.others() == []
    other.folder.mkdir()
    say_what_is_kept(kept)
    said = capsys.readouterr().err
    assert "going on from" in said and f"may be removed: {other.folder}" in said and "another version" not in said
    monkeypatch.setattr(reference_stages, "code", lambda: "edited")
    say_what_is_kept(kept)
    assert "another version of bgwork's code had made equilibrium, ladders-1, ladders-2, metadynamics, walkers" in capsys.readouterr().err


def made_here(tmp_path: Path, **settings: object) -> None:
    """systems/ala2-vacuum below the folder, with settings that take no time."""
    folder = tmp_path / "systems" / "ala2-vacuum"
    if not folder.exists():
        shutil.copytree(load_system("ala2-vacuum").path, folder, ignore=shutil.ignore_patterns("generators", "*.npz"))
    text = (folder / "system.toml").read_text().split("[reference]")[0]
    chosen = tiny_reference(**QUICK | settings).reference.model_dump(exclude={"sampler", "torsions"})
    lines = [f"{name} = {value}" for name, value in chosen.items()]
    (folder / "system.toml").write_text("\n".join([text + "[reference]", 'sampler = "metadynamics"', *lines, ""]))


def test_the_command_goes_on_after_a_refusal(tmp_path, monkeypatch):
    """Exit code 2, the checks that failed, no data; the stages are kept, said, used, and gone in the end."""
    monkeypatch.chdir(tmp_path)
    made_here(tmp_path, most_ladders=4)
    before = files(tmp_path)
    refused(call("reference", "ala2-vacuum", "-n", "15"), "15", "at least 16")
    assert files(tmp_path) == before and not Path("runs").exists()
    result = call("reference", "ala2-vacuum", "-n", str(N))
    refused(result, "not saved", "standard error of Delta F(phi) by metadynamics", "ask for more samples", "4 ladders did not do",
            "reference.most_ladders = 8 or more")
    assert "FAILED" in result.stdout and f"Checks of {N} reference samples of ala2-vacuum" in result.stdout
    reference = Path("runs/ala2-vacuum/reference")
    assert [path.name.split("-")[0] for path in reference.iterdir()] == ["unfinished"] and "unfinished-" in result.stderr
    made_here(tmp_path, most_ladders=8)
    passed = Check(name="all", value=0.0, limit=1.0)
    monkeypatch.setattr(reference_md, "check", lambda *_: [passed])
    monkeypatch.delattr(reference_md, "build_bias")
    result = call("reference", "ala2-vacuum", "-n", str(N))
    assert result.exit_code == 0 and "going on from" in result.stderr and "equilibrium, ladders-1, metadynamics, walkers" in result.stderr
    assert sorted(path.name for path in reference.iterdir()) == ["reference.json", "samples.npz"]


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_here(tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reference_md, "equilibrium", interrupted)
    result = call("reference", "ala2-vacuum", "-n", str(N))
    assert result.exit_code == 130 and "goes on from ladders-1, metadynamics, walkers, which runs" in result.stderr
    monkeypatch.setattr(reference_md, "build_bias", interrupted)
    result = call("reference", "ala2-vacuum", "-n", str(N), "--seed", "7")
    assert result.exit_code == 130 and "begins anew" in result.stderr


def test_a_damaged_stage_is_refused_with_its_path(tmp_path):
    kept = Stages(folder=tmp_path / "kept")
    generate(tiny_reference(**QUICK | {"most_ladders": 4}), N, seed=1, stages=kept)
    (kept.folder / "walkers.npz").write_bytes(b"x")
    with pytest.raises(store.FileError, match=r"walkers.npz.*remove .*kept to begin anew"):
        generate(tiny_reference(**QUICK), N, seed=1, stages=kept)
    store.save_checkpoint(kept.folder / "metadynamics.safetensors", {"table": torch.zeros(3)}, {"commit": ""})
    with pytest.raises(store.FileError, match=r"metadynamics.safetensors is not what was kept.*remove .*kept to begin anew"):
        generate(tiny_reference(**QUICK), N, seed=1, stages=kept)


def test_a_refusal_that_no_ladder_mends_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_here(tmp_path, most_ladders=4)
    monkeypatch.setattr(reference_md, "check", lambda *_: [Check(name="virial", value=9.0, limit=1.0)])
    refused(call("reference", "ala2-vacuum", "-n", str(N)), "virial", "the same command would only judge it again")

