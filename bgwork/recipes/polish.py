"""objective = "polish": a trained flow on a coarse grid, tuned for the exact density of the map that it executes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from bgwork.fields.compiled import CompiledField
from bgwork.objectives.polish import CoarseFlow, PolishLoss, PolishSource
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, initial_network, job_meta, load_initial, spent_before
from bgwork.recipes.sections import DivergenceSection, GridSection, PolishTrainingSection
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid, LearnedGrid
from bgwork.system import System
from bgwork.training import TrainingJob

ROWS = 16  # configurations whose Jacobians are differentiated at once (`executed_density.score`)


class PolishSection(DivergenceSection):
    """[polish] of a flow, with `step_sizes`: as [sampler] has them, or learned with the field."""

    step_sizes: Literal["fixed", "learned", "symmetric"] = "fixed"


class PolishRecipe(Recipe):
    """Polish of a generator trained by flow matching with the same [field]."""

    grid_is_trained: ClassVar[bool] = True

    objective: Literal["polish"]
    training: PolishTrainingSection
    polish: PolishSection = PolishSection()
    sampler: GridSection

    @property
    def needs_data(self) -> bool:
        return self.polish.share > 0

    def network(self, system: System) -> nn.Module:
        return CoarseFlow(self.field.build(system), self.grid())

    def grid(self) -> Grid | LearnedGrid:
        """That of [sampler], or one that starts there and is learned."""
        start, kind = self.sampler.build(), self.polish.step_sizes
        if kind == "fixed":
            return start
        for key in ("power", "ease"):
            if kind == "symmetric" and getattr(self.sampler, key) != 1:
                found = getattr(self.sampler, key)
                raise RecipeError(f"a grid that reads the same in reverse time starts uniform; set sampler.{key} = 1, not {found}")
        learned = LearnedGrid(integrator=start.integrator, steps=start.steps, symmetric=kind == "symmetric")
        if kind == "learned":
            with torch.no_grad():
                learned.logits.copy_(torch.tensor([h for _, h in start.intervals]).log())
        return learned

    def job(self, request: Request) -> TrainingJob:
        system, settings = request.system, self.polish.settings()
        network = initial_network(self, system, seed=request.seed)
        load_initial(network.field, system, self.training.initial, wrapper="field.", ignore=("grid.",))
        if self.training.compiled:
            network.arithmetic = CompiledField(network.field, rows=ROWS)
        source = PolishSource(prior=system.prior, target=system.differentiable_target, settings=settings, seed=request.seed, x=request.data,
                              before=spent_before(request, self.training.initial))
        config = self.training.config(compiled=False)
        return TrainingJob(
            model=network, loss=PolishLoss(settings), data=source, config=config, folder=request.folder, meta=job_meta(self, request),
            evaluate=ess_of(self, system, n=self.training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="density")

    def check(self, choice: Choice) -> None:
        if (choice.integrator, choice.steps) != (self.sampler.integrator, self.sampler.steps):
            raise RecipeError(f"this generator was polished for {self.sampler.integrator} with {self.sampler.steps} steps, not for "
                              f"{choice.integrator} with {choice.steps}; leave out --integrator and --steps")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        self.check(choice)
        field, grid = trained.network.executed()
        return Flow(prior=trained.prior, field=field, grid=grid, origin=trained.origin, round_trip=trained.round_trip,
                    on_batch=choice.on_batch)
