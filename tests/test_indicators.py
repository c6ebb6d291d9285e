"""Parts of configuration space by name, with and without a bound."""

from __future__ import annotations

import pytest
import torch

from bgwork.indicators import IndicatorError, inside, observable_of

FUNCTIONS = {"right": lambda x: (x[:, 0, 0] > 0).double(), "height": lambda x: x[:, 0, 1], "third": lambda x: x[:, 2, 0],
             "space": lambda x: x @ torch.ones(3, 1, dtype=x.dtype)}
X = torch.tensor([[[-1.0, -2.0]], [[1.0, 0.25]], [[2.0, 0.5]]])


@pytest.mark.parametrize(("text", "wanted"), [
    ("right", [False, True, True]), (" right ", [False, True, True]), ("height > 0.25", [False, False, True]),
    ("height<0.25", [True, False, False]), ("height > -2e0", [False, True, True]), ("height > .3", [False, False, True]),
    ("height < -1", [True, False, False]), ("height > +0.3", [False, False, True]), ("right > 0.5", [False, True, True])])
def test_what_lies_within(text, wanted):
    assert inside(FUNCTIONS, text, X).tolist() == wanted


@pytest.mark.parametrize(("text", "words"), [
    ("left", "unknown observable 'left'; known are right, height, third, space"), ("left > 1", "unknown observable 'left'"),
    ("height >= 1", "unknown observable 'height >= 1'"), ("height > ", "unknown observable 'height >'"), ("", "unknown observable ''"),
    ("height", 'height is from -2 to 0.5 and not 1 or 0; give a bound, as in "height > 0.25"'),
    ("third", "third is no observable of these configurations"), ("third > 0", "third is no observable of these configurations"),
    ("space", "space is no observable of these configurations")])
def test_what_names_no_part_is_refused(text, words):
    with pytest.raises(IndicatorError, match=words):
        inside(FUNCTIONS, text, X)


def test_the_observable_behind_a_bound():
    assert observable_of(FUNCTIONS, "height < 3") == observable_of(FUNCTIONS, "height") == "height"
