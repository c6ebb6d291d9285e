"""Several rare basins drawn more often at once."""

from dataclasses import replace

import pytest
import torch

from bgwork.recipes import RecipeError
from bgwork.recipes.oversampling import OversamplingSection
from bgwork.system import load_system

SYSTEM = replace(load_system("dw4"), functions={"right": lambda x: (x[:, 0, 0] > 0).double(), "above": lambda x: (x[:, 0, 1] > 0).double(),
                                                "left": lambda x: (x[:, 0, 0] < 0).double()})


def rows(*, both: int = 4) -> torch.Tensor:
    """[400, 4, 2]: particle 0 is right of the origin in 40 of them, above it in 20."""
    x = torch.full((400, 4, 2), -1.0, dtype=torch.float64)
    x[:40, 0, 0] = 1.0
    x[40 - both : 60 - both, 0, 1] = 1.0
    return x


def chances(x: torch.Tensor, **shares: float) -> torch.Tensor:
    return OversamplingSection.model_construct(oversample=shares).chances(SYSTEM, x)


def test_every_observable_has_its_share():
    x = rows()
    p = chances(x, right=0.3, above=0.2)
    right, above = (SYSTEM.functions[name](x) for name in ("right", "above"))
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert (p @ right).item() == pytest.approx(0.3, abs=1e-8) and (p @ above).item() == pytest.approx(0.2, abs=1e-8)


def test_of_all_such_chances_these_are_nearest_to_equal():
    """One factor for each observable, so that p(both) p(neither) = p(right) p(above), row by row (Deming and Stephan 1940)."""
    p = chances(rows(), right=0.3, above=0.2)
    assert (p[36:40].unique().numel(), p[:36].unique().numel(), p[40:56].unique().numel(), p[56:].unique().numel()) == (1, 1, 1, 1)
    assert (p[36] * p[56]).item() == pytest.approx((p[0] * p[40]).item(), rel=1e-9)


def test_one_observable_is_met_at_once():
    p = chances(rows(), right=0.3)
    assert torch.equal(p, torch.tensor([0.3 / 40] * 40 + [0.7 / 360] * 360, dtype=torch.float64))


def test_a_bound_on_an_observable_is_as_good_as_one_that_is_one_or_zero():
    functions = SYSTEM.functions | {"height": lambda x: x[:, 0, 1]}
    section = OversamplingSection.model_construct(oversample={"height > 0.5": 0.3})
    assert torch.equal(section.chances(replace(SYSTEM, functions=functions), rows()), chances(rows(), above=0.3))


def test_the_order_of_the_observables_does_not_matter():
    torch.testing.assert_close(chances(rows(), right=0.3, above=0.2), chances(rows(), above=0.2, right=0.3), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shares", [{"right": 0.3, "left": 0.3}, {"right": 0.6, "above": 0.6}])
def test_shares_that_contradict_each_other_are_refused(shares):
    """Each row is either right or left; and without rows that are both, six tenths and six tenths do not fit."""
    with pytest.raises(RecipeError, match="no chances were found in 1000 sweeps that give training.oversample its shares"):
        chances(rows(both=0), **shares)
