"""Equilibrium data of a molecule under a costly energy, from those under a cheap one, checked before they may be saved.

    1. configurations of the other system (`bgwork reference` made them) are brought to this energy by sequential Monte Carlo
       (`samplers.transfer`), an equal share from each basin: averages and error bars are those of its weighted islands, each of which began
       with other walkers;
    2. configurations are resampled by weight and moved on by Hamiltonian Monte Carlo on this energy: the equilibrium set.

Nothing crosses high barriers in so few moves, so that basins must overlap between the energies: one that is empty under the other
energy stays empty here. The standard error of Delta F of every phi, checked below, shows when one has hardly been filled.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import Tensor

from bgwork.molecule import TransferSection
from bgwork.protocols import Target
from bgwork.provenance import commit, file_fingerprint, versions
from bgwork.records import MOVED, Estimate, Proposal, WeightedSamples, with_edit
from bgwork.reference_checks import Z_LIMIT, Check, ReferenceError, ReferenceRun, agreement, data_of, virial_check
from bgwork.reference_populations import AGREEMENT_LIMIT, estimate
from bgwork.relaxed import equilibrium_set
from bgwork.reweighting import resample, weigh
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.moves import Hamiltonian, Walkers
from bgwork.samplers.moves import Path as EnergyPath
from bgwork.samplers.schedules import Meter, Schedule
from bgwork.samplers.transfer import Transferred
from bgwork.system import System, load_system

MOST_UNCERTAIN = 0.3  # kT, stderr of Delta F beyond which a basin has hardly been filled


class Told:
    """A target that tells how many gradients have been taken; everything else is the target's own."""

    def __init__(self, target: Target, progress: Progress) -> None:
        self.inner, self.progress, self.total, self.text = target, progress, None, "steps learned on a pilot"

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def expect(self, gradients: int, text: str) -> None:
        """So many more are to come."""
        self.total, self.text = self.inner.n_gradient + gradients, text

    def u_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy [B] and its gradient [B, n, d]."""
        found = self.inner.u_and_grad(x)
        self.progress(self.inner.n_gradient, self.total, self.text)
        return found


def generate(system: System, n: int, *, seed: int, progress: Progress = silent) -> ReferenceRun:
    """n equilibrium configurations of a molecule, with checks; estimates are those of the weighted islands.

    Args:
        system: a molecule with `TransferSection` in `system.reference`.
        n: number of configurations.
        seed: of everything random.
        progress: called as progress(done, total, text), in gradients.
    Raises:
        ReferenceError: if the other system has no data or is another molecule, or n is too small or larger than those data.
    """
    settings, target, generator = system.reference, Told(system.differentiable_target, progress), torch.Generator().manual_seed(seed)
    if n < 4 * settings.chains:
        raise ReferenceError(f"{n} configurations are too few for {settings.chains} islands; ask for at least {4 * settings.chains}")
    other = load_system(settings.start)
    transfer = transfer_of(system, other, target, n)
    schedule = transfer.tune(generator=generator)
    moves = len(schedule.betas) * (1 + settings.leapfrog * settings.transitions) + 1 + settings.leapfrog * settings.relaxation
    target.expect(n * moves, f"{len(schedule.betas)} steps of energy")
    brought = transfer.run(transfer.start(n, generator=generator), schedule, generator=generator).proposal
    weighted = weigh(replace(brought, origin=replace(brought.origin, seed=seed, commit=commit())), system.target)
    meter = Meter(target)
    moved = relaxed(weighted, target, settings, schedule, generator=generator)
    proposal = replace(moved, cost=brought.cost + schedule.cost + meter.read())
    made = {"system": system.name, "n": n, "seed": seed, "chains": settings.chains, "settings": settings.model_dump(), "commit": commit(),
            "versions": versions(), "cost": asdict(proposal.cost), "note": brought.note,
            "start": {"file": str(data_of(other.name)), "fingerprint": file_fingerprint(data_of(other.name))}}
    return ReferenceRun(proposal=proposal, checks=tuple(check(system, weighted, proposal)), estimates=estimate(system, weighted), made=made)


def transfer_of(system: System, other: System, target: Told, n: int) -> Transferred:
    """What brings n configurations of the other system to the target; basins are strata.

    Raises:
        ReferenceError: as `configurations`, or if n or the pilot is larger than those data.
    """
    settings, source = system.reference, configurations(system, other)
    if max(n, settings.pilot) > len(source):
        raise ReferenceError(f"{max(n, settings.pilot)} configurations are to start from, {data_of(other.name)} has {len(source)}; "
                             f"ask for fewer, or make more with `bgwork reference {other.name}`")
    return Transferred(
        source=source, other=other.differentiable_target, target=target, islands=settings.chains, keep=settings.keep, pilot=settings.pilot,
        strata=system.functions[system.basins](source.x).long() if system.basins else None,
        kernel=Hamiltonian(leapfrog=settings.leapfrog, transitions=settings.transitions, first_step=0.002), system=system.name)


def configurations(system: System, other: System) -> Proposal:
    """Equilibrium configurations of the other system, of the same molecule and of enough walkers.

    Raises:
        ReferenceError: as `equilibrium_set`, or if there are fewer walkers than islands.
    """
    source, chains = equilibrium_set(system, other), system.reference.chains
    groups = 0 if source.group is None else len(source.group.unique())
    if groups < chains:
        raise ReferenceError(f"{data_of(other.name)} holds {len(source)} configurations of {groups} independent walkers; {chains} islands "
                             "need as many walkers: make the data anew, or lower reference.chains")
    return source


def relaxed(weighted: WeightedSamples, target: Target, settings: TransferSection, schedule: Schedule, *,
            generator: torch.Generator) -> Proposal:
    """As many configurations of exp(-u): rows resampled by weight and moved on; `group` = island."""
    drawn, path = resample(weighted, len(weighted), generator=generator).proposal, EnergyPath(target=target)
    kernel = Hamiltonian(leapfrog=settings.leapfrog, transitions=settings.relaxation)
    walkers = Walkers(x=drawn.x, u_0=torch.zeros_like(drawn.log_q), u=-drawn.log_q)
    moved, accepted = kernel.move(path, 1.0, walkers, schedule.steps[-1], generator=generator)
    return with_edit(replace(drawn, x=moved.x, log_q=-moved.u, ancestor=None),
                     f"{MOVED}{settings.relaxation} transitions of Hamiltonian Monte Carlo, {accepted.mean():.2f} accepted")


def check(system: System, weighted: WeightedSamples, proposal: Proposal) -> list[Check]:
    """The virial, the two halves of the islands against each other, and the equilibrium set against the weighted islands.

    Args:
        system: whose observables are compared.
        weighted: the islands.
        proposal: the equilibrium set made from them.
    """
    group = weighted.proposal.group
    first = group < (group.max() + 1) // 2
    ours, rows = estimate(system, weighted), estimate(system, weigh(proposal, system.target))
    halves = [estimate(system, weighted.take(part)) for part in (first, ~first)]
    checks = [virial_check(ours["virial"], system.space.dim)]
    for name in (name.removesuffix("_positive") for name in ours if name.endswith("_positive")):
        known = ours.get(f"delta_f_{name}", Estimate(value=float("nan"), stderr=float("nan")))
        checks.append(Check(name=f"standard error of Delta F({name}), kT", value=known.stderr, limit=MOST_UNCERTAIN,
                            text="none where a basin was never reached"))
    for name in (name for name in ours if not name.startswith("delta_f")):
        limit = AGREEMENT_LIMIT if name.endswith("_positive") else Z_LIMIT
        checks.append(agreement(f"both halves of the islands agree on {name}", [half[name] for half in halves], limit=limit))
        checks.append(agreement(f"the resampled set agrees on {name}", [ours[name], rows[name]], limit=Z_LIMIT))
    outside = torch.isinf(system.target.u(proposal.x)).double().mean().item()
    return [*checks, Check(name="share of configurations with inverted centres", value=outside, limit=1.0 / len(proposal))]
