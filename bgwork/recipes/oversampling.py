"""Rare configurations drawn more often in training than they occur in the data; weights undo it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from bgwork.recipes.base import RecipeError
from bgwork.recipes.sections import LoopSection
from bgwork.system import System


class OversamplingSection(LoopSection):
    """[training] with rows of data drawn more often.

    `oversample` = { observable = share } draws the rows at which one observable (1 or 0: "phi_positive", say) is 1 as often as that
    (`--set training.oversample={phi_positive=0.1}`). The flow then holds a share s of them where the target has p, which weights undo: at
    best a factor 1 / (p^2/s + (1-p)^2/(1-s)) of the effective samples is left, with many more of them in the rare basin, whose
    population and free energy become that much sharper. There must be enough such rows to learn from.
    """

    oversample: Annotated[dict[str, Annotated[float, Field(gt=0, lt=1, strict=False)]], Field(max_length=1)] = {}

    def check_observables(self, system: System) -> None:
        """RecipeError if the system does not know what is to be drawn more often."""
        for name in self.oversample:
            if name not in system.functions:
                raise RecipeError(f"unknown observable {name!r} in training.oversample; known are {', '.join(system.functions)}")

    def chances(self, system: System, x: Tensor) -> Tensor | None:
        """How often each row of x [N, n, d] is drawn, [N] float64; None for equally often.

        Raises:
            RecipeError: if the observable is unknown, is not an indicator, or is 1 at all rows or none.
        """
        self.check_observables(system)
        for name, share in self.oversample.items():
            try:
                inside = system.functions[name](x.double()).double()
            except (IndexError, RuntimeError) as error:
                raise RecipeError(f"{name} in training.oversample is no observable of {system.name} ({error}); take another") from error
            indicator = bool(((inside == 0) | (inside == 1)).all())
            count = int(inside.sum()) if indicator else 0
            if not 0 < count < len(x):
                found = f"{name} is from {float(inside.min()):g} to {float(inside.max()):g}"
                raise RecipeError(f"training.oversample wants an observable that is 1 at some of the {len(x)} configurations and 0 at the "
                                  f"others, but {found}; leave it out, or take another")
            return inside * (share / count) + (1 - inside) * ((1 - share) / (len(x) - count))
        return None
