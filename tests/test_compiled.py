"""A compiled field passes on the field's own numbers at every batch size up to its own, and grids can shorten towards the data."""

import pytest
import torch
from simple_fields import randomise

from bgwork.fields.compiled import CompiledField
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.recipes.sections import GridSection
from bgwork.samplers.integrators import Grid


@pytest.fixture
def field(monkeypatch):
    compiled = torch.compile
    # the C++ compiler takes minutes
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: compiled(f, dynamic=dynamic, backend="eager"))
    return randomise(MultiHop(3, 2, MultiHopConfig(hidden=6, message=4, vectors=3, node_hidden=6, n_basis=5)))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_smaller_batches_are_filled_up_and_cut_again(field, size):
    x = torch.randn(size, 3, 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    for got, expected in zip(CompiledField(field, rows=4).value_and_jacobian(torch.tensor(0.3), x),
                             field.value_and_jacobian(torch.tensor(0.3), x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_larger_batches_are_refused(field):
    with pytest.raises(ValueError, match="at most 2 rows, got 3"):
        CompiledField(field, rows=2).value_and_jacobian(torch.tensor(0.3), torch.zeros(3, 3, 2))


def test_steps_shorten_towards_the_data():
    assert GridSection(steps=4).build() == Grid(steps=4)
    grid = GridSection(steps=4, power=2.0).build()
    torch.testing.assert_close(torch.tensor([h for _, h in grid.intervals]), torch.tensor([7.0, 5.0, 3.0, 1.0]) / 16)
    assert GridSection(steps=4, power=2.0).build(integrator="rk4", steps=2) == Grid(integrator="rk4", steps=2, times=(0.0, 0.75, 1.0))
