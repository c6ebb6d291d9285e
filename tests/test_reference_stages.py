"""A reference run that was interrupted or refused goes on from what it had finished, and gives the same numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, files, refused
from frames import tiny_reference

from bgwork import reference_md
from bgwork.reference import generate
from bgwork.reference_checks import Check
from bgwork.reference_md import stages_in
from bgwork.reference_stages import Stages
from bgwork.system import load_system

QUICK = {"filling": 2000, "level": 0.2, "burn_in": 20, "exchanges": 5, "most_ladders": 8}
N = 16
STAGES = ["metadynamics", "walkers", "ladders-1", "equilibrium", "ladders-2"]


@pytest.fixture(autouse=True)
def never_certain(monkeypatch):
    monkeypatch.setattr(reference_md, "certain", lambda *_, **__: False)


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_md, "certain", lambda *_, **__: False)
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


def test_a_folder_of_stages_belongs_to_one_run(tmp_path):
    """All that the numbers depend on has another; how many ladders there may be has not."""
    def folder(n=N, seed=1, system="ala2-vacuum", **settings):
        return stages_in(tmp_path, tiny_reference(system, **QUICK | settings), n, seed=seed).folder

    assert folder() == folder(most_ladders=24)
    turned = replace(tiny_reference(**QUICK), structure=tiny_reference().structure.flip(1))
    others = {folder(n=17), folder(seed=2), folder(thin=21), folder(system="ala2-obc2"), stages_in(tmp_path, turned, N, seed=1).folder}
    assert len(others | {folder()}) == 6


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
    refused(result, "not saved", "standard error of Delta F(phi) by metadynamics", "ask for more samples", "reference.most_ladders")
    assert "FAILED" in result.stdout and f"Checks of {N} reference samples of ala2-vacuum" in result.stdout
    reference = Path("runs/ala2-vacuum/reference")
    assert [path.name.split("-")[0] for path in reference.iterdir()] == ["unfinished"] and "unfinished-" in result.stderr
    made_here(tmp_path, most_ladders=8)
    passed = Check(name="all", value=0.0, limit=1.0)
    monkeypatch.setattr(reference_md, "check", lambda *_: [passed])
    monkeypatch.delattr(reference_md, "build_bias")
    result = call("reference", "ala2-vacuum", "-n", str(N))
    assert result.exit_code == 0 and "going on from" in result.stderr and "metadynamics, walkers, ladders-1, equilibrium" in result.stderr
    assert sorted(path.name for path in reference.iterdir()) == ["reference.json", "samples.npz"]


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_here(tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reference_md, "equilibrium", interrupted)
    result = call("reference", "ala2-vacuum", "-n", str(N))
    assert result.exit_code == 130 and "goes on from metadynamics, walkers, ladders-1, which runs" in result.stderr
    monkeypatch.setattr(reference_md, "build_bias", interrupted)
    result = call("reference", "ala2-vacuum", "-n", str(N), "--seed", "7")
    assert result.exit_code == 130 and "begins anew" in result.stderr


def test_a_damaged_stage_is_refused_with_its_path(tmp_path):
    kept = Stages(folder=tmp_path / "kept")
    generate(tiny_reference(**QUICK | {"most_ladders": 4}), N, seed=1, stages=kept)
    (kept.folder / "walkers.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"walkers.npz.*remove .*kept to begin anew"):
        generate(tiny_reference(**QUICK), N, seed=1, stages=kept)

