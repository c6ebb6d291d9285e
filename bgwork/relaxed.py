"""Configurations of one energy moved a little way towards another: something to train on where equilibrium data are dear.

Hamiltonian Monte Carlo on the dear energy soon finds its bond lengths and angles; torsions and basins stay much as they were under the
cheap energy. So they are in equilibrium of neither, have no weights and are no reference: they are UNCERTIFIED, which everything that
weighs refuses. A generator trained on them is weighed with the dear energy as any other. Several snapshots of each walker make more of the
gradients, since stiff coordinates forget sooner than loose ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork import store
from bgwork.protocols import Target
from bgwork.provenance import commit
from bgwork.records import Density, Origin, Proposal, WeightedSamples
from bgwork.reference_checks import ReferenceError, data_of
from bgwork.samplers.batches import check_count
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.mcmc import ChainState, hmc_step
from bgwork.samplers.moves import Hamiltonian, Path, Rung, Walkers, tuned_step
from bgwork.samplers.schedules import Meter
from bgwork.samplers.transfer import drawn_evenly
from bgwork.system import System

FIRST_STEP = 0.002  # guess of the leapfrog step, in the system's length unit
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


def relax(system: System, other: System, n: int, *, relaxation: Relaxation, seed: int, progress: Progress = silent) -> Proposal:
    """n configurations, `relaxation.snapshots` of each of n / snapshots walkers that start from the other system's equilibrium data.

    Args:
        system: whose energy moves them, and whose basins get equal shares of the walkers, as far as the data have so many.
        other: a system of the same molecule, or on the same space, with data made by `bgwork reference`.
        n: of configurations, a multiple of the snapshots.
        relaxation: how far they are moved.
        seed: of everything random.
        progress: called as progress(done, total, text), in walkers' transitions.
    Returns:
        UNCERTIFIED configurations with log_q = -u; `group` = walker.
    Raises:
        ReferenceError: if there are no such data, or too few; if n is no multiple of the snapshots.
    """
    check_count(n)
    source, walkers = equilibrium_set(system, other), n // relaxation.snapshots
    if n % relaxation.snapshots or walkers > len(source):
        raise ReferenceError(f"{n} configurations are not {relaxation.snapshots} snapshots of each of at most {len(source)} walkers, which "
                             f"is how many data {other.name} has; choose a multiple, or make more with `bgwork reference {other.name}`")
    target, generator = system.differentiable_target, torch.Generator().manual_seed(seed)
    meter = Meter(target)
    basin = system.functions[system.basins](source.x).long() if system.basins else torch.zeros(len(source), dtype=torch.long)
    alike = torch.zeros(len(source), dtype=torch.long)
    rows = drawn_evenly(alike, basin.unique(return_inverse=True)[1], walkers, generator=generator)
    start = source.x[rows]
    pilot, nought = start[torch.randperm(walkers, generator=generator)[: relaxation.pilot]], torch.zeros(walkers, dtype=torch.float64)
    _, step = tuned_step(Hamiltonian(leapfrog=relaxation.leapfrog, jitter=JITTER), Path(target=target), 1.0,
                         Walkers(x=pilot, u_0=nought[: len(pilot)], u=nought[: len(pilot)]), FIRST_STEP, generator=generator)
    x, u = snapshots(target, start, step, relaxation, progress, generator=generator)
    note = (f"no equilibrium: configurations of {other.name}, moved by {relaxation.transitions} to {relaxation.total} transitions of "
            f"Hamiltonian Monte Carlo on the energy of {system.name}")
    return Proposal(x=x, log_q=-u, space=system.space, density=Density.UNCERTIFIED, note=note, cost=meter.read(),
                    origin=Origin(method="relaxed", system=system.name, seed=seed, commit=commit()),
                    group=torch.arange(walkers).repeat(relaxation.snapshots))


def snapshots(target: Target, x: Tensor, step: float, relaxation: Relaxation, progress: Progress, *,
              generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Configurations [snapshots * B, n, d] and their reduced energies, snapshot after snapshot."""
    rung, one, kept = Rung(path=Path(target=target), beta=1.0), torch.ones(len(x), dtype=torch.float64), []
    state = ChainState.at(rung, x)
    for k in range(relaxation.total):
        spread = 1.0 + JITTER * (2.0 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 1.0)
        accepted = hmc_step(rung, state, one, step * spread, relaxation.leapfrog, generator=generator)
        progress((k + 1) * len(x), relaxation.total * len(x), f"{accepted.mean():.2f} accepted, median u {state.u.median():.1f}")
        if k + 1 >= relaxation.transitions and (k + 1 - relaxation.transitions) % relaxation.between == 0:
            kept.append((state.x, state.u))
    return torch.cat([x for x, _ in kept]), torch.cat([u for _, u in kept])


def equilibrium_set(system: System, other: System) -> Proposal:
    """Equilibrium configurations of another energy of the same molecule.

    Raises:
        ReferenceError: if there are none, they carry weights, or it is another molecule.
    """
    molecules = system.topology is not None and other.topology is not None
    if system.space != other.space or (molecules and not system.topology.same_molecule(other.topology)):
        raise ReferenceError(f"{other.name} is not the molecule of {system.name}, atom by atom; name another system to start from")
    path = data_of(other.name)
    if not path.exists():
        raise ReferenceError(f"{system.name} starts from {other.name}, of which there are no data at {path}; make some with "
                             f"`bgwork reference {other.name}`")
    source = store.load_samples(path)
    if isinstance(source, WeightedSamples) or source.density is not Density.UNNORMALISED or source.space != system.space:
        raise ReferenceError(f"{path} holds weighted samples of a generator, not equilibrium data on {system.space}; make those with "
                             f"`bgwork reference {other.name}`")
    return source
