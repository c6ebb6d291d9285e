"""Training data with more rows where they are rare: dynamics from the rows that are there, for as long as they stay.

A basin that holds one per cent of the weight has one row in a hundred, and `training.oversample` draws those few again and again until
they are learned by heart. Unbiased Langevin dynamics begun at rows that are in equilibrium within a basin stays in equilibrium there, but
for what leaves it: a trajectory ends at its first frame outside. That takes a little off the rim of the basin, and gives rare basins more
rows than equilibrium would; so the result is in equilibrium within each basin, not as a whole. It is something to train on, and no
reference: UNCERTIFIED, which everything that weighs refuses. What dynamics within a basin does not reach from its rows stays missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgwork.indicators import IndicatorError, inside
from bgwork.processes import cores
from bgwork.provenance import commit
from bgwork.records import Cost, Density, Proposal
from bgwork.reference_checks import ReferenceError
from bgwork.reference_md import dynamics_of, dynamics_target
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.forked import Tick, run_forked
from bgwork.samplers.md import TOLD, Langevin, MolecularDynamics, draw_seed
from bgwork.system import System

PIECES = 16  # of the trajectories of a basin, shared out among processes; the numbers depend on it, and not on how many processes


@dataclass(frozen=True, kw_only=True)
class Excursions:
    """Short trajectories from rows of a basin.

    Args:
        rows: wanted in each basin, before those outside are left out.
        spacing: time between two frames of a trajectory, in ps.

    Raises:
        ReferenceError: if the number or the spacing is not positive.
    """

    rows: int = 10_000
    spacing: float = 1.0

    def __post_init__(self) -> None:
        if self.rows < 1 or not 0 < self.spacing < math.inf:
            raise ReferenceError(f"{self.rows} rows every {self.spacing:g} ps cannot be made; both must be positive")

    def steps(self, dynamics: Langevin) -> int:
        """Time steps from one frame to the next.

        Raises:
            ReferenceError: if the spacing is shorter than one.
        """
        steps = round(self.spacing / dynamics.step)
        if steps < 1:
            raise ReferenceError(f"a spacing of {self.spacing:g} ps is less than the time step of {dynamics.step:g} ps; give a longer one")
        return steps


def enrich(system: System, data: Proposal, basins: Sequence[str], *, excursions: Excursions, seed: int,
           progress: Progress = silent) -> Proposal:
    """The data, and after them the rows that dynamics within each basin adds.

    Args:
        system: a molecule whose target is an OpenMM System.
        data: configurations in equilibrium, at least within each basin.
        basins: as `bgwork.indicators` names them: "phi_positive", "psi_1_sin < -0.64".
        excursions: how many rows, and how far apart.
        seed: of everything random.
        progress: called as progress(done, total, text), in trajectories, or a hundred frames of long ones.
    Returns:
        UNCERTIFIED configurations with log_q = -u.
    Raises:
        ReferenceError: if a basin is named twice, is no observable, or holds no row.
    """
    if not basins or len({*basins}) < len(basins):
        raise ReferenceError(f"each basin must be named, and once; got {', '.join(basins) or 'none'}")
    within, generator = {name: inside_of(system, name, data.x) for name in basins}, torch.Generator().manual_seed(seed)
    dynamics = MolecularDynamics(target=dynamics_target(system), start=data.x, burn_in=0, thin=excursions.steps(dynamics_of(system)),
                                 dynamics=dynamics_of(system))
    parts, said, frames_made = [data.x], [], 0
    for name, rows in within.items():
        start, frames = starts(data.x[rows], excursions.rows, generator=generator)
        made = trajectories(replace(dynamics, start=start), frames, progress, name, generator=generator)
        kept = staying(system, name, made)
        parts.append(made[kept][: excursions.rows])
        frames_made += kept.numel()
        said.append(f"{name}: {len(parts[-1])} rows after {int(rows.sum())}, {int((~kept).sum())} frames outside or later than one outside")
    x = torch.cat(parts)
    note = f"in equilibrium within basins, not as a whole: dynamics added to {len(data)} rows ({'; '.join(said)})"
    return Proposal(x=x, log_q=-system.target.u(x), space=system.space, density=Density.UNCERTIFIED, note=note,
                    cost=Cost(gradient=frames_made * dynamics.thin),
                    origin=replace(data.origin, method="enriched", system=system.name, seed=seed, commit=commit()))


def inside_of(system: System, basin: str, x: Tensor) -> Tensor:
    """[N] bool: which rows lie in a basin.

    Raises:
        ReferenceError: if it is none (`bgwork.indicators`), or holds no row.
    """
    try:
        within = inside(system.functions, basin, x)
    except IndicatorError as error:
        raise ReferenceError(f"no basin of {system.name}: {error}") from error
    if not within.any():
        raise ReferenceError(f"{basin} at none of the {len(x)} configurations, and dynamics must start somewhere; give other data")
    return within


def starts(x: Tensor, rows: int, *, generator: torch.Generator) -> tuple[Tensor, int]:
    """As many of the configurations as there will be trajectories, in random order, and the frames of each."""
    order = torch.randperm(len(x), generator=generator)[:rows]
    return x[order], math.ceil(rows / len(order))


def trajectories(dynamics: MolecularDynamics, frames: int, progress: Progress, text: str, *, generator: torch.Generator) -> Tensor:
    """Frames [T, frames, n, 3] of one trajectory from each of the T configurations that the dynamics start from."""
    pieces = torch.tensor_split(dynamics.start, min(PIECES, len(dynamics.start)))
    sources = [torch.Generator().manual_seed(draw_seed(generator)) for _ in pieces]

    def piece(k: int, tick: Tick) -> Tensor:
        walkers = replace(dynamics, start=pieces[k], progress=lambda *_: tick())
        x = walkers.sample(frames * len(pieces[k]), generator=sources[k]).x
        return x.view(frames, len(pieces[k]), *x.shape[1:]).transpose(0, 1)

    return torch.cat(run_forked(piece, len(pieces), workers=cores(), total=len(dynamics.start) * math.ceil(frames / TOLD),
                                progress=progress, text=text))


def staying(system: System, name: str, x: Tensor) -> Tensor:
    """[T, frames] bool: frames [T, frames, n, 3] before the first outside the basin, of molecules that kept their handedness."""
    rows = x.flatten(0, 1)
    within = inside(system.functions, name, rows) & torch.isfinite(system.target.u(rows))
    return within.view(x.shape[:2]).long().cumprod(1).bool()
