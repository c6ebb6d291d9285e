"""objective = "flow-sampling": a drift learned from the energy, conditional on its start; samples by the walk or its probability flow."""

from __future__ import annotations

from typing import Literal

import torch

from bgwork.fields.drift_reversal import GaussianStartDrifts, velocity_of_drift
from bgwork.objectives.flow_sampling import FlowSampling
from bgwork.priors import Gaussian
from bgwork.recipes.base import Choice, Trained
from bgwork.recipes.walks import EnergyRecipe
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.system import Positive, Section, System


class DriftSection(Section):
    """[process]: `start`, standard deviation of the Gaussian that the walk starts from, in the length unit; `gamma`, noise strength, in
    squared length units; `clip`, largest gradient of a particle that is regressed on, in kT per length unit.
    """

    start: Positive
    gamma: Positive
    clip: Positive


class FlowSamplingRecipe(EnergyRecipe):
    """Flow sampling on flat space."""

    objective: Literal["flow-sampling"]
    process: DriftSection

    def method(self, system: System, times: torch.Tensor) -> FlowSampling:
        process, prior = self.process, self._start(system)
        return FlowSampling(
            prior=prior, gamma=process.gamma, stops=times, clip=process.clip, times=self.training.times(),
            drifts=lambda drift: GaussianStartDrifts(drift, prior=prior, gamma=process.gamma))

    def flow(self, trained: Trained, choice: Choice) -> Flow:
        times, prior = self.sampler.times(choice.steps), self._start(trained.system)
        return Flow(
            prior=prior, field=velocity_of_drift(trained.network, prior=prior, gamma=self.process.gamma), origin=trained.origin,
            on_batch=choice.on_batch, round_trip=trained.round_trip,
            grid=Grid(integrator=choice.integrator, steps=len(times) - 1, times=tuple(times.tolist())))

    def _start(self, system: System) -> Gaussian:
        return Gaussian(space=system.space, std=self.process.start)
