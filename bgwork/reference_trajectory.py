"""Reference data from a trajectory of the user's own: taken over only if it is equilibrium dynamics of the very system.

Whether it is shows by integration by parts, <v . grad u> = <div v> for every vector field v: with v = x this is the virial, with v the
stretching of bonds it says at which temperature they vibrate under the system's own forces, and turning one side of the molecule about a
bond says whether its torsional terms are those of the system. Constraints, another temperature, another force field and too long a time
step all change it. All of that holds within every basin by itself; whether basins have their populations shows only where they are known,
from reference values kept with the system.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from bgwork import units
from bgwork.bond_balance import LIMIT, bond_balance, inefficiencies
from bgwork.molecule import molecular_observables
from bgwork.provenance import commit, file_fingerprint, versions
from bgwork.records import Density, Origin, Proposal, WeightedSamples
from bgwork.reference_checks import BATCH, Z_LIMIT, Check, ReferenceRun, agreement, virial_check
from bgwork.reference_populations import estimate
from bgwork.reweighting import average, weigh
from bgwork.system import System
from bgwork.torsion_balance import LIMIT as TORQUE_LIMIT
from bgwork.torsion_balance import torsion_balance
from bgwork.trajectories import TrajectoryError, check_structure, read_trajectory, refuse_export

BLOCKS = 20  # at most, for error bars
CORRELATION_TIMES = 5  # that a block is long at least
FEWEST_BLOCKS = 4
FEWEST_FRAMES = 10  # of the system's handedness
BOND_TOLERANCE = 0.02  # relative deviation of the bonds' temperature that a time step of 1 fs may leave, beside its standard error
BOND_ERRORS = 3.0  # of these standard errors
BOND_CEILING = 0.1  # beyond which no error excuses it
KELVIN = 0.5  # that temperatures may differ by and still be called equal


def from_trajectory(system: System, path: Path, *, frame_time: float, temperature: float, top: Path | None = None) -> ReferenceRun:
    """Configurations of a trajectory as reference data of a system; `group` is a block of at least five correlation times.

    The correlation time, of the slowest observable, is in `made["correlation_time_ps"]` and in the proposal's note.

    Args:
        system: a molecule.
        path: .dcd, .xtc, .pdb or .h5, unbiased and in equilibrium throughout.
        frame_time: time between frames, in ps.
        temperature: that it was run at, in K.
        top: PDB file that names the trajectory's atoms, for DCD and XTC.
    Raises:
        TrajectoryError: if the system is no molecule, the file cannot be taken over (`read_trajectory`, `check_structure`), the temperature
            is not the system's, frame_time is not positive, or the trajectory is too short for error bars.
    """
    _check_settings(system, frame_time, temperature)
    refuse_export(path)
    x = read_trajectory(path, topology=system.topology, top=top)
    check_structure(x, topology=system.topology, structure=system.structure)
    x = system.space.project(x)
    inefficiency, slowest = slowest_correlation(system, x)
    time = (inefficiency - 1) / 2 * frame_time
    blocks = min(BLOCKS, int(len(x) / (CORRELATION_TIMES * inefficiency)))
    note = f"correlation time {time:.3g} ps ({slowest}), {len(x)} frames every {frame_time:g} ps in {blocks} blocks"
    if blocks < FEWEST_BLOCKS:
        least = CORRELATION_TIMES * FEWEST_BLOCKS * inefficiency
        raise TrajectoryError(f"{path} is too short: {note}; error bars need at least {least:.0f} frames at this spacing")
    note += unvisited(system, x)
    proposal = Proposal(
        x=x, log_q=-system.target.u(x), space=system.space, density=Density.UNNORMALISED, group=torch.arange(len(x)) * blocks // len(x),
        origin=Origin(method="trajectory", system=system.name, commit=commit()), note=note)
    weighted = weigh(proposal, system.target)
    made = {"system": system.name, "n": len(x), "file": str(path), "fingerprint": file_fingerprint(path), "frame_time_ps": frame_time,
            "temperature_K": temperature, "correlation_time_ps": time, "slowest": slowest, "blocks": blocks, "commit": commit(),
            "versions": versions()}
    return ReferenceRun(proposal=proposal, checks=tuple(check(system, weighted)), estimates=estimate(system, weighted), made=made)


def _check_settings(system: System, frame_time: float, temperature: float) -> None:
    if system.topology is None:
        torsions = system.energy == "torsion-angles"
        what = "a molecule of fixed bonds and angles, whose configurations are torsions" if torsions else "not a molecule"
        raise TrajectoryError(f"{system.name} is {what}; trajectories are taken over for molecules in Cartesian coordinates only")
    if not 0 < frame_time < math.inf:
        raise TrajectoryError(f"the time between frames must be positive, got {frame_time} ps")
    ours = system.target.kT / units.GAS_CONSTANT
    if not abs(temperature - ours) <= KELVIN:  # NaN compares as false
        raise TrajectoryError(f"the trajectory was run at {temperature:g} K, {system.name} is at {ours:g} K; "
                              "set energy.temperature in a system of your own, or run at the system's")


def slowest_correlation(system: System, x: Tensor) -> tuple[float, str]:
    """Largest statistical inefficiency g = 1 + 2 sum_t (1 - t/N) C(t) of the energy and the molecular observables, and whose it is.

    Source: Chodera et al. 2007, with the sum stopped where C first falls below zero (`pymbar.timeseries`).

    Args:
        system: whose functions are looked at.
        x: [N, n, 3] frames in order of time.
    """
    functions = molecular_observables(system.topology, system.structure)
    values = {"u": system.target.u(x)} | {name: f(x) for name, f in functions.items()}
    varying = {name: v for name, v in values.items() if bool(torch.isfinite(v).all()) and float(v.std()) > 0}
    if not varying:
        raise TrajectoryError(f"all {len(x)} frames are the same, or too few; give a longer trajectory")
    found = dict(zip(varying, inefficiencies(torch.stack([v.double() for v in varying.values()], 1)).tolist(), strict=True))
    slowest = max(found, key=found.__getitem__)
    return found[slowest], slowest


def unvisited(system: System, x: Tensor) -> str:
    """What is to be said of basins that no frame is in, or none is out of."""
    functions = molecular_observables(system.topology, system.structure)
    shares = {name: float(f(x).double().mean()) for name, f in functions.items() if name.endswith("_positive")}
    sides = [f"{name.removesuffix('_positive')} is {'always' if share else 'never'} between 0 and 2 rad"
             for name, share in shares.items() if share in (0.0, 1.0)]
    return f"; {', '.join(sides)}, so that these frames say nothing of the populations of those basins" if sides else ""


def check(system: System, weighted: WeightedSamples) -> list[Check]:
    """The virial, forces on bonds and torsions, halves and kept reference values on every observable, frames of the other handedness."""
    estimates = estimate(system, weighted)
    first = weighted.proposal.group < (weighted.proposal.group.max() + 1) // 2
    halves = [estimate(system, weighted.take(rows)) for rows in (first, ~first)]
    checks = [virial_check(estimates["virial"], system.space.dim), *force_checks(system, weighted)]
    checks += [agreement(f"both halves agree on {name}", [half[name] for half in halves], limit=Z_LIMIT)
               for name in estimates if all(name in half for half in halves)]
    checks += [agreement(f"the values kept with {system.name} agree on {name}", [estimates[name], known], limit=Z_LIMIT)
               for name, known in system.references.items() if name in estimates and name != "virial"]
    outside = torch.isinf(weighted.u).double()
    return [*checks, Check(name="share of frames with inverted centres", value=outside.mean().item(), limit=1.0 / len(weighted))]


def force_checks(system: System, weighted: WeightedSamples) -> list[Check]:
    """The bonds' temperature, and in frames of the system's handedness the forces along each of them and the torques about them."""
    gradient = torch.cat([system.target.u_and_grad(part)[1] for part in weighted.x.split(BATCH)])
    inside = torch.isfinite(weighted.u)
    if int(inside.sum()) < FEWEST_FRAMES:
        return [Check(name="forces on bonds and torsions, frames of the system's handedness", value=math.nan, limit=LIMIT,
                      text=f"{int(inside.sum())} of {len(weighted)}, which are too few")]
    x, pull = weighted.x[inside], gradient[inside]
    stretch, turn = bond_balance(system.topology, x, pull), torsion_balance(system.topology, x, pull)
    return [bond_temperature_check(system, weighted, gradient),
            Check(name="forces along bonds, standard errors off balance", value=stretch.value, limit=LIMIT,
                  text=f"most, {stretch.largest}; force field, solvent, cutoff or charges differ, or the frames are not in equilibrium"),
            Check(name="torques about bonds, most standard errors off balance", value=turn.value, limit=TORQUE_LIMIT,
                  text=f"{turn.largest}; torsional terms or solvent differ, or the frames are not in equilibrium")]


def bond_temperature_check(system: System, weighted: WeightedSamples, gradient: Tensor) -> Check:
    """The bonds' temperature over the system's is 1, but for its standard error and what a sound time step leaves."""
    forced, expected = bond_work(system, weighted.x, gradient)
    ratio = average(weighted, forced).value / average(weighted, expected).value
    stderr = average(weighted, forced - ratio * expected).stderr / average(weighted, expected).value
    limit = min(BOND_TOLERANCE + BOND_ERRORS * stderr, BOND_CEILING)
    return Check(name="temperature of the bonds, relative deviation", value=abs(ratio - 1), limit=limit,
                 text=f"{ratio:.3f} +- {stderr:.3f} of the system's; constraints, time step, force field or temperature differ")


def bond_work(system: System, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of <v . grad u> = <div v>, where v moves one atom of every bond along it by how much it is stretched.

        sum_b (r_b - rest_b) e_b . grad_j u,   sum_b 1 + 2 (r_b - rest_b) / r_b

    Args:
        system: with bonds, and rest lengths from its structure.
        x: [N, n, 3].
        gradient: of the reduced energy there, [N, n, 3].
    Returns:
        Two of [N]; their averages are equal in equilibrium, and their ratio is the bonds' temperature over the system's.
    """
    i, j = torch.tensor(system.topology.bonds).T
    rest = (system.structure[j] - system.structure[i]).norm(dim=1)
    bond = x[:, j] - x[:, i]
    length = bond.norm(dim=2)
    forced = ((length - rest) / length * (bond * gradient[:, j]).sum(2)).sum(1)
    return forced, (1.0 + 2.0 * (length - rest) / length).sum(1)
