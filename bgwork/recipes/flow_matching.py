"""objective = "flow-matching": a velocity field regressed on paired prior draws and data; its sampler is a flow."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from bgwork.couplings import random_rotations, random_turns
from bgwork.objectives.flow_matching import FlowMatchingData, flow_matching_loss
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, job_meta, load_initial
from bgwork.recipes.sections import CouplingSection, FlowMatchingTrainingSection, GridSection
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import TABLEAUS
from bgwork.samplers.ode import AdaptiveFlow, ContinuousFlow
from bgwork.system import Positive, System
from bgwork.training import TrainingJob


class DataTrainingSection(FlowMatchingTrainingSection):
    """[training] of flow matching from data.

    `oversample` = { observable = share } draws the rows at which one observable (1 or 0: "phi_positive", say) is 1 as often as that
    (`--set training.oversample={phi_positive=0.1}`). The flow then holds a share s of them where the target has p, which weights undo: at
    best a factor 1 / (p^2/s + (1-p)^2/(1-s)) of the effective samples is left, with many more of them in the rare basin, whose
    population and free energy become that much sharper. There must be enough such rows to learn from.
    """

    oversample: Annotated[dict[str, Annotated[float, Field(gt=0, lt=1, strict=False)]], Field(max_length=1)] = {}

    def check_observables(self, system: System) -> None:
        """RecipeError if the system does not know what is to be drawn more often."""
        for name in self.oversample:
            if name not in system.functions:
                raise RecipeError(f"unknown observable {name!r} in training.oversample; known are {', '.join(system.functions)}")

    def chances(self, system: System, x: Tensor) -> Tensor | None:
        """How often each row of x [N, n, d] is drawn, [N] float64; None for equally often.

        Raises:
            RecipeError: if the observable is unknown, is not an indicator, or is 1 at all rows or none.
        """
        self.check_observables(system)
        for name, share in self.oversample.items():
            try:
                inside = system.functions[name](x.double()).double()
            except (IndexError, RuntimeError) as error:
                raise RecipeError(f"{name} in training.oversample is no observable of {system.name} ({error}); take another") from error
            indicator = bool(((inside == 0) | (inside == 1)).all())
            count = int(inside.sum()) if indicator else 0
            if not 0 < count < len(x):
                found = f"{name} is from {float(inside.min()):g} to {float(inside.max()):g}"
                raise RecipeError(f"training.oversample wants an observable that is 1 at some of the {len(x)} configurations and 0 at the "
                                  f"others, but {found}; leave it out, or take another")
            return inside * (share / count) + (1 - inside) * ((1 - share) / (len(x) - count))
        return None


class FlowSection(GridSection):
    """[sampler] of a trained velocity: its grid, and how much wider than in training the prior is.

    A `stretch` above 1 starts from N(0, (stretch * std)^2), with that density: samples spread a little further, which takes weight off the
    rare ones that a flow draws too seldom. Choose it on samples that are not reported. A polish or a distillation of the flow starts
    from the prior as it was in training.
    """

    stretch: Positive = 1.0


class FlowMatchingRecipe(Recipe):
    """Flow matching from MD or MCMC data."""

    weights = ("density", "continuous")
    integrators = (*TABLEAUS, "dopri5")

    objective: Literal["flow-matching"]
    coupling: CouplingSection
    training: DataTrainingSection
    sampler: FlowSection = FlowSection()

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        network = self.fresh_network(request)
        if training.initial:
            load_initial(network, system, training.initial)
        batches = FlowMatchingData(
            x1=request.data.float(), prior=system.prior, coupling=self.coupling.build(system), batch=training.batch, seed=request.seed,
            times=training.times(), turns=random_rotations if system.topology is None else random_turns,
            chances=training.chances(system, request.data))
        return TrainingJob(
            model=network, loss=flow_matching_loss, data=batches, config=training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="density")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        return flow_of(trained, choice, self.sampler)


def flow_of(trained: Trained, choice: Choice, grids: FlowSection) -> Flow | ContinuousFlow | AdaptiveFlow:
    """The flow along a trained velocity. Without held-out configurations, own samples make the certificate's round trip."""
    prior = trained.prior if grids.stretch == 1 else replace(trained.prior, std=trained.prior.std * grids.stretch)
    parts = {"prior": prior, "field": trained.network, "origin": trained.origin, "on_batch": choice.on_batch}
    if choice.integrator == "dopri5":
        return AdaptiveFlow(**parts)
    grid = grids.build(integrator=choice.integrator, steps=choice.steps)
    if choice.weights == "continuous":
        return ContinuousFlow(**parts, grid=grid)
    return Flow(**parts, grid=grid, round_trip=trained.round_trip)
