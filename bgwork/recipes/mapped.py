"""A generator of one energy carried to another of the same molecule: a flow, and a map of internal coordinates after it.

objective = "targeted" keeps the flow of a generator that is there and learns the map alone; "mapped-flow-matching" keeps such a map and
trains the flow before it on, with data of the new energy that are taken back through the map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from bgwork.objectives.flow_matching import FlowMatchingBatch, FlowMatchingData, flow_matching_loss
from bgwork.objectives.targeted import Ensemble, TargetedLoss, TargetedSource
from bgwork.protocols import Sampler
from bgwork.provenance import tensor_fingerprint
from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, ess_of, initial_network, job_meta, load_initial
from bgwork.recipes.flow_matching import FlowSection, ForcesTrainingSection, pairs, prior_of
from bgwork.recipes.oversampling import OversamplingSection
from bgwork.recipes.sections import CouplingSection
from bgwork.relaxed import equilibrium_set
from bgwork.samplers.internal_map import InternalMap, gradient_before
from bgwork.samplers.mapped_flow import MappedFlow
from bgwork.samplers.transport import rows_to_learn
from bgwork.spaces import MeanFree, Space
from bgwork.system import Count, Section, System, load_system
from bgwork.training import TrainingJob


class MappedNetwork(nn.Module):
    """A velocity, and the map that comes after its flow."""

    def __init__(self, field: nn.Module, last: InternalMap) -> None:
        super().__init__()
        self.field, self.map = field, last


class MappedRecipe(Recipe):
    """What both objectives share: network and sampler."""

    spaces: ClassVar[tuple[type[Space], ...]] = (MeanFree,)

    sampler: FlowSection = FlowSection()

    def network(self, system: System) -> nn.Module:
        if system.topology is None:
            raise RecipeError(f"{system.name} has no topology, and a map of internal coordinates needs bonds; take objective "
                              "\"flow-matching\"")
        return MappedNetwork(self.field.build(system), InternalMap(system.topology))

    def default_choice(self) -> Choice:
        return Choice(integrator=self.sampler.integrator, steps=self.sampler.steps, weights="density")

    def sampler_of(self, trained: Trained, choice: Choice) -> Sampler:
        grid = self.sampler.build(integrator=choice.integrator, steps=choice.steps)
        return MappedFlow(prior=prior_of(trained, self.sampler), field=trained.network.field, map=trained.network.map, grid=grid,
                          origin=trained.origin, round_trip=trained.round_trip, on_batch=choice.on_batch)


class StartSection(Section):
    """[start]: the system whose equilibrium data are moved, and its generator, whose [field] is the recipe's."""

    system: str
    generator: str


class TargetedTrainingSection(OversamplingSection):
    """[training] of a map: `batch` configurations of each energy a step, and `share` of the loss from the training data's likelihood."""

    batch: Count = 64
    share: Annotated[float, Field(ge=0, lt=1, strict=False)] = 0.0


class TargetedRecipe(MappedRecipe):
    """The map alone, from configurations of another energy and gradients of this one.

    Its means and covariances start as those of the training data, which need to be no equilibrium set (`bgwork relax`); where they are near
    one, as those that `bgwork relax` makes of weighted samples, a share of the loss may come from their likelihood.
    """

    objective: Literal["targeted"]
    start: StartSection
    training: TargetedTrainingSection

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        self.check_space(system)
        other = load_system(self.start.system)
        network, source = initial_network(self, system, seed=request.seed), equilibrium_set(system, other)
        load_initial(network.field, system, f"{self.start.system}/{self.start.generator}")
        x = source.x[rows_to_learn(source)]
        network.map.fit(x, request.data)
        network.field.requires_grad_(requires_grad=False)
        start, end = (Ensemble(x=rows, target=each.differentiable_target, chances=training.chances(system, rows))
                      for rows, each in ((x, other), (request.data, system)))
        data = TargetedSource(start=start, end=end, batch_size=training.batch, share=training.share, seed=request.seed)
        return TrainingJob(
            model=network, loss=TargetedLoss(training.share), data=data, config=training.config(compiled=False), folder=request.folder,
            meta={**job_meta(self, request), "start_data": tensor_fingerprint(source.x)}, on_log=request.on_log)


class MappedTrainingSection(ForcesTrainingSection):
    """[training] of the flow before a map: `map` names the generator whose map it is, if not the `initial` one, whose flow is started from.

    That flow may be one without a map, such as another system's. Forces are those of the energy that configurations have once mapped.
    """

    map: str = ""


class MappedFlowMatchingRecipe(MappedRecipe):
    """The flow alone, before a map that stays, by flow matching with data taken back through it."""

    objective: Literal["mapped-flow-matching"]
    coupling: CouplingSection
    training: MappedTrainingSection

    def job(self, request: Request) -> TrainingJob:
        system, training = request.system, self.training
        if not training.initial:
            raise RecipeError("the map before which a flow is trained on must be there; name a generator with objective = \"targeted\" in "
                              "training.initial")
        self.check_space(system)
        network = initial_network(self, system, seed=request.seed)
        load_initial(network.field, system, training.initial, wrapper="field.", ignore=("map.",))
        load_initial(network.map, system, training.map or training.initial, wrapper="map.", ignore=("field.",))
        network.map.requires_grad_(requires_grad=False)
        return TrainingJob(
            model=network, loss=mapped_loss, data=self.taken_back(request, network.map), config=training.config(), folder=request.folder,
            meta=job_meta(self, request), evaluate=ess_of(self, system, n=training.evaluate_samples), on_log=request.on_log)

    def taken_back(self, request: Request, last: InternalMap) -> FlowMatchingData:
        """Batches of prior draws paired with T^-1(data), and what takes noise out of their velocities."""
        system, training, x = request.system, self.training, last.inverse(request.data.double())
        drawn = pairs(request, training, self.coupling, x)
        forces = training.forces(system, x, drawn.coupling, lambda rows: gradient_before(last, rows, system.differentiable_target))
        return replace(drawn, forces=forces, pools=training.pools(system, drawn))


def mapped_loss(model: MappedNetwork, batch: FlowMatchingBatch) -> Tensor:
    """Flow matching of the velocity."""
    return flow_matching_loss(model.field, batch)
