"""A complete small system for the tests of commands and reports: two Gaussians in the plane, with a generator that was never trained."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch

from bgwork import store
from bgwork.fields.mlp import MLP
from bgwork.records import Density, Origin, Proposal
from bgwork.system import load_system

SYSTEM = """
name = "toy"
description = "two Gaussians"
source = "made up"
length_unit = "1"
energy_unit = "kT"
observables = ["u", "coordinate_x", "coordinate_y"]
[space]
kind = "euclidean"
n = 1
d = 2
[energy]
form = "gaussian-mixture"
components = 2
half_width = 1.0
std = 1.0
seed = 0
[engines]
target = "torch"
differentiable_target = "torch"
[prior]
std = 1.5
[reference]
sampler = "exact"
chains = 10
draws = 10
"""

RECIPE = """
objective = "flow-matching"
[field]
kind = "mlp"
hidden = 8
depth = 1
[coupling]
kind = "independent"
[training]
steps = 3
batch = 8
warmup = 1
evaluate_every = 0
checkpoint_every = 1
[sampler]
integrator = "midpoint"
steps = 4
"""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Where the toy lies.

    Attributes:
        root: the working directory, with systems/toy in it.
        system: systems/toy.
        generator: its shipped generator.
    """

    root: Path
    system: Path
    generator: Path


def make_toy(root: Path, *, recipe: str = RECIPE) -> Toy:
    """Lay out systems/toy: system.toml, a recipe, reference samples and values, a generator whose field is small but not zero."""
    folder = root / "systems" / "toy"
    (folder / "recipes").mkdir(parents=True)
    (folder / "system.toml").write_text(SYSTEM)
    (folder / "recipes" / "eqot-fm.toml").write_text(recipe)
    system = load_system(folder)
    target = system.differentiable_target
    x = target.sample(600, generator=torch.Generator().manual_seed(1))
    reference = Proposal(x=x, log_q=-target.u(x), space=system.space, density=Density.UNNORMALISED, group=torch.arange(600) % 20,
                         origin=Origin(method="exact", system="toy", seed=1))
    store.save_samples(folder / "reference.npz", reference)
    centre = target.means.mean(0)
    exact = {"coordinate_x": centre[0].item(), "coordinate_y": centre[1].item()}
    estimates = {name: {"value": value, "stderr": 0.0, "n_eff": None} for name, value in exact.items()}
    store.write_json(folder / "reference.json", {"estimates": estimates})
    generator = make_generator(folder / "generators" / "eqot-fm.safetensors", recipe=tomllib.loads(recipe))
    return Toy(root=root, system=folder, generator=generator)


def make_generator(path: Path, *, recipe: dict, system: str = "toy") -> Path:
    """A generator's file with the header that training writes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = MLP(1, 2, hidden=recipe["field"]["hidden"], depth=recipe["field"]["depth"])
        torch.nn.init.normal_(field.last.weight, std=0.05)
    meta = {"kind": "generator", "system": system, "recipe_name": "eqot-fm", "recipe": recipe, "seed": 0, "prior_std": 1.5, "commit": "",
            "versions": {}, "progress": {"step": 3}}
    store.save_checkpoint(path, dict(field.named_parameters()), meta)
    return path
