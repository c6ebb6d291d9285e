"""Adjoint sampling never trains on a point into which all particles have fallen."""

import torch
from oracles import DW4_SPACE, GaussianOracle

from bgwork.objectives.adjoint_sampling import EARLIEST, AdjointSampling
from bgwork.objectives.weighted_adjoint import WeightedAdjointSampling
from bgwork.paths import GeometricBrownian, Times, stops
from bgwork.samplers.kernels import control_table


def test_regressions_keep_clear_of_the_start():
    """Of a million uniform times a thousand would lie below; they are moved up, and the rest stays what it was."""
    brownian, target = GeometricBrownian(std=2.0, ratio=0.05), GaussianOracle(space=DW4_SPACE, std=0.7)
    x = target.sample(20_000, generator=torch.Generator().manual_seed(0))
    rows = {"x": x, "gradient": target.u_and_grad(x)[1]}
    common = {"space": DW4_SPACE, "brownian": brownian, "table": control_table(brownian, stops(4)), "clip": 1e6, "scale": 1.0}
    drawn = Times().sample(20_000, generator=torch.Generator().manual_seed(1))
    for method in (AdjointSampling(**common), WeightedAdjointSampling(**common)):
        made = method.regression(target, rows, generator=torch.Generator().manual_seed(1))
        assert made.t.min() == EARLIEST and (drawn < EARLIEST).sum() > 5
        assert torch.equal(made.t[drawn > EARLIEST], drawn[drawn > EARLIEST])
