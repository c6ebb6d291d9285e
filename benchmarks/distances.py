"""Distances of weighted samples of a molecule from reference samples, beside what they are worth.

torus-W2 compares as many rows of both, drawn by weight, and depends on which are drawn: the mean of several draws stands beside the one,
with their standard deviation. Floors: of reference against reference, of reference samples that carry these very weights, which is what
perfect samples with this ESS would show, and of half of the reference's walkers against the others, which shows the reference's own error
too. They need more reference samples than the shipped set has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import Row, estimate_row
from torch import Tensor

from bgwork import analysis, store
from bgwork.analysis import Data
from bgwork.conformation import Residue, ramachandran
from bgwork.metrics import energy_w2, grouped_noise_floor, noise_floor, systematic_draw, torus_w2, weighted_noise_floor
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import normalised_weights, resample, weigh

W2 = {"energy-W2": ("<= .9", "ECNF++ .914, FALCON .225"), "torus-W2": ("<= .19", "ECNF++ .189, FALCON .402")}
FLOOR_REPEATS = 5
DRAWS = 8  # of both sets, beside the one that floors belong to


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a distance is taken of.

    Attributes:
        own: [N, ...] values at the samples.
        reference: [M, ...] values at the reference samples.
        group: [M] their walkers, or None.
        copies: whether some of them are copies of others.
    """

    own: Tensor
    reference: Tensor
    group: Tensor | None
    copies: bool


def all_distances(data: Data, common: dict[str, Any], options: argparse.Namespace) -> list[Row]:
    """torus-W2 of every residue and energy-W2; none without reference samples."""
    known = reference_of(data, options.reference)
    if known is None:
        print(f"{data.system.name}: no distances, since there are no reference samples")
        return []
    generator, rows = _seeded(options), []
    wide, copies = evenly_weighted(known, generator=generator)
    group = wide.proposal.group
    for residue in analysis.residues_of(data.system):
        angles = [ramachandran(samples.x, residue) for samples in (data.weighted, wide)]
        rows += distance_rows(named("torus-W2", residue), torus(generator), Compared(own=angles[0], reference=angles[1], group=group,
                              copies=copies), data, common, options)
        rows.append(estimate_row(f"{named('torus-W2', residue)}, {DRAWS} draws", over_draws(data, known, residue, options), **common))
    energies = Compared(own=data.weighted.u, reference=wide.u, group=group, copies=copies)
    return rows + distance_rows("energy-W2", energy, energies, data, common, options)


Metric = Callable[[Tensor, Tensor, Tensor], float]


def energy(a: Tensor, b: Tensor, weights: Tensor) -> float:
    """energy-W2 of weighted energies a from b."""
    return energy_w2(a, b, weights_a=weights)


def torus(generator: torch.Generator) -> Metric:
    """torus-W2 of as many weighted draws of a as there are in b."""
    return lambda a, b, weights: torus_w2(systematic_draw(a, weights, len(b), generator=generator), b)


def over_draws(data: Data, known: WeightedSamples, residue: Residue, options: argparse.Namespace) -> Estimate:
    """torus-W2 of other draws of both sets: their mean, and their standard deviation as its error."""
    own, weights, distances = ramachandran(data.weighted.x, residue), normalised_weights(data.weighted).clamp_min(0), []
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        wide, _ = evenly_weighted(known, generator=generator)
        chosen = wide.x[torch.randperm(len(wide), generator=generator)[: options.distance_n]]
        distances.append(torus(generator)(own, ramachandran(chosen, residue), weights))
    found = torch.tensor(distances)
    return Estimate(value=found.mean().item(), stderr=found.std().item())


def distance_rows(metric: str, distance: Metric, values: Compared, data: Data, common: dict[str, Any],
                  options: argparse.Namespace) -> list[Row]:
    """A distance of the weighted samples and of the raw ones from reference samples, and its floors.

    The few negative weights of a map that folds are left out: distances have no meaning for them.
    """
    own, reference, weights = values.own, values.reference, normalised_weights(data.weighted).clamp_min(0)
    n = min(options.distance_n, len(reference))
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(options.seed))
    goal, published = W2[metric.split(" ")[0]]
    chosen, drawable = reference[order[:n]], (~data.weighted.failed & torch.isfinite(data.weighted.u)).double()
    rows = [Row(metric=metric, value=distance(own, chosen, weights), goal=goal, published=published, **common),
            Row(metric=f"{metric}, raw samples of finite energy", value=distance(own, chosen, drawable), **common)]
    equal = partial(_unweighted, distance)
    floors = {} if values.copies else {
              "reference against reference": lambda: noise_floor(equal, reference, n, generator=_seeded(options), repeats=FLOOR_REPEATS),
              "reference with these weights": lambda: weighted_noise_floor(
                  distance, reference, weights, n, generator=_seeded(options), repeats=FLOOR_REPEATS)}
    if values.group is not None:
        floors["half of the walkers against the others"] = lambda: grouped_noise_floor(
            equal, reference, values.group, n, generator=_seeded(options), repeats=FLOOR_REPEATS)
    for name, floor in floors.items():
        try:
            rows.append(estimate_row(f"{metric}, floor: {name}, {n} samples", floor(), **common))
        except ValueError as error:
            print(f"{data.system.name}: no floor of {metric}, {name}: {error}")
    return rows


def _unweighted(distance: Metric, a: Tensor, b: Tensor) -> float:
    return distance(a, b, torch.ones(len(a), dtype=torch.float64))


def _seeded(options: argparse.Namespace) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def named(metric: str, residue: Residue) -> str:
    return f"{metric} {residue.name}".strip()


def reference_of(data: Data, path: Path | None) -> WeightedSamples | None:
    """Reference samples for distances: from a file, if it is of this system, else those kept with the system."""
    if path is None:
        return data.reference
    samples = store.load_samples(path)
    samples = samples if isinstance(samples, WeightedSamples) else weigh(samples, data.system.target)
    if samples.proposal.origin.system != data.system.name:
        print(f"{path} is of {samples.proposal.origin.system}; {data.system.name} is compared with its shipped reference samples")
        return data.reference
    return samples


def evenly_weighted(samples: WeightedSamples, *, generator: torch.Generator) -> tuple[WeightedSamples, bool]:
    """As many rows drawn by weight, and whether there are copies among them: none of samples that weigh the same."""
    weights = normalised_weights(samples)
    if torch.allclose(weights, weights.mean()):
        return samples, False
    return resample(samples, len(samples), generator=generator), True
