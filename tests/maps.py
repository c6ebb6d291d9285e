"""Maps from ala2-vacuum into water, hardly trained, for what transports and flows make of them."""

from __future__ import annotations

import shutil

from commands import call

from bgwork.system import load_system

TINY = ("training.steps=2", "training.batch=4", "training.warmup=1", "training.checkpoint_every=1")
RECIPES = {"targeted": "map.toml", "mapped": "mapped.toml", "mapped-framed": "framed.toml"}


def lay_out(folder):
    """Data of ala2-vacuum, and recipes for ala2-obc2, in a working directory."""
    data = folder / "runs" / "ala2-vacuum" / "reference"
    data.mkdir(parents=True)
    shutil.copy(load_system("ala2-vacuum").path / "reference.npz", data / "samples.npz")
    for name, copy in RECIPES.items():
        shutil.copy(load_system("ala2-xtb").path / "recipes" / f"{name}.toml", folder / copy)


def options(*settings):
    return [word for setting in settings for word in ("--set", setting)]


def trained(*more):
    """A map from vacuum into water, hardly trained; twice is once too often."""
    shutil.rmtree("made", ignore_errors=True)
    data = load_system("ala2-obc2").path / "reference.npz"
    settings = options("start.generator=fm-more", *TINY)
    return call("train", "ala2-obc2", "--recipe", "map.toml", "--data", data, "--out", "made", *settings, *more)
