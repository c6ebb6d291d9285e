"""How much a sampler learned from the energy alone depends on the seed of its training: the figures of data_free over several trainings.

    bgwork train dw4 --recipe weighted-adjoint --seed 1 --out runs/dw4/weighted-adjoint-1        # and so on
    python benchmarks/seeds.py dw4 runs/dw4/weighted-adjoint runs/dw4/weighted-adjoint-1 --weights path --seed 171

Each row is the mean over trainings of one recipe, and its "+-" their standard deviation: not an error bar of the mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

from data_free import compared, generator_pools, of_weights
from rows import Row, publish

from bgwork import store
from bgwork.recipes import parse_recipe
from bgwork.system import System, load_system


def recipe_of(runs: list[Path]) -> tuple[str, list[int]]:
    """The recipe that all trainings share, and their seeds.

    Raises:
        ValueError: if they are of different recipes or share a seed.
    """
    headers = [store.load_checkpoint(run / "generator.safetensors")[1] for run in runs]
    recipes = [parse_recipe(header["recipe"], source=str(run)) for header, run in zip(headers, runs, strict=True)]
    seeds, other = [header["seed"] for header in headers], [run for run, recipe in zip(runs, recipes, strict=True) if recipe != recipes[0]]
    if other:
        raise ValueError(f"{', '.join(map(str, other))} followed another recipe than {runs[0]}; take some that differ in seed alone")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"these trainings have the seeds {seeds}; give trainings with different ones")
    return headers[0]["recipe_name"], seeds


def figures(system: System, run: Path, options: argparse.Namespace) -> dict[str, Row]:
    """Rows of one training by metric."""
    pools = list(generator_pools(system, str(run / "generator.safetensors"), options))
    if not pools:
        raise ValueError(f"{run} has no {options.weights[0]} weights; ask for the other kind")
    (pool,) = pools
    common = {"system": system.name, "method": pool.method, "evaluations": pool.evaluations, "n": len(pool.weighted), "seed": options.seed}
    return {row.metric: row for row in [*of_weights(system, pool, common), *compared(system, pool, options, common)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of two trainings or more")
    parser.add_argument("-n", type=int, default=20_000)
    parser.add_argument("--weights", nargs=1, choices=("path", "density", "directional"), default=["density"])
    parser.add_argument("--steps", type=int, default=None, help="of the generators; their own if not given")
    parser.add_argument("--seed", type=int, required=True, help="of the samples; not used in training or tuning")
    parser.add_argument("--compiled", action="store_true", help="compile the Jacobians of density and directional weights")
    parser.set_defaults(geometric=0)
    options = parser.parse_args()
    if len(options.runs) < 2:
        parser.error("one training has no spread; give two or more")
    try:
        recipe, seeds = recipe_of(options.runs)
        found = [figures(load_system(options.system), run, options) for run in options.runs]
    except ValueError as error:
        parser.error(str(error))
    dropped = sorted({metric for each in found for metric in each} - set.intersection(*(set(each) for each in found)))
    if dropped:
        print(f"not known of every training, and left out: {', '.join(dropped)}")
    method = f"{recipe}, {options.weights[0]} weights, mean and s.d. of trainings with seeds {', '.join(map(str, seeds))}"
    publish([Row(metric=metric, system=options.system, method=method, evaluations=row.evaluations, goal=row.goal, published=row.published,
                 n=options.n, seed=options.seed, value=mean(values := [each[metric].value for each in found]), stderr=stdev(values))
             for metric, row in found[0].items() if all(metric in each for each in found)])


if __name__ == "__main__":
    main()
