"""Equilibrium data of molecules by molecular dynamics that crosses barriers, checked by an independent method before it may be saved.

    1. well-tempered metadynamics on backbone torsions builds a bias, which is capped and frozen;
    2. walkers run under the frozen bias; their configurations weigh exp(V/kT), which makes every average unbiased;
    3. configurations are resampled by weight and moved on by Hamiltonian Monte Carlo: the equilibrium set;
    4. replica exchange over temperatures, which knows nothing of the bias, must give the same populations within 3 standard errors; while
       it is too uncertain of them to tell, more ladders are run. Basins that hold less than half a per cent it hardly visits: it can
       only say that they are rare, and their populations rest on metadynamics alone, which the note says.

All on the unconstrained Hamiltonian that weights use; standard errors come from the scatter of whole walkers, or whole ladders.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace

import torch
from torch import Tensor

from bgwork.free_energy import free_energy_difference
from bgwork.molecule import MetadynamicsSection, molecular_observables
from bgwork.observables import Atoms
from bgwork.provenance import commit, versions
from bgwork.records import MOVED, Cost, Estimate, Proposal, WeightedSamples, with_edit
from bgwork.reference_checks import BATCH, Z_LIMIT, Check, ReferenceError, ReferenceRun, agreement, virial_check
from bgwork.reweighting import average, expectation, resample, weigh
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.md import Langevin, MolecularDynamics, decorrelate
from bgwork.samplers.metadynamics import BiasRun, WellTempered, build_bias
from bgwork.samplers.replica_exchange import ReplicaExchange
from bgwork.system import System
from bgwork.targets.chamber import Chamber
from bgwork.targets.openmm import OpenMMTarget
from bgwork.topology import Topology, backbone_torsions, free_torsions

AGREEMENT_LIMIT = 3.0  # combined standard errors, for populations
MOST_TORSIONS = 3  # that metadynamics can bias at once
RARE = 0.005  # population of a basin that replica exchange cannot be asked to measure
MOST_UNCERTAIN = {"metadynamics": 0.25, "replica exchange": 0.5}  # kT, stderr of Delta F beyond which a basin has hardly been visited


def generate(system: System, n: int, *, seed: int, progress: Progress = silent) -> ReferenceRun:
    """n equilibrium configurations of a molecule, with checks; estimates are those of the reweighted walkers.

    Args:
        system: a molecule whose target is an OpenMM System, with settings in `system.reference`.
        n: number of configurations; the walkers' length grows with it, metadynamics and cross-check do not.
        seed: of everything random.
        progress: called as progress(done, total, text).
    Raises:
        ReferenceError: if the system is no molecule in OpenMM, has no backbone torsions, n is too small, or the bias stayed flat.
    """
    settings, target = system.reference, dynamics_target(system)
    if n < 4 * settings.chains:
        raise ReferenceError(f"{n} configurations are too few to compare {settings.chains} walkers; ask for at least {4 * settings.chains}")
    torsions = biased_torsions(system.topology, settings.torsions)
    generator = torch.Generator().manual_seed(seed)
    filled = build_bias(target, system.structure, WellTempered(torsions=torsions, steps=settings.filling), dynamics=_dynamics(settings),
                        generator=generator, progress=progress)
    check_filled(filled, settings, target)
    walkers = weigh(_walkers(system, filled, progress).sample(n * settings.surplus, generator=generator), system.target)
    rare, lost = rare_basins(system, walkers), lost_basins(system, walkers)
    exchange = cross_check(system, filled, progress, rare=[*rare, *lost], generator=generator)
    began = time.perf_counter()
    proposal = equilibrium(walkers, target, n, settings, generator=generator, progress=progress)
    moves = Cost(gradient=n * (settings.decorrelation + 1), seconds=time.perf_counter() - began)
    proposal = replace(proposal, cost=filled.cost + walkers.proposal.cost + exchange.proposal.cost + moves,
                       origin=replace(proposal.origin, system=system.name, seed=seed, commit=commit()))
    estimates = estimate(system, walkers)
    if rare:
        proposal = replace(proposal, note=f"{proposal.note}; rare, and measured by metadynamics alone: {', '.join(rare)}".lstrip("; "))
    made = {"system": system.name, "n": n, "seed": seed, "chains": settings.chains, "settings": settings.model_dump(), "commit": commit(),
            "versions": versions(), "cost": asdict(proposal.cost),
            "cross_check": {"note": exchange.proposal.note, "rare": rare, "estimates": estimate(system, exchange)}}
    return ReferenceRun(proposal=proposal, checks=tuple(check(system, walkers, exchange, proposal)), estimates=estimates, made=made)


def rare_basins(system: System, walkers: WeightedSamples) -> list[str]:
    """Names of the populations that walkers have visited and found to be below `RARE`, or above 1 - RARE."""
    return [name for name, share in _shares(system, walkers).items() if 0 < min(share, 1 - share) < RARE]


def lost_basins(system: System, walkers: WeightedSamples) -> list[str]:
    """Names of the populations that walkers have found to be none or all, for which more ladders would make up in no way."""
    return [name for name, share in _shares(system, walkers).items() if min(share, 1 - share) <= 0]


def _shares(system: System, weighted: WeightedSamples) -> dict[str, float]:
    return {name: expectation(weighted, f).value for name, f in _functions(system).items() if name.endswith("_positive")}


def cross_check(system: System, filled: BiasRun, progress: Progress, *, rare: Collection[str] = (),
                generator: torch.Generator) -> WeightedSamples:
    """Replica exchange, `group` the ladder: `ladders` of them, as many again while a Delta F(phi) is uncertain, up to `most_ladders`."""
    settings, found = system.reference, None
    for _ in range(max(1, settings.most_ladders // settings.ladders)):
        ladders = _ladders(system, filled, progress, generator=generator)
        more = ladders.sample(settings.exchanges * settings.ladders, generator=generator)
        found = more if found is None else _both(found, more)
        weighted = weigh(found, system.target)
        if certain(system, weighted, rare=rare):
            break
    return weighted


def certain(system: System, weighted: WeightedSamples, *, rare: Collection[str] = ()) -> bool:
    """Whether replica exchange is sure enough of every Delta F(phi) but the rare ones; not where a basin was never reached or left."""
    for name, f in _functions(system).items():
        if name.endswith("_positive") and name not in rare:
            try:
                found = free_energy_difference(weighted, _outside(f), f)
            except ValueError:
                return False
            if not found.stderr < MOST_UNCERTAIN["replica exchange"]:
                return False
    return True


def _both(first: Proposal, second: Proposal) -> Proposal:
    """Two sets of independent ladders as one."""
    group = torch.cat([first.group, second.group + first.group.max() + 1])
    return replace(first, x=torch.cat([first.x, second.x]), log_q=torch.cat([first.log_q, second.log_q]), group=group,
                   cost=first.cost + second.cost, note=f"{first.note}; {second.note}")


def check_filled(filled: BiasRun, settings: MetadynamicsSection, target: OpenMMTarget) -> None:
    """That the bias has something left when it is cut off `level` below its maximum: a flat one drives nothing across barriers.

    Raises:
        ReferenceError: if its hills are lower than that.
    """
    height = (filled.bias.table.max() - filled.bias.table.min()).item() / target.kT
    if height <= settings.level:
        raise ReferenceError(f"metadynamics built a bias of {height:.2g} kT, which nothing is left of when it is cut off "
                             f"{settings.level:g} kT (level) below its maximum; raise filling ({settings.filling} steps) or lower level "
                             "in system.toml")


def dynamics_target(system: System) -> OpenMMTarget:
    """The energy that dynamics run on: the target without its walls between mirror images, which dynamics do not reach.

    Raises:
        ReferenceError: if the system is no molecule in OpenMM.
    """
    target = system.target.inner if isinstance(system.target, Chamber) else system.target
    if system.topology is None or not isinstance(target, OpenMMTarget):
        raise ReferenceError(f"{system.name} is not a molecule with an OpenMM target; molecular dynamics cannot run on it")
    return target


def biased_torsions(topology: Topology, names: list[str]) -> tuple[Atoms, ...]:
    """Atoms of the torsions to bias: those named, else every phi and psi, or every phi if those are too many; none that lies in a ring.

    Raises:
        ReferenceError: for an unknown name, or if there are none, or more than metadynamics can bias.
    """
    known = free_torsions(topology)
    unknown = [name for name in names if name not in known]
    if unknown and set(unknown) <= set(backbone_torsions(topology)):
        raise ReferenceError(f"{', '.join(unknown)} in reference.torsions lie in a ring, which no bias turns; leave them out")
    if unknown:
        raise ReferenceError(f"unknown torsions {', '.join(unknown)} in reference.torsions; known are {', '.join(known) or 'none'}")
    chosen = names or list(known)
    if not names and len(chosen) > MOST_TORSIONS:
        chosen = [name for name in known if name.startswith("phi")]
    if not 1 <= len(chosen) <= MOST_TORSIONS:
        found = f"{len(chosen)} ({', '.join(chosen) or 'none'})"
        raise ReferenceError(f"metadynamics biases one to {MOST_TORSIONS} torsions, here are {found}; "
                             "name some in reference.torsions, or bring a trajectory of your own with `bgwork reference --from`")
    return tuple(known[name] for name in chosen)


def estimate(system: System, weighted: WeightedSamples) -> dict[str, Estimate]:
    """Averages of u, the virial, the system's and all molecular observables, and Delta F of every phi.

    Delta F(phi) = -ln P(0 < phi <= 2 rad) + ln P(elsewhere), in kT, under the name delta_f_phi (delta_f_phi_2, ...).
    """
    functions = _functions(system)
    virial = torch.cat([(x * system.target.u_and_grad(x)[1]).sum((1, 2)) for x in weighted.x.split(BATCH)])
    found = {"u": average(weighted, weighted.u), "virial": average(weighted, virial)}
    found |= {name: expectation(weighted, f) for name, f in functions.items() if name != "same_chirality"}
    for name, f in functions.items():
        if name.endswith("_positive") and 0 < found[name].value < 1:
            found[f"delta_f_{name.removesuffix('_positive')}"] = free_energy_difference(weighted, _outside(f), f)
    return found


def check(system: System, walkers: WeightedSamples, exchange: WeightedSamples, proposal: Proposal) -> list[Check]:
    """Checks of the walkers, against replica exchange, and of the equilibrium set made from them.

    Args:
        system: whose observables are compared.
        walkers: weighed configurations of the walkers under the bias.
        exchange: configurations of the replica exchange.
        proposal: the equilibrium set.
    """
    ours, theirs, rows = (estimate(system, samples) for samples in (walkers, exchange, weigh(proposal, system.target)))
    rare = rare_basins(system, walkers)
    for name in rare:
        theirs[name] = _as_if(theirs[name], ours[name], draws=len(exchange.proposal.group.unique()))
        rows[name] = _as_if(rows[name], ours[name], draws=len(proposal))
    checks = [virial_check(ours["virial"], system.space.dim)]
    for name in (name for name in _functions(system) if name.endswith("_positive")):
        methods = {"metadynamics": ours} if name in rare else {"metadynamics": ours, "replica exchange": theirs}
        checks += [_uncertainty_check(name.removesuffix("_positive"), method, found) for method, found in methods.items()]
    for name in (name for name in ours if not name.startswith("delta_f")):
        limit = AGREEMENT_LIMIT if name.endswith("_positive") else Z_LIMIT
        checks.append(agreement(f"metadynamics and replica exchange agree on {name}", [ours[name], theirs[name]], limit=limit))
        checks.append(agreement(f"the resampled set agrees on {name}", [ours[name], rows[name]], limit=Z_LIMIT))
    outside = torch.isinf(system.target.u(proposal.x)).double().mean().item()
    return [*checks, Check(name="share of configurations with inverted centres", value=outside, limit=1.0 / len(proposal))]


def _uncertainty_check(name: str, method: str, found: dict[str, Estimate]) -> Check:
    known = found.get(f"delta_f_{name}", Estimate(value=float("nan"), stderr=float("nan")))
    return Check(name=f"standard error of Delta F({name}) by {method}, kT", value=known.stderr, limit=MOST_UNCERTAIN[method],
                 text="none where a basin was never reached")


def _as_if(found: Estimate, known: Estimate, *, draws: int) -> Estimate:
    """A population seen still more rarely than the known one, with the error of so many draws of it: none seen is no proof of none."""
    if min(found.value, 1 - found.value) >= min(known.value, 1 - known.value):
        return found
    return replace(found, stderr=max(found.stderr, math.sqrt(known.value * (1 - known.value) / draws)))


def equilibrium(walkers: WeightedSamples, target: OpenMMTarget, n: int, settings: MetadynamicsSection, *, generator: torch.Generator,
                progress: Progress = silent) -> Proposal:
    """n configurations of exp(-u): walkers' configurations resampled by weight and moved on; `group` = walker."""
    drawn = resample(walkers, n, generator=generator).proposal
    x, accepted = decorrelate(
        target, drawn.x, steps=settings.decorrelation, step=settings.time_step, generator=generator, progress=progress)
    moved = replace(drawn, x=x, log_q=-target.u(x))
    return with_edit(moved, f"{MOVED}{settings.decorrelation} steps of Hamiltonian Monte Carlo, {accepted:.2f} accepted")


def _walkers(system: System, filled: BiasRun, progress: Progress) -> MolecularDynamics:
    """Walkers under the capped bias, from configurations of metadynamics' second half, evenly spaced."""
    settings, target = system.reference, dynamics_target(system)
    later = filled.x[len(filled.x) // 2:]
    start = later[torch.linspace(0, len(later) - 1, settings.chains).long()]
    return MolecularDynamics(
        target=target, start=start, bias=filled.bias.capped(settings.level * target.kT), burn_in=settings.burn_in, thin=settings.thin,
        dynamics=_dynamics(settings), system=system.name, progress=progress)


def _ladders(system: System, filled: BiasRun, progress: Progress, *, generator: torch.Generator) -> ReplicaExchange:
    """Ladders whose rungs start from random configurations of metadynamics' second half, which is spread over all basins."""
    settings, temperatures = system.reference, tuple(system.reference.temperatures)
    half = len(filled.x) // 2
    rows = half + torch.randint(len(filled.x) - half, (settings.ladders, len(temperatures)), generator=generator)
    return ReplicaExchange(
        target=dynamics_target(system), start=filled.x[rows], temperatures=temperatures, burn_in=settings.exchanges // 5,
        steps=settings.exchange, dynamics=_dynamics(settings), system=system.name, progress=progress)


def _dynamics(settings: MetadynamicsSection) -> Langevin:
    return Langevin(step=settings.time_step, friction=settings.friction)


def _functions(system: System) -> dict[str, Callable[[Tensor], Tensor]]:
    """The system's own observables and all that belong to molecules, without the basin label, which has no average."""
    wanted = {name: system.functions[name] for name in system.observables if name != "u"}
    return {name: f for name, f in (wanted | molecular_observables(system.topology, system.structure)).items() if name != "phi_basin"}


def _outside(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: 1.0 - f(x)
