"""What the analysis scripts and the notebook start from: samples of a run or of a trajectory, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bgwork import runs, units
from bgwork.conformation import DeltaF, Residue, delta_f, residues, torsion_functions
from bgwork.held_out import stored_density
from bgwork.records import Estimate, WeightedSamples
from bgwork.reference_trajectory import from_trajectory
from bgwork.report import weighed_reference
from bgwork.retarget import Retargeted, retarget_temperature
from bgwork.reweighting import weigh
from bgwork.samplers.diagnosis import ReferenceSet
from bgwork.system import System, load_system
from bgwork.trajectories import READERS


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples come from.

    Attributes:
        path: of a samples file, a run's folder, or a trajectory (.dcd, .xtc, .pdb, .h5).
        system: name of the system; needed for a trajectory, by default the one that the file names.
        frame_time: time between the frames of a trajectory, in ps.
        top: PDB file that names a trajectory's atoms.
    """

    path: Path
    system: str | None = None
    frame_time: float | None = None
    top: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples with what is known beside them, all at one temperature.

    Attributes:
        system: they belong to.
        weighted: the samples.
        reference: equilibrium samples kept with the system, or None.
        held_out: those of them at which the generator's density, or that of one path back from each, is known, or None.
        rows: [M] which of the reference samples these are, or None.
        log_q: [M] log of that density.
        problems: what is wrong with a trajectory as equilibrium data, in words.
        retargeted: what the change of temperature did to the weights, or None.
    """

    system: System
    weighted: WeightedSamples
    reference: WeightedSamples | None
    held_out: WeightedSamples | None = None
    rows: Tensor | None = None
    log_q: Tensor | None = None
    problems: tuple[str, ...] = ()
    retargeted: Retargeted | None = None


def load(source: Source) -> Data:
    """Read samples, weigh them if they are not, and look for reference samples and the generator's density at them.

    Raises:
        ValueError: for files that cannot be used, or a trajectory without its system and frame time.
    """
    if source.path.suffix in READERS:
        return _load_trajectory(source)
    known = load_system(source.system) if source.system else None
    weighted = runs.weighted_samples(source.path, system=known)
    system = known or load_system(weighted.proposal.origin.system)
    reference = weighed_reference(system)
    folder = source.path if source.path.is_dir() else source.path.parent
    density = stored_density(folder, system, made_with=weighted.proposal.origin.config_hash)
    if reference is None or density is None:
        return Data(system=system, weighted=weighted, reference=reference)
    return Data(system=system, weighted=weighted, reference=reference, held_out=reference.take(density.rows),
                rows=density.rows, log_q=density.log_q)


def _load_trajectory(source: Source) -> Data:
    if source.system is None or source.frame_time is None:
        raise ValueError(f"{source.path} is a trajectory: say which --system it is of, and the --frame-time between its frames in ps")
    system = load_system(source.system)
    if system.topology is None:
        raise ValueError(f"{system.name} is not a molecule; trajectories are read for molecules only")
    temperature = system.target.kT / units.GAS_CONSTANT
    found = from_trajectory(system, source.path, frame_time=source.frame_time, temperature=temperature, top=source.top)
    problems = tuple(str(check) for check in found.checks if not check.passed)
    return Data(system=system, weighted=weigh(found.proposal, system.target), reference=weighed_reference(system), problems=problems)


def beside(data: Data, *, estimates: dict[str, Estimate] | None = None) -> ReferenceSet:
    """What a diagnosis compares with: the reference samples, the generator's density at some of them, and these estimates.

    At another temperature there is no density: the reference samples were drawn at their own, and are weighted.
    """
    return ReferenceSet(samples=data.reference, log_q=data.log_q, rows=data.rows, estimates=estimates or {})


def at_temperature(data: Data, temperature: float) -> Data:
    """Everything reweighted to another temperature in K, the reference samples too.

    Raises:
        ValueError: if the system has no temperature in K.
    """
    if data.system.topology is None:
        raise ValueError(f"{data.system.name} is not a molecule: its energy is in kT, so it has no temperature in K to change")
    factor = units.kT(temperature) / data.system.target.kT
    moved = retarget_temperature(data.weighted, factor=factor)
    reference = data.reference and retarget_temperature(data.reference, factor=factor).samples
    return Data(system=data.system, weighted=moved.samples, reference=reference, problems=data.problems, retargeted=moved)


def delta_f_of(data: Data) -> dict[str, DeltaF]:
    """Delta F(phi) of every residue of a peptide, by "phi" or "phi 2", ...; empty for anything else."""
    known = {"reference": data.reference, "held_out": data.held_out, "log_q": data.log_q}
    return {f"phi {r.name}".strip(): delta_f(data.weighted, r, **known) for r in residues_of(data.system)}


def residues_of(system: System) -> tuple[Residue, ...]:
    """Residues with phi and psi; none for what is no peptide."""
    return residues(system.topology) if system.topology else ()


def torsion_names(system: System) -> tuple[str, ...]:
    """Torsions of a molecule that `function_of` knows by name."""
    return tuple(torsion_functions(system.topology)) if system.topology else ()


def function_of(system: System, name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name: an observable, or a torsion of a molecule in radians.

    Raises:
        ValueError: for an unknown name, naming the known ones.
    """
    known = dict(system.functions) | (torsion_functions(system.topology) if system.topology else {})
    if name not in known:
        raise ValueError(f"unknown observable {name!r}; known are {', '.join(known)}")
    return known[name]
