"""Equilibrium data of molecules by molecular dynamics that crosses barriers, checked by an independent method before it may be saved.

    1. well-tempered metadynamics on backbone torsions builds a bias, which is capped and frozen;
    2. walkers run under the frozen bias; their configurations weigh exp(V/kT), which makes every average unbiased;
    3. configurations are resampled by weight and moved on by Hamiltonian Monte Carlo: the equilibrium set;
    4. replica exchange over temperatures, which knows nothing of the bias, must give the same populations within 3 standard errors; while
       it is too uncertain of them to tell, or tells otherwise, more ladders are run. Basins that hold less than half a per cent it
       hardly visits: it can only say that they are rare, and their populations rest on metadynamics alone, which the note says.

What is finished may be kept on the way (`bgwork.reference_stages`): the equilibrium set is drawn after the first ladders, since it does
not depend on how many more follow.

All on the unconstrained Hamiltonian that weights use; standard errors come from the scatter of whole walkers, or whole ladders.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import openmm
import torch

from bgwork.molecule import MetadynamicsSection
from bgwork.observables import Atoms
from bgwork.processes import cores
from bgwork.provenance import commit, fingerprint, tensor_fingerprint, versions
from bgwork.records import MOVED, Cost, Proposal, WeightedSamples, with_edit
from bgwork.reference_checks import ReferenceError, ReferenceRun
from bgwork.reference_populations import check, estimate, lost_basins, rare_basins, settled
from bgwork.reference_stages import UNFINISHED, Stages
from bgwork.reweighting import resample, weigh
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.md import Langevin, MolecularDynamics, decorrelate
from bgwork.samplers.metadynamics import BiasRun, WellTempered, build_bias
from bgwork.samplers.replica_exchange import ReplicaExchange
from bgwork.system import System
from bgwork.targets.chamber import Chamber
from bgwork.targets.openmm import OpenMMTarget
from bgwork.topology import Topology, backbone_torsions, free_torsions

MOST_TORSIONS = 3  # that metadynamics can bias at once


def generate(system: System, n: int, *, seed: int, stages: Stages | None = None, progress: Progress = silent) -> ReferenceRun:
    """n equilibrium configurations of a molecule, with checks; estimates are those of the reweighted walkers.

    Args:
        system: a molecule whose target is an OpenMM System, with settings in `system.reference`.
        n: number of configurations; the walkers' length grows with it, metadynamics and cross-check do not.
        seed: of everything random.
        stages: what an earlier attempt had finished, and where this one's are kept; nothing is, by default.
        progress: called as progress(done, total, text).
    Raises:
        ReferenceError: if the system is no molecule in OpenMM, has no backbone torsions, n is too small, or the bias stayed flat.
    """
    settings, target, stages = system.reference, dynamics_target(system), stages or Stages()
    if n < 4 * settings.chains:
        raise ReferenceError(f"{n} configurations are too few to compare {settings.chains} walkers; ask for at least {4 * settings.chains}")
    torsions = biased_torsions(system.topology, settings.torsions)
    generator = torch.Generator().manual_seed(seed)
    filled = stages.bias(lambda g: fill(system, torsions, progress, generator=g), generator=generator)
    walkers = weigh(stages.rows("walkers", lambda g: _walkers(system, filled, progress).sample(n * settings.surplus, generator=g),
                                generator=generator), system.target)
    ladders = Ladders(system=system, filled=filled, stages=stages, progress=progress, generator=generator)
    exchange = ladders.more()
    proposal = stages.rows("equilibrium", lambda g: equilibrium(walkers, target, n, settings, generator=g, progress=progress),
                           generator=generator)
    rare = rare_basins(system, walkers)
    exchange = cross_check(ladders, walkers, exchange, rare=[*rare, *lost_basins(system, walkers)])
    proposal = replace(proposal, cost=filled.cost + walkers.proposal.cost + exchange.proposal.cost + proposal.cost,
                       origin=replace(proposal.origin, system=system.name, seed=seed, commit=commit()))
    if rare:
        proposal = replace(proposal, note=f"{proposal.note}; rare, and measured by metadynamics alone: {', '.join(rare)}".lstrip("; "))
    made = {"system": system.name, "n": n, "seed": seed, "chains": settings.chains, "settings": settings.model_dump(), "commit": commit(),
            "stages": stages.commits, "versions": versions(), "cost": asdict(proposal.cost),
            "cross_check": {"note": exchange.proposal.note, "ladders": len(exchange.proposal.group.unique()), "rare": rare,
                            "estimates": estimate(system, exchange)}}
    return ReferenceRun(proposal=proposal, checks=tuple(check(system, walkers, exchange, proposal)), estimates=estimate(system, walkers),
                        made=made)


@dataclass(frozen=True, kw_only=True)
class Ladders:
    """Replica exchange by the batch, `group` the ladder.

    Attributes:
        system: whose settings say how many ladders a batch has.
        filled: metadynamics, which the rungs start from.
        stages: that keep every batch.
        progress: called as progress(done, total, text).
        generator: of the whole run.
    """

    system: System
    filled: BiasRun
    stages: Stages
    progress: Progress
    generator: torch.Generator

    def more(self, known: WeightedSamples | None = None) -> WeightedSamples:
        """Those that are known, if any, and another batch."""
        settings = self.system.reference
        batch = 1 if known is None else 1 + len(known.proposal.group.unique()) // settings.ladders
        made = self.stages.rows(f"ladders-{batch}", self._batch, generator=self.generator)
        return weigh(made if known is None else _both(known.proposal, made), self.system.target)

    def _batch(self, generator: torch.Generator) -> Proposal:
        settings = self.system.reference
        return _ladders(self.system, self.filled, self.progress, generator=generator).sample(
            settings.exchanges * settings.ladders, generator=generator)


def cross_check(ladders: Ladders, walkers: WeightedSamples, known: WeightedSamples, *, rare: Collection[str] = ()) -> WeightedSamples:
    """As many batches of ladders as settle every Delta F(phi) but the rare ones, up to `most_ladders`; the first batch is known."""
    settings = ladders.system.reference
    for _ in range(settings.most_ladders // settings.ladders - 1):
        if settled(ladders.system, walkers, known, rare=rare):
            break
        known = ladders.more(known)
    return known


def _both(first: Proposal, second: Proposal) -> Proposal:
    """Two sets of independent ladders as one."""
    return replace(first, x=torch.cat([first.x, second.x]), log_q=torch.cat([first.log_q, second.log_q]), cost=first.cost + second.cost,
                   group=torch.cat([first.group, second.group + first.group.max() + 1]), note=f"{first.note}; {second.note}")


def fill(system: System, torsions: tuple[Atoms, ...], progress: Progress, *, generator: torch.Generator) -> BiasRun:
    """Metadynamics, whose bias must have something left when it is cut off `level` below its maximum: a flat one drives nothing.

    Raises:
        ReferenceError: if its hills are lower than that.
    """
    settings, target = system.reference, dynamics_target(system)
    filled = build_bias(target, system.structure, WellTempered(torsions=torsions, steps=settings.filling), dynamics=dynamics_of(system),
                        generator=generator, progress=progress)
    height = (filled.bias.table.max() - filled.bias.table.min()).item() / target.kT
    if height <= settings.level:
        raise ReferenceError(f"metadynamics built a bias of {height:.2g} kT, which nothing is left of when it is cut off "
                             f"{settings.level:g} kT (level) below its maximum; raise filling ({settings.filling} steps) or lower level "
                             "in system.toml")
    return filled


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


def equilibrium(walkers: WeightedSamples, target: OpenMMTarget, n: int, settings: MetadynamicsSection, *, generator: torch.Generator,
                progress: Progress = silent) -> Proposal:
    """n configurations of exp(-u): walkers' configurations resampled by weight and moved on; `group` = walker, cost that of the moves."""
    began = time.perf_counter()
    drawn = resample(walkers, n, generator=generator).proposal
    x, accepted = decorrelate(
        target, drawn.x, steps=settings.decorrelation, step=settings.time_step, generator=generator, progress=progress)
    cost = Cost(gradient=n * (settings.decorrelation + 1), seconds=time.perf_counter() - began)
    moved = replace(drawn, x=x, log_q=-target.u(x), cost=cost)
    return with_edit(moved, f"{MOVED}{settings.decorrelation} steps of Hamiltonian Monte Carlo, {accepted:.2f} accepted")


def _walkers(system: System, filled: BiasRun, progress: Progress) -> MolecularDynamics:
    """Walkers under the capped bias, from configurations of metadynamics' second half, evenly spaced."""
    settings, target = system.reference, dynamics_target(system)
    later = filled.x[len(filled.x) // 2:]
    start = later[torch.linspace(0, len(later) - 1, settings.chains).long()]
    return MolecularDynamics(
        target=target, start=start, bias=filled.bias.capped(settings.level * target.kT), burn_in=settings.burn_in, thin=settings.thin,
        dynamics=dynamics_of(system), system=system.name, progress=progress)


def _ladders(system: System, filled: BiasRun, progress: Progress, *, generator: torch.Generator) -> ReplicaExchange:
    """Ladders whose rungs start from random configurations of metadynamics' second half, which is spread over all basins."""
    settings, temperatures = system.reference, tuple(system.reference.temperatures)
    half = len(filled.x) // 2
    rows = half + torch.randint(len(filled.x) - half, (settings.ladders, len(temperatures)), generator=generator)
    return ReplicaExchange(
        target=dynamics_target(system), start=filled.x[rows], temperatures=temperatures, burn_in=settings.exchanges // 5,
        steps=settings.exchange, dynamics=dynamics_of(system), system=system.name, progress=progress, workers=cores())


def dynamics_of(system: System) -> Langevin:
    """Time step and friction that the system's reference data are made with, or the usual ones where they come from elsewhere."""
    settings = system.reference
    return Langevin(step=settings.time_step, friction=settings.friction) if isinstance(settings, MetadynamicsSection) else Langevin()


def stages_in(folder: Path, system: System, n: int, *, seed: int) -> Stages:
    """The stages of one run, in a folder of their own whose name tells its settings and versions: runs with others never find them.

    Args:
        folder: of the reference data.
        system: with an OpenMM target; how many ladders there may be at most is left out, so that a refused run can have more.
        n: number of configurations.
        seed: of everything random.
    """
    target = dynamics_target(system)
    key = {"energy": openmm.XmlSerializer.serialize(target.system()), "kT": target.kT, "walls": target is not system.target, "n": n,
           "start": tensor_fingerprint(system.structure), "seed": seed, "versions": versions(),
           "settings": system.reference.model_dump(exclude={"most_ladders", "draws"})}
    return Stages(folder=Path(folder) / f"{UNFINISHED}{fingerprint(key)}")
