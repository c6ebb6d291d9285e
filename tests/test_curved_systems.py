"""Systems on spheres and hyperbolic space: from the command line to stored samples, and what such spaces do not have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import call, refused

from bgwork import store
from bgwork.curved import Hyperboloid, Sphere
from bgwork.error_bars import delta_stderr
from bgwork.priors import Gaussian, Uniform, WrappedNormal, prior_on
from bgwork.recipes import RecipeError, load_recipe
from bgwork.records import Density, Origin, Proposal, WeightedSamples
from bgwork.reference_checks import virial_of
from bgwork.reweighting import log_z
from bgwork.spaces import Euclidean
from bgwork.system import SystemFileError, load_system

CURVED = ("vmf-s2", "vmf-s4", "hyperbolic-h2", "heisenberg-chain")
SHORT = ("--set", "training.steps=5", "--set", "training.evaluate_every=5", "--set", "training.evaluate_samples=50",
         "--set", "replay.fresh=200")
every_system = pytest.mark.parametrize("name", CURVED)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory: systems are the shipped ones, runs go below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_system
def test_train_and_sample_with_path_weights_give_the_known_log_z(here, name):
    done = call("train", name, "--recipe", "flow-sampling", *SHORT)
    assert done.exit_code == 0, (done.output, done.exception)
    folder = Path("runs") / name / "flow-sampling-0"
    done = call("sample", folder, "-n", "2000", "--weights", "path")
    assert done.exit_code == 0, (done.output, done.exception)
    samples, system = store.load_samples(folder / "samples.npz"), load_system(name)
    assert isinstance(samples, WeightedSamples) and samples.proposal.density is Density.PATH and samples.n_failed == 0
    assert samples.proposal.space == system.space
    estimate = log_z(samples)
    assert abs(estimate.value - system.target.log_z) < 4 * estimate.stderr < 1.5
    done = call("sample", folder, "-n", "40", "--weights", "density", "--steps", "4", "--out", "exact")
    assert done.exit_code == 0, (done.output, done.exception)
    assert store.load_samples(Path("exact") / "samples.npz").proposal.density is Density.EXACT
    refused(call("sample", folder, "-n", "40", "--weights", "directional"), "path, density", "not 'directional'")
    refused(call("sample", folder, "-n", "40", "--integrator", "rk4"), "geodesic", "leave out --integrator")


def test_systems_lists_them(here):
    shown = call("systems").stdout
    assert all(name in shown for name in CURVED)


@every_system
def test_integration_by_parts_holds_in_equilibrium_and_nowhere_else(name):
    system = load_system(name)
    x = system.target.sample(20_000, generator=torch.Generator().manual_seed(0))
    for points, equilibrium in ((x, True), (system.prior.sample(20_000, generator=torch.Generator().manual_seed(1)), False)):
        virial = virial_of(system.space, points, system.target.u_and_grad(points)[1])
        away = abs(virial.mean().item() - system.space.dim) / delta_stderr((virial - virial.mean()) / len(virial), None)
        assert (away < 4) == equilibrium


@pytest.mark.parametrize("space", [Sphere(n=2, d=3, curvature=4.0), Hyperboloid(n=1, d=4, curvature=-0.25)])
def test_stored_samples_keep_their_curvature(tmp_path, space):
    x = space.project(torch.randn(5, space.n, space.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    made = Proposal(x=x, log_q=torch.zeros(5, dtype=torch.float64), space=space, density=Density.PATH,
                    origin=Origin(method="walk", system="curved"))
    store.save_samples(tmp_path / "x.npz", made)
    found = store.load_samples(tmp_path / "x.npz")
    assert found.space == space and torch.equal(found.x, made.x)


def test_every_space_has_its_prior():
    sphere, plane, hyperbolic = Sphere(n=2, d=3), Euclidean(n=1, d=2), Hyperboloid(n=1, d=3)
    assert isinstance(prior_on(sphere, None), Uniform) and isinstance(prior_on(hyperbolic, 0.5), WrappedNormal)
    assert prior_on(plane, 2.0) == Gaussian(space=plane, std=2.0)
    with pytest.raises(ValueError, match="leave out its std, got 1.0"):
        prior_on(sphere, 1.0)
    for space in (plane, hyperbolic):
        with pytest.raises(ValueError, match="give std"):
            prior_on(space, None)


# What curved spaces do not have


@pytest.fixture
def edited(tmp_path):
    """A copy of a shipped system whose system.toml has one thing replaced."""
    def edit(name: str, old: str, new: str) -> Path:
        folder = tmp_path / "systems" / name
        folder.mkdir(parents=True)
        text = (load_system(name).path / "system.toml").read_text()
        assert old in text
        (folder / "system.toml").write_text(text.replace(old, new, 1))
        return folder

    return edit


@pytest.mark.parametrize(("name", "old", "new", "words"), [
    ("vmf-s2", "d = 3", "d = 3\ncurvature = 0.0", ("space", "positive curvature, got 0.0", "Euclidean")),
    ("hyperbolic-h2", "d = 3", "d = 3\ncurvature = 0.0", ("space", "negative curvature, got 0.0", "Euclidean")),
    ("vmf-s2", "d = 3", "d = 3\ncurvature = -1.0", ("a Sphere has finite positive curvature, got -1.0",)),
    ("vmf-s2", "d = 3", "d = 3\ncurvature = 2.0", ("lives on Sphere(n=1, d=3, curvature=1.0), not on",)),
    ("vmf-s2", "d = 3", "d = 1", ("must be at least 1", "d = 1")),
    ("vmf-s2", '"sphere"', '"euclidean"', ("needs a standard deviation",)),
    ("vmf-s2", "[prior]", "[prior]\nstd = 1.0", ("uniform", "leave out its std")),
    ("hyperbolic-h2", "std = 1.0", "", ("needs a standard deviation",)),
    ("hyperbolic-h2", "d = 3", "d = 2", ("d >= 3, got d = 2",)),
    ("heisenberg-chain", "n = 4", "n = 1", ("at least 2 spins",)),
    ("gmm40", "d = 2", "d = 2\ncurvature = 1.0", ("is flat; leave out curvature",)),
])
def test_impossible_spaces_are_refused(edited, name, old, new, words):
    folder = edited(name, old, new)
    with pytest.raises(SystemFileError) as caught:
        load_system(folder)
    assert all(word in str(caught.value) for word in words)


def test_curvature_zero_ends_the_command_with_exit_code_two(here, edited):
    refused(call("train", edited("vmf-s2", "d = 3", "d = 3\ncurvature = 0")), "curvature, got 0", "Euclidean")
    assert not Path("runs").exists()


@pytest.mark.parametrize(("system", "recipe", "words"), [
    ("vmf-s2", "gmm40/recipes/weighted-adjoint.toml", ("'weighted-adjoint' is for Euclidean or MeanFree", "curved-flow-sampling")),
    ("vmf-s2", "gmm40/recipes/adjoint.toml", ("'adjoint' is for Euclidean or MeanFree", "curved-flow-sampling")),
    ("vmf-s2", "dw4/recipes/flow-sampling.toml", ("'flow-sampling' is for Euclidean or MeanFree", "curved-flow-sampling")),
    ("vmf-s2", "gmm40/recipes/bootstrap.toml", ("'bootstrap' is for Euclidean or MeanFree", "curved-flow-sampling")),
    ("gmm40", "vmf-s2/recipes/flow-sampling.toml", ("is for Sphere or Hyperboloid", '"flow-sampling"')),
])
def test_recipes_for_other_spaces_are_refused(here, system, recipe, words):
    refused(call("train", system, "--recipe", load_system("dw4").path.parent / recipe), *words)
    assert not list(Path(".").rglob("*.safetensors"))


def test_fields_for_other_spaces_are_refused():
    curved, flat = load_system("vmf-s2"), load_system("gmm40")
    with pytest.raises(RecipeError, match="field.kind: .*'ambient', got 'mlp'"):
        load_recipe(curved, overrides=["field.kind=mlp"])
    with pytest.raises(RecipeError, match="'ambient' found using 'kind' does not match"):
        load_recipe(flat, "adjoint", overrides=["field.kind=ambient"])
    with pytest.raises(RecipeError, match="field.width: unknown key; allowed here: kind, hidden, depth, scale"):
        load_recipe(curved, overrides=["field.width=3"])
