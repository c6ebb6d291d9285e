"""Configurations of one energy moved a little way towards another: something to train on where equilibrium data are dear.

Hamiltonian Monte Carlo on the dear energy soon finds its bond lengths and angles; torsions and basins stay much as they were under the
cheap energy. So they are in equilibrium of neither, have no weights and are no reference: they are UNCERTIFIED, which everything that
weighs refuses. A generator trained on them is weighed with the dear energy as any other. Several snapshots of each walker make more of the
gradients, since stiff coordinates forget sooner than loose ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bgwork import store
from bgwork.protocols import Target
from bgwork.provenance import commit
from bgwork.records import Density, Origin, Proposal, WeightedSamples, proposal_of
from bgwork.reference_checks import ReferenceError, data_of
from bgwork.reweighting import chances
from bgwork.samplers.batches import check_count
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.mcmc import ChainState, hmc_step
from bgwork.samplers.moves import Hamiltonian, Rung, Walkers, tuned_step
from bgwork.samplers.moves import Path as EnergyPath
from bgwork.samplers.schedules import Meter
from bgwork.samplers.transfer import drawn_evenly
from bgwork.store import SAMPLES_FILE
from bgwork.system import System

FIRST_STEP = 0.002  # guess of the leapfrog step, in the system's length unit
TRUNCATED = "drawn by weight, cut off in each basin at the square root of the number of its rows times their mean weight"
JITTER = 0.2  # of the step, so that no orbit is periodic


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How far configurations are moved.

    Args:
        transitions: of Hamiltonian Monte Carlo before the first snapshot.
        snapshots: of every walker.
        between: transitions from one snapshot to the next.
        leapfrog: gradients of a transition.
        pilot: walkers on which the step size is learned, and which are not kept.

    Raises:
        ValueError: if one of them is below 1.
    """

    transitions: int = 5
    snapshots: int = 3
    between: int = 2
    leapfrog: int = 4
    pilot: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def total(self) -> int:
        """Transitions up to the last snapshot; a walker takes 1 + leapfrog * total gradients."""
        return self.transitions + (self.snapshots - 1) * self.between


def relax(system: System, start: Proposal | WeightedSamples, n: int, *, relaxation: Relaxation, seed: int,
          progress: Progress = silent) -> Proposal:
    """n configurations, `relaxation.snapshots` of each of n / snapshots walkers.

    Args:
        system: whose energy moves them, and whose basins get equal shares of the walkers, as far as there are so many rows.
        start: equilibrium data of another energy (`equilibrium_set`), each row for one walker at most, or weighted samples of the
            system itself (`weighted_start`), drawn within a basin by weight, the largest `truncated`; walkers that start alike have one
            `ancestor`.
        n: of configurations, a multiple of the snapshots.
        relaxation: how far they are moved.
        seed: of everything random.
        progress: called as progress(done, total, text), in walkers' transitions.
    Returns:
        UNCERTIFIED configurations with log_q = -u, those next to each other that are most alike; `group` = walker.
    Raises:
        ReferenceError: if there are too few; if n is no multiple of the snapshots.
    """
    check_count(n)
    walkers, came_from = n // relaxation.snapshots, origin_of(start)
    if n % relaxation.snapshots or walkers > len(start):
        raise ReferenceError(f"{n} configurations are not {relaxation.snapshots} snapshots of each of at most {len(start)} walkers, which "
                             f"is how many configurations of {came_from} there are; choose a multiple, or make more of them")
    target, generator = system.differentiable_target, torch.Generator().manual_seed(seed)
    meter = Meter(target)
    rows = first_rows(system, start, walkers, generator=generator)
    x = proposal_of(start).x[rows]
    pilot, nought = x[torch.randperm(walkers, generator=generator)[: relaxation.pilot]], torch.zeros(walkers, dtype=torch.float64)
    _, step = tuned_step(Hamiltonian(leapfrog=relaxation.leapfrog, jitter=JITTER), EnergyPath(target=target), 1.0,
                         Walkers(x=pilot, u_0=nought[: len(pilot)], u=nought[: len(pilot)]), FIRST_STEP, generator=generator)
    x, u = snapshots(target, x, step, relaxation, progress, generator=generator)
    edits = (*start.proposal.origin.edits, TRUNCATED) if isinstance(start, WeightedSamples) else ()
    note = (f"no equilibrium: configurations of {came_from}, moved by {relaxation.transitions} to {relaxation.total} transitions of "
            f"Hamiltonian Monte Carlo on the energy of {system.name}")
    ancestor = rows.repeat(relaxation.snapshots)
    made = Proposal(x=x, log_q=-u, space=system.space, density=Density.UNCERTIFIED, note=note, cost=meter.read(),
                    origin=Origin(method="relaxed", system=system.name, seed=seed, commit=commit(), edits=edits),
                    group=torch.arange(walkers).repeat(relaxation.snapshots),
                    ancestor=ancestor if isinstance(start, WeightedSamples) else None)
    return made.take(by_descent(ancestor, made.group))


def by_descent(ancestor: Tensor, walker: Tensor) -> Tensor:
    """Order [N] in which rows stand that are alike: by ancestor, then walker, then snapshot.

    What is asked of a trajectory, such as how far forces are off balance, can then be asked of them: neighbours are known to be correlated.
    """
    order = walker.argsort(stable=True)
    return order[ancestor[order].argsort(stable=True)]


def first_rows(system: System, start: Proposal | WeightedSamples, walkers: int, *, generator: torch.Generator) -> Tensor:
    """Rows that walkers start from, [walkers]: an equal share in each basin, and in it by weight if there are weights."""
    x = proposal_of(start).x
    basin = system.functions[system.basins](x).long() if system.basins else torch.zeros(len(x), dtype=torch.long)
    stratum = basin.unique(return_inverse=True)[1]
    if isinstance(start, Proposal):
        return drawn_evenly(torch.zeros(len(x), dtype=torch.long), stratum, walkers, generator=generator)
    p, shares = chances(start), torch.tensor_split(torch.arange(walkers), int(stratum.max()) + 1)
    rows = [(stratum == k).nonzero()[:, 0] for k in range(len(shares))]
    return torch.cat([own[torch.multinomial(truncated(p[own]), len(share), replacement=True, generator=generator)]
                      for own, share in zip(rows, shares, strict=True)])


def truncated(p: Tensor) -> Tensor:
    """Weights of a basin's rows cut off at sqrt(N) times their mean (Ionides 2008), lest a few rows are all there is to train on; p [N]."""
    return p.clamp(max=len(p) ** 0.5 * p.mean())


def snapshots(target: Target, x: Tensor, step: float, relaxation: Relaxation, progress: Progress, *,
              generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Configurations [snapshots * B, n, d] and their reduced energies, snapshot after snapshot."""
    rung, one, kept = Rung(path=EnergyPath(target=target), beta=1.0), torch.ones(len(x), dtype=torch.float64), []
    state = ChainState.at(rung, x)
    for k in range(relaxation.total):
        spread = 1.0 + JITTER * (2.0 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 1.0)
        accepted = hmc_step(rung, state, one, step * spread, relaxation.leapfrog, generator=generator)
        progress((k + 1) * len(x), relaxation.total * len(x), f"{accepted.mean():.2f} accepted, median u {state.u.median():.1f}")
        if k + 1 >= relaxation.transitions and (k + 1 - relaxation.transitions) % relaxation.between == 0:
            kept.append((state.x, state.u))
    return torch.cat([x for x, _ in kept]), torch.cat([u for _, u in kept])


def weighted_start(system: System, path: Path) -> WeightedSamples:
    """Weighted samples of the system itself, such as `bgwork transport` makes.

    Raises:
        ReferenceError: if the file holds something else.
    """
    samples = store.load_samples(path / SAMPLES_FILE if path.is_dir() else path)
    if not isinstance(samples, WeightedSamples) or samples.target != system.target.name:
        raise ReferenceError(f"{path} holds no weighted samples of {system.name}; make some with `bgwork transport {system.name}`")
    return samples


def origin_of(start: Proposal | WeightedSamples) -> str:
    """What the configurations are of, for messages."""
    origin = proposal_of(start).origin
    if isinstance(start, Proposal):
        return origin.system
    return f"{origin.system}, {origin.method} and drawn by weight"


def equilibrium_set(system: System, other: System, path: Path | None = None) -> Proposal:
    """Equilibrium configurations of another energy of the same molecule, from a file or from where `bgwork reference` puts them.

    Raises:
        ReferenceError: if there are none, they carry weights, or it is another molecule.
    """
    molecules = system.topology is not None and other.topology is not None
    if system.space != other.space or (molecules and not system.topology.same_molecule(other.topology)):
        raise ReferenceError(f"{other.name} is not the molecule of {system.name}, atom by atom; name another system to start from")
    path = path or data_of(other.name)
    if not path.exists():
        raise ReferenceError(f"{system.name} starts from {other.name}, of which there are no data at {path}; make some with "
                             f"`bgwork reference {other.name}`")
    source = store.load_samples(path)
    if isinstance(source, WeightedSamples) or source.density is not Density.UNNORMALISED or source.space != system.space:
        raise ReferenceError(f"{path} holds weighted samples of a generator, not equilibrium data on {system.space}; make those with "
                             f"`bgwork reference {other.name}`")
    if source.origin.system != other.name:
        raise ReferenceError(f"{path} holds configurations of {source.origin.system}, not of {other.name}; give data of that system")
    return source
