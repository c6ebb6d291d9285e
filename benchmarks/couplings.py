"""Independent, OT and equivariant OT couplings at equal training: path length, dopri5 evaluations and ESS.

    python benchmarks/couplings.py dw4 --steps 3000
    python benchmarks/couplings.py lj13 --steps 2500

The same recipe, seed and number of steps for each; core-minutes of each training are printed beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rows import Row, estimate_row, publish

from bgwork import store
from bgwork.generators import load_generator
from bgwork.recipes import Request, load_recipe
from bgwork.records import Density
from bgwork.reweighting import ess, log_z, weigh
from bgwork.samplers.ode import AdaptiveFlow
from bgwork.system import System, load_system
from bgwork.training import train

COUPLINGS = {"independent": ("independent", 1), "ot": ("ot", 1), "equivariant-ot, pairs": ("equivariant-ot", 1),
             "equivariant-ot, groups of 4": ("equivariant-ot", 4)}


def path_length(job, batches: int = 20) -> tuple[float, float]:
    """Mean |x1 - x0| and its standard error over batches."""
    means = torch.tensor([job.data(k).velocity.double().square().sum((1, 2)).sqrt().mean() for k in range(batches)])
    return means.mean().item(), (means.std() / batches**0.5).item()


def measure(system: System, name: str, x: torch.Tensor, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Train with one coupling and measure."""
    kind, group = COUPLINGS[name]
    settings = [f"coupling.kind={kind}", f"coupling.group={group}", f"training.steps={options.steps}", "training.evaluate_every=0",
                "training.compiled=false", "training.bfloat16=0", f"training.checkpoint_every={options.steps}"]
    recipe = load_recipe(system, "eqot-fm", overrides=settings)
    job = recipe.job(Request(system=system, name=name, folder=folder, data=x, seed=options.seed))
    length, length_error = path_length(job)
    state = train(job, resume=False)
    flow = load_generator(job.generator, system=system)
    weighted = weigh(flow.sample(options.n, generator=torch.Generator().manual_seed(31)), system.target, accept=(Density.UNCERTIFIED,))
    adaptive = AdaptiveFlow(prior=flow.prior, field=flow.field, origin=flow.origin, rtol=1e-5, atol=1e-5, batch=options.n_adaptive)
    cost = adaptive.sample(options.n_adaptive, generator=torch.Generator().manual_seed(32)).cost
    minutes = (state.seconds + state.worker_seconds) / 60
    common = {"system": system.name, "method": f"{name}, {options.steps} steps", "seed": options.seed}
    return [
        Row(metric="path length |x1 - x0|", value=length, stderr=length_error, n=20 * recipe.training.batch, **common),
        Row(metric="dopri5 evaluations (1e-5, with divergence)", value=cost.network / options.n_adaptive, n=options.n_adaptive, **common),
        Row(metric="core-minutes", value=minutes, n=options.steps, **common),
        Row(metric="training loss", value=last_loss(job.metrics), n=options.steps, **common),
        estimate_row("reverse ESS", ess(weighted), n=options.n, evaluations=flow.grid.evaluations, **common),
        estimate_row("log Z", log_z(weighted), n=options.n, evaluations=flow.grid.evaluations, **common)]


def last_loss(metrics: Path) -> float:
    """Loss of the last row."""
    return json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--n-adaptive", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system(options.system)
    x = store.load_samples(Path("runs") / system.name / "reference" / "samples.npz").x
    for name in COUPLINGS:
        with tempfile.TemporaryDirectory() as folder:
            publish(measure(system, name, x, options, Path(folder)))


if __name__ == "__main__":
    main()
