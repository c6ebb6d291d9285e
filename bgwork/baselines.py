"""What Markov chains make of the evaluations that a training spent: the yardstick of samplers learned from the energy alone.

A budget counts energies and gradients alike, met by a meter around the target, those that quench the starts included; of what is left,
half is burn-in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bgwork.records import Proposal
from bgwork.reweighting import average, weigh
from bgwork.samplers.mcmc import HMC, ParallelTempering
from bgwork.samplers.starts import STARTS
from bgwork.spaces import Euclidean, MeanFree, Torus
from bgwork.system import System
from bgwork.system_file import ReferenceSection
from bgwork.targets.counting import Metered

LADDER = (1.0, 0.6, 0.35, 0.2)  # inverse temperatures where a system names none
SHORTEST = 4  # transitions
SHARES = (4, 16, 64)  # parts of the budget, so that a curve can be drawn
FEWEST = 2  # chains, or there would be no error bar


class BudgetError(ValueError):
    """Chains that cannot be run, or not for so few evaluations."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Which chains, and for how long.

    Args:
        budget: energies and gradients, in all.
        betas: inverse temperatures; (1,) is plain Hamiltonian Monte Carlo.
        chains: independent ones.
        n: configurations kept at most, about.
        seed: of everything random.
    Raises:
        BudgetError: for a single chain, which has no error bar.
    """

    budget: int
    betas: tuple[float, ...] = (1.0,)
    chains: int = 50
    n: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.chains < FEWEST:
            raise BudgetError(f"the scatter of chains gives the error bars; ask for {FEWEST} --chains at least, not {self.chains}")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Chains at one budget: evaluations spent, configurations kept, effective number for the average energy, quantiles of u.

    The effective number counts correlation within and between the chains; of modes that no chain has met it knows nothing.
    """

    method: str
    spent: int
    n: int
    n_eff: float
    u_05: float
    u_50: float
    u_95: float


def ladder(system: System) -> tuple[float, ...]:
    """The inverse temperatures of a system's reference, or else a common choice; raises as `settings_of`."""
    betas = settings_of(system).betas
    return tuple(betas) if len(betas) > 1 else LADDER


def run_chains(system: System, asked: Chains) -> tuple[Proposal, int]:
    """Configurations of chains from the system's starts that stop at the budget, and the evaluations that they took.

    Args:
        system: with the step and the leapfrog length of its reference.
        asked: budget and kind.
    Raises:
        BudgetError: if the budget is spent before the chains have moved, or the system is none for Hamiltonian Monte Carlo.
    """
    settings, target = settings_of(system), Metered(system.differentiable_target)
    generator = torch.Generator().manual_seed(asked.seed)
    start = _starts(system, target, asked.chains, generator=generator)
    walkers = len(start) * len(asked.betas)
    transitions = (asked.budget - _spent(target) - walkers) // (walkers * settings.leapfrog)
    if transitions < SHORTEST:
        raise BudgetError(f"{asked.budget} gradients are too few for {len(start)} chains on {len(asked.betas)} rungs, whose starts alone "
                          f"take {_spent(target) + walkers}; ask for fewer --chains")
    half = transitions // 2
    thin = -(-half * len(start) // asked.n)
    draws = half // thin
    tuning = {"burn_in": transitions - thin * draws, "thin": thin, "leapfrog": settings.leapfrog, "step": settings.step}
    parts = {"target": target, "start": start, "system": system.name, **tuning}
    sampler = HMC(**parts) if len(asked.betas) == 1 else ParallelTempering(**parts, betas=asked.betas)
    return sampler.sample(draws * len(start), generator=generator), _spent(target)


def settings_of(system: System) -> ReferenceSection:
    """How the system's own chains move.

    Raises:
        BudgetError: if it has none, as molecules, or lives on a curved space.
    """
    if not isinstance(system.reference, ReferenceSection) or not isinstance(system.space, Euclidean | MeanFree | Torus):
        raise BudgetError(f"{system.name} says nothing of Markov chains on {system.space}; only systems on flat space or a torus with "
                          "chains in [reference] have this baseline")
    return system.reference


def _starts(system: System, target: Metered, chains: int, *, generator: torch.Generator) -> Tensor:
    """First configurations, shared equally among the kinds that the system names, or the prior's."""
    kinds, spacing = system.reference.starts or ["prior"], system.reference.spacing
    share = max(1, chains // len(kinds))
    return torch.cat([system.prior.sample(share, generator=generator) if kind == "prior" else
                      STARTS[kind](target, share, spacing=spacing, generator=generator) for kind in kinds])


def baseline(system: System, asked: Chains) -> Baseline:
    """Chains at one budget and what they found."""
    proposal, spent = run_chains(system, asked)
    weighted = weigh(proposal, system.target)
    low, middle, high = (torch.quantile(weighted.u, share).item() for share in (0.05, 0.5, 0.95))
    return Baseline(method=proposal.origin.method, spent=spent, n=len(proposal), n_eff=average(weighted, weighted.u).n_eff,
                    u_05=low, u_50=middle, u_95=high)


def baselines(system: System, asked: Chains) -> list[Baseline]:
    """Hamiltonian Monte Carlo and parallel tempering at all of a budget and at parts of it; parts that are too few are left out.

    Raises:
        BudgetError: if even the whole is too few, before any other chain is run.
    """
    kinds = ((1.0,), ladder(system))
    found = [baseline(system, replace(asked, betas=betas)) for betas in reversed(kinds)]  # the ladder first: it takes the most
    for betas in kinds:
        for share in SHARES:
            try:
                found.append(baseline(system, replace(asked, betas=betas, budget=asked.budget // share)))
            except BudgetError:
                break  # smaller parts are too few as well
    return sorted(found, key=lambda each: (each.method, each.spent))


def to_json(found: list[Baseline], made_for: str, asked: Chains) -> dict[str, Any]:
    """For `store.write_json`; made_for is the fingerprint of the samples whose training had that budget."""
    return {"made_for": made_for, "chains": asked.chains, "seed": asked.seed, "budget": asked.budget,
            "baselines": [asdict(each) for each in found]}


def from_json(content: Mapping[str, Any], made_for: str) -> tuple[Baseline, ...]:
    """What `to_json` wrote, if it was for these samples; else nothing.

    Raises:
        BudgetError: if it is something else.
    """
    if content.get("made_for") != made_for:
        return ()
    try:
        defined = [{name: math.nan if value is None else value for name, value in each.items()} for each in content["baselines"]]
        return tuple(Baseline(**each) for each in defined)
    except (KeyError, TypeError, AttributeError) as error:
        raise BudgetError(f"the stored baselines are not those that `bgwork baselines` writes ({error}); give the command again") from error


def _spent(target: Metered) -> int:
    return target.n_energy + target.n_gradient
