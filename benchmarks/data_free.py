"""Samplers learned from the energy alone, beside parallel tempering and HMC at the same number of energy-gradient evaluations.

    python benchmarks/data_free.py dw4 --recipes weighted-adjoint --weights path -n 20000 --seed 14
    python benchmarks/data_free.py dw4 --recipes bootstrap bootstrap-polish -n 20000 --seed 14
    python benchmarks/data_free.py gmm40 --weights path -n 20000 --seed 17 --steps 480
    python benchmarks/data_free.py dw4 --weights path -n 20000 --seed 14 --as-long       # HMC for as many core-minutes, too

A recipe is a shipped generator's name, or its file. Of a pool of n samples, 2,000 are drawn ten times, by weight or not, and compared with
2,000 of the system's reference samples; the floor is reference against reference at the same size. The evaluations that a training
spent are read from the generator's header, where its meter left them; the chains get as many, met by a meter too, half of them
for burn-in. `evaluations` are network passes per sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from ess import held_out
from rows import Row, estimate_row, publish
from torch import Tensor

from bgwork import store
from bgwork.baselines import Chains, ladder, run_chains
from bgwork.free_energy import forward_ess
from bgwork.generators import generator_path, load_trained
from bgwork.held_out import log_q_at
from bgwork.metrics import energy_w2, geometric_w2, noise_floor, total_variation
from bgwork.observables import pair_distances
from bgwork.pareto import tail_shape
from bgwork.protocols import Sampler
from bgwork.recipes.base import spent_behind
from bgwork.recipes.walks import PILOT
from bgwork.records import Density, Estimate, WeightedSamples
from bgwork.reweighting import ess, expectation, log_z, max_weight, normalised_weights, weigh
from bgwork.samplers.compiled import compiled
from bgwork.system import System, load_system, reference_samples
from bgwork.targets.gaussian_mixture import GaussianMixture

SIZE, DRAWS, BINS, HELD_OUT, MOST = 2000, 10, 100, 500, 3_000_000
PUBLISHED = {
    ("dw4", "energy-W2"): ".55 iDEM, .55 AS, .20 ASBS, .11 FS", ("lj13", "energy-W2"): "30.8 iDEM, 2.40 AS, 1.99 ASBS, .97 FS",
    ("lj55", "energy-W2"): "93.5 iDEM, 30.8 AS, 28.1 ASBS, 21.3 FS", ("gmm40", "reverse ESS"): ".734 iDEM",
    ("dw4", "geometric W2"): ".70 iDEM, .62 AS, .43 ASBS, .36 FS", ("lj13", "geometric W2"): "1.61 iDEM, 1.67 AS, 1.59 ASBS"}
GOALS = {
    ("dw4", "energy-W2", "weighted"): "within 2 s.d. of the floor", ("dw4", "energy-W2", "raw"): "<= .2",
    ("lj13", "energy-W2", "weighted"): "<= .7", ("lj13", "energy-W2", "raw"): "<= 2", ("gmm40", "reverse ESS", ""): ">= .9",
    ("dw4", "core-minutes", ""): "<= 15", ("lj13", "core-minutes", ""): "<= 120"}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Samples of one method.

    Attributes:
        method: named in the rows.
        weighted: the samples with their weights.
        evaluations: network passes per sample.
        spent: energies and gradients up to the samples, those of weighing apart.
        minutes: core-minutes up to the samples: of all trainings behind a generator, or of the chains themselves.
        forward: forward ESS on held-out reference samples, where there is one.
    """

    method: str
    weighted: WeightedSamples
    evaluations: float
    spent: int
    minutes: float
    forward: Estimate | None = None


def generator_pools(system: System, recipe: str, options: argparse.Namespace) -> Iterator[Pool]:
    """A generator's samples with each kind of weight that it has."""
    path = Path(recipe) if recipe.endswith(".safetensors") else generator_path(system.name, recipe=recipe)
    made_by, trained = load_trained(path, system=system)
    spent = spent_on(path)
    for weights in made_by.weights:
        if weights not in options.weights:
            continue
        own = made_by.default_choice()
        choice = replace(own, weights=weights, steps=options.steps or own.steps)
        sampler = made_by.sampler_of(trained, choice)
        sampler = compiled(sampler) if options.compiled and weights != "path" else sampler
        proposal = sampler.sample(options.n, generator=torch.Generator().manual_seed(options.seed))
        weighted = weigh(proposal, system.target, accept=(Density.UNCERTIFIED,))
        name = f"{path.stem}, {weights if weights == 'directional' else proposal.density.value} weights"
        pilot = PILOT if "pilot run" in proposal.note else 0
        yield Pool(method=name, weighted=weighted, evaluations=proposal.cost.network / options.n, spent=spent + pilot,
                   minutes=minutes_behind(path), forward=forward_of(system, sampler, weighted))


def has_reference(system: System) -> bool:
    """Whether there is anything to compare samples with; a system of one's own may have none."""
    return (system.path / "reference.npz").exists()


def forward_of(system: System, sampler: Sampler, weighted: WeightedSamples) -> Estimate | None:
    """Forward ESS on held-out reference samples; None for a density that its certificate does not vouch for, without overlap or samples."""
    if weighted.proposal.density not in (Density.EXACT, Density.PATH) or not has_reference(system):
        return None
    reference = held_out(system, HELD_OUT)
    try:
        return forward_ess(weighted, log_q_at(sampler, reference.x), reference.u, group=reference.proposal.group)
    except ValueError as error:
        print(f"no forward ESS: {error}")
        return None


def minutes_behind(path: Path) -> float:
    """Core-minutes of a generator's training and of those that it started from or was taught by.

    Wall time of the steps, of trainings on one thread, and CPU time of the batches; of a bootstrap also that of its teacher's samples.
    """
    meta = store.load_checkpoint(path)[1]
    recipe, teacher = meta["recipe"], meta.get("teacher") or {}
    own = meta["progress"]["seconds"] + meta["progress"]["worker_seconds"] + (teacher.get("seconds") or 0.0)
    before = recipe["training"].get("initial") or recipe.get("teacher", {}).get("generator")
    return own / 60 + (minutes_behind(generator_named(before, meta["system"])) if before else 0.0)


def generator_named(name: str, system: str) -> Path:
    """File of a generator called NAME, SYSTEM/NAME, or by its path."""
    if name.endswith(".safetensors"):
        return Path(name)
    owner, _, own = name.rpartition("/")
    return generator_path(owner or system, recipe=own)


def spent_on(path: Path) -> int:
    """Energies and gradients behind a generator; of a polish that does not say what it started from had spent, that generator's added."""
    meta = store.load_checkpoint(path)[1]
    progress, recipe = meta["progress"], meta["recipe"]
    own = sum(int(progress.get(name, 0)) for name in ("energy_evaluations", "gradient_evaluations", "gradients"))
    if known := spent_behind(path):
        return sum(known.values())
    if recipe["objective"] not in ("polish", "polish-map"):
        return own
    return own + spent_on(generator_path(meta["system"], recipe=recipe["training"]["initial"]))


def chain_pool(system: System, budget: int, options: argparse.Namespace, betas: tuple[float, ...]) -> Pool:
    """Markov chains from the system's starts, stopped at a budget of gradients, half of which is burn-in."""
    asked = Chains(budget=budget, betas=betas, chains=options.chains, n=options.n, seed=options.seed)
    began = time.process_time()
    proposal, spent = run_chains(system, asked)
    minutes = (time.process_time() - began) / 60
    weighted = weigh(proposal, system.target)
    return Pool(method=f"{proposal.origin.method}, {len(proposal.group.unique())} chains", weighted=weighted, evaluations=0, spent=spent,
                minutes=minutes)


def drawn(pool: Pool, *, by_weight: bool) -> Iterator[Tensor]:
    """Row numbers of SIZE samples, DRAWS times; with repetitions where they are drawn by weight, or are fewer.

    The few negative weights of a map that folds are left out: distances have no meaning for them.
    """
    p = normalised_weights(pool.weighted).clamp_min(0) if by_weight else torch.ones(len(pool.weighted)) / len(pool.weighted)
    for seed in range(DRAWS):
        yield torch.multinomial(p, SIZE, replacement=by_weight or len(p) < SIZE, generator=torch.Generator().manual_seed(seed))


def distances(system: System, options: argparse.Namespace) -> dict[str, tuple[Callable[[Tensor, Tensor], float], int]]:
    """Metrics of configurations, and the sample size of each."""
    found = {"energy-W2": (lambda a, b: energy_w2(system.target.u(a), system.target.u(b)), SIZE)}
    if system.space.n > 1:
        reach = pair_distances(reference_samples(system).x).max()
        edges = torch.linspace(0, reach, BINS + 1, dtype=torch.float64)
        found["total variation of pair distances"] = (lambda a, b: total_variation(pair_distances(a), pair_distances(b), edges=edges), SIZE)
    if options.geometric:
        found["geometric W2"] = (geometric_w2, options.geometric)
    return found


def compared(system: System, pool: Pool, options: argparse.Namespace, common: dict) -> Iterator[Row]:
    """Distances of the pool from the reference, raw and weighted, mean and s.d. over the draws."""
    reference = reference_samples(system).x
    for metric, (distance, size) in distances(system, options).items():
        for kind, by_weight in (("raw", False), ("weighted", True)):
            if by_weight and not pool.weighted.proposal.density.normalised:
                continue
            values = []
            for seed, rows in enumerate(drawn(pool, by_weight=by_weight)):
                other = torch.randperm(len(reference), generator=torch.Generator().manual_seed(1000 + seed))[:size]
                values.append(distance(pool.weighted.x[rows[:size]], reference[other]))
            yield Row(metric=f"{metric}, {kind}", value=mean(values), stderr=stdev(values), published=PUBLISHED.get((system.name, metric)),
                      goal=GOALS.get((system.name, metric, kind)), **common)


def floors(system: System, options: argparse.Namespace) -> Iterator[Row]:
    """Every distance between reference samples themselves."""
    reference, generator = reference_samples(system).x, torch.Generator().manual_seed(options.seed)
    for metric, (distance, size) in distances(system, options).items():
        floor = noise_floor(distance, reference, min(size, len(reference) // 2), generator=generator, repeats=DRAWS)
        yield estimate_row(f"{metric}, floor", floor, system=system.name, method="reference", n=int(floor.n_eff), seed=options.seed)


def of_weights(system: System, pool: Pool, common: dict) -> Iterator[Row]:
    """ESS, log Z and mode weights; for chains only what can be told without a normalised density."""
    yield Row(metric="energies and gradients spent", value=pool.spent, **common)
    yield Row(metric="core-minutes spent", value=pool.minutes, goal=GOALS.get((system.name, "core-minutes", "")), **common)
    if pool.forward is not None:
        yield estimate_row("forward ESS", pool.forward, **common)
    for quantile in (0.05, 0.5, 0.95):
        yield Row(metric=f"u, quantile {quantile:g}", value=torch.quantile(pool.weighted.u, quantile).item(), **common)
    if pool.weighted.proposal.density.normalised:
        yield estimate_row("reverse ESS", ess(pool.weighted), published=PUBLISHED.get((system.name, "reverse ESS")),
                           goal=GOALS.get((system.name, "reverse ESS", "")), **common)
        yield estimate_row("log Z", log_z(pool.weighted), **common)
        yield Row(metric="Pareto k", value=tail_shape(pool.weighted), **common)
        yield Row(metric="largest weight", value=max_weight(pool.weighted), **common)
        yield Row(metric="n_failed", value=pool.weighted.n_failed, **common)
        if hasattr(system.target, "log_z"):
            exact = Estimate(value=system.target.log_z, stderr=0.0)
            yield Row(metric="z of log Z", value=log_z(pool.weighted).z(exact), goal="|z| < 4", **common)
    if isinstance(system.target, GaussianMixture):
        yield Row(metric="modes within 4 stderr of 1/40", value=modes_right(system.target, pool.weighted), goal="40", **common)


def gradients_in(pools: list[Pool]) -> int:
    """Gradients that HMC has time for in the core-minutes of the longest training, by the pace of its first run; at most `MOST`."""
    hmc = next(pool for pool in pools if pool.method.startswith("hmc"))
    trained = max(pool.minutes for pool in pools if not pool.method.startswith(("hmc", "parallel")))
    wanted = round(hmc.spent * trained / hmc.minutes)
    if wanted > MOST:
        print(f"HMC would have time for {wanted} gradients; it gets {MOST}")
    return min(MOST, wanted)


def modes_right(target: GaussianMixture, weighted: WeightedSamples) -> int:
    """Number of components whose share of the nearest-mean partition is within 4 standard errors of that of exact samples."""
    def share(x: Tensor, k: int) -> Tensor:
        return (torch.cdist(x[:, 0], target.means).argmin(1) == k).double()

    exact = target.sample(200_000, generator=torch.Generator().manual_seed(0))
    right = 0
    for k in range(len(target.means)):
        found, expected = expectation(weighted, partial(share, k=k)), share(exact, k)
        right += abs(found.z(Estimate(value=expected.mean().item(), stderr=expected.std().item() / len(expected) ** 0.5))) < 4
    return right


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """All rows of a system."""
    system = load_system(name)
    pools = [pool for recipe in options.recipes for pool in generator_pools(system, recipe, options)]
    budget = options.budget or max((pool.spent for pool in pools), default=0)
    if budget and not options.no_chains:
        pools += [chain_pool(system, budget, options, betas) for betas in ((1.0,), ladder(system))]
    if options.as_long and not options.no_chains:
        long = chain_pool(system, gradients_in(pools), options, (1.0,))
        pools.append(replace(long, method=f"{long.method}, longer"))
    rows = list(floors(system, options)) if has_reference(system) else []
    for pool in pools:
        common = {"system": name, "method": pool.method, "evaluations": pool.evaluations, "n": len(pool.weighted), "seed": options.seed}
        rows += [*of_weights(system, pool, common), *(compared(system, pool, options, common) if has_reference(system) else [])]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    parser.add_argument("--recipes", nargs="*", default=["weighted-adjoint"], help="shipped generators, or files")
    parser.add_argument("-n", type=int, default=20_000)
    parser.add_argument("--weights", nargs="+", choices=("path", "density", "directional"), default=["path", "density"])
    parser.add_argument("--steps", type=int, default=None, help="of the generators; their own if not given")
    parser.add_argument("--seed", type=int, default=11, help="not used in training or tuning")
    parser.add_argument("--budget", type=int, default=0, help="gradients for the chains; the largest of the trainings' if 0")
    parser.add_argument("--chains", type=int, default=50)
    parser.add_argument("--compiled", action="store_true", help="compile the Jacobians of density and directional weights")
    parser.add_argument("--no-chains", action="store_true")
    parser.add_argument("--as-long", action="store_true", help="another HMC run, for the core-minutes of the longest training")
    parser.add_argument("--geometric", type=int, default=0, help="sample size of the geometric W2; 0 leaves it out")
    options = parser.parse_args()
    publish([row for name in options.systems for row in measure(name, options)])


if __name__ == "__main__":
    main()
