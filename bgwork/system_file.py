"""system.toml: its tables, strictly typed, and mistakes in it explained on one line each."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bgwork import store
from bgwork.curved import ConstantCurvature
from bgwork.molecule import (
    ForceFieldSection,
    GivenSection,
    MetadynamicsSection,
    MolecularSection,
    TightBindingSection,
    TorsionAnglesSection,
    TransferSection,
)
from bgwork.priors import prior_on
from bgwork.spaces import Space
from bgwork.targets.energies import ENERGIES, Count, EnergySection, Positive, Section

ENGINES = {"torch": "torch", "openmm": "OpenMM", "tblite": "tblite"}
KINDS: dict[str, type[Section]] = ENERGIES | {
    "force-field": ForceFieldSection, "tight-binding": TightBindingSection, "metadynamics": MetadynamicsSection, "given": GivenSection,
    "transfer": TransferSection, "torsion-angles": TorsionAnglesSection}


class SystemFileError(ValueError):
    """An unknown system or a system.toml that cannot be used, with the allowed names."""


class SpaceSection(Section):
    """[space]: the space and its size; on a sphere or hyperboloid of dimension m, d = m + 1, and `curvature` is 1 or -1 unless given."""

    kind: Literal["mean-free", "euclidean", "sphere", "hyperboloid", "torus"]
    n: Count
    d: Count
    curvature: float | None = None

    @model_validator(mode="after")
    def _exists(self) -> SpaceSection:
        self.build()
        return self

    def build(self) -> Space:
        space = store.SPACES[self.kind]
        if self.curvature is None:
            return space(n=self.n, d=self.d)
        if not issubclass(space, ConstantCurvature):
            raise ValueError(f"a space of kind {self.kind!r} is flat; leave out curvature, or set kind to \"sphere\" or \"hyperboloid\"")
        return space(n=self.n, d=self.d, curvature=self.curvature)


class EnginesSection(Section):
    """[engines]: what computes the energies for weights, and their differentiable twin."""

    target: Literal["torch", "openmm", "tblite"]
    differentiable_target: Literal["torch", "tblite"]


class PriorSection(Section):
    """[prior], `bgwork.priors.prior_on` the space: std per degree of freedom, in the length unit; it is empty on a sphere or torus."""

    std: Positive | None = None


class ReferenceSection(Section):
    """[reference] by Markov chains: how equilibrium data are made (`bgwork.reference`).

    Attributes:
        sampler: "hmc", "parallel-tempering", or "exact" where the target can be drawn from directly.
        chains: at most so many independent chains.
        draws: configurations kept of each chain; a smaller request uses fewer chains, not shorter ones.
        starts: at least two kinds of first configurations (`bgwork.samplers.starts`), shared equally among the chains.
        spacing: of the lattice that starts are made from, in the length unit.
        burn_in, thin, leapfrog, step, betas: as in `bgwork.samplers.mcmc`.
    """

    sampler: Literal["hmc", "parallel-tempering", "exact"]
    chains: Annotated[int, Field(ge=4)]
    draws: Annotated[int, Field(ge=4)]
    starts: list[Literal["lattice", "quenched", "icosahedral", "uniform", "settled", "origin"]] = []
    spacing: Positive = 1.0
    burn_in: Annotated[int, Field(ge=0)] = 500
    thin: Count = 10
    leapfrog: Count = 10
    step: Positive = 0.05
    betas: list[Positive] = [1.0]

    @model_validator(mode="after")
    def _starts(self) -> ReferenceSection:
        if self.sampler != "exact" and len(set(self.starts)) < 2:
            raise ValueError("Markov chains need at least two different `starts`, whose agreement is checked")
        return self

    @model_validator(mode="after")
    def _ladder(self) -> ReferenceSection:
        if self.sampler == "parallel-tempering" and len(self.betas) < 2:
            raise ValueError("parallel tempering needs `betas`, a ladder of inverse temperatures down from 1, such as [1.0, 0.7, 0.4]; "
                             "sampler = \"hmc\" does without")
        return self


class SystemFile(Section):
    """system.toml as a whole."""

    name: str
    description: str
    source: str
    length_unit: str
    energy_unit: Literal["kT"]
    observables: list[str]
    basins: str | None = None
    recipe: str = "eqot-fm"
    generator: str = "eqot-fm"
    space: SpaceSection
    energy: EnergySection | MolecularSection | TorsionAnglesSection = Field(discriminator="form")
    engines: EnginesSection
    prior: PriorSection
    reference: ReferenceSection | MetadynamicsSection | TransferSection | GivenSection = Field(discriminator="sampler")

    @model_validator(mode="after")
    def _fits(self) -> SystemFile:
        for use, engine in (("target", self.engines.target), ("differentiable_target", self.engines.differentiable_target)):
            if not hasattr(self.energy, engine):
                remedy = " or ".join(f'"{name}"' for name in ENGINES if hasattr(self.energy, name))
                raise ValueError(f"an energy of form {self.energy.form!r} has no {ENGINES[engine]} engine; set engines.{use} to {remedy}")
        if isinstance(self.reference, MetadynamicsSection | TransferSection | GivenSection) != isinstance(self.energy, MolecularSection):
            raise ValueError(f"an energy of form {self.energy.form!r} does not go with reference.sampler = {self.reference.sampler!r}")
        if isinstance(self.energy, MolecularSection):
            return self._fits_molecule()
        prior_on(self.space.build(), self.prior.std)
        if isinstance(self.energy, TorsionAnglesSection):
            return self  # how many torsions there are stands in the PDB file, which lies in the system's folder
        built = self.energy.torch(self.space.build(), self.name).space
        if built != self.space.build():
            raise ValueError(f"an energy of form {self.energy.form!r} lives on {built}, not on {self.space.build()}")
        return self

    def _fits_molecule(self) -> SystemFile:
        if (self.space.kind, self.space.d, self.length_unit) != ("mean-free", 3, "nm"):
            raise ValueError("molecules live on mean-free space in three dimensions and are measured in nm")
        prior_on(self.space.build(), self.prior.std)
        if not isinstance(self.reference, MetadynamicsSection):
            return self
        if self.engines.target != "openmm":
            raise ValueError('reference.sampler = "metadynamics" needs engines.target = "openmm"; choose "transfer" from a '
                             'system of the same molecule that has one, or "given" and bring a trajectory')
        if self.reference.temperatures[0] != self.energy.temperature:
            raise ValueError(f"reference.temperatures start at {self.reference.temperatures[0]} K, "
                             f"but energy.temperature is {self.energy.temperature} K; make them equal")
        return self


def read_system_file(path: Path) -> SystemFile:
    """system.toml, validated.

    Raises:
        SystemFileError: if it is not TOML, or has a missing, mistyped or unknown field.
    """
    try:
        with path.open("rb") as stream:
            values = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SystemFileError(f"{path} is not readable TOML: {error}") from error
    try:
        return SystemFile.model_validate(values)
    except ValidationError as error:
        raise SystemFileError(f"{path}:\n" + "\n".join(f"  {_explain(e)}" for e in error.errors())) from error


def _explain(error: dict[str, Any]) -> str:
    """One line on one validation error: where, what is wrong, what is allowed."""
    where = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        got = "" if error["type"] == "missing" or isinstance(error["input"], dict) else f", got {error['input']!r}"
        return f"{'.'.join(where) or 'the file'}: {error['msg']}{got}"
    return f"{'.'.join(where)}: unknown key; allowed here: {', '.join(_allowed(where[:-1]))}"


def _allowed(table: list[str]) -> list[str]:
    """Field names of a table of system.toml; [energy] and [reference] have those of their form and sampler."""
    if not table:
        return list(SystemFile.model_fields)
    if table[0] in ("energy", "reference"):
        return list(KINDS.get(table[1], ReferenceSection).model_fields)
    return list(SystemFile.model_fields[table[0]].annotation.model_fields)
