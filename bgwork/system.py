"""Systems: a folder of data (system.toml, reference values and samples) becomes one frozen record with everything built.

Search order of a name: the folder the caller gives, ./systems, the systems shipped with the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import bgwork
from bgwork import store
from bgwork.molecule import (
    GivenSection,
    MetadynamicsSection,
    MolecularSection,
    TorsionAnglesSection,
    TransferSection,
    molecular_observables,
    read_topology,
    torsion_observables,
)
from bgwork.observables import OBSERVABLES
from bgwork.priors import prior_on
from bgwork.protocols import Prior, Target
from bgwork.records import Estimate, Proposal
from bgwork.spaces import Space
from bgwork.system_file import ReferenceSection, SystemFile, SystemFileError, read_system_file
from bgwork.targets.chamber import Chamber
from bgwork.targets.energies import Count, Positive, Section
from bgwork.topology import Topology, handed_groups, stereocentres

__all__ = ["Count", "Positive", "Section", "System", "SystemFileError", "comes_with_package", "is_shipped", "list_systems", "load_system",
           "load_systems", "reference_samples"]

PACKAGE = Path(bgwork.__file__).parent


@dataclass(frozen=True, kw_only=True)
class System:
    """Everything known about one system.

    Attributes:
        name: of its folder.
        space: of its configurations.
        target: the reduced energy that weights are computed with.
        differentiable_target: its torch twin, for training and Markov chains; counted apart.
        prior: where generators start.
        references: equilibrium averages by observable, with "u" and "virial"; empty if there are none.
        observables: names of what is reported: "u" and keys of `functions`.
        functions: every observable that is known for it, by name: `bgwork.observables.OBSERVABLES` and, for a molecule, its torsions.
        basins: the observable whose (integer) value says in which basin a configuration lies, or None.
        path: its folder.
        length_unit: of all configurations.
        energy: functional form of u, as system.toml names it.
        description: one line.
        source: where form and constants come from.
        reference: how equilibrium data are made.
        topology: atoms and bonds of a molecule, None for clusters.
        structure: [n, 3] the structure in its PDB file, in the length unit; None for clusters.
        default_recipe: what `bgwork train` uses unless told otherwise.
        default_generator: the shipped generator that is used unless told otherwise, by its recipe's name.
    """

    name: str
    space: Space
    target: Target
    differentiable_target: Target
    prior: Prior
    references: dict[str, Estimate]
    observables: tuple[str, ...]
    functions: Mapping[str, Callable[[Tensor], Tensor]]
    basins: str | None
    path: Path
    length_unit: str
    energy: str
    description: str
    source: str
    reference: ReferenceSection | MetadynamicsSection | TransferSection | GivenSection
    topology: Topology | None = None
    structure: Tensor | None = None
    default_recipe: str = "eqot-fm"
    default_generator: str = "eqot-fm"


def load_system(name_or_path: str | Path, *, folder: Path | None = None) -> System:
    """Build a system from its folder.

    Args:
        name_or_path: a name such as "lj13", or the path of a folder with a system.toml in it.
        folder: searched for the name before ./systems and the shipped systems.
    Raises:
        SystemFileError: if there is no such system (the known ones are named) or its system.toml has a missing, mistyped or unknown field.
    """
    path = _find(name_or_path, folder)
    file = read_system_file(path / "system.toml")
    if file.name != path.resolve().name:
        raise SystemFileError(f"{path / 'system.toml'}: name = {file.name!r}, but its folder is {path.resolve().name!r}; make them equal")
    space, energy, topology, structure = file.space.build(), file.energy, None, None
    if isinstance(energy, MolecularSection):
        energy = energy.within(path)
        topology, positions = read_topology(energy)
        structure = space.project(positions[None])[0]
    elif isinstance(energy, TorsionAnglesSection):
        energy = energy.within(path)
    target, twin = (getattr(energy, engine)(space, file.name) for engine in (file.engines.target, file.engines.differentiable_target))
    functions = OBSERVABLES | _functions(energy, twin, topology, structure)
    _check_observables(file, functions, path / "system.toml")
    if topology:
        centres = stereocentres(topology, structure) + handed_groups(topology, structure)
        target, twin = Chamber(target, centres), Chamber(twin, centres)
    return System(
        name=file.name, space=space, target=target, differentiable_target=twin, prior=prior_on(space, file.prior.std),
        references=_read_references(path / "reference.json"), observables=tuple(file.observables), functions=functions, basins=file.basins,
        path=path, length_unit=file.length_unit, energy=energy.form, description=file.description, source=file.source,
        reference=file.reference, topology=topology, structure=structure, default_recipe=file.recipe, default_generator=file.generator)


def _functions(energy: Section, twin: Target, topology: Topology | None,
               structure: Tensor | None) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Observables that a molecule has besides everybody's."""
    if isinstance(energy, TorsionAnglesSection):
        return torsion_observables(twin, read_topology(energy)[0])
    return molecular_observables(topology, structure) if topology else {}


def list_systems(*, folder: Path | None = None) -> tuple[str, ...]:
    """Names of all systems that `load_system` finds, sorted."""
    return tuple(sorted({file.parent.name for root in _roots(folder) for file in root.glob("*/system.toml")}))


def load_systems(*, folder: Path | None = None) -> tuple[tuple[System, ...], dict[str, ValueError]]:
    """Every system that can be loaded, and by name what is wrong with each of the others."""
    loaded, broken = [], {}
    for name in list_systems(folder=folder):
        try:
            loaded.append(load_system(name, folder=folder))
        except ValueError as error:
            broken[name] = error
    return tuple(loaded), broken


def is_shipped(name: str) -> bool:
    """Whether a system of this name comes with the package."""
    return (_shipped() / name / "system.toml").exists()


def comes_with_package(system: System) -> bool:
    """Whether the system's folder is the package's, not the user's."""
    return system.path.resolve().is_relative_to(_shipped().resolve())


def reference_samples(system: System) -> Proposal:
    """The small equilibrium set kept with the system, from other chains than any training data; UNNORMALISED, `group` = chain.

    Raises:
        SystemFileError: if the system has none.
    """
    path = system.path / "reference.npz"
    if not path.exists():
        raise SystemFileError(f"{system.name} has no reference samples at {path}; `bgwork reference {system.name}` makes some under runs/")
    samples = store.load_samples(path)
    if not isinstance(samples, Proposal) or samples.space != system.space:
        raise SystemFileError(f"{path} does not hold plain configurations of {system.name} on {system.space}")
    return samples


def _check_observables(file: SystemFile, functions: Mapping[str, object], path: Path) -> None:
    unknown = [name for name in [*file.observables, file.basins or "u"] if name != "u" and name not in functions]
    if unknown:
        raise SystemFileError(f"{path}: unknown observables {', '.join(unknown)}; known are u, {', '.join(functions)}")


def _roots(folder: Path | None) -> list[Path]:
    return [*([Path(folder)] if folder else []), Path("systems"), _shipped()]


def _shipped() -> Path:
    return PACKAGE / "_systems" if (PACKAGE / "_systems").exists() else PACKAGE.parent / "systems"


def _find(name_or_path: str | Path, folder: Path | None) -> Path:
    given = Path(name_or_path)
    if isinstance(name_or_path, Path) or "/" in name_or_path or len(given.parts) != 1:  # the parts of "./dw4" are those of a name
        path = given.parent if given.name == "system.toml" else given
        if not (path / "system.toml").exists():
            raise SystemFileError(f"no system at {path}: it has no system.toml")
        return path
    for root in _roots(folder):
        if (root / given / "system.toml").exists():
            return root / given
    known = list_systems(folder=folder)
    close = difflib.get_close_matches(str(given), known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    known_text = ", ".join(known) or "none"
    raise SystemFileError(f"unknown system {str(given)!r}{hint}; known systems: {known_text}; the path of a system's folder works too")


def _read_references(path: Path) -> dict[str, Estimate]:
    if not path.exists():
        return {}
    try:
        return {name: Estimate(**{k: float("nan") if v is None else v for k, v in value.items()})
                for name, value in store.read_json(path)["estimates"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise SystemFileError(f"{path} does not hold estimates {{name: {{value, stderr, n_eff}}}}: {error!r}") from error
