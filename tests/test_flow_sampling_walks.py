"""Path weights of walks with drifts that nobody trained: right at any number of steps."""

from __future__ import annotations

import math

import pytest
import torch
from curved_walks import ORIGIN, TARGETS, prior_of, seed
from torch import Tensor

from bgwork.curved import Hyperboloid
from bgwork.objectives.flow_sampling import walk_grid
from bgwork.paths import stops
from bgwork.records import Density
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.geodesic import GeodesicKernels
from bgwork.samplers.sde import PathSampler


def untrained(space):
    """Drifts that have little to do with any target: forward and backward disagree, everywhere and more so later."""
    turn = torch.randn(space.d, space.d, generator=seed(3), dtype=torch.float64) / 2

    def drifts(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(space, Hyperboloid):
            home = space.log(x, space.origin(x))
            return 0.2 * t * home, -0.5 * t * home
        pole = space.project(torch.eye(space.n, space.d, dtype=torch.float64)).expand_as(x)
        pull, swirl = space.tangent(x, pole), space.tangent(x, torch.tanh(x @ turn))
        return 0.3 * pull + 0.3 * t * swirl, 0.3 * pull - 0.1 * t * swirl

    return drifts


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("steps", [5, 20, 100])
def test_path_weights_give_the_known_log_z_at_any_number_of_steps(target, steps):
    kernels = GeodesicKernels(space=target.space, drifts=untrained(target.space), grid=walk_grid(0.2, stops(steps)))
    sampler = PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN)
    weighted = weigh(sampler.sample(max(1000, 20_000 // steps), generator=seed(steps)), target)
    estimate = log_z(weighted)
    assert weighted.n_failed == 0 and weighted.proposal.density is Density.PATH
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr < 0.4
    assert ess(weighted).value < 0.8, "an untrained drift should not be this good: the test has lost its point"


@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_steps_that_wind_around_the_sphere_are_weighed_with_all_their_images(gamma):
    """With steps as long as the sphere is wide, log Z and an average come out only if every image is counted.

    Forward and backward drift must differ, or the images of both kernels cancel.
    """
    target, pole = TARGETS["vMF on S2"], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    space, grid = target.space, walk_grid(gamma, stops(2))
    kernels = GeodesicKernels(space=space, drifts=lambda t, x: (space.tangent(x, pole.expand_as(x)), 0 * x), grid=grid)
    weighted = weigh(PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN).sample(20_000, generator=seed()), target)
    exact, estimate = target.sample(20_000, generator=seed(1))[:, 0, 0], log_z(weighted)
    moment = expectation(weighted, lambda x: x[:, 0, 0])
    assert abs(estimate.value - target.log_z) < 4 * estimate.stderr < 0.1
    assert abs(moment.value - exact.mean().item()) < 4 * math.hypot(moment.stderr, exact.std().item() / math.sqrt(len(exact)))


def test_a_walk_counts_its_evaluations_and_repeats_itself():
    target, calls = TARGETS["vMF on S2"], []

    def drifts(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(x))
        return untrained(target.space)(t, x)

    kernels = GeodesicKernels(space=target.space, drifts=drifts, grid=walk_grid(0.2, stops(10)), batch=16)
    sampler = PathSampler(start=prior_of(target.space), kernels=kernels, origin=ORIGIN)
    first = sampler.sample(40, generator=seed())
    assert sum(calls) == first.cost.network == 40 * 11
    second = sampler.sample(40, generator=seed())
    assert torch.equal(first.x, second.x) and torch.equal(first.log_q, second.log_q)
