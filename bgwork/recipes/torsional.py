"""objective = "torsional-adjoint": a controlled Brownian motion on a torus, learned from the energy of its angles alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from bgwork.fields.torus import TorusMLP
from bgwork.objectives.replay import ReplaySettings
from bgwork.objectives.torsional import TorsionalAdjointSampling, WeightedTorsionalAdjointSampling
from bgwork.paths import GeometricBrownian
from bgwork.recipes.adjoint import Ratio
from bgwork.recipes.base import Choice, RecipeError, Trained
from bgwork.recipes.sections import Share
from bgwork.recipes.walks import EnergyRecipe, StopsSection
from bgwork.samplers.flow import Flow
from bgwork.spaces import Space, Torus
from bgwork.system import Count, Positive, Section, System


class PeriodicSection(Section):
    """[field] kind = "torus": `TorusMLP`."""

    kind: Literal["torus"]
    hidden: Count = 128
    depth: Count = 4
    gain: Positive = 1.0

    def build(self, system: System) -> nn.Module:
        return TorusMLP(system.space.n, system.space.d, hidden=self.hidden, depth=self.depth, gain=self.gain)


class WrappedBrownianSection(Section):
    """[process]: standard deviation in radians of the base process at t = 1 (pi or so covers a torus) and ratio of smallest to largest
    sigma (`GeometricBrownian`); `clip`: largest derivative with respect to an angle that is regressed on, in kT per radian.
    """

    std: Positive
    ratio: Ratio = 0.05
    clip: Positive

    def build(self) -> GeometricBrownian:
        return GeometricBrownian(std=self.std, ratio=self.ratio)


class TorsionalAdjointRecipe(EnergyRecipe):
    """Adjoint sampling on a torus.

    There are path weights alone: the motion starts in one point, and its probability flow from there has no density on a torus that is
    known in closed form.
    """

    weights: ClassVar[tuple[str, ...]] = ("path",)
    integrators: ClassVar[tuple[str, ...]] = ("wrapped",)
    spaces: ClassVar[tuple[type[Space], ...]] = (Torus,)

    objective: Literal["torsional-adjoint"]
    field: PeriodicSection
    process: WrappedBrownianSection
    sampler: StopsSection = StopsSection()

    def method(self, system: System, times: torch.Tensor) -> TorsionalAdjointSampling:
        return TorsionalAdjointSampling(**self._parts(system, times))

    def _parts(self, system: System, times: torch.Tensor) -> dict[str, Any]:
        return {"space": system.space, "brownian": self.process.build(), "stops": times, "clip": self.process.clip,
                "times": self.training.times()}

    def default_choice(self) -> Choice:
        return Choice(integrator="wrapped", steps=self.sampler.steps, weights="path")

    def flow(self, trained: Trained, choice: Choice) -> Flow:
        raise RecipeError(f"a generator on {trained.system.space} has no density weights, only path weights; choose weights = \"path\"")


class WeightedTorsionalAdjointRecipe(TorsionalAdjointRecipe):
    """The same with tempered importance weights; `effective` is the share of fresh samples to keep effective."""

    objective: Literal["weighted-torsional-adjoint"]
    effective: Share = 0.2

    def method(self, system: System, times: torch.Tensor) -> WeightedTorsionalAdjointSampling:
        return WeightedTorsionalAdjointSampling(**self._parts(system, times))

    def replay_settings(self) -> ReplaySettings:
        return self.replay.weighted(self.effective)
