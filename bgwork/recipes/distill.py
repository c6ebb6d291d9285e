"""objective = "distill": a flow map learned from a trained flow, or from data alone; its samplers take few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from bgwork.fields.two_times import AverageVelocity, of_two_times, start_from
from bgwork.objectives.consistency import (
    EndTimes,
    InterpolantPairs,
    PathEnds,
    PathPairs,
    average_velocity_loss,
    consistency_loss,
    endpoint_loss,
    path_and_velocity_loss,
    path_loss,
    teacher_paths,
)
from bgwork.objectives.flow_matching import FlowMatchingData
from bgwork.paths import LinearInterpolant, stops
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, job_meta, load_initial
from bgwork.recipes.diffusion import denoising_sampler
from bgwork.recipes.sections import CouplingSection, FlowMatchingTrainingSection, Share
from bgwork.records import Origin
from bgwork.samplers.consistency_path import JumpKernels, noising_table, student_table
from bgwork.samplers.flow import Flow
from bgwork.samplers.flow_map import FlowMapSampler, even_times
from bgwork.samplers.integrators import Grid
from bgwork.samplers.jump_tuning import tuned_to_data, tuned_to_energy
from bgwork.samplers.kernels import FieldKernels, velocity_table
from bgwork.samplers.sde import PathSampler
from bgwork.system import Count, Positive, Section, System
from bgwork.training import TrainingJob

TUNING_SEED = 1_000_000_009  # no seed that anybody samples with
PATH_LOSSES = ("paths", "ends")
DENOISING_POWER = 1.5  # shortens steps towards the data, as in the recipes of diffusions


class TeacherSection(Section):
    """[teacher]: one of the system's generators with the same [field] (without a name there is none), and how many of its paths are used.

    A path is of `steps` midpoint steps.
    """

    generator: str = ""
    paths: Count = 20_000
    steps: Count = 16


class DistillTrainingSection(FlowMatchingTrainingSection):
    """[training]: the loss, and what it needs.

    "paths" and "ends" regress on paths of the teacher; "average-velocity" and "consistency" use points of the interpolant, with the
    teacher's velocity or, without one, the interpolant's own; `velocity` is the share of a batch of "paths" on which U(t, t, x) is
    regressed on the teacher's velocity too, which directional weights need. `initial` is a distilled generator to start from, instead
    of the teacher.
    """

    loss: Literal["paths", "ends", "average-velocity", "consistency"] = "paths"
    grids: list[Count] = [1, 2, 4, 8]
    on_grid: Share = 0.7
    backward: Share = 0.25
    diagonal: Share = 0.5
    velocity: Share = 0.0
    share: Annotated[float, Field(gt=0, le=1, strict=False)] = 0.25
    power: Annotated[float, Field(ge=0, strict=False)] = 0.0


class FewStepSection(Section):
    """[sampler]: equal steps, and the kernels of path weights.

    `backward` is "noising" for teachers with independent coupling, else "student"; `overshoot` and `noise` as in the tables of
    `samplers.consistency_path`; `tuning` is the number of iterations that fit scales and widths when the sampler is made, to the held-out
    configurations that a generator comes with or, without any, to the energy.
    """

    steps: Count = 4
    backward: Literal["student", "noising"] = "student"
    overshoot: Positive = 1.0
    noise: Positive = 0.05
    tuning: Annotated[int, Field(ge=0)] = 40
    paths: Count = 256


class DistillRecipe(Recipe):
    """Flow maps from a teacher, or without one."""

    weights: ClassVar[tuple[str, ...]] = ("density", "path", "directional")
    integrators: ClassVar[tuple[str, ...]] = ("flow-map",)

    objective: Literal["distill"]
    teacher: TeacherSection = TeacherSection()
    coupling: CouplingSection = CouplingSection(kind="independent")
    training: DistillTrainingSection
    sampler: FewStepSection = FewStepSection()

    @property
    def needs_data(self) -> bool:
        return self.training.loss not in PATH_LOSSES

    def network(self, system: System) -> nn.Module:
        return AverageVelocity(of_two_times(self.field.build(system)))

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        network, teacher = self.fresh_network(request), self.taught_by(system)
        if training.initial:
            load_initial(network, system, training.initial)
        elif teacher is not None:
            start_from(network, teacher)
        loss, data = self._from_paths(request, teacher) if training.loss in PATH_LOSSES else self._from_points(request, teacher)
        return TrainingJob(
            model=network, loss=loss, data=data, config=training.config(), folder=request.folder, meta=job_meta(self, request),
            evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def taught_by(self, system: System) -> nn.Module | None:
        """The teacher's velocity; None where the recipe names none."""
        if not self.teacher.generator:
            return None
        with torch.random.fork_rng():
            field = self.field.build(system)
        load_initial(field, system, self.teacher.generator)
        return field.eval().requires_grad_(False)

    def _from_paths(self, request: Request, teacher: nn.Module | None) -> tuple[Callable, Callable]:
        """Loss and batches on paths of the teacher."""
        if teacher is None:
            raise RecipeError(f'loss = "{self.training.loss}" needs a teacher.generator; name one of {request.system.name}\'s generators')
        prior, training, origin = request.system.prior, self.training, Origin(method="teacher", system=request.system.name)
        flow = Flow(prior=prior, field=teacher, origin=origin, grid=Grid(steps=self.teacher.steps))
        paths = teacher_paths(flow, self.teacher.paths, generator=torch.Generator().manual_seed(request.seed))
        if training.loss == "ends":
            return endpoint_loss(even_times(self.sampler.steps)), PathEnds(paths=paths, batch=training.batch, seed=request.seed)
        pairs = PathPairs(paths=paths, batch=training.batch, seed=request.seed, steps=tuple(training.grids), on_grid=training.on_grid,
                          backward=training.backward)
        return (path_and_velocity_loss(teacher, share=training.velocity) if training.velocity else path_loss), pairs

    def _from_points(self, request: Request, teacher: nn.Module | None) -> tuple[Callable, Callable]:
        """Loss and batches on points of the interpolant."""
        training = self.training
        points = FlowMatchingData(
            x1=request.data.float(), prior=request.system.prior, coupling=self.coupling.build(request.system), batch=training.batch,
            seed=request.seed, times=training.times())
        data = InterpolantPairs(points=points, ends=EndTimes(diagonal=training.diagonal))
        if training.loss == "consistency":
            return consistency_loss(teacher, share=training.share), data
        return average_velocity_loss(teacher, power=training.power), data

    def default_choice(self) -> Choice:
        return Choice(integrator="flow-map", steps=self.sampler.steps, weights="density")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        times, prior = even_times(choice.steps or self.sampler.steps), trained.prior
        if choice.weights == "density":
            return FlowMapSampler(prior=prior, average=trained.network, origin=trained.origin, times=times,
                                  round_trip=trained.round_trip, on_batch=choice.on_batch)
        if choice.weights == "directional":
            return self._denoiser(trained, choice)
        options = self.sampler
        table = (noising_table(times, prior_std=prior.std, overshoot=options.overshoot) if options.backward == "noising"
                 else student_table(times, prior_std=prior.std, noise=options.noise))
        kernels = JumpKernels(space=prior.space, average=trained.network, table=table)
        how = {"seed": TUNING_SEED, "n": options.paths, "iterations": options.tuning}
        if trained.tuning is None:
            kernels, note = tuned_to_energy(kernels, prior, trained.system.target, **how), "widths fitted to the energy on own paths"
        else:
            kernels, note = _tuned(kernels, trained, how), f"widths fitted to {len(trained.tuning)} configurations"
        return PathSampler(start=prior, kernels=kernels, origin=trained.origin, on_batch=choice.on_batch, note=note)

    def check(self, choice: Choice) -> None:
        """Refuse kernels that the map's teacher does not have."""
        super().check(choice)
        if choice.weights == "directional" and self.sampler.backward != "noising":
            raise RecipeError("directional weights reverse plain noising, which a map learned from aligned pairs does not; take a "
                              'generator whose [sampler] has backward = "noising", or weights = "path"')

    def _denoiser(self, trained: Trained, choice: Choice) -> PathSampler:
        """Random steps with the velocity U(t, t, x): no jump has a better mean, since a reverse step's own is that of the denoiser."""
        times, prior = stops(choice.steps or self.sampler.steps, power=DENOISING_POWER), trained.prior
        table = velocity_table(LinearInterpolant(), times, prior_std=prior.std, spread=prior.std)
        return denoising_sampler(trained, choice, FieldKernels(space=prior.space, field=trained.network.instantaneous, table=table))


def _tuned(kernels: JumpKernels, trained: Trained, how: dict[str, int]) -> JumpKernels:
    """Jump kernels fitted to the configurations that a generator comes with, once."""
    shapes = trained.fitted_once(
        (kernels, tuple(how.items())), lambda: torch.stack(tuned_to_data(kernels, trained.prior, trained.tuning, **how).table.shapes))
    return replace(kernels, table=kernels.table.with_shapes(shapes))
