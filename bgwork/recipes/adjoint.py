"""objective = "adjoint" or "weighted-adjoint": a controlled Brownian motion learned from an energy; "bridge-matching": from data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from bgwork.fields.affine import Affine
from bgwork.fields.preconditioning import ControlPreconditioning
from bgwork.fields.probability_flow import control_stops, velocity_of_control
from bgwork.objectives.adjoint_sampling import AdjointSampling, BridgeMatchingData
from bgwork.objectives.replay import ReplaySettings, regression_loss
from bgwork.objectives.weighted_adjoint import WeightedAdjointSampling
from bgwork.paths import GeometricBrownian
from bgwork.priors import Gaussian
from bgwork.recipes.base import Choice, RecipeError, Request, Trained, ess_of, job_meta
from bgwork.recipes.sections import Share
from bgwork.recipes.walks import DENOISING, EnergyRecipe
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.kernels import control_table
from bgwork.system import Positive, Section, System
from bgwork.training import TrainingJob

Ratio = Annotated[float, Field(gt=0, lt=1)]


class BrownianSection(Section):
    """[process]: standard deviation of the base process at t = 1 and ratio of smallest to largest sigma (`GeometricBrownian`);
    `clip`: largest gradient of a particle that is regressed on, in kT per length unit; `curvature`: of the energy, roughly, in kT per
    squared length unit, which scales the network's output near the end.
    """

    std: Positive
    ratio: Ratio = 0.05
    clip: Positive
    curvature: Positive

    def build(self) -> GeometricBrownian:
        return GeometricBrownian(std=self.std, ratio=self.ratio)


class AdjointRecipe(EnergyRecipe):
    """Adjoint sampling. The prior's std of the system is taken as the target's spread."""

    weights: ClassVar[tuple[str, ...]] = DENOISING

    objective: Literal["adjoint"]
    process: BrownianSection

    def network(self, system: System) -> nn.Module:
        precondition = ControlPreconditioning(brownian=self.process.build(), spread=system.prior.std, curvature=self.process.curvature)
        return Affine(self.field.build(system), system.space, precondition)

    def method(self, system: System, times: torch.Tensor) -> AdjointSampling:
        return AdjointSampling(**self._parts(system, times))

    def _parts(self, system: System, times: torch.Tensor) -> dict[str, Any]:
        brownian, spread = self.process.build(), system.prior.std
        return {"space": system.space, "brownian": brownian, "table": control_table(brownian, times, spread=spread),
                "clip": self.process.clip, "scale": spread, "times": self.training.times()}

    def flow(self, trained: Trained, choice: Choice) -> Flow:
        brownian, space = self.process.build(), trained.system.space
        stop = control_stops(brownian, self.sampler.times(choice.steps))
        return Flow(
            prior=Gaussian(space=space, std=brownian.std), field=velocity_of_control(trained.network, space, brownian),
            origin=trained.origin, grid=Grid(integrator=choice.integrator, steps=len(stop) - 1, times=stop), round_trip=trained.round_trip,
            on_batch=choice.on_batch)


class WeightedAdjointRecipe(AdjointRecipe):
    """Adjoint sampling with tempered importance weights; `effective` is the share of fresh samples to keep effective."""

    objective: Literal["weighted-adjoint"]
    effective: Share = 0.2

    def method(self, system: System, times: torch.Tensor) -> WeightedAdjointSampling:
        return WeightedAdjointSampling(**self._parts(system, times))

    def replay_settings(self) -> ReplaySettings:
        return self.replay.weighted(self.effective)


class BridgeMatchingRecipe(AdjointRecipe):
    """The control of adjoint sampling from configurations, without gradients: a start for it, by [training] initial."""

    needs_data = True

    objective: Literal["bridge-matching"]

    def job(self, request: Request) -> TrainingJob:
        if self.replay.effective < 1:
            raise RecipeError(f"replay.effective = {self.replay.effective}: bridge-matching draws from data, which have no weights; leave "
                              "it out, or take objective = \"adjoint\"")
        method = self.method(request.system, self.sampler.times())
        data = BridgeMatchingData(x1=request.data, method=method, batch=self.replay.batch, seed=request.seed)
        return TrainingJob(
            model=self.fresh_network(request), loss=regression_loss, data=data, config=self.training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, request.system, n=self.training.evaluate_samples), on_log=request.on_log)
