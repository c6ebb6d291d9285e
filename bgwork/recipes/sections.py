"""Tables that recipes are made of, each validated and able to build what it names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from bgwork.couplings import EquivariantOptimalTransport, Independent, MolecularAlignment, OptimalTransport, SoftMolecularAlignment
from bgwork.fields.ambient import AmbientDrifts
from bgwork.fields.compiled import check_compiler
from bgwork.fields.egnn import EGNN
from bgwork.fields.framed import Framed
from bgwork.fields.frames import Frame
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.species import every_atom_its_own_kind
from bgwork.objectives.polish import PolishSettings
from bgwork.paths import Times
from bgwork.protocols import Coupling
from bgwork.samplers.integrators import Grid
from bgwork.spaces import MeanFree
from bgwork.system import Count, Positive, Section, System
from bgwork.topology import equivalent_hydrogens
from bgwork.training import TrainingConfig

Share = Annotated[float, Field(ge=0, le=1, strict=False)]
Basis = Annotated[int, Field(ge=2)]


class HopSizes(Section):
    """Sizes of a multi-hop field, as in `MultiHopConfig`."""

    hidden: Count = MultiHopConfig.hidden
    message: Count = MultiHopConfig.message
    vectors: Count = MultiHopConfig.vectors
    hops: Count = MultiHopConfig.hops
    node_hidden: Count = MultiHopConfig.node_hidden
    n_basis: Basis = MultiHopConfig.n_basis
    r_max: Positive = MultiHopConfig.r_max
    softening: Positive
    nearest: Annotated[float, Field(ge=0, lt=1, strict=False)] = MultiHopConfig.nearest


class MultiHopSection(HopSizes):
    """[field] kind = "multihop"."""

    kind: Literal["multihop"]

    def build(self, system: System) -> nn.Module:
        return MultiHop(system.space.n, system.space.d, MultiHopConfig(**self.model_dump(exclude={"kind"})))


class EGNNSection(Section):
    """[field] kind = "egnn"."""

    kind: Literal["egnn"]
    layers: Count = 4
    hidden: Count = 64

    def build(self, system: System) -> nn.Module:
        return EGNN(system.space.n, system.space.d, layers=self.layers, hidden=self.hidden)


class MLPSection(Section):
    """[field] kind = "mlp", for Euclidean spaces of low dimension."""

    kind: Literal["mlp"]
    hidden: Count = 256
    depth: Count = 4
    scale: Positive = 1.0
    waves: Annotated[int, Field(ge=0)] = 0

    def build(self, system: System) -> nn.Module:
        return MLP(system.space.n, system.space.d, hidden=self.hidden, depth=self.depth, scale=self.scale, waves=self.waves)


class MolecularSection(HopSizes):
    """[field] kind = "molecular": a chiral multi-hop field in which every atom is a kind of its own; lengths in nm."""

    kind: Literal["molecular"]
    n_basis: Basis = 24
    kind_basis: Basis = MultiHopConfig.kind_basis
    r_max: Positive = 1.5

    def build(self, system: System) -> nn.Module:
        return self._molecular(system)

    def _molecular(self, system: System) -> MultiHop:
        if system.structure is None:
            raise ValueError(f"{system.name} has no topology; a {self.kind} field needs one, use kind = \"multihop\"")
        space = system.space
        config = MultiHopConfig(chiral=True, **self.model_dump(include=set(MolecularSection.model_fields) - {"kind"}))
        return MultiHop(space.n, space.d, config, species=every_atom_its_own_kind(system.structure[None]))

    def fit(self, network: nn.Module, data: Tensor) -> None:
        network.scale.measure(data)


class FramedMolecularSection(MolecularSection):
    """[field] kind = "framed-molecular": a molecular field, refined in the molecule's frame by a perceptron with `frame_depth` layers of
    `frame_hidden`."""

    kind: Literal["framed-molecular"]
    frame_hidden: Count = 384
    frame_depth: Count = 3

    def build(self, system: System) -> nn.Module:
        inner = self._molecular(system)
        frame = Frame(system.structure, length=system.prior.std)
        return Framed(inner, frame, hidden=self.frame_hidden, depth=self.frame_depth, nearest=self.nearest)

    def fit(self, network: nn.Module, data: Tensor) -> None:
        network.inner.scale.measure(data)
        network.frame.measure(data)


class AmbientSection(Section):
    """[field] kind = "ambient", for curved spaces alone: both drifts of `AmbientDrifts`; scale in the length unit."""

    kind: Literal["ambient"]
    hidden: Count = 128
    depth: Count = 4
    scale: Positive = 1.0

    def build(self, system: System) -> nn.Module:
        return AmbientDrifts(system.space, hidden=self.hidden, depth=self.depth, scale=self.scale)


FieldSection = Annotated[MultiHopSection | EGNNSection | MLPSection | MolecularSection | FramedMolecularSection,
                         Field(discriminator="kind")]
FIELDS: dict[str, type[Section]] = {"multihop": MultiHopSection, "egnn": EGNNSection, "mlp": MLPSection, "molecular": MolecularSection,
                                    "framed-molecular": FramedMolecularSection}


class CouplingSection(Section):
    """[coupling]; sweeps and group as in `EquivariantOptimalTransport`.

    "molecular" is `MolecularAlignment` with the system's hydrogens, "soft-molecular" `SoftMolecularAlignment` with `width` standard
    deviations of the prior.
    """

    kind: Literal["independent", "ot", "equivariant-ot", "molecular", "soft-molecular"]
    sweeps: Count = 2
    group: Count = 1
    width: Positive = 1.0

    def build(self, system: System) -> Coupling:
        """The coupling; ValueError if the system has not the symmetries that it moves prior draws by."""
        self._check_symmetries(system)
        if self.kind == "equivariant-ot":
            return EquivariantOptimalTransport(sweeps=self.sweeps, group=self.group)
        groups = equivalent_hydrogens(system.topology) if system.topology else ()
        triples = tuple(group for group in groups if len(group) == 3)
        if self.kind == "molecular":
            return MolecularAlignment(triples=triples, sweeps=self.sweeps)
        if self.kind == "soft-molecular":
            return SoftMolecularAlignment(triples=triples, width=self.width * system.prior.std)
        return {"independent": Independent, "ot": OptimalTransport}[self.kind]()

    def _check_symmetries(self, system: System) -> None:
        if self.kind in ("independent", "ot"):
            return
        if not isinstance(system.space, MeanFree):
            raise ValueError(f'coupling.kind = "{self.kind}" turns configurations, and {system.name} lives on {system.space}; take "ot"')
        if self.kind == "equivariant-ot" and system.topology is not None:
            raise ValueError(f'coupling.kind = "{self.kind}" exchanges all particles, and the atoms of {system.name} differ; '
                             'take "molecular"')


class LoopSection(Section):
    """[training], the part that every objective shares: the loop's settings (`TrainingConfig`) and the size of a progress evaluation."""

    steps: Count
    learning_rate: Positive = TrainingConfig.learning_rate
    warmup: Count = TrainingConfig.warmup
    weight_decay: Annotated[float, Field(ge=0, strict=False)] = TrainingConfig.weight_decay
    optimiser: Literal["adamw", "soap"] = TrainingConfig.optimiser
    clip: Positive = TrainingConfig.clip
    ema: Share = TrainingConfig.ema
    bfloat16: Share = TrainingConfig.bfloat16
    compiled: bool = TrainingConfig.compiled
    checkpoint_every: Count = TrainingConfig.checkpoint_every
    log_every: Count = TrainingConfig.log_every
    evaluate_every: Annotated[int, Field(ge=0)] = 5000
    evaluate_samples: Count = 500

    def config(self, **changes: Any) -> TrainingConfig:
        """The loop's settings, some of them changed; ValueError if they need a compiler that is not there."""
        own = {name: getattr(self, name) for name in LoopSection.model_fields if name != "evaluate_samples"}
        made = TrainingConfig(**own | changes)
        if made.compiled:
            check_compiler()
        return made


class FlowMatchingTrainingSection(LoopSection):
    """[training] of flow matching: batch size, shares of late, early and logarithmic times (`Times`), and the generator to start from
    (of another system: SYSTEM/NAME)."""

    batch: Count = 256
    late_times: Share = 0.5
    early_times: Share = 0.0
    logarithmic_times: Share = 0.0
    initial: str = ""

    def times(self) -> Times:
        return Times(late=self.late_times, early=self.early_times, logarithmic=self.logarithmic_times)


class GridSection(Section):
    """[sampler]: the grid that the generator is used with unless told otherwise, t_k = 1 - (1 - (k / steps)^ease)^power.

    A power above 1 makes steps shorter towards the data. Stiff targets need that: along the linear interpolant a direction much narrower
    than the last step is contracted by a factor that is nearly zero, so that the map nearly folds. An ease above 1 makes the first
    ones shorter: where a prior draw has particles on top of each other, the field turns sharply, and a long first step folds too.
    """

    integrator: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    steps: Count = 16
    power: Positive = 1.0
    ease: Positive = 1.0

    def build(self, *, integrator: str | None = None, steps: int | None = None) -> Grid:
        """The grid, with another integrator or number of steps if they are given."""
        integrator, steps = integrator or self.integrator, steps or self.steps
        if self.power == self.ease == 1:
            return Grid(integrator=integrator, steps=steps)
        times = tuple(1 - (1 - (k / steps) ** self.ease) ** self.power for k in range(steps + 1))
        return Grid(integrator=integrator, steps=steps, times=times)


class DivergenceSection(Section):
    """[polish]: what a polish minimises, as in `PolishSettings`."""

    batch: Count = PolishSettings.batch
    share: Share = PolishSettings.share
    data: Literal["path", "likelihood"] = PolishSettings.data
    own: Literal["reverse", "forward", "chi-square"] = PolishSettings.own
    margin: Positive = PolishSettings.margin
    fold_weight: Positive = PolishSettings.fold_weight

    def settings(self) -> PolishSettings:
        return PolishSettings(**{name: getattr(self, name) for name in DivergenceSection.model_fields})


class PolishTrainingSection(LoopSection):
    """[training] of a polish: the loop's settings and the generator to start from; `compiled` is for a flow's Jacobian."""

    initial: str
