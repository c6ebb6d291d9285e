"""How a molecule's metadynamics and its cross-check are compared: averages, populations of basins, and when they are certain enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from bgwork.free_energy import free_energy_difference
from bgwork.molecule import molecular_observables
from bgwork.records import Estimate, Proposal, WeightedSamples
from bgwork.reference_checks import BATCH, Z_LIMIT, Check, agreement, virial_check
from bgwork.reweighting import average, expectation, weigh
from bgwork.system import System

AGREEMENT_LIMIT = 3.0  # combined standard errors, for populations
RARE = 0.005  # population of a basin that replica exchange cannot be asked to measure
MOST_UNCERTAIN = {"metadynamics": 0.25, "replica exchange": 0.5}  # kT, stderr of Delta F beyond which a basin has hardly been visited


def rare_basins(system: System, walkers: WeightedSamples) -> list[str]:
    """Names of the populations that walkers have visited and found to be below `RARE`, or above 1 - RARE."""
    return [name for name, share in _shares(system, walkers).items() if 0 < min(share, 1 - share) < RARE]


def lost_basins(system: System, walkers: WeightedSamples) -> list[str]:
    """Names of the populations that walkers have found to be none or all, for which more ladders would make up in no way."""
    return [name for name, share in _shares(system, walkers).items() if min(share, 1 - share) <= 0]


def _shares(system: System, weighted: WeightedSamples) -> dict[str, float]:
    return {name: expectation(weighted, f).value for name, f in _functions(system).items() if name.endswith("_positive")}


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


def settled(system: System, walkers: WeightedSamples, exchange: WeightedSamples, *, rare: Collection[str] = ()) -> bool:
    """Whether replica exchange is certain of the populations and finds those of the walkers, so that more ladders would tell nothing new.

    A population that few ladders have met looks more certain than it is, and ends too far off more often than a normal error would: more
    ladders are the remedy for that, and they lay bare a real disagreement all the more.
    """
    compared = [f for name, f in _functions(system).items() if name.endswith("_positive") and name not in rare]
    return certain(system, exchange, rare=rare) and all(
        agreement("", [expectation(walkers, f), expectation(exchange, f)], limit=AGREEMENT_LIMIT).passed for f in compared)


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


def _functions(system: System) -> dict[str, Callable[[Tensor], Tensor]]:
    """The system's own observables and all that belong to molecules, without the basin label, which has no average."""
    wanted = {name: system.functions[name] for name in system.observables if name != "u"}
    return {name: f for name, f in (wanted | molecular_observables(system.topology, system.structure)).items() if name != "phi_basin"}


def _outside(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: 1.0 - f(x)
