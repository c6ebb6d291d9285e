"""Forces along bonds: balanced by thermal motion on an oracle, with standard errors that hold, and not on another energy."""

from pathlib import Path

import pytest
import torch

from bgwork.bond_balance import LIMIT, bond_balance
from bgwork.topology import Topology

STRETCH, REST = 200.0, 1.2


@pytest.fixture(scope="module")
def topology():
    return Topology(names=("A", "B", "C"), elements=("C",) * 3, residues=("MOL",) * 3, residue_of=(0, 0, 0), bonds=((0, 1), (1, 2)),
                    path=Path("none.pdb"))


def chains(n, seed):
    """Two bonds, exact draws: r from r^2 exp(-k (r - rest)^2 / 2) by rejection, directions as they fall."""
    generator = torch.Generator().manual_seed(seed)
    lengths = REST + STRETCH**-0.5 * torch.randn(20 * n, generator=generator, dtype=torch.float64)
    lengths = lengths[torch.rand(20 * n, generator=generator, dtype=torch.float64) < (lengths / 2) ** 2][: 2 * n].view(n, 2, 1)
    bonds = torch.nn.functional.normalize(torch.randn(n, 2, 3, generator=generator, dtype=torch.float64), dim=2) * lengths
    return torch.stack([-bonds[:, 0], torch.zeros(n, 3, dtype=torch.float64), bonds[:, 1]], 1)


def gradient(x, rest=REST):
    x = x.clone().requires_grad_()
    lengths = (x[:, 1:] - x[:, :-1]).norm(dim=2)
    return torch.autograd.grad((STRETCH * (lengths - rest) ** 2 / 2).sum(), x)[0]


def test_balanced_with_errors_that_hold(topology):
    """z of an exact sample is standard normal: mean square 1 over 60 samples of two independent pairs of ends."""
    found = torch.stack([bond_balance(topology, x, gradient(x)).z for x in (chains(500, seed) for seed in range(60))])
    assert abs(found[:, :2].square().mean() - 1) < 4 * (2 / found[:, :2].numel()) ** 0.5
    assert found.abs().max() < 4.5


def test_rows_that_are_alike_count_less(topology):
    """Every row ten times in a row, as in a trajectory with frames too close: no surer than once."""
    x = chains(300, 1)
    often = x.repeat_interleave(10, 0)
    once, often = (bond_balance(topology, rows, gradient(rows)) for rows in (x, often))
    assert 0.6 * once.value < often.value < 1.6 * once.value


def test_another_rest_length_shows(topology):
    """By a seventh of the bonds' spread, at 2,000 configurations."""
    x = chains(2000, 2)
    own, other = bond_balance(topology, x, gradient(x)), bond_balance(topology, x, gradient(x, rest=REST + 0.01))
    assert own.passed and not other.passed and other.value > 2 * LIMIT
    assert "between MOL1-" in str(other)
