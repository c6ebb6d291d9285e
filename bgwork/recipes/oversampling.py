"""Rare configurations drawn more often in training than they occur in the data; weights undo it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bgwork.indicators import IndicatorError, inside, observable_of
from bgwork.recipes.base import RecipeError
from bgwork.recipes.sections import LoopSection
from bgwork.system import System

MOST_SWEEPS = 1000
FITS = 1e-9  # difference between a share and the one asked for


class OversamplingSection(LoopSection):
    """[training] with rows of data drawn more often.

    `oversample` = { observable = share } draws the rows at which an observable (1 or 0: "phi_positive", say) is 1, or lies beyond a bound
    ("psi_1_sin < -0.6"), as often as that (`--set training.oversample={phi_positive=0.1}`); there may be several. The flow then holds a
    share s of them where the target has p, which weights undo: at best a factor 1 / (p^2/s + (1-p)^2/(1-s)) of the effective samples is
    left (with one observable), with many more of them in the rare basin, whose population and free energy become that much sharper. There
    must be enough such rows to learn from: each is drawn s/p times as often as it would be.
    """

    oversample: dict[str, Annotated[float, Field(gt=0, lt=1, strict=False)]] = {}

    def check_observables(self, system: System) -> None:
        """RecipeError if the system does not know what is to be drawn more often."""
        for text in self.oversample:
            try:
                observable_of(system.functions, text)
            except IndicatorError as error:
                raise RecipeError(f"training.oversample: {error}") from error

    def chances(self, system: System, x: Tensor) -> Tensor | None:
        """How often each row of x [N, n, d] is drawn, [N] float64; None for equally often.

        Of all ways to give every observable its share, the one nearest to equal chances: a factor for every observable at which it is 1.

        Raises:
            RecipeError: if an observable is unknown, is not an indicator, or is 1 at all rows or none, or the shares contradict each other.
        """
        self.check_observables(system)
        if not self.oversample:
            return None
        within = {text: _indicator(system, text, x) for text in self.oversample}
        return _raked(within, self.oversample, torch.ones(len(x), dtype=torch.float64))


def _indicator(system: System, text: str, x: Tensor) -> Tensor:
    """[N] 1 or 0, both among them."""
    try:
        within = inside(system.functions, text, x)
    except IndicatorError as error:
        raise RecipeError(f"training.oversample of {system.name}: {error}") from error
    if not 0 < int(within.sum()) < len(x):
        raise RecipeError(f"training.oversample wants what holds at some of the {len(x)} configurations and not at the others, but {text} "
                          f"holds at {'all' if within.any() else 'none'}; leave it out, or take another")
    return within.double()


def _raked(within: Mapping[str, Tensor], shares: Mapping[str, float], chances: Tensor) -> Tensor:
    """Chances [N] scaled for one observable after the other until each has its share (Deming and Stephan 1940)."""
    for _ in range(MOST_SWEEPS):
        for name, f in within.items():
            held, rest = (chances * f).sum(), (chances * (1 - f)).sum()
            chances = chances * (f * (shares[name] / held) + (1 - f) * ((1 - shares[name]) / rest))
        if all(abs((chances * f).sum().item() - shares[name]) < FITS for name, f in within.items()):
            return chances
    asked = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
    raise RecipeError(f"no chances were found in {MOST_SWEEPS} sweeps that give training.oversample its shares ({asked}): there may be no "
                      "rows with one of them alone, or with none; leave one out, or lower the shares")
