"""What recipes of learned random walks share: their grid of steps, and the training from an energy alone through a replay buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from bgwork.objectives.replay import EnergyMethod, Regression, ReplaySettings, ReplaySource, regression_loss
from bgwork.paths import Times, stops
from bgwork.protocols import Sampler, Target
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, job_meta, load_initial
from bgwork.recipes.sections import LoopSection, Share
from bgwork.reweighting import chances, ess, weigh
from bgwork.samplers.directional import JACOBIAN, directional, fitted
from bgwork.samplers.flow import Flow
from bgwork.samplers.sde import PathSampler
from bgwork.system import Count, Positive, Section, System
from bgwork.training import TrainingJob

PILOT, PILOT_SEED = 512, 1_000_000_087  # samples that directional widths are fitted to, and no seed that anybody samples with
LEAST_EFFECTIVE = 8.0  # of the pilot's samples
DENOISING = ("path", "density", "directional")  # weights of walks whose field says what is known of their end


class StopsSection(Section):
    """[sampler] of a walk: `steps` random steps; `power` above 1 makes them shorter towards the data (`bgwork.paths.stops`)."""

    steps: Count = 50
    power: Positive = 1.0

    def times(self, steps: int | None = None) -> torch.Tensor:
        """Times [steps + 1] from 0 to 1."""
        return stops(steps or self.steps, power=self.power)


class WalkSection(StopsSection):
    """[sampler] of a walk with a probability flow: with weights = "density" as many steps of `integrator`, along that."""

    integrator: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"


class ReplaySection(Section):
    """[replay]: as in `ReplaySettings`."""

    capacity: Count = ReplaySettings.capacity
    fresh: Count = ReplaySettings.fresh
    every: Count = ReplaySettings.every
    batch: Count = ReplaySettings.batch
    effective: Share = ReplaySettings.effective

    def build(self) -> ReplaySettings:
        return ReplaySettings(**self.model_dump())

    def weighted(self, effective: float) -> ReplaySettings:
        """For objectives that have a key `effective` of their own, and draw by weight always."""
        if self.effective < 1:
            raise RecipeError(f"replay.effective = {self.effective}: this objective draws its rows by weight anyway; set its key "
                              "`effective` at the top of the recipe instead")
        return replace(self.build(), effective=effective)


class EnergyTrainingSection(LoopSection):
    """[training] from an energy: the loop, the shares of late and early times, and the generator to start from."""

    late_times: Share = 0.0
    early_times: Share = 0.0
    initial: str = ""
    ema: Share = 0.995
    warmup: Annotated[int, Field(ge=0)] = 100

    def times(self) -> Times:
        return Times(late=self.late_times, early=self.early_times)


class EnergyRecipe(Recipe):
    """A sampler learned from the energy alone. A subclass adds the table of its process and says what the model is a sampler of."""

    weights: ClassVar[tuple[str, ...]] = ("path", "density")
    needs_data: ClassVar[bool] = False

    training: EnergyTrainingSection
    replay: ReplaySection = ReplaySection()
    sampler: WalkSection = WalkSection()

    @abstractmethod
    def method(self, system: System, times: torch.Tensor) -> EnergyMethod:
        """The method, with a sampler that stops at these times."""

    @abstractmethod
    def flow(self, trained: Trained, choice: Choice) -> Flow:
        """The probability flow of the trained drift, as the map that is executed."""

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        network = self.fresh_network(request)
        if training.initial:
            load_initial(network, system, training.initial)
        source = ReplaySource(target=system.differentiable_target, method=self.method(system, self.sampler.times()),
                              settings=self.replay_settings(), seed=request.seed)
        return TrainingJob(
            model=network, loss=self.loss(system), data=source, config=training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def loss(self, system: System) -> Callable[[nn.Module, Regression], torch.Tensor]:
        """(model, batch) -> scalar."""
        return regression_loss

    def replay_settings(self) -> ReplaySettings:
        """How the buffer is used."""
        return self.replay.build()

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="path")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        if choice.weights == "density":
            return self.flow(trained, choice)
        walk = self.method(trained.system, self.sampler.times(choice.steps)).sampler(trained.network)
        if choice.weights == "directional":
            walk = piloted(walk, trained.system.target)
        return replace(walk, origin=trained.origin, on_batch=choice.on_batch)


def piloted(walk: PathSampler, target: Target) -> PathSampler:
    """The walk with directional kernels, fitted to a pilot run of its own: `PILOT` samples, drawn anew by their path weights.

    They are thrown away. Nothing but the energy is used, once for each of them.

    Raises:
        RecipeError: if fewer than `LEAST_EFFECTIVE` of them are effective, to which nothing can be fitted.
    """
    generator = torch.Generator().manual_seed(PILOT_SEED)
    pilot = weigh(walk.sample(PILOT, generator=generator), target)
    effective = ess(pilot).n_eff
    if effective < LEAST_EFFECTIVE:
        raise RecipeError(f"only {effective:.1f} of {PILOT} samples of a pilot run are effective, too few to fit directional widths to "
                          f"({LEAST_EFFECTIVE:g} needed); take weights = \"path\", more steps, or train further")
    rows = torch.multinomial(chances(pilot), PILOT, replacement=True, generator=generator)
    kernels = fitted(directional(walk.kernels), pilot.proposal.x[rows], generator=generator)
    fitted_to = f"fitted to a pilot run of {PILOT} weighted samples, {effective:.0f} of them effective"
    return replace(walk, kernels=kernels, note=f"{JACOBIAN}, {fitted_to}")
