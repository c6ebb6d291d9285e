"""Independent, OT and equivariant OT couplings at equal core-minutes: path length, dopri5 evaluations and ESS.

    python benchmarks/couplings.py dw4 --minutes 2 --data runs/dw4/reference/samples.npz
    python benchmarks/couplings.py lj13 --minutes 10 --steps 6 -n 10000 --data runs/lj13/reference/samples.npz

The same recipe and seed for each, uncompiled and in float32, at a constant learning rate after the warm-up; core-minutes are the CPU time
of the steps on one thread plus that of the pairing worker, and the number of steps that they were enough for is printed beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
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
from bgwork.training import TrainingJob, TrainingState, advance, batches, finish, start

ENDLESS = 10**9  # steps: the learning rate stays constant, and the minutes end the training
COUPLINGS = {"independent": ("independent", 1), "ot": ("ot", 1), "equivariant-ot, pairs": ("equivariant-ot", 1),
             "equivariant-ot, groups of 4": ("equivariant-ot", 4)}


def path_length(job: TrainingJob, n: int = 20) -> tuple[float, float]:
    """Mean |x1 - x0| and its standard error over batches."""
    means = torch.tensor([job.data(k).velocity.double().square().sum((1, 2)).sqrt().mean() for k in range(n)])
    return means.mean().item(), (means.std() / n**0.5).item()


def trained(job: TrainingJob, minutes: float) -> TrainingState:
    """Train until the core-minutes are spent, and keep the averaged weights."""
    state, started = start(job), time.process_time()
    for batch in batches(job, state):
        advance(job, state, job.loss, batch)
        if time.process_time() - started + state.worker_seconds >= 60 * minutes:
            break
    finish(job, state)
    return state


def measure(system: System, name: str, x: torch.Tensor, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Train with one coupling and measure."""
    kind, group = COUPLINGS[name]
    settings = [f"coupling.kind={kind}", f"coupling.group={group}", "training.evaluate_every=0", "training.compiled=false",
                "training.bfloat16=0", "training.initial=", f"training.steps={ENDLESS}"]
    settings += [] if options.steps is None else [f"sampler.steps={options.steps}"]
    recipe = load_recipe(system, options.recipe, overrides=settings)
    job = recipe.job(Request(system=system, name=name, folder=folder, data=x, seed=options.seed))
    length, length_error = path_length(job)
    state = trained(job, options.minutes)
    losses = torch.tensor(state.losses[-200:])
    flow = load_generator(job.generator, system=system)
    weighted = weigh(flow.sample(options.n, generator=torch.Generator().manual_seed(31)), system.target, accept=(Density.UNCERTIFIED,))
    adaptive = AdaptiveFlow(prior=flow.prior, field=flow.field, origin=flow.origin, rtol=1e-5, atol=1e-5, batch=options.n_adaptive)
    cost = adaptive.sample(options.n_adaptive, generator=torch.Generator().manual_seed(32)).cost
    common = {"system": system.name, "method": f"{name}, {options.minutes:g} core-minutes", "seed": options.seed}
    return [
        Row(metric="path length |x1 - x0|", value=length, stderr=length_error, n=20 * recipe.training.batch, **common),
        Row(metric="dopri5 evaluations (1e-5, with divergence)", value=cost.network / options.n_adaptive, n=options.n_adaptive, **common),
        Row(metric="training steps", value=state.step, n=state.step, **common),
        Row(metric="training loss, last 200 steps", value=losses.mean().item(), stderr=(losses.std() / len(losses) ** 0.5).item(),
            n=len(losses), **common),
        estimate_row("reverse ESS", ess(weighted), n=options.n, evaluations=flow.grid.evaluations, **common),
        estimate_row("log Z", log_z(weighted), n=options.n, evaluations=flow.grid.evaluations, **common)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--minutes", type=float, default=4, help="core-minutes of each training")
    parser.add_argument("--data", required=True, help="equilibrium samples to train on")
    parser.add_argument("--recipe", default="eqot-fm")
    parser.add_argument("--couplings", nargs="+", choices=COUPLINGS, default=list(COUPLINGS), metavar="NAME", help=", ".join(COUPLINGS))
    parser.add_argument("--steps", type=int, default=None, help="of the sampler measured; the recipe's if not given")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--n-adaptive", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system(options.system)
    x = store.load_samples(Path(options.data)).x
    for name in options.couplings:
        with tempfile.TemporaryDirectory() as folder:
            publish(measure(system, name, x, options, Path(folder)))


if __name__ == "__main__":
    main()
