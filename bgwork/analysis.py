"""What the analysis scripts and the notebook start from: samples of a run or of a trajectory, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bgwork import runs, units
from bgwork.conformation import DeltaF, Residue, delta_f, has_other_phi, has_positive_phi, residues, torsion_functions
from bgwork.free_energy import log_z_elsewhere, pooled_difference
from bgwork.held_out import stored_density
from bgwork.records import Estimate, WeightedSamples
from bgwork.reference_trajectory import from_trajectory
from bgwork.report import HeldOut, independent_reference, weighed_reference
from bgwork.retarget import Retargeted, retarget_temperature
from bgwork.reweighting import weigh
from bgwork.samplers.diagnosis import Diagnosis, ReferenceSet
from bgwork.system import System, load_system
from bgwork.topology import free_torsions
from bgwork.trajectories import is_trajectory


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
        log_q: [M] log of that density.
        rows: [M] which of the reference samples they are, or None if they are no part of them.
        rare: further ones from rare basins, for a look at each basin by itself, or None.
        problems: what is wrong with a trajectory as equilibrium data, in words.
        retargeted: what the change of temperature did to the weights, or None.
        sampled: the same at the temperature at which the reference was sampled, or None if that is this one.
    """

    system: System
    weighted: WeightedSamples
    reference: WeightedSamples | None
    held_out: WeightedSamples | None = None
    log_q: Tensor | None = None
    rows: Tensor | None = None
    rare: HeldOut | None = None
    problems: tuple[str, ...] = ()
    retargeted: Retargeted | None = None
    sampled: Data | None = None


def load(source: Source) -> Data:
    """Read samples, weigh them if they are not, and look for reference samples and the generator's density at them.

    Raises:
        ValueError: for files that cannot be used, or a trajectory without its system and frame time.
    """
    if is_trajectory(source.path):
        return _load_trajectory(source)
    known = load_system(source.system) if source.system else None
    weighted = runs.weighted_samples(source.path, system=known)
    system = known or load_system(weighted.proposal.origin.system)
    reference = weighed_reference(system)
    folder = source.path if source.path.is_dir() else source.path.parent
    density = stored_density(folder, system, made_with=weighted.proposal.origin.config_hash)
    if reference is None or density is None:
        return Data(system=system, weighted=weighted, reference=reference)
    return Data(system=system, weighted=weighted, reference=reference, held_out=reference.take(density.rows), log_q=density.log_q,
                rows=density.rows, rare=density.rare)


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


def at_temperature(data: Data, temperature: float) -> Data:
    """Everything reweighted to another temperature in K, the reference samples too.

    Raises:
        ValueError: if the system has no temperature in K.
    """
    if data.system.topology is None:
        raise ValueError(f"{data.system.name} is not a molecule: its energy is in kT, so it has no temperature in K to change")
    factor = units.kT(temperature) / data.system.target.kT
    moved = retarget_temperature(data.weighted, factor=factor)
    reference, held_out = (known and retarget_temperature(known, factor=factor).samples for known in (data.reference, data.held_out))
    return replace(data, weighted=moved.samples, reference=reference, held_out=held_out, retargeted=moved, sampled=data)


def known_of(data: Data) -> ReferenceSet:
    """What the samples can be checked against, as in a report of them.

    At another temperature these are the reweighted reference samples alone: reference values are of the system's own temperature, and BAR
    and forward ESS want samples that were drawn at the new one (`log_z_by_mbar` does without).
    """
    drawn_here = data.sampled is None and data.rows is not None
    held_out = HeldOut(log_q=data.log_q, rows=data.rows, rare=data.rare) if drawn_here else None
    known = independent_reference(data.weighted, data.reference, data.system, held_out=held_out)
    return known if data.sampled is None else replace(known, estimates={})


def log_z_by_mbar(data: Data) -> Estimate | None:
    """log Z at another temperature from the samples and the reference samples of the system's own; None where these or log q are missing.

    Raises:
        ValueError: as `free_energy.log_z_elsewhere`.
    """
    if data.sampled is None or data.held_out is None:
        return None
    weighted, held_out = data.sampled.weighted, data.sampled.held_out
    return log_z_elsewhere(weighted, data.log_q, held_out.u, elsewhere_of(data), group=held_out.proposal.group)


def judged(data: Data, diagnosis: Diagnosis) -> Diagnosis:
    """A diagnosis that knows of what is wrong with a trajectory as equilibrium data."""
    if not data.problems:
        return diagnosis
    problems = (*data.problems, *diagnosis.problems)
    return replace(diagnosis, problems=problems, verdict="do not trust: " + "; ".join(problems))


def delta_f_of(data: Data) -> dict[str, DeltaF]:
    """Delta F(phi) of every residue of a peptide but proline, by "phi" or "phi 2", ...; empty for anything else."""
    known = {"reference": known_of(data).samples, "held_out": data.held_out, "log_q": data.log_q}
    turning = free_torsions(data.system.topology).values() if data.system.topology else ()
    found = {r: delta_f(data.weighted, r, **known) for r in residues_of(data.system) if r.phi in turning}
    return {f"phi {r.name}".strip(): value if data.sampled is None else _with_pool(value, r, data) for r, value in found.items()}


def _with_pool(found: DeltaF, residue: Residue, data: Data) -> DeltaF:
    """With what MBAR says at another temperature than the reference's; its "local" variant restricts states that nothing was drawn from."""
    if data.held_out is None:
        return found
    missing = {name: reason for name, reason in found.missing.items() if name != "pooled"}
    missing["local"] = "no reference samples were drawn at this temperature"
    basins = partial(has_other_phi, phi=residue.phi), partial(has_positive_phi, phi=residue.phi)
    try:
        pooled = pooled_difference(data.sampled.weighted, data.sampled.held_out, data.log_q, *basins, u_elsewhere=elsewhere_of(data))
    except ValueError as error:
        return replace(found, missing=missing | {"pooled": str(error)})
    return replace(found, by_route={**found.by_route, "pooled": pooled}, missing=missing)


def elsewhere_of(data: Data) -> Tensor:
    """The new reduced energy at the samples and then at those reference samples at which log q is known, [N + M]."""
    return torch.cat([data.weighted.u, data.held_out.u])


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
