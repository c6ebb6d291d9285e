"""Rare configurations drawn more often in training than they occur in the data; weights undo it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bgwork.recipes.base import RecipeError
from bgwork.recipes.sections import LoopSection
from bgwork.system import System

MOST_SWEEPS = 1000
FITS = 1e-9  # difference between a share and the one asked for


class OversamplingSection(LoopSection):
    """[training] with rows of data drawn more often.

    `oversample` = { observable = share } draws the rows at which an observable (1 or 0: "phi_positive", say) is 1 as often as that
    (`--set training.oversample={phi_positive=0.1}`); there may be several. The flow then holds a share s of them where the target has
    p, which weights undo: at best a factor 1 / (p^2/s + (1-p)^2/(1-s)) of the effective samples is left (with one observable), with many
    more of them in the rare basin, whose population and free energy become that much sharper. There must be enough such rows to learn
    from: each is drawn s/p times as often as it would be.
    """

    oversample: dict[str, Annotated[float, Field(gt=0, lt=1, strict=False)]] = {}

    def check_observables(self, system: System) -> None:
        """RecipeError if the system does not know what is to be drawn more often."""
        for name in self.oversample:
            if name not in system.functions:
                raise RecipeError(f"unknown observable {name!r} in training.oversample; known are {', '.join(system.functions)}")

    def chances(self, system: System, x: Tensor) -> Tensor | None:
        """How often each row of x [N, n, d] is drawn, [N] float64; None for equally often.

        Of all ways to give every observable its share, the one nearest to equal chances: a factor for every observable at which it is 1.

        Raises:
            RecipeError: if an observable is unknown, is not an indicator, or is 1 at all rows or none, or the shares contradict each other.
        """
        self.check_observables(system)
        if not self.oversample:
            return None
        inside = {name: _indicator(system, name, x) for name in self.oversample}
        return _raked(inside, self.oversample, torch.ones(len(x), dtype=torch.float64))


def _indicator(system: System, name: str, x: Tensor) -> Tensor:
    """[N] 1 or 0, both among them."""
    try:
        inside = system.functions[name](x.double()).double()
    except (IndexError, RuntimeError) as error:
        raise RecipeError(f"{name} in training.oversample is no observable of {system.name} ({error}); take another") from error
    if not (bool(((inside == 0) | (inside == 1)).all()) and 0 < int(inside.sum()) < len(x)):
        found = f"{name} is from {float(inside.min()):g} to {float(inside.max()):g}"
        raise RecipeError(f"training.oversample wants an observable that is 1 at some of the {len(x)} configurations and 0 at the "
                          f"others, but {found}; leave it out, or take another")
    return inside


def _raked(inside: Mapping[str, Tensor], shares: Mapping[str, float], chances: Tensor) -> Tensor:
    """Chances [N] scaled for one observable after the other until each has its share (Deming and Stephan 1940)."""
    for _ in range(MOST_SWEEPS):
        for name, f in inside.items():
            held, rest = (chances * f).sum(), (chances * (1 - f)).sum()
            chances = chances * (f * (shares[name] / held) + (1 - f) * ((1 - shares[name]) / rest))
        if all(abs((chances * f).sum().item() - shares[name]) < FITS for name, f in inside.items()):
            return chances
    asked = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
    raise RecipeError(f"no chances were found in {MOST_SWEEPS} sweeps that give training.oversample its shares ({asked}): there may be no "
                      "rows with one of them alone, or with none; leave one out, or lower the shares")
