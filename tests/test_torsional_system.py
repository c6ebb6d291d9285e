"""Alanine dipeptide's torsions as a system: from the command line to stored samples on the torus."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from commands import call, refused

from bgwork import store
from bgwork.geometry import wrap
from bgwork.priors import Uniform, prior_on
from bgwork.records import Density, WeightedSamples
from bgwork.reference_checks import virial_of
from bgwork.samplers.starts import STARTS
from bgwork.spaces import Torus
from bgwork.system import load_system
from bgwork.targets.counting import CountedTarget

NAME = "ala2-torsions"
SHORT = ("--set", "training.steps=4", "--set", "training.evaluate_every=4", "--set", "training.evaluate_samples=20",
         "--set", "replay.fresh=40", "--set", "sampler.steps=10")


@pytest.fixture(scope="module")
def system():
    return load_system(NAME)


def angles(n, seed=0):
    return 0.4 * torch.randn(n, 1, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_both_engines_are_the_molecule_after_its_bonds_were_turned(system):
    whole, phi = load_system("ala2-vacuum"), angles(5)
    x = system.differentiable_target.cartesian(phi)
    torch.testing.assert_close(system.target.u(phi), whole.target.u(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(system.differentiable_target.u(phi), system.target.u(phi), rtol=1e-7, atol=1e-6)
    assert system.target.n_energy == 10  # of two calls
    for name in ("phi_cos", "psi_sin", "phi_positive", "phi_basin"):
        torch.testing.assert_close(system.functions[name](phi), whole.functions[name](x))


def test_train_and_sample_on_the_torus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("train", NAME, "--recipe", "adjoint", *SHORT)
    assert done.exit_code == 0, (done.output, done.exception)
    folder = Path("runs") / NAME / "adjoint-0"
    done = call("sample", folder, "-n", "60")
    assert done.exit_code == 0, (done.output, done.exception)
    samples = store.load_samples(folder / "samples.npz")
    assert isinstance(samples, WeightedSamples) and samples.proposal.density is Density.PATH
    assert samples.proposal.space == Torus(n=1, d=7) and samples.x.abs().max() <= math.pi and len(samples) == 60
    done = call("sample", folder, "-n", "8", "--weights", "density", "--out", "exact", "--accept", "uncertified")
    assert done.exit_code == 0, (done.output, done.exception)
    assert store.load_samples(Path("exact") / "samples.npz").x.abs().max() <= math.pi
    refused(call("sample", folder, "-n", "40", "--weights", "directional"), "path, density", "not 'directional'")


class Rotor(CountedTarget):
    """u = -k sum_i cos x_i: von Mises angles, drawn by rejection."""

    def __init__(self):
        super().__init__("rotor", Torus(n=1, d=3))

    def _energy(self, x):
        return -2.0 * x[:, 0].cos().sum(1)

    def sample(self, n, *, generator):
        x = 2 * math.pi * torch.rand(40 * n, generator=generator, dtype=torch.float64)
        kept = x[torch.rand(len(x), generator=generator, dtype=torch.float64) < torch.exp(2 * (x.cos() - 1))]
        return wrap(kept[: 3 * n].view(n, 1, 3))


def test_integration_by_parts_holds_on_the_torus_in_equilibrium_and_nowhere_else():
    target = Rotor()
    generator = torch.Generator().manual_seed(0)
    uniform = prior_on(target.space, None).sample(20_000, generator=generator)
    for x, equilibrium in ((target.sample(20_000, generator=generator), True), (uniform, False)):
        virial = virial_of(target.space, x, target.u_and_grad(x)[1])
        assert (abs(virial.mean() - 3) < 4 * virial.std() / math.sqrt(len(x))) == equilibrium


def test_chains_start_anywhere_or_at_the_structure(system):
    assert isinstance(system.prior, Uniform)
    generator = torch.Generator().manual_seed(0)
    target = system.differentiable_target
    everywhere, here = (STARTS[kind](target, 500, spacing=1.0, generator=generator) for kind in ("uniform", "origin"))
    assert (everywhere.mean(0).abs() < 4 * math.pi / math.sqrt(3 * 500)).all() and everywhere.std() > 1.7
    assert here.abs().max() < 0.2 and here.std() > 0.02


def test_chains_that_settle_first_start_without_clashes(system):
    target = system.differentiable_target
    settled, anywhere = (STARTS[kind](target, 40, spacing=1.0, generator=torch.Generator().manual_seed(1))
                         for kind in ("settled", "uniform"))
    assert target.u(anywhere).max() > 1e4 and target.u(settled).max() < 100 + target.u(torch.zeros(1, 1, 7)).item()
    assert settled.abs().max() <= math.pi and len(settled.round(decimals=3).flatten(1).unique(dim=0)) > 20


@pytest.mark.parametrize(("old", "new", "words"), [
    ("d = 7", "d = 6", ("7 rotatable torsions", "d = 7")),
    ('"torus"', '"euclidean"', ("std",)),
    ('target = "openmm"', 'target = "tblite"', ("has no tblite engine",)),
])
def test_a_torsional_system_that_does_not_fit_is_refused(tmp_path, system, old, new, words):
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "topology.pdb").write_bytes((system.path / "topology.pdb").read_bytes())
    (folder / "system.toml").write_text((system.path / "system.toml").read_text().replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        load_system(folder)
    assert all(word in str(caught.value) for word in words)


def test_recipes_of_other_spaces_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = load_system("dw4").path.parent
    refused(call("train", NAME, "--recipe", recipes / "gmm40/recipes/weighted-adjoint.toml"), '"torsional-adjoint"')
    refused(call("train", "gmm40", "--recipe", recipes / "ala2-torsions/recipes/adjoint.toml"), "is for Torus", '"flow-sampling"')
