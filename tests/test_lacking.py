"""Parts of configuration space that a generator draws too seldom are named; where there are none, nothing is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import LINE

from bgwork import tables
from bgwork.indicators import inside
from bgwork.records import Density, Origin, Proposal, WeightedSamples
from bgwork.samplers.diagnosis import ReferenceSet
from bgwork.samplers.lacking import ERRORS, FEWEST, Lacking, clearness
from bgwork.samplers.lacking import lacking_parts as parts_of

FUNCTIONS = {"place": lambda x: x[:, 0, 0], "square": lambda x: x[:, 0, 0] ** 2, "right": lambda x: (x[:, 0, 0] > 1.5).double(),
             "nothing": lambda x: torch.full((len(x),), math.nan), "second": lambda x: x[:, 1, 0]}  # of a particle that there is not


def reference(m: int = 400, *, seed: int = 0, missing: float = 0.0, noise: float = 1.0) -> ReferenceSet:
    """Draws of N(0, 1) and a density that is exp(missing) too low beyond 1.5, where seven in a hundred lie, with errors everywhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, 1, 1, generator=generator, dtype=torch.float64)
    u = 0.5 * x[:, 0, 0] ** 2
    log_q = -u - missing * (x[:, 0, 0] > 1.5) + noise * torch.randn(m, generator=generator, dtype=torch.float64)
    proposal = Proposal(x=x, log_q=-u, space=LINE, density=Density.UNNORMALISED, origin=Origin(method="exact", system="line"))
    return ReferenceSet(samples=WeightedSamples(proposal=proposal, u=u, target="line"), log_q=log_q)


def lacking_parts(known: ReferenceSet, functions=FUNCTIONS, density: Density = Density.EXACT) -> tuple[Lacking, ...]:
    """Of samples that have such a density."""
    samples = reference(40, seed=1).samples
    return parts_of(replace(samples, proposal=replace(samples.proposal, density=density)), known, functions)


def test_what_is_missing_is_named_with_its_share_and_excess():
    known = reference(2000, missing=2.0)
    parts = lacking_parts(known, FUNCTIONS)
    assert {part.where.split()[0] for part in parts} == {"place", "square", "right"}
    assert [clearness(part) for part in parts] == sorted(map(clearness, parts), reverse=True)
    for part in parts:
        within = inside(FUNCTIONS, part.where, known.samples.x)  # what training.oversample would draw more often
        assert part.share == pytest.approx(within.double().mean().item()) and part.excess.n_eff == int(within.sum())
    right = next(part for part in parts if part.where.startswith("right"))
    assert abs(right.excess.value - 2.0) < 4 * right.excess.stderr and abs(right.share - 0.0668) < 0.02
    place = next(part for part in parts if part.where.startswith("place"))
    assert place.where.split()[1] == ">" and 1.2 < float(place.where.split()[2]) < 1.8


def test_the_lower_end_is_looked_at_too():
    known = reference(2000, missing=2.0)
    mirrored = {"place": lambda x: -x[:, 0, 0]}
    (part,) = lacking_parts(known, mirrored)
    assert part.where.startswith("place < -1.")


def test_where_nothing_is_missing_nothing_is_said():
    """Of 200 sets with even weights none has a part above the threshold; what is drawn too often is no lack of the rest either."""
    assert not any(lacking_parts(reference(seed=k)) for k in range(200))
    assert lacking_parts(reference(2000, missing=-2.0)) == ()


def test_the_error_is_that_of_the_difference():
    """Over many sets the excess scatters as its error says, with a fifth within, where both sides count."""
    z = []
    for seed in range(1000):
        known = reference(400, seed=seed)
        upper = known.samples.x[:, 0, 0] > 0.8416
        parts = lacking_parts(replace(known, log_q=known.log_q - 2.0 * upper), {"upper": lambda x: (x[:, 0, 0] > 0.8416).double()})
        z += [(part.excess.value - 2.0) / part.excess.stderr for part in parts]
    z = torch.tensor(z)
    assert len(z) == 1000 and abs(z.mean()) < 0.13 and 0.93 < z.std() < 1.07


def test_only_the_rows_whose_density_is_known_count():
    known = reference(2000, missing=2.0)
    rows = torch.arange(0, 2000, 2)
    some = replace(known, rows=rows, log_q=known.log_q[rows])
    alone = replace(known, samples=known.samples.take(rows), log_q=known.log_q[rows])
    assert lacking_parts(some, FUNCTIONS) == lacking_parts(alone, FUNCTIONS) != ()
    broken = replace(known, log_q=torch.where(torch.arange(2000) == 0, math.nan, known.log_q))
    assert {part.where.split()[0] for part in lacking_parts(broken, FUNCTIONS)} == {"place", "square", "right"}


def test_a_factor_without_noise_is_as_clear_as_can_be():
    known = reference()
    flat = replace(known.samples, u=torch.zeros(400, dtype=torch.float64))
    known = replace(known, samples=flat, log_q=-2.0 * (flat.x[:, 0, 0] > 1.5).double())
    (part,) = lacking_parts(known, {"right": FUNCTIONS["right"]})
    assert clearness(part) == math.inf and part.excess.value == 2.0


def test_copies_of_one_draw_count_once():
    known = reference(2000, missing=2.0)
    ancestor, rows = torch.arange(2000), torch.arange(2000).repeat(4)
    samples = replace(known.samples, proposal=replace(known.samples.proposal, ancestor=ancestor))
    copied = replace(known, samples=samples.take(rows), log_q=known.log_q[rows])
    assert lacking_parts(copied) == lacking_parts(known) != ()


@pytest.mark.parametrize("density", [Density.SIGNED, Density.UNNORMALISED])
def test_a_density_that_cannot_be_compared_says_nothing(density):
    assert lacking_parts(reference(2000, missing=2.0), density=density) == ()


def test_too_few_and_nothing_known():
    assert lacking_parts(reference(2 * FEWEST - 1, missing=5.0), FUNCTIONS) == ()
    assert lacking_parts(replace(reference(), log_q=torch.full((400,), math.nan, dtype=torch.float64)), FUNCTIONS) == ()
    assert lacking_parts(replace(reference(), log_q=None), FUNCTIONS) == () == lacking_parts(ReferenceSet(), FUNCTIONS)


def test_a_report_shows_them():
    (part,) = lacking_parts(reference(2000, missing=2.0), {"place": FUNCTIONS["place"]})
    estimate = {"value": 0.5, "stderr": 0.1, "n_eff": 10.0}
    report = {"ess": estimate, "resampled": False, "forward_ess": estimate, "pareto_k": 0.1, "pareto_k_limit": 0.7, "max_weight": 0.1,
              "n_failed": 0, "n": 10, "log_z": estimate, "log_z_bar": estimate, "n_groups": None, "negative_mass": None,
              "lacking": [{"where": part.where, "share": part.share, "excess": {"value": part.excess.value}}]}
    (shown,) = [row for row in tables.weight_rows(report) if row[0] == "drawn too seldom"]
    assert shown[1] == part.where and "of the reference samples" in shown[2] and clearness(part) > ERRORS
