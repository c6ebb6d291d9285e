"""Observables on configurations whose answers are known by hand, and against scipy."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from bgwork.observables import OBSERVABLES, dihedral, n_long, n_long_is, pair_distances, radius_of_gyration, rmsd
from bgwork.priors import Gaussian
from bgwork.spaces import MeanFree

SQUARE = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 3.0], [0.0, 3.0]]])


def random(n: int, d: int = 3, batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rotation(d: int) -> torch.Tensor:
    q = torch.linalg.qr(random(d, d, 1)[0]).Q
    return q if torch.linalg.det(q) > 0 else -q if d % 2 else q[:, [1, 0, *range(2, d)]]


def test_a_square():
    diagonal = 3 * math.sqrt(2)
    assert pair_distances(SQUARE)[0].sort().values.tolist() == pytest.approx([3, 3, 3, 3, diagonal, diagonal])
    assert radius_of_gyration(SQUARE).item() == pytest.approx(diagonal / 2)
    assert n_long(SQUARE).item() == 2 and n_long_is(SQUARE, count=2).item() == 1.0 and n_long_is(SQUARE, count=4).item() == 0.0
    assert OBSERVABLES["pair_distance_mean"](SQUARE).item() == pytest.approx((12 + 2 * diagonal) / 6)
    assert OBSERVABLES["pair_distance_min"](SQUARE).item() == 3
    assert OBSERVABLES["pair_distance_max"](SQUARE).item() == pytest.approx(diagonal)
    assert OBSERVABLES["coordinate_y"](SQUARE).item() == 1.5


@pytest.mark.parametrize("name", [name for name in OBSERVABLES if not name.startswith(("coordinate", "distance_from_origin", "neighbour"))])
def test_one_number_each_and_no_preferred_frame_or_labelling(name):
    x = 2 * random(4, 2)
    moved = (x @ rotation(2))[:, [2, 0, 3, 1]] + 0.7
    assert OBSERVABLES[name](x).shape == (5,) and OBSERVABLES[name](x.float()).dtype == torch.float64
    assert torch.allclose(OBSERVABLES[name](x), OBSERVABLES[name](moved))


def test_neighbours_along_a_chain_are_compared_whatever_the_frame():
    spins = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]], dtype=torch.float64)
    alignment = OBSERVABLES["neighbour_alignment"]
    assert alignment(spins).item() == -0.5 and alignment(spins.float()).dtype == torch.float64
    assert torch.allclose(alignment(spins @ rotation(2)), alignment(spins))


def test_mean_square_distance_of_a_gaussian():
    """<R_g^2> of n independent particles of variance s^2 each, mean removed: s^2 d (n-1)/n."""
    x = Gaussian(space=MeanFree(n=5, d=3), std=0.8).sample(20_000, generator=torch.Generator().manual_seed(0))
    square = radius_of_gyration(x).square()
    assert abs(square.mean().item() - 0.64 * 3 * 0.8) < 4 * square.std().item() / math.sqrt(20_000)


@pytest.mark.parametrize("angle", [-3.0, -1.2, 0.3, 2.1])
def test_dihedral_turns_with_the_last_atom(angle):
    """The last atom of a cis chain turned about the middle bond by `angle`, in any frame and order of storage."""
    cis = torch.tensor([[[-0.3, 1.1, 0], [0, 0, 0], [1.5, 0, 0], [1.9, 1.0, 0]]], dtype=torch.float64)
    x = cis.clone()
    x[0, 3] = torch.from_numpy(Rotation.from_rotvec([angle, 0, 0]).apply(cis[0, 3].numpy()))
    moved = (x @ rotation(3) + 3.0)[:, [2, 0, 3, 1]]
    assert dihedral(moved, atoms=(1, 3, 0, 2)).item() == pytest.approx(angle)


def test_rmsd_against_scipy():
    x = random(6)
    y = (x - x.mean(1, keepdim=True)).numpy()
    expected = [Rotation.align_vectors(y[2], z)[1] / math.sqrt(6) for z in y]
    assert rmsd(x + 1.0, reference=x[2]).tolist() == pytest.approx(expected, abs=1e-7)


def test_dihedral_signs():
    """Cis is 0, trans is pi, and the mirror image changes sign."""
    cis = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]]])
    trans = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, -1, 0]]])
    clockwise = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]])
    assert dihedral(cis, atoms=(0, 1, 2, 3)).item() == pytest.approx(0.0)
    assert abs(dihedral(trans, atoms=(0, 1, 2, 3)).item()) == pytest.approx(math.pi)
    assert dihedral(clockwise, atoms=(0, 1, 2, 3)).item() == pytest.approx(math.pi / 2)
    assert dihedral(clockwise * torch.tensor([1.0, 1, -1]), atoms=(0, 1, 2, 3)).item() == pytest.approx(-math.pi / 2)
    with pytest.raises(ValueError, match="three dimensions"):
        dihedral(SQUARE, atoms=(0, 1, 2, 3))


def test_rmsd_allows_rotation_but_no_reflection():
    x = random(6)
    assert torch.allclose(rmsd(x @ rotation(3) + 1.0, reference=x[0])[0], torch.zeros((), dtype=torch.float64), atol=1e-7)
    assert rmsd(-x, reference=x[0])[0] > 0.1
