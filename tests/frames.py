"""Frames of a shipped molecule, for the tests of trajectories."""

import torch
from torch import Tensor

from bgwork.system import System, reference_samples


def without_memory(system: System) -> Tensor:
    """A thousand equilibrium frames in random order, which is a trajectory without memory, [1000, n, 3]."""
    frames = reference_samples(system).x
    return frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:1000]]
