"""Distances between samples of known distance."""

import math
from functools import partial
from itertools import permutations

import pytest
import torch
from scipy.stats import wasserstein_distance

from bgwork.couplings import random_rotations
from bgwork.metrics import (
    aligned_square_distance,
    energy_w2,
    geometric_w2,
    grouped_noise_floor,
    noise_floor,
    systematic_draw,
    torus_w2,
    total_variation,
    weighted_noise_floor,
)
from bgwork.priors import Gaussian
from bgwork.spaces import MeanFree


def normal(n: int, *, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return mean + std * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(batch: int, *, n: int = 4, d: int = 2, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return Gaussian(space=MeanFree(n=n, d=d), std=std).sample(batch, generator=torch.Generator().manual_seed(seed))


def disguised(x: torch.Tensor, *, seed: int) -> torch.Tensor:
    """The same configurations with particles relabelled and each turned or reflected at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(x.shape[1], generator=generator) for _ in x])
    return torch.gather(x, 1, order[:, :, None].expand_as(x)) @ random_rotations(len(x), x.shape[2], generator=generator)


def test_energy_w2_of_two_normals():
    """W2^2 = (mean difference)^2 + (std difference)^2."""
    a, b = normal(40_000, seed=1), normal(50_000, mean=3.0, std=2.0, seed=2)
    assert energy_w2(a, b) == pytest.approx(math.sqrt(10), abs=0.03)
    assert energy_w2(b, a) == pytest.approx(energy_w2(a, b), rel=1e-12)


def test_energy_w2_by_hand():
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    assert energy_w2(a, a) == 0.0
    assert energy_w2(torch.zeros(3), torch.tensor([2.0])) == pytest.approx(2.0)
    # thirds against halves: [0, 1/3] 0-0, [1/3, 1/2] 0-1, [1/2, 2/3] 1-1, [2/3, 1] 1-2
    assert energy_w2(a, b) == pytest.approx(math.sqrt(1 / 6 + 1 / 3))


def test_energy_w2_with_weights_is_that_of_repeated_values():
    values, counts = normal(50), torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0))
    other = normal(70, seed=3)
    assert energy_w2(values, other, weights_a=counts.double()) == pytest.approx(energy_w2(values.repeat_interleave(counts), other))
    assert energy_w2(other, values, weights_b=counts.double()) == pytest.approx(energy_w2(other, values.repeat_interleave(counts)))
    assert energy_w2(values, other) >= wasserstein_distance(values, other)  # W2 >= W1


def test_energy_w2_ignores_infinite_values_of_no_weight_and_refuses_others():
    values, weights = torch.tensor([math.inf, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    assert energy_w2(values, torch.tensor([1.0, 2.0]), weights_a=weights) == 0.0
    with pytest.raises(ValueError, match="1 of 3 values of positive weight are not finite"):
        energy_w2(values, torch.ones(2))
    with pytest.raises(ValueError, match="not all zero"):
        energy_w2(values, torch.ones(2), weights_a=torch.zeros(3))


@pytest.mark.parametrize(("n", "d"), [(4, 2), (4, 3), (7, 3)])
def test_geometric_w2_does_not_see_order_labels_or_frames(n, d):
    a = clusters(12, n=n, d=d)
    assert geometric_w2(a, disguised(a, seed=1).flip(0)) < 1e-6 < 0.5 < geometric_w2(a, clusters(12, n=n, d=d, seed=5))


def test_geometric_w2_of_a_dilation():
    """x and s x are |1 - s| |x| apart, and no permutation or rotation brings them closer; with one sample that is W2."""
    a = clusters(1)
    assert geometric_w2(a, disguised(1.5 * a, seed=2)) == pytest.approx(0.5 * a.norm().item())


def test_alignment_search_comes_near_the_exact_minimum():
    """Five particles against the minimum over all 120 permutations: never below it, within 10 % of it on average."""
    x, y = clusters(200, n=5, d=3), clusters(200, n=5, d=3, seed=4)
    overlap = torch.stack([torch.linalg.svdvals(x.transpose(1, 2) @ y[:, order]).sum(1) for order in permutations(range(5))]).amax(0)
    exact = x.square().sum((1, 2)) + y.square().sum((1, 2)) - 2 * overlap
    found = aligned_square_distance(x, y)
    assert (found > exact - 1e-9).all()
    assert found.mean() < 1.1 * exact.mean()


def test_alignment_of_four_particles_is_the_minimum_over_all():
    x, y = clusters(30), clusters(30, seed=9)
    best = aligned_square_distance(x, y)
    for seed in range(20):
        moved = disguised(y, seed=seed)
        assert ((x - moved).square().sum((1, 2)) >= best - 1e-9).all()


def test_torus_w2_wraps():
    a = torch.tensor([[math.pi - 0.1, 0.0], [1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 2.0], [-math.pi + 0.1, 0.0]], dtype=torch.float64)
    assert torus_w2(a, b) == pytest.approx(math.sqrt(0.04 / 2))
    assert torus_w2(a + 2 * math.pi, b) == pytest.approx(torus_w2(a, b))


def test_torus_w2_of_a_shift_across_the_border():
    """A cloud moved by a vector shorter than half the torus is that vector's length away, wherever the border runs."""
    cloud = 0.2 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + math.pi
    for shift in ((0.5, -0.3), (0.0, 2.0)):
        moved = torch.remainder(cloud + torch.tensor(shift) + math.pi, 2 * math.pi) - math.pi
        assert torus_w2(cloud, moved.flip(0)) == pytest.approx(math.hypot(*shift))
    with pytest.raises(ValueError, match="not finite"):
        torus_w2(cloud, cloud * math.nan)


def test_systematic_draw_repeats_rows_by_weight():
    weights = torch.tensor([0.0, 2.0, 1.0, 0.25, 0.75, 0.0], dtype=torch.float64)
    counts = torch.zeros(6)
    for seed in range(200):
        drawn = systematic_draw(torch.arange(6), weights, 8, generator=torch.Generator().manual_seed(seed))
        found = torch.bincount(drawn, minlength=6)
        assert found[[0, 1, 2, 5]].tolist() == [0, 4, 2, 0] and found[3] in (0, 1) and found[4] in (1, 2)
        counts += found / 200
    assert counts[3].item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200))
    with pytest.raises(ValueError, match="not all zero"):
        systematic_draw(torch.arange(2), torch.zeros(2), 3, generator=torch.Generator())
    with pytest.raises(ValueError, match="cannot draw 0 rows"):
        systematic_draw(torch.arange(2), torch.ones(2), 0, generator=torch.Generator())


def weighted_torus_w2(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> float:
    return torus_w2(systematic_draw(a, weights, len(b), generator=torch.Generator().manual_seed(0)), b)


def test_weighted_samples_on_the_torus():
    """A uniform proposal reweighted to a von Mises cloud comes down to the floor of its weights, which is above that of equal ones."""
    generator = torch.Generator().manual_seed(0)

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.cos(x - 3).sum(1)

    uniform = 2 * math.pi * torch.rand(60_000, 2, generator=generator, dtype=torch.float64) - math.pi
    cloud = uniform[torch.rand(60_000, generator=generator, dtype=torch.float64) < torch.exp(log_density(uniform) - 6)]
    own = 2 * math.pi * torch.rand(1500, 2, generator=generator, dtype=torch.float64) - math.pi
    weights = torch.exp(log_density(own))
    equal = noise_floor(torus_w2, cloud, 400, generator=generator)
    floor = weighted_noise_floor(weighted_torus_w2, cloud, weights, 400, generator=generator)
    value = weighted_torus_w2(own, cloud[:400], weights)
    assert floor.value > equal.value and abs(value - floor.value) < 6 * floor.stderr
    assert torus_w2(own[:400], cloud[:400]) > 3 * value


def test_floor_of_even_weights_is_the_plain_one():
    reference = normal(9000)
    plain = noise_floor(energy_w2, reference, 1000, generator=torch.Generator().manual_seed(0), repeats=20)

    def metric(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> float:
        return energy_w2(a, b, weights_a=weights)

    even = weighted_noise_floor(metric, reference, torch.ones(1000), 1000, generator=torch.Generator().manual_seed(1), repeats=20)
    one = torch.zeros(1000).index_fill(0, torch.tensor([4]), 1.0)
    alone = weighted_noise_floor(metric, reference, one, 1000, generator=torch.Generator().manual_seed(1), repeats=20)
    assert abs(even.value - plain.value) < 4 * math.hypot(even.stderr, plain.stderr) / math.sqrt(20)
    assert alone.value > 0.9  # one sample against all: at least their standard deviation
    with pytest.raises(ValueError, match="needs 9001 reference samples"):
        weighted_noise_floor(metric, reference, torch.ones(9000), 1, generator=torch.Generator())


def test_total_variation_by_hand():
    edges = torch.tensor([0.0, 1.0, 2.0])
    a, b = torch.tensor([0.5, 0.5, 1.5, 7.0]), torch.tensor([0.5, 1.5, 1.5, -3.0])
    assert total_variation(a, b, edges=edges) == pytest.approx(0.5)  # .5 .25 | .25 .5 | beyond: .25 right, .25 left
    assert total_variation(a, a, edges=edges) == 0.0
    assert total_variation(a, a + 10, edges=edges) == pytest.approx(0.75)
    weights = torch.tensor([1.0, 1.0, 2.0, 0.0])
    assert total_variation(a, b, edges=edges, weights_a=weights) == pytest.approx(0.25)
    assert total_variation(a.repeat(3, 1).T, b.repeat(3, 1).T, edges=edges) == pytest.approx(0.5)


def test_total_variation_of_two_normals():
    """TV of N(0,1) and N(1,1) is 2 Phi(1/2) - 1."""
    edges = torch.linspace(-6, 7, 27)
    value = total_variation(normal(100_000, seed=4), normal(100_000, mean=1.0, seed=5), edges=edges)
    assert value == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.01)


@pytest.mark.parametrize("metric", [energy_w2, partial(total_variation, edges=torch.linspace(-4, 4, 20))], ids=["energy-w2", "tv"])
def test_noise_floor_falls_with_n_and_holds_the_same_distribution(metric):
    reference = normal(20_000)
    small, large = (noise_floor(metric, reference, n, generator=torch.Generator().manual_seed(0)) for n in (100, 10_000))
    assert small.value > 3 * large.value > 0
    same, other = metric(normal(10_000, seed=7), normal(10_000, seed=8)), metric(normal(10_000, mean=0.3, seed=7), normal(10_000, seed=8))
    assert same < large.value + 6 * large.stderr < other


def test_noise_floor_of_clusters_and_its_limits():
    reference = clusters(60)
    floor = noise_floor(geometric_w2, reference, 30, generator=torch.Generator().manual_seed(0), repeats=3)
    assert geometric_w2(reference[:30], 2 * reference[30:]) > floor.value + 4 * floor.stderr
    with pytest.raises(ValueError, match="needs 80 reference samples"):
        noise_floor(geometric_w2, reference, 40, generator=torch.Generator())
    with pytest.raises(ValueError, match="same number"):
        geometric_w2(reference[:30], reference[:29])


def test_noise_floor_between_chains_shows_what_chains_share():
    """Chains with an offset of their own: halves of 20 differ by sqrt(2 / 10) times its spread; random halves do not."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(20).repeat_interleave(400)
    reference = torch.randn(8000, generator=generator, dtype=torch.float64) + 0.5 * torch.randn(20, generator=generator).double()[group]
    random = noise_floor(energy_w2, reference, 3000, generator=torch.Generator().manual_seed(1), repeats=20)
    chains = grouped_noise_floor(energy_w2, reference, group, 3000, generator=torch.Generator().manual_seed(1), repeats=20)
    assert 2 * random.value < chains.value < 0.5
    alone = grouped_noise_floor(energy_w2, reference, torch.arange(8000) % 20, 3000, generator=torch.Generator().manual_seed(1), repeats=20)
    assert abs(alone.value - random.value) < 4 * (alone.stderr**2 + random.stderr**2) ** 0.5 / 20**0.5
    with pytest.raises(ValueError, match="half of the 20 chains hold 4000 samples, 5000 are needed"):
        grouped_noise_floor(energy_w2, reference, group, 5000, generator=torch.Generator())
    with pytest.raises(ValueError, match="needs four of them"):
        grouped_noise_floor(energy_w2, reference, group // 7, 5, generator=torch.Generator())
