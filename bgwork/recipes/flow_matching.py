"""objective = "flow-matching": a velocity field regressed on paired prior draws and data; its sampler is a flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bgwork.bond_balance import bond_balance
from bgwork.couplings import SoftMolecularAlignment, random_rotations, random_turns
from bgwork.objectives.flow_matching import FlowMatchingData, Forces, flow_matching_loss
from bgwork.objectives.force_targets import ForceTargets
from bgwork.objectives.pooled_targets import PooledTargets
from bgwork.objectives.posterior_mean import PooledPosterior
from bgwork.objectives.stiffness import Stiffness
from bgwork.protocols import Coupling, Prior, Sampler
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, job_meta, load_initial
from bgwork.recipes.oversampling import OversamplingSection
from bgwork.recipes.sections import CouplingSection, FlowMatchingTrainingSection, GridSection
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import TABLEAUS
from bgwork.samplers.ode import AdaptiveFlow, ContinuousFlow
from bgwork.system import Positive, System
from bgwork.torsion_balance import torsion_balance
from bgwork.training import TrainingJob

GRADIENTS = 1024  # configurations at once


class DataTrainingSection(OversamplingSection, FlowMatchingTrainingSection):
    """[training] of flow matching from data, some of which may be drawn more often."""


class ForcesTrainingSection(DataTrainingSection):
    """[training] of flow matching whose targets are freed from noise, for molecules with coupling "soft-molecular" alone.

    From the time `forces_after` on by the forces on the data, and before by averages over `pool` configurations that may be behind a noisy
    one. The mean of the targets stays what it was (`objectives.force_targets`, `objectives.posterior_mean`), with forces only if the data
    are an equilibrium set of the very energy.
    """

    forces_after: Annotated[float, Field(gt=0, le=1, strict=False)] = 1.0
    pool: Annotated[int, Field(ge=0)] = 0

    def forces(self, system: System, x: Tensor, coupling: Coupling, gradient_of: Callable[[Tensor], Tensor]) -> Forces | None:
        """Gradients at configurations, and the targets; None if no time comes after `forces_after`.

        Args:
            system: whose molecule and prior it is.
            x: what is trained on [N, n, 3].
            coupling: of the pairs.
            gradient_of: the gradient [B, n, 3] of the reduced energy whose equilibrium they are, at double-precision rows of them.
        Raises:
            RecipeError: for other systems and couplings, and for data at which the energy has no gradient, or which are no equilibrium set
                of it.
        """
        if self.forces_after == 1:
            return None
        _check_softly_aligned("forces_after", system, coupling)
        gradient = torch.cat([gradient_of(rows) for rows in x.double().split(GRADIENTS)])
        lost = int((~torch.isfinite(gradient)).flatten(1).any(1).sum())
        if lost:
            raise RecipeError(f"the energy has no finite gradient at {lost} of {len(x)} training configurations; leave out "
                              "training.forces_after, or those configurations")
        for balance in (bond_balance(system.topology, x, gradient), torsion_balance(system.topology, x, gradient)):
            if not balance.passed:
                raise RecipeError(f"the {len(x)} training configurations are no equilibrium set of the energy ({balance}), so that forces "
                                  "would change what is learned; leave out training.forces_after, or give other data")
        targets = ForceTargets.of(x, gradient, prior=system.prior, stiffness=Stiffness.of(system.topology, x), coupling=coupling,
                                  after=self.forces_after)
        return Forces(gradient=gradient, targets=targets)

    def pools(self, system: System, drawn: FlowMatchingData) -> PooledTargets | None:
        """Averages over pools of the data; None if `pool` is zero.

        Raises:
            RecipeError: for other systems and couplings, and for fewer configurations than a pool holds.
        """
        if not self.pool:
            return None
        _check_softly_aligned("pool", system, drawn.coupling)
        if len(drawn.x1) < self.pool:
            raise RecipeError(f"training.pool is {self.pool}, but there are {len(drawn.x1)} configurations; lower it, or give more data")
        posterior = PooledPosterior(prior=drawn.prior, coupling=drawn.coupling)
        return PooledTargets.of(drawn.x1, drawn.chances, posterior=posterior, size=self.pool, until=self.forces_after)


def _check_softly_aligned(key: str, system: System, coupling: Coupling) -> None:
    if system.topology is None or not isinstance(coupling, SoftMolecularAlignment):
        raise RecipeError(f'training.{key} is for molecules with coupling.kind = "soft-molecular"; leave it out, or take that coupling')


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
    training: ForcesTrainingSection
    sampler: FlowSection = FlowSection()

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        network = self.fresh_network(request)
        if training.initial:
            load_initial(network, system, training.initial)
        drawn = pairs(request, training, self.coupling, request.data)
        forces = training.forces(system, request.data, drawn.coupling, lambda x: system.differentiable_target.u_and_grad(x)[1])
        data = replace(drawn, forces=forces, pools=training.pools(system, drawn))
        return TrainingJob(
            model=network, loss=flow_matching_loss, data=data,
            config=training.config(), folder=request.folder, meta=job_meta(self, request),
            evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="density")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        return flow_of(trained, choice, self.sampler)


def pairs(request: Request, training: DataTrainingSection, coupling: CouplingSection, x: Tensor) -> FlowMatchingData:
    """Batches of prior draws paired with configurations.

    Args:
        request: system, seed, and data, by which the chances of the rows are judged.
        training, coupling: tables of the recipe.
        x: configurations to pair, row for row those of the data or what they became.
    """
    system = request.system
    return FlowMatchingData(
        x1=x.float(), prior=system.prior, coupling=coupling.build(system), batch=training.batch, seed=request.seed, times=training.times(),
        turns=random_rotations if system.topology is None else random_turns, chances=training.chances(system, request.data))


def prior_of(trained: Trained, section: FlowSection) -> Prior:
    """The prior of training, as much wider as the section says."""
    return trained.prior if section.stretch == 1 else replace(trained.prior, std=trained.prior.std * section.stretch)


def flow_of(trained: Trained, choice: Choice, grids: FlowSection) -> Flow | ContinuousFlow | AdaptiveFlow:
    """The flow along a trained velocity. Without held-out configurations, own samples make the certificate's round trip."""
    parts = {"prior": prior_of(trained, grids), "field": trained.network, "origin": trained.origin, "on_batch": choice.on_batch}
    if choice.integrator == "dopri5":
        return AdaptiveFlow(**parts)
    grid = grids.build(integrator=choice.integrator, steps=choice.steps)
    if choice.weights == "continuous":
        return ContinuousFlow(**parts, grid=grid)
    return Flow(**parts, grid=grid, round_trip=trained.round_trip)
