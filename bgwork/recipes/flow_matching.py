"""objective = "flow-matching": a velocity field regressed on paired prior draws and data; its sampler is a flow."""

from __future__ import annotations

from typing import Literal

from bgwork.couplings import random_rotations, random_turns
from bgwork.objectives.flow_matching import FlowMatchingData, flow_matching_loss
from bgwork.protocols import Sampler
from bgwork.recipes.base import Choice, Recipe, Request, Trained, ess_of, job_meta, load_initial
from bgwork.recipes.sections import CouplingSection, FlowMatchingTrainingSection, GridSection
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import TABLEAUS
from bgwork.samplers.ode import AdaptiveFlow, ContinuousFlow
from bgwork.training import TrainingJob


class FlowMatchingRecipe(Recipe):
    """Flow matching from MD or MCMC data."""

    weights = ("density", "continuous")
    integrators = (*TABLEAUS, "dopri5")

    objective: Literal["flow-matching"]
    coupling: CouplingSection
    training: FlowMatchingTrainingSection
    sampler: GridSection = GridSection()

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        network = self.fresh_network(request)
        if training.initial:
            load_initial(network, system, training.initial)
        batches = FlowMatchingData(
            x1=request.data.float(), prior=system.prior, coupling=self.coupling.build(system), batch=training.batch, seed=request.seed,
            times=training.times(), turns=random_rotations if system.topology is None else random_turns)
        return TrainingJob(
            model=network, loss=flow_matching_loss, data=batches, config=training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="density")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        return flow_of(trained, choice, self.sampler)


def flow_of(trained: Trained, choice: Choice, grids: GridSection) -> Flow | ContinuousFlow | AdaptiveFlow:
    """The flow along a trained velocity. Without held-out configurations, own samples make the certificate's round trip."""
    parts = {"prior": trained.prior, "field": trained.network, "origin": trained.origin, "on_batch": choice.on_batch}
    if choice.integrator == "dopri5":
        return AdaptiveFlow(**parts)
    grid = grids.build(integrator=choice.integrator, steps=choice.steps)
    if choice.weights == "continuous":
        return ContinuousFlow(**parts, grid=grid)
    return Flow(**parts, grid=grid, round_trip=trained.round_trip)
