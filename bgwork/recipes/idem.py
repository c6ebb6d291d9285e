"""objective = "idem": the noised target's score learned from energies alone; its sampler is the reverse SDE, or the probability flow."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from bgwork.fields.affine import Affine
from bgwork.fields.preconditioning import ScorePreconditioning
from bgwork.fields.probability_flow import velocity_of_score
from bgwork.objectives.idem import IteratedDenoisingEnergyMatching
from bgwork.paths import GeometricNoise
from bgwork.priors import Gaussian
from bgwork.recipes.base import Choice, Trained
from bgwork.recipes.walks import DENOISING, EnergyRecipe
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.kernels import score_table
from bgwork.system import Count, Positive, Section, System


class NoiseSection(Section):
    """[process]: largest noise, in the length unit, and ratio of smallest to largest; `samples`, `clip` and `richardson` as in
    `IteratedDenoisingEnergyMatching`.
    """

    largest: Positive
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.01
    samples: Count = 128
    clip: Positive
    richardson: bool = False

    def path(self) -> GeometricNoise:
        return GeometricNoise(ratio=self.ratio)


class IDEMRecipe(EnergyRecipe):
    """iDEM. The prior's std of the system is taken as the target's spread; with the largest noise it makes the start."""

    weights: ClassVar[tuple[str, ...]] = DENOISING

    objective: Literal["idem"]
    process: NoiseSection

    def network(self, system: System) -> nn.Module:
        process = self.process
        precondition = ScorePreconditioning(path=process.path(), prior_std=process.largest, spread=system.prior.std)
        return Affine(self.field.build(system), system.space, precondition)

    def method(self, system: System, times: torch.Tensor) -> IteratedDenoisingEnergyMatching:
        process, spread = self.process, system.prior.std
        table = score_table(process.path(), times, prior_std=process.largest, spread=spread)
        return IteratedDenoisingEnergyMatching(
            prior=self._start(system), largest=process.largest, path=process.path(), table=table, samples=process.samples,
            clip=process.clip, spread=spread, richardson=process.richardson, times=self.training.times())

    def flow(self, trained: Trained, choice: Choice) -> Flow:
        times = self.sampler.times(choice.steps)
        field = velocity_of_score(trained.network, trained.system.space, self.process.path(), prior_std=self.process.largest)
        return Flow(
            prior=self._start(trained.system), field=field, origin=trained.origin, on_batch=choice.on_batch, round_trip=trained.round_trip,
            grid=Grid(integrator=choice.integrator, steps=len(times) - 1, times=tuple(times.tolist())))

    def _start(self, system: System) -> Gaussian:
        return Gaussian(space=system.space, std=math.hypot(self.process.largest, system.prior.std))
