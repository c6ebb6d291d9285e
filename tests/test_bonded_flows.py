"""Flows that start from the ideal chain of a molecule's bonds: trained, kept, loaded and sampled, and refused where they do not fit."""

from __future__ import annotations

import pytest
import torch

from bgwork.generators import load_generator, load_trained
from bgwork.priors import BondedGaussian
from bgwork.recipes import RecipeError, Request, load_recipe
from bgwork.records import Density
from bgwork.system import load_system, reference_samples
from bgwork.training import train

BONDED = ["training.initial=''", "training.compiled=false", "training.steps=2", "training.batch=8", "prior.kind=bonded", "prior.std=0.08",
          "training.forces_after=0.84"]


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


def request_in(folder, system):
    return Request(system=system, name="bonded", folder=folder, seed=0, data=reference_samples(system).x)


@pytest.fixture(scope="module")
def trained(system, tmp_path_factory):
    """A generator's file, after two steps."""
    job = load_recipe(system, "fm-forces", overrides=BONDED).job(request_in(tmp_path_factory.mktemp("bonded"), system))
    train(job, resume=False)
    return job.generator


def test_pairs_start_from_the_chain(system, tmp_path):
    data = load_recipe(system, "fm-forces", overrides=BONDED).job(request_in(tmp_path, system)).data
    assert data.prior == BondedGaussian(space=system.space, std=0.08, bonds=system.topology.bonds)
    assert data.coupling.width == 0.08 and data.forces.targets.prior is data.prior


def test_generators_remember_where_they_start(system, trained):
    _, found = load_trained(trained, system=system)
    assert found.prior == BondedGaussian(space=system.space, std=0.08, bonds=system.topology.bonds)
    flow = load_generator(trained, system=system)
    assert flow.prior.std == pytest.approx(0.08 * 1.04)  # the recipe's stretch
    proposal = flow.sample(16, generator=torch.Generator().manual_seed(0))
    z = flow.prior.sample(16, generator=torch.Generator().manual_seed(0))
    assert proposal.density is Density.EXACT
    torch.testing.assert_close(proposal.x, z, rtol=0, atol=1e-3)  # after two steps the velocity is nearly zero
    assert (proposal.log_q - flow.prior.log_prob(z)).abs().max() < 0.1


@pytest.mark.parametrize(("recipe", "overrides"), [("fm-forces", ["training.compiled=false"]), ("polish", [])])
def test_other_flows_do_not_begin_with_them(system, trained, tmp_path, recipe, overrides):
    if recipe == "polish":
        path = tmp_path / "polish.toml"
        field = (system.path / "recipes" / "fm-forces.toml").read_text().split("[field]")[1].split("[coupling]")[0]
        path.write_text(f'objective = "polish"\n[field]{field}\n[training]\nsteps = 1\n[sampler]\nintegrator = "midpoint"\nsteps = 4\n')
        recipe = str(path)
    with pytest.raises(RecipeError, match="from .prior. kind = bonded, std = 0.08, what is to be trained from the system's prior"):
        load_recipe(system, recipe, overrides=[*overrides, f"training.initial={trained}"]).job(request_in(tmp_path, system))


def test_bonded_flows_begin_with_each_other_alone(system, trained, tmp_path):
    going_on = [*BONDED[1:], f"training.initial={trained}"]
    load_recipe(system, "fm-forces", overrides=going_on).job(request_in(tmp_path, system))
    for other in ([*BONDED[1:], "training.initial=fm-log"], [*going_on, "prior.std=0.1"]):
        with pytest.raises(RecipeError, match="give a flow-matching recipe the same .prior."):
            load_recipe(system, "fm-forces", overrides=other).job(request_in(tmp_path, system))


def test_bonds_want_a_molecule(tmp_path):
    system = load_system("dw4")
    recipe = load_recipe(system, "eqot-fm", overrides=["prior.kind=bonded", "prior.std=1.0"])
    with pytest.raises(ValueError, match="dw4 has no topology, and so no bonds; leave out .prior."):
        recipe.job(Request(system=system, name="x", folder=tmp_path, seed=0, data=torch.randn(50, 4, 2, dtype=torch.float64)))


@pytest.mark.parametrize(("override", "message"), [
    ("prior.width=1", "prior.width: unknown key; allowed here: kind, std"), ("prior.std=-1", "prior.std: Input should be greater than 0"),
    ("prior.kind=ball", "prior.kind: Input should be 'bonded'")])
def test_wrong_keys_are_named(system, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(system, "fm-forces", overrides=[*BONDED, override])
