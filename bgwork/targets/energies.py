"""The [energy] table of a system.toml: a functional form with its constants, which builds its own targets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bgwork.protocols import Target
from bgwork.spaces import Space
from bgwork.targets.double_well import DoubleWell
from bgwork.targets.gaussian_mixture import GaussianMixture
from bgwork.targets.hyperbolic_mixture import HyperbolicMixture
from bgwork.targets.lennard_jones import LennardJones
from bgwork.targets.many_well import ManyWell
from bgwork.targets.openmm import OpenMMTarget, lennard_jones_system
from bgwork.targets.spin_chain import SpinChain
from bgwork.targets.von_mises_fisher import VonMisesFisherMixture


class Section(BaseModel):
    """A table of system.toml: strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class LennardJonesSection(Section):
    """[energy] with form = "lennard-jones"; constants as in `LennardJones`."""

    form: Literal["lennard-jones"]
    depth: Positive
    r_min: Positive
    trap: Positive

    def torch(self, space: Space, name: str) -> Target:
        return LennardJones(space.n, space.d, depth=self.depth, r_min=self.r_min, trap=self.trap, name=name)

    def openmm(self, space: Space, name: str) -> Target:
        system = lennard_jones_system(space.n, depth=self.depth, r_min=self.r_min, trap=self.trap)
        return OpenMMTarget(system, space=space, kT=1.0, name=name)  # in kT, hence 1 kJ/mol; one length unit is 1 nm


class DoubleWellSection(Section):
    """[energy] with form = "double-well"; constants as in `DoubleWell`."""

    form: Literal["double-well"]
    quartic: Positive
    quadratic: Positive
    r0: Positive

    def torch(self, space: Space, name: str) -> Target:
        return DoubleWell(space.n, space.d, quartic=self.quartic, quadratic=self.quadratic, r0=self.r0, name=name)


class GaussianMixtureSection(Section):
    """[energy] with form = "gaussian-mixture"; constants as in `GaussianMixture.random`."""

    form: Literal["gaussian-mixture"]
    components: Count
    half_width: Positive
    std: Positive
    seed: Annotated[int, Field(ge=0)]

    def torch(self, space: Space, name: str) -> Target:
        return GaussianMixture.random(self.components, space.d, half_width=self.half_width, std=self.std, seed=self.seed, name=name)


class ManyWellSection(Section):
    """[energy] with form = "many-well"; constants as in `ManyWell`."""

    form: Literal["many-well"]
    quartic: Positive
    quadratic: Positive
    tilt: Positive

    def torch(self, space: Space, name: str) -> Target:
        return ManyWell(space.n, quartic=self.quartic, quadratic=self.quadratic, tilt=self.tilt, name=name)


class VonMisesFisherSection(Section):
    """[energy] with form = "von-mises-fisher-mixture", on a unit sphere; constants as in `VonMisesFisherMixture.random`."""

    form: Literal["von-mises-fisher-mixture"]
    components: Count
    concentration: Positive
    seed: Annotated[int, Field(ge=0)]

    def torch(self, space: Space, name: str) -> Target:
        return VonMisesFisherMixture.random(self.components, space.d, concentration=self.concentration, seed=self.seed, name=name)


class HyperbolicMixtureSection(Section):
    """[energy] with form = "hyperbolic-mixture", on a hyperboloid of curvature -1; constants as in `HyperbolicMixture.ring`."""

    form: Literal["hyperbolic-mixture"]
    components: Count
    radius: Positive
    std: Positive

    def torch(self, space: Space, name: str) -> Target:
        if space.d < 3:
            raise ValueError(f"a ring of means needs a hyperbolic plane at least, that is d >= 3, got d = {space.d}")
        return HyperbolicMixture.ring(self.components, space.d - 1, radius=self.radius, std=self.std, name=name)


class SpinChainSection(Section):
    """[energy] with form = "spin-chain": n spins on unit spheres; coupling as in `SpinChain`."""

    form: Literal["spin-chain"]
    coupling: float

    def torch(self, space: Space, name: str) -> Target:
        return SpinChain(space.n, space.d, coupling=self.coupling, name=name)


EnergySection = (LennardJonesSection | DoubleWellSection | GaussianMixtureSection | ManyWellSection | VonMisesFisherSection
                 | HyperbolicMixtureSection | SpinChainSection)
ENERGIES: dict[str, type[Section]] = {
    "lennard-jones": LennardJonesSection, "double-well": DoubleWellSection, "gaussian-mixture": GaussianMixtureSection,
    "many-well": ManyWellSection, "von-mises-fisher-mixture": VonMisesFisherSection, "hyperbolic-mixture": HyperbolicMixtureSection,
    "spin-chain": SpinChainSection}
