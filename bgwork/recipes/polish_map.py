"""objective = "polish-map": a distilled flow map at a fixed number of steps, tuned for the exact density of the map that it executes."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from bgwork.fields.two_times import AverageVelocity, of_two_times
from bgwork.objectives.polish import PolishLoss, PolishSource
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, job_meta, load_initial, spent_before
from bgwork.recipes.sections import DivergenceSection, PolishTrainingSection
from bgwork.samplers.flow_map import FewSteps, FlowMapSampler, even_times
from bgwork.system import Count, Section, System
from bgwork.training import TrainingJob


class StepsSection(Section):
    """[sampler]: the number of equal steps that is tuned."""

    steps: Count


class MapPolishRecipe(Recipe):
    """Polish of a distilled generator."""

    integrators: ClassVar[tuple[str, ...]] = ("flow-map",)
    grid_is_trained: ClassVar[bool] = True

    objective: Literal["polish-map"]
    training: PolishTrainingSection
    polish: DivergenceSection = DivergenceSection()
    sampler: StepsSection

    @property
    def needs_data(self) -> bool:
        return self.polish.share > 0

    def network(self, system: System) -> nn.Module:
        return FewSteps(AverageVelocity(of_two_times(self.field.build(system))), even_times(self.sampler.steps))

    def job(self, request: Request) -> TrainingJob:
        system, settings = request.system, self.polish.settings()
        network = self.fresh_network(request)
        load_initial(network.average, system, self.training.initial, wrapper="average.")
        source = PolishSource(prior=system.prior, target=system.differentiable_target, settings=settings, seed=request.seed, x=request.data,
                              before=spent_before(request, self.training.initial))
        return TrainingJob(
            model=network, loss=PolishLoss(settings), data=source, config=self.training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=self.training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator="flow-map", steps=self.sampler.steps, weights="density")

    def check(self, choice: Choice) -> None:
        if choice.steps != self.sampler.steps:
            raise RecipeError(f"this generator was polished for {self.sampler.steps} steps, not for {choice.steps}; leave out --steps")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        self.check(choice)
        few = trained.network
        return FlowMapSampler(prior=trained.prior, average=few.average, times=few.times, origin=trained.origin,
                              round_trip=trained.round_trip, on_batch=choice.on_batch)
