"""Laws of couplings: marginals are kept up to symmetry, distances never grow, and answers are the best where all can be enumerated."""

import itertools

import pytest
import torch

from bgwork.couplings import EquivariantOptimalTransport, Independent, OptimalTransport, align, permute_onto, random_rotations, rotate_onto
from bgwork.priors import Gaussian
from bgwork.spaces import MeanFree

SPACE = MeanFree(n=5, d=3)
COUPLINGS = {
    "independent": Independent(),
    "ot": OptimalTransport(),
    "equivariant": EquivariantOptimalTransport(sweeps=2),
    "equivariant in groups": EquivariantOptimalTransport(sweeps=2, group=4),
}


def draws(n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(space=SPACE).sample(n, generator=generator), Gaussian(space=SPACE, std=1.4).sample(n, generator=generator), generator


def fingerprint(x):
    """Sorted pair distances of each configuration, which permutations, rotations and reflections keep."""
    return torch.cdist(x, x).flatten(1).sort(1).values


@pytest.mark.parametrize("name", COUPLINGS)
def test_partners_are_the_drawn_ones_up_to_symmetry(name):
    x0, x1, generator = draws()
    y0, y1 = COUPLINGS[name](x0, x1, generator=generator)
    for before, after in ((x0, y0), (x1, y1)):
        gaps = torch.cdist(fingerprint(before), fingerprint(after))
        assert gaps.min(1).values.max() < 1e-6
        assert len(set(gaps.argmin(1).tolist())) == len(before)


@pytest.mark.parametrize("name", COUPLINGS)
def test_pairs_are_no_farther_apart_than_independent_ones(name):
    x0, x1, generator = draws()
    y0, y1 = COUPLINGS[name](x0, x1, generator=generator)
    assert ((y0 - y1) ** 2).sum() <= ((x0 - x1) ** 2).sum() + 1e-9
    assert y0.mean(1).abs().max() < 1e-12


def test_path_lengths_come_in_the_published_order():
    x0, x1, generator = draws(64)
    pairs = {name: coupling(x0, x1, generator=generator) for name, coupling in COUPLINGS.items()}
    length = {name: ((a - b) ** 2).sum((1, 2)).mean() for name, (a, b) in pairs.items()}
    assert length["independent"] > length["ot"] > length["equivariant"] > length["equivariant in groups"]


def test_minibatch_transport_is_the_best_of_all_permutations():
    x0, x1, generator = draws(5)
    y0, y1 = OptimalTransport()(x0, x1, generator=generator)
    best = min(sum(((x0[i] - x1[j]) ** 2).sum().item() for j, i in enumerate(p)) for p in itertools.permutations(range(5)))
    assert ((y0 - y1) ** 2).sum().item() == pytest.approx(best)


def test_particles_are_permuted_to_the_best_of_all_permutations():
    x0, x1, _ = draws(3)
    moved = permute_onto(x0, x1)
    for k in range(3):
        best = min(((x0[k, list(p)] - x1[k]) ** 2).sum().item() for p in itertools.permutations(range(5)))
        assert ((moved[k] - x1[k]) ** 2).sum().item() == pytest.approx(best)


def test_a_rotated_copy_is_turned_back():
    x, _, generator = draws()
    turned = x @ random_rotations(len(x), 3, generator=generator)
    assert (rotate_onto(turned, x) - x).abs().max() < 1e-12


def test_a_permuted_copy_turned_by_a_small_angle_is_brought_back():
    x, _, generator = draws()
    turn = torch.tensor([[0.0, 0.05, 0], [-0.05, 0, 0], [0, 0, 0]], dtype=x.dtype)
    copy = x @ torch.linalg.matrix_exp(turn)
    copy = copy[:, torch.randperm(5, generator=generator)]
    assert (align(copy, x, sweeps=1) - x).abs().max() < 1e-9


def test_random_rotations_are_orthogonal_and_of_both_signs():
    q = random_rotations(400, 3, generator=torch.Generator().manual_seed(0))
    assert (q @ q.transpose(1, 2) - torch.eye(3, dtype=q.dtype)).abs().max() < 1e-12
    n_proper = int((torch.linalg.det(q) > 0).sum())
    assert abs(n_proper - 200) < 4 * 10  # binomial standard deviation 10
    assert q.mean(0).abs().max() < 4 * (1 / 3 / 400) ** 0.5


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    x0, x1, generator = draws(6)
    with pytest.raises(ValueError, match="groups of 4"):
        EquivariantOptimalTransport(group=4)(x0, x1, generator=generator)


@pytest.mark.parametrize("arguments", [{"sweeps": 0}, {"group": 0}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        EquivariantOptimalTransport(**arguments)
