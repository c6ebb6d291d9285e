"""objective = "torsional-adjoint": a controlled Brownian motion on a torus, learned from the energy of its angles alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from bgwork.fields.probability_flow import WrappedVelocity
from bgwork.fields.torus import TorusMLP
from bgwork.objectives.replay import ReplaySettings
from bgwork.objectives.torsional import TorsionalAdjointSampling, WeightedTorsionalAdjointSampling
from bgwork.paths import GeometricBrownian
from bgwork.priors import WrappedNormal
from bgwork.recipes.adjoint import Ratio
from bgwork.recipes.base import Choice, Trained
from bgwork.recipes.sections import Share
from bgwork.recipes.walks import EnergyRecipe, StopsSection
from bgwork.samplers.integrators import Grid
from bgwork.samplers.torus_flow import TorusFlow
from bgwork.spaces import Space, Torus
from bgwork.system import Count, Positive, Section, System

START = 0.05  # share of the final variance that the probability flow starts with
BATCH = 512  # configurations whose small Jacobians are taken at once


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

    With weights = "density" the samples are those of the probability flow, in as many midpoint steps, from where the motion has spread
    little yet.
    """

    weights: ClassVar[tuple[str, ...]] = ("path", "density")
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

    def flow(self, trained: Trained, choice: Choice) -> TorusFlow:
        space, brownian = trained.system.space, self.process.build()
        field = WrappedVelocity(trained.network, space, brownian, share=START)
        prior = WrappedNormal(space=space, mean=torch.zeros(space.n, space.d), std=brownian.std * START**0.5)
        stops = field.stops(self.sampler.times(choice.steps))
        return TorusFlow(prior=prior, field=field, grid=Grid(steps=len(stops) - 1, times=stops), origin=trained.origin, batch=BATCH,
                         round_trip=trained.round_trip, on_batch=choice.on_batch)


class WeightedTorsionalAdjointRecipe(TorsionalAdjointRecipe):
    """The same with tempered importance weights; `effective` is the share of fresh samples to keep effective."""

    objective: Literal["weighted-torsional-adjoint"]
    effective: Share = 0.2

    def method(self, system: System, times: torch.Tensor) -> WeightedTorsionalAdjointSampling:
        return WeightedTorsionalAdjointSampling(**self._parts(system, times))

    def replay_settings(self) -> ReplaySettings:
        return self.replay.weighted(self.effective)
