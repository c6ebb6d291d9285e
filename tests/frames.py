"""Frames of a shipped molecule, for the tests of trajectories, and a reference run that takes no time."""

from dataclasses import replace

import torch
from torch import Tensor

from bgwork.system import System, load_system, reference_samples

TINY = {"chains": 4, "burn_in": 100, "thin": 20, "surplus": 2, "decorrelation": 5, "filling": 30_000, "temperatures": [300.0, 400.0],
        "exchange": 20, "exchanges": 20, "ladders": 4, "most_ladders": 4, "level": 1.2}  # low hills leave little to cut


def without_memory(system: System) -> Tensor:
    """A thousand equilibrium frames in random order, which is a trajectory without memory, [1000, n, 3]."""
    frames = reference_samples(system).x
    return frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:1000]]


def tiny_reference(name: str = "ala2-vacuum", **settings: object) -> System:
    """A molecule whose metadynamics and replica exchange are too short to converge."""
    system = load_system(name)
    return replace(system, reference=system.reference.model_copy(update=TINY | settings))
