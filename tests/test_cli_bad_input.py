"""Wrong input to the commands ends with a message on stderr and exit code 2, and leaves every file as it was."""

from __future__ import annotations

import pickle
import struct
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import GENERATOR, QUICK, call, files, refused
from safetensors.torch import save_file
from test_cli_training import ENERGY_ONLY
from toy import RECIPE, make_generator

from bgwork import store
from bgwork.system import load_system
from bgwork.targets.counting import CountedTarget
from bgwork.targets.gaussian_mixture import GaussianMixture


@pytest.mark.parametrize("command", [("reference",), ("train",), ("sample",), ("run",)])
def test_unknown_system(toy, command):
    refused(call(*command, "lj14"), "lj14", "lj13")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [("reference", "toy"), ("sample", "toy"), ("run", "toy")])
@pytest.mark.parametrize("n", ["0", "-3"])
def test_no_samples(toy, command, n):
    refused(call(*command, "-n", n), n)
    assert not files(toy.root / "runs")


@pytest.mark.parametrize(("options", "words"), [
    (("--integrator", "leapfrog"), ("leapfrog", "midpoint")),
    (("--integrator", "dopri5"), ("--weights continuous",)),
    (("--integrator", "dopri5", "--weights", "continuous", "--steps", "8"), ("dopri5", "leave out --steps")),
    (("--weights", "guessed"), ("guessed", "density")),
    (("--steps", "0"), ("steps", "0")),
    (("--steps", "1" + 20 * "0"), ("steps", "100000 at most")),
    (("--steps", "many"), ("--steps", "integer")),
    (("--accept", "nothing"), ("nothing",)),
    (("--seed", "9" * 23), ("--seed", "4294967296")),
])
def test_bad_sampling_options(toy, options, words):
    refused(call("sample", "toy", *QUICK, *options), *words)
    assert not files(toy.root / "runs")


@pytest.mark.parametrize("command", ["sample", "run"])
def test_a_generator_asked_for_by_name_is_never_replaced_by_another(toy, command):
    refused(call(command, "toy", *QUICK, "--recipe", "nonsense"), "nonsense", "eqot-fm")
    GENERATOR.unlink()
    refused(call(command, "toy", *QUICK, "--recipe", "nonsense"), "nonsense", "bgwork train toy")
    assert not (toy.root / "runs").exists()


@pytest.mark.parametrize("options", [("--steps", "5"), ("--integrator", "rk4")])
def test_a_polished_generator_keeps_its_steps_and_leaves_no_folder(toy, options):
    refused(call("sample", "lj13", *QUICK, *options), "polished", "leave out")
    assert not (toy.root / "runs").exists()


@pytest.mark.parametrize(("options", "words"), [
    (("--recipe", "nonsense"), ("nonsense", "eqot-fm")),
    (("--set", "training.stepz=3"), ("stepz", "steps")),
    (("--set", "training.steps=three"), ("steps", "three")),
    (("--set", "steps"), ("steps", "=")),
    (("--data", "nowhere.npz"), ("nowhere.npz",)),
    (("--resume",), ("checkpoint",)),
])
def test_bad_training_options(toy, options, words):
    store.save_samples(Path("runs/toy/reference/samples.npz"), store.load_samples(toy.system / "reference.npz"))
    before = files(toy.root)
    refused(call("train", "toy", *options), *words)
    assert files(toy.root) == before


def test_training_data_of_another_system(toy):
    dw4 = load_system("dw4")
    refused(call("train", "toy", "--data", dw4.path / "reference.npz"), "reference.npz")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("std = 1.0\n", "", ("energy", "std")),
    ("components = 2", 'components = "two"', ("components", "two")),
    ("components = 2", "components = 2\ncolour = 1", ("colour", "components")),
    ("[space]", "[space", ("system.toml",)),
])
def test_bad_system_file(toy, old, new, words):
    path = toy.system / "system.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(call("run", "toy", *QUICK), *words)
    assert not Path("runs").exists()


def test_generator_of_another_system(toy):
    make_generator(toy.generator, recipe=tomllib.loads(RECIPE), system="dw4")
    refused(call("run", "toy", *QUICK), "dw4", "toy")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def pickle_into(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": 1}))


def garble(path: Path) -> None:
    """A block of no known type where the first array's compressed data begin; a header that is no JSON."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".npz":
        name, extra = struct.unpack("<HH", content[26:30])  # lengths in the archive's first local header
        content[30 + name + extra] = 0xFF
    else:
        start = content.index(b'"bgwork":"') + 12
        content[start : start + 40] = b"x" * 40
    path.write_bytes(content)


def array_into(path: Path) -> None:
    """One array and no archive; a header that is a list."""
    if path.suffix == ".npz":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        save_file({"w": torch.zeros(1)}, path, metadata={"bgwork": "[]"})


@pytest.mark.parametrize("damage", [truncate, pickle_into, garble, array_into])
def test_damaged_files(run, damage):
    damage(run / "samples.npz")
    before = files(run)
    for command in (("estimate", run), ("report", run), ("run", "toy", *QUICK)):
        refused(call(*command), "samples.npz")
    damage(GENERATOR)
    refused(call("sample", "toy", *QUICK), "eqot-fm.safetensors")
    assert files(run) == before


@pytest.mark.parametrize("damage", [truncate, pickle_into])
def test_resuming_from_a_damaged_checkpoint(toy, damage):
    command = ("train", "toy", "--data", toy.system / "reference.npz", "--out", "cut")
    assert call(*command).exit_code == 0
    damage(Path("cut/checkpoint.safetensors"))
    before = files(toy.root)
    refused(call(*command, "--resume"), "checkpoint.safetensors", "not a complete safetensors file")
    assert files(toy.root) == before


def test_samples_without_log_q(toy):
    np.savez("mine.npz", x=np.zeros((5, 1, 2)))
    refused(call("estimate", "mine.npz"), "mine.npz", "log_q")


def test_missing_samples_and_unknown_observables(run):
    refused(call("estimate", "nowhere.npz"), "nowhere.npz")
    refused(call("report", "nowhere"), "nowhere")
    refused(call("estimate", run, "--observable", "colour"), "colour", "radius_of_gyration")


def test_unwritable_output(toy):
    Path("blocked").write_text("a file, not a folder")
    before = files(toy.root)
    for command in (("sample", "toy", *QUICK), ("reference", "toy", "-n", "400"), ("train", "toy", "--data", toy.system / "reference.npz")):
        refused(call(*command, "--out", "blocked/run"), "blocked")
    assert files(toy.root) == before


@pytest.mark.parametrize("command", ["estimate", "report"])
def test_energies_of_another_system_are_not_taken_for_its_own(run, command):
    before = files(run)
    refused(call(command, run, "--system", "gmm40"), "'toy'", "'gmm40'")
    assert files(run) == before
    assert call(command, run, "--system", "toy").exit_code == 0


@pytest.mark.parametrize(("fault", "words"), [
    (lambda u, x: u.detach(), ("toy: the energy has no gradient", "_energy_and_grad")),
    (lambda u, x: u[:, None], ("toy returned an energy of shape (100, 1) for x of shape (100, 1, 2)", "[B]")),
    (lambda u, x: u * float("nan"), ("none of 100 fresh samples of toy has a finite energy", "another spread")),
])
def test_energies_that_nothing_can_be_learned_from(toy, monkeypatch, fault, words):
    energy = GaussianMixture._energy
    monkeypatch.setattr(GaussianMixture, "_energy", lambda self, x: fault(energy(self, x), x))
    monkeypatch.setattr(GaussianMixture, "_energy_and_grad", CountedTarget._energy_and_grad)
    (toy.system / "recipes" / "weighted-adjoint.toml").write_text(ENERGY_ONLY)
    refused(call("train", "toy", "--recipe", "weighted-adjoint"), *words)
    assert not list(toy.root.rglob("generator.safetensors"))
