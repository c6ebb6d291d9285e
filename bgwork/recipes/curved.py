"""objective = "curved-flow-sampling": both drifts of a geodesic random walk on spheres or hyperbolic space, learned from the energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import nn

from bgwork.curved import Hyperboloid, Sphere
from bgwork.objectives.flow_sampling import CurvedFlowSampling, DriftsLoss
from bgwork.objectives.replay import Regression
from bgwork.recipes.base import Choice, Trained
from bgwork.recipes.sections import AmbientSection
from bgwork.recipes.walks import EnergyRecipe, StopsSection
from bgwork.samplers.geodesic_flow import CurrentVelocity, GeodesicFlow
from bgwork.spaces import Space
from bgwork.system import Positive, Section, System

BATCH = 1024  # configurations whose small Jacobians are taken at once


class CurvedDriftSection(Section):
    """[process]: `gamma`, noise strength, in squared length units; `clip`, largest gradient of a particle that is regressed on, in kT
    per length unit. The walk starts from the system's prior.
    """

    gamma: Positive
    clip: Positive


class CurvedFlowSamplingRecipe(EnergyRecipe):
    """Flow sampling on products of spheres and of hyperbolic spaces.

    With weights = "density" the samples are those of the probability flow, in as many geodesic midpoint steps.
    """

    weights: ClassVar[tuple[str, ...]] = ("path", "density")
    integrators: ClassVar[tuple[str, ...]] = ("geodesic",)
    spaces: ClassVar[tuple[type[Space], ...]] = (Sphere, Hyperboloid)

    objective: Literal["curved-flow-sampling"]
    field: AmbientSection
    process: CurvedDriftSection
    sampler: StopsSection = StopsSection()

    def method(self, system: System, times: torch.Tensor) -> CurvedFlowSampling:
        return CurvedFlowSampling(prior=system.prior, drifts=lambda model: model, gamma=self.process.gamma, stops=times,
                                  clip=self.process.clip, times=self.training.times())

    def loss(self, system: System) -> Callable[[nn.Module, Regression], torch.Tensor]:
        return DriftsLoss(space=system.space)

    def default_choice(self) -> Choice:
        return Choice(integrator="geodesic", steps=self.sampler.steps, weights="path")

    def flow(self, trained: Trained, choice: Choice) -> GeodesicFlow:
        times = tuple(self.sampler.times(choice.steps).tolist())
        field = CurrentVelocity(trained.network, trained.system.space)
        return GeodesicFlow(prior=trained.prior, field=field, times=times, origin=trained.origin, batch=BATCH,
                            round_trip=trained.round_trip, on_batch=choice.on_batch)
