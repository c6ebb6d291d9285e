"""Records: which rows failed, what a log-weight is there, and how far two estimates lie apart."""

import math

import pytest
import torch

from bgwork.records import Density, Estimate, Origin, Proposal, WeightedSamples
from bgwork.spaces import Euclidean

NAN, INF = math.nan, math.inf


def row(*, x: float = 0.5, u: float = 2.0, log_q: float = -1.0) -> WeightedSamples:
    """A row with these values, after one that is sound."""
    column = {name: torch.tensor([0.0, value], dtype=torch.float64) for name, value in {"x": x, "u": u, "log_q": log_q}.items()}
    proposal = Proposal(x=column["x"].view(-1, 1, 1), log_q=column["log_q"], space=Euclidean(n=1, d=1), density=Density.EXACT,
                        origin=Origin(method="by hand", system="line"))
    return WeightedSamples(proposal=proposal, u=column["u"], target="line")


@pytest.mark.parametrize("values", [
    {"x": NAN}, {"u": NAN}, {"u": -INF}, {"log_q": NAN}, {"log_q": INF}, {"log_q": -INF},
    {"u": -INF, "log_q": INF}, {"u": INF, "log_q": INF}, {"u": INF, "log_q": -INF}, {"u": INF, "x": NAN},
])
def test_what_cannot_be_weighed_has_failed_and_weighs_nothing(values):
    weighted = row(**values)
    assert weighted.failed.tolist() == [False, True] and weighted.n_failed == 1
    assert weighted.log_w.tolist() == [0.0, -INF]


@pytest.mark.parametrize(("values", "log_w"), [({}, -1.0), ({"log_q": -800.0}, 798.0), ({"u": INF}, -INF), ({"u": -1e6}, 1e6 + 1)])
def test_what_is_merely_unlikely_has_not_failed(values, log_w):
    weighted = row(**values)
    assert weighted.n_failed == 0 and weighted.log_w[1] == log_w


@pytest.mark.parametrize(("ours", "theirs", "z"), [
    ((5.0, 0.3), (3.0, 0.4), 4.0), ((3.0, 0.4), (5.0, 0.3), -4.0), ((5.0, 0.0), (3.0, 0.5), 4.0),
    ((2.0, 0.0), (2.0, 0.0), 0.0), ((2.0, 0.0), (1.0, 0.0), INF), ((1.0, 0.0), (2.0, 0.0), -INF),
])
def test_difference_in_standard_errors(ours, theirs, z):
    a, b = (Estimate(value=value, stderr=stderr) for value, stderr in (ours, theirs))
    assert a.z(b) == pytest.approx(z)
