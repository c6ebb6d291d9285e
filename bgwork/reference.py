"""Equilibrium reference data: many independent chains from different starts, checked before they may be saved.

Checks: rank-normalised split R-hat of every observable below 1.01; the virial <x . grad u> equals the dimension of the space within 4
standard errors (integration by parts: true of every equilibrium distribution); averages from different starts agree within 4.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from bgwork import reference_md, reference_transfer, store
from bgwork.molecule import GivenSection, MetadynamicsSection, TransferSection
from bgwork.provenance import commit, versions
from bgwork.records import Cost, Density, Origin, Proposal, with_edit
from bgwork.reference_checks import Z_LIMIT, Check, ReferenceError, ReferenceRun, agreement, measure, virial_check
from bgwork.reference_stages import Stages
from bgwork.samplers.batches import check_count
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.convergence import by_chain, chain_average, split_rhat
from bgwork.samplers.mcmc import HMC, ParallelTempering
from bgwork.samplers.starts import STARTS
from bgwork.system import System

RHAT_LIMIT = 1.01
REMEDY = "ask for more samples, or set a longer burn_in and thin in system.toml"
REMEDY_OF_TRAJECTORY = ("make the system with the force field, solvent and temperature of the trajectory, which must have no constraints; "
                        "leave out its beginning, or run it longer; barriers that it does not cross need `bgwork reference` without --from")
REMEDY_OF_TRANSFER = "ask for more samples, set more transitions or keep nearer 1 in system.toml, or start from another energy"


def generate(system: System, n: int, *, seed: int, stages: Stages | None = None, progress: Progress = silent) -> ReferenceRun:
    """Draw n equilibrium configurations of a system and check them.

    Args:
        system: says by `system.reference` which sampler, how many chains and which starts.
        n: number of configurations.
        seed: of everything random.
        stages: of a molecule's metadynamics and cross-check, to go on from; other samplers keep none.
        progress: called as progress(done, total, text).
    Returns:
        The run; look at `checks`, or let `save` do so.
    Raises:
        ReferenceError: if n is too small for chains that can be compared.
    """
    if isinstance(system.reference, GivenSection):
        raise ReferenceError(f"{system.name} has no sampler of its own; bring a trajectory with `bgwork reference {system.name} --from`")
    check_count(n)
    if isinstance(system.reference, MetadynamicsSection):
        return reference_md.generate(system, n, seed=seed, stages=stages, progress=progress)
    if isinstance(system.reference, TransferSection):
        return reference_transfer.generate(system, n, seed=seed, progress=progress)
    settings, kinds = system.reference, len(system.reference.starts) or 1
    chains = max(2 * kinds, min(settings.chains, n // settings.draws) // kinds * kinds)
    if n < 4 * chains:
        raise ReferenceError(f"{n} configurations are too few to compare {chains} chains; ask for at least {4 * chains}")
    generator = torch.Generator().manual_seed(seed)
    if settings.sampler == "exact":
        proposal = _exact(system, n, chains, generator=generator)
    else:
        proposal = _chains(system, chains, progress, generator=generator).sample(n, generator=generator)
    proposal = replace(proposal, origin=replace(proposal.origin, seed=seed, commit=commit()))
    values, group = measure(system, proposal), proposal.group
    made = {"system": system.name, "n": n, "seed": seed, "chains": chains, "settings": settings.model_dump(), "commit": commit(),
            "versions": versions(), "cost": asdict(proposal.cost)}
    return ReferenceRun(
        proposal=proposal, checks=tuple(check(values, group, group * kinds // chains, dimension=system.space.dim)),
        estimates={name: chain_average(v, group) for name, v in values.items()}, made=made)


def check(values: dict[str, Tensor], group: Tensor, start: Tensor, *, dimension: int) -> list[Check]:
    """The checks of this module's docstring.

    Args:
        values: [N] values by observable, "virial" among them.
        group: [N] chain of each row.
        start: [N] kind of start of each row's chain.
        dimension: of the space, which the virial must equal.
    """
    checks = [Check(name=f"split R-hat of {name}", value=split_rhat(by_chain(v, group)), limit=RHAT_LIMIT) for name, v in values.items()]
    checks.append(virial_check(chain_average(values["virial"], group), dimension))
    if len(kinds := start.unique().tolist()) > 1:
        for name, v in values.items():
            means = [chain_average(v[start == kind], group[start == kind]) for kind in kinds]
            checks.append(agreement(f"starts agree on {name}", means, limit=Z_LIMIT))
    return checks


def save(run: ReferenceRun, folder: Path, *, stem: str = "samples", command: str = "") -> None:
    """Write folder/stem.npz and folder/reference.json (estimates, checks, how it was made).

    Raises:
        ReferenceError: if a check failed; nothing is written then.
        FileError: if the folder cannot be written.
    """
    failed = [str(c) for c in run.checks if not c.passed]
    if failed:
        raise ReferenceError("\n  ".join([f"not saved, {len(failed)} of {len(run.checks)} checks failed ({remedy(run)}):", *failed]))
    store.save_samples(Path(folder) / f"{stem}.npz", run.proposal)
    checks = [{**asdict(c), "passed": c.passed} for c in run.checks]
    store.write_json(Path(folder) / "reference.json", {"estimates": run.estimates, "checks": checks, "command": command, **run.made})


def remedy(run: ReferenceRun) -> str:
    """What to do if a check fails."""
    if run.proposal.origin.method == "trajectory":
        return REMEDY_OF_TRAJECTORY
    return REMEDY_OF_TRANSFER if run.made.get("settings", {}).get("sampler") == "transfer" else REMEDY


def thinned(run: ReferenceRun, keep: int) -> ReferenceRun:
    """The same run with about `keep` of its configurations, evenly spaced along every chain; estimates and checks stay those of the whole.

    Raises:
        ReferenceError: if fewer configurations are asked for than there are chains.
    """
    chains, n = int(run.proposal.group.max()) + 1, len(run.proposal)
    draws, kept = n // chains, keep // chains
    if not 1 <= kept <= draws:
        raise ReferenceError(f"cannot keep {keep} of {n} configurations from {chains} chains; choose between {chains} and {n}")
    stride = draws // kept
    rows = (torch.arange(stride - 1, kept * stride, stride)[:, None] * chains + torch.arange(chains)).flatten()
    return replace(run, proposal=with_edit(run.proposal.take(rows), f"kept every {stride}th draw of {n} configurations"))


def _chains(system: System, chains: int, progress: Progress, *, generator: torch.Generator) -> HMC | ParallelTempering:
    """The system's Markov chain sampler, with an equal number of chains from each kind of start."""
    settings, target = system.reference, system.differentiable_target
    share = chains // len(settings.starts)
    start = torch.cat([STARTS[kind](target, share, spacing=settings.spacing, generator=generator) for kind in settings.starts])
    tuning = {"burn_in": settings.burn_in, "thin": settings.thin, "leapfrog": settings.leapfrog, "step": settings.step}
    if settings.sampler == "hmc":
        return HMC(target=target, start=start, system=system.name, progress=progress, **tuning)
    return ParallelTempering(target=target, start=start, betas=tuple(settings.betas), system=system.name, progress=progress, **tuning)


def _exact(system: System, n: int, chains: int, *, generator: torch.Generator) -> Proposal:
    """Independent draws of a target that can be drawn from directly, dealt out to as many groups as there would be chains.

    Raises:
        ReferenceError: if the target has no `sample`.
    """
    target = system.differentiable_target
    if not hasattr(target, "sample"):
        raise ReferenceError(f"{system.name} cannot be drawn from directly; set reference.sampler to \"hmc\" in its system.toml")
    began = time.perf_counter()
    x = target.sample(n, generator=generator)
    log_q = -target.u(x)
    return Proposal(x=x, log_q=log_q, space=system.space, density=Density.UNNORMALISED, origin=Origin(method="exact", system=system.name),
                    cost=Cost(energy=n, seconds=time.perf_counter() - began), group=torch.arange(n) % chains)
