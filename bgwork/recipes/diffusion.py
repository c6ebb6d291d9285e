"""objective = "diffusion": a denoising diffusion from data; its sampler walks by random steps with path weights, or is a flow."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from bgwork.couplings import random_rotations, random_turns
from bgwork.objectives.diffusion import SCHEDULES, denoising_data
from bgwork.objectives.flow_matching import flow_matching_loss
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, Request, Trained, ess_of, job_meta
from bgwork.recipes.sections import FlowMatchingTrainingSection
from bgwork.recipes.walks import WalkSection
from bgwork.samplers.directional import JACOBIAN, directional, fitted
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.kernels import FieldKernels, tuned, velocity_table
from bgwork.samplers.sde import Kernels, PathSampler
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

    weights: ClassVar[tuple[str, ...]] = ("path", "density", "directional")

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
        times = self.sampler.times(choice.steps)
        if choice.weights == "density":
            grid = Grid(integrator=choice.integrator, steps=len(times) - 1, times=tuple(times.tolist()))
            return Flow(prior=trained.prior, field=trained.network, origin=trained.origin, grid=grid, round_trip=trained.round_trip,
                        on_batch=choice.on_batch)
        table = velocity_table(SCHEDULES[self.schedule.kind], times, prior_std=trained.prior.std, spread=trained.prior.std)
        return denoising_sampler(trained, choice, FieldKernels(space=trained.prior.space, field=trained.network, table=table))


def denoising_sampler(trained: Trained, choice: Choice, plain: FieldKernels) -> PathSampler:
    """Walks with path weights by these kernels, their widths fitted if there is anything to fit them to."""
    kernels, note = (of_theory if trained.tuning is None else of_data)(plain, trained, choice.weights)
    return PathSampler(start=trained.prior, kernels=kernels, origin=trained.origin, on_batch=choice.on_batch, note=note)


def of_theory(plain: FieldKernels, trained: Trained, weights: str) -> tuple[Kernels, str]:
    """Kernels that nothing is fitted for, and how they were chosen."""
    if weights == "directional":
        return directional(plain), JACOBIAN
    return plain, "widths of a Gaussian with the prior's spread"


def of_data(plain: FieldKernels, trained: Trained, weights: str) -> tuple[Kernels, str]:
    """Kernels fitted to the configurations that a generator comes with, once, and how."""
    generator, note = torch.Generator().manual_seed(TUNING_SEED), f"fitted to {len(trained.tuning)} configurations"
    if weights == "directional":
        theory = directional(plain)

        def fit() -> torch.Tensor:
            found = fitted(theory, trained.tuning, generator=generator)
            return torch.stack([found.stretch, found.floor])

        stretch, floor = trained.fitted_once((theory, TUNING_SEED), fit)
        return replace(theory, stretch=stretch, floor=floor), f"{JACOBIAN}, {note}"
    std = trained.fitted_once((plain, TUNING_SEED), lambda: tuned(plain, trained.tuning, generator=generator).table.std)
    return replace(plain, table=replace(plain.table, std=std)), f"widths {note}"
