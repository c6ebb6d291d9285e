"""The commands that make a system and the data to train on and to judge by; registered in `bgwork.commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgwork import terminal, workflow_data
from bgwork.enriched import Excursions
from bgwork.new_system import NewSystem, new_system
from bgwork.options import N, Out, Seed, SystemName, check_together
from bgwork.relaxed import Relaxation
from bgwork.system import load_system


def reference(
    context: typer.Context, name: SystemName, n: N = 10_000, seed: Seed = 0, out: Out = None,
    trajectory: Annotated[Path | None, typer.Option("--from", help="Your own trajectory: DCD, XTC, PDB, HDF5.")] = None,
    top: Annotated[Path | None, typer.Option(help="PDB file that names the trajectory's atoms.")] = None,
    frame_time: Annotated[float | None, typer.Option(help="Time between its frames, in ps.")] = None,
    temperature: Annotated[float | None, typer.Option(help="That it was run at, in K.")] = None,
) -> None:
    """Make equilibrium reference data, or take over your own, and refuse to save them unless they converged.

    Clusters by Markov chains (checked: split R-hat < 1.01, the virial against its exact value, agreement between different starts);
    molecules by metadynamics with a frozen bias, against an independent replica exchange; energies too costly for that by sequential Monte
    Carlo from another system's data, between islands that must agree.

    Examples: `bgwork reference lj13 -n 100000 --seed 1`,
    `bgwork reference ala2-obc2 --from traj.dcd --top x.pdb --frame-time 1 --temperature 300`
    """
    check_together(context, trajectory)
    system = load_system(name)
    if trajectory is None:
        workflow_data.reference(system, n, seed=seed, folder=out)
        return
    workflow_data.reference_from(system, trajectory, frame_time=frame_time, temperature=temperature, top=top, folder=out)


def relax(
    name: SystemName, n: N = 12_000, seed: Seed = 0, out: Out = None,
    start: Annotated[str | None, typer.Option(help="System whose data are moved, or weighted samples of this one.",
                                                 show_default="reference.start")] = None,
    transitions: Annotated[int, typer.Option(help="Of Hamiltonian Monte Carlo before the first snapshot.")] = Relaxation.transitions,
    snapshots: Annotated[int, typer.Option(help="Of every walker; -n counts them all.")] = Relaxation.snapshots,
    between: Annotated[int, typer.Option(help="Transitions from one snapshot to the next.")] = Relaxation.between,
    leapfrog: Annotated[int, typer.Option(help="Gradients of a transition.")] = Relaxation.leapfrog,
) -> None:
    """Move a cheap energy's equilibrium data a little way towards this one's: to train on where `bgwork reference` is too dear.

    Bond lengths and angles soon follow this energy, torsions and basins do not: the result is no equilibrium set, and has no weights.

    Example: `bgwork relax ala2-xtb`, then `bgwork train ala2-xtb --data runs/ala2-xtb/relaxed/samples.npz`
    """
    relaxation = Relaxation(transitions=transitions, snapshots=snapshots, between=between, leapfrog=leapfrog)
    workflow_data.relax(load_system(name), start, n, relaxation=relaxation, seed=seed, folder=out)


def enrich(
    name: SystemName,
    basins: Annotated[list[str], typer.Argument(
        metavar="OBSERVABLE...", help="1 within a rare basin, 0 outside (phi_positive), or a bound (\"psi_1_sin < -0.6\").")],
    rows: Annotated[int, typer.Option("-n", help="Rows added in each basin; fewer if trajectories leave it.")] = Excursions.rows,
    spacing: Annotated[float, typer.Option(help="Between two frames of a trajectory, in ps.")] = Excursions.spacing,
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option(help="Equilibrium configurations.", show_default="runs/SYSTEM/reference/samples.npz")] = None,
    out: Out = None,
) -> None:
    """Add rows to training data where they are rare, by dynamics from those that are there.

    What comes out is in equilibrium within each basin, not as a whole: to train on, with no weights. `training.oversample` says how often
    each basin is drawn.

    Example: `bgwork enrich ala3-obc2 phi_3_positive phi_2_positive --data runs/ala3-obc2/reference/training.npz`
    """
    workflow_data.enrich(load_system(name), basins, excursions=Excursions(rows=rows, spacing=spacing), seed=seed, data=data, folder=out)


def make_system(
    pdb: Annotated[Path, typer.Argument(help="One molecule with all its hydrogens.")],
    forcefield: Annotated[list[str] | None, typer.Option(
        help="File shipped with OpenMM, or a path; repeatable.", show_default="amber14/protein.ff14SB.xml")] = None,
    solvent: Annotated[str, typer.Option(help="vacuum or obc2.")] = "obc2",
    temperature: Annotated[float, typer.Option(help="In K.")] = 300.0,
    name: Annotated[str, typer.Option(help="Of the system.", show_default="that of the PDB file")] = "",
    folder: Annotated[Path, typer.Option(help="Where systems lie.")] = Path("systems"),
) -> None:
    """Make a system of your own from a PDB file and a force field.

    Example: `bgwork new-system my.pdb --forcefield amber14/protein.ff14SB.xml --solvent obc2`
    """
    wanted = NewSystem(pdb=pdb, forcefield=tuple(forcefield or ("amber14/protein.ff14SB.xml",)), solvent=solvent, temperature=temperature,
                       name=name)
    path = new_system(wanted, folder=folder)
    terminal.say(f"Made {path}; look at {path / 'system.toml'} and {path / 'recipes' / 'fm.toml'}, then `bgwork reference {path.name}` and "
                 f"`bgwork train {path.name}`")
