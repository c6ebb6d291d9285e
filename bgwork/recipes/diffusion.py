"""objective = "diffusion": a denoising diffusion from data; its sampler walks by random steps with path weights, or is a flow."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from bgwork.couplings import random_rotations, random_turns
from bgwork.objectives.diffusion import SCHEDULES, denoising_data
from bgwork.objectives.flow_matching import flow_matching_loss
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, Request, Trained, ess_of, job_meta
from bgwork.recipes.sections import FlowMatchingTrainingSection
from bgwork.recipes.walks import WalkSection
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.kernels import FieldKernels, tuned, velocity_table
from bgwork.samplers.sde import PathSampler
from bgwork.system import Section
from bgwork.training import TrainingJob

TUNING_SEED = 1_000_000_009  # no seed that anybody samples with


class ScheduleSection(Section):
    """[schedule]: of the noise."""

    kind: Literal["linear", "variance-preserving"] = "linear"


class DiffusionRecipe(Recipe):
    """Denoising diffusion from MD or MCMC data.

    The variances of the random steps are of maximum likelihood for the held-out configurations that a generator comes with; without any,
    those of a Gaussian with the prior's spread.
    """

    weights: ClassVar[tuple[str, ...]] = ("path", "density")

    objective: Literal["diffusion"]
    schedule: ScheduleSection = ScheduleSection()
    training: FlowMatchingTrainingSection
    sampler: WalkSection = WalkSection()

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        turns = random_rotations if system.topology is None else random_turns
        data = denoising_data(request.data.float(), system.prior, SCHEDULES[self.schedule.kind], batch=training.batch, seed=request.seed,
                              times=training.times(), turns=turns)
        return TrainingJob(
            model=self.fresh_network(request), loss=flow_matching_loss, data=data, config=training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="path")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        times, space = self.sampler.times(choice.steps), trained.prior.space
        if choice.weights == "density":
            grid = Grid(integrator=choice.integrator, steps=len(times) - 1, times=tuple(times.tolist()))
            return Flow(prior=trained.prior, field=trained.network, origin=trained.origin, grid=grid, round_trip=trained.round_trip,
                        on_batch=choice.on_batch)
        spread = trained.prior.std
        table = velocity_table(SCHEDULES[self.schedule.kind], times, prior_std=spread, spread=spread)
        kernels, note = FieldKernels(space=space, field=trained.network, table=table), "widths of a Gaussian with the prior's spread"
        if trained.tuning is not None:
            kernels = tuned(kernels, trained.tuning, generator=torch.Generator().manual_seed(TUNING_SEED))
            note = f"widths fitted to {len(trained.tuning)} configurations"
        return PathSampler(start=trained.prior, kernels=kernels, origin=trained.origin, on_batch=choice.on_batch, note=note)
