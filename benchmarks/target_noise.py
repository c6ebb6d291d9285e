"""What a molecule's velocity is regressed on: its mean square distance from pairs, pools and forces, by time.

    python benchmarks/target_noise.py ala3-obc2 fm --data runs/ala3-obc2/reference/training.npz

All three targets have the same mean given the noisy configuration, the trained velocity's own error is in all three distances, and what is
left of them is the noise that a training has to average over. Pools and forces are tried at all times, forces with the damping that suits
a start at 0.8.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rows import Row, publish
from torch import Tensor, nn

from bgwork import store
from bgwork.couplings import random_turns
from bgwork.generators import generator_path, load_trained
from bgwork.objectives.force_targets import ForceTargets, Pairs
from bgwork.objectives.pooled_targets import PooledTargets
from bgwork.objectives.posterior_mean import PooledPosterior
from bgwork.objectives.stiffness import Stiffness
from bgwork.recipes.sections import CouplingSection
from bgwork.system import System, load_system

TIMES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
START = 0.8  # of forces
ROWS = 100  # of a network at once
SOME = 1000  # configurations that their damping is found from


def target_makers(system: System, x: Tensor, pool: int) -> tuple[PooledTargets, ForceTargets]:
    """Pools of the data and forces, both for all times."""
    coupling = CouplingSection(kind="soft-molecular").build(system)
    posterior = PooledPosterior(prior=system.prior, coupling=coupling)
    pools = PooledTargets.of(x, None, posterior=posterior, size=pool, until=1.0)
    some = x[:: max(1, len(x) // SOME)]
    forces = ForceTargets.of(some, system.differentiable_target.u_and_grad(some)[1], prior=system.prior, coupling=coupling, after=START,
                             stiffness=Stiffness.of(system.topology, x))
    return pools, replace(forces, after=0.0)


def distances(system: System, network: nn.Module, x: Tensor, makers: tuple[PooledTargets, ForceTargets], *, time: float, n: int,
              generator: torch.Generator) -> dict[str, Tensor]:
    """Mean square per coordinate between a velocity and each kind of target, [n]."""
    pools, forces = makers
    drawn = torch.randint(len(x), (n,), generator=generator)
    x1 = x[drawn] @ random_turns(n, 3, generator=generator)
    gradient = system.differentiable_target.u_and_grad(x1)[1]
    x0, x1 = forces.coupling(system.prior.sample(n, generator=generator), x1, generator=generator)
    t = torch.full((n,), time, dtype=torch.float64)
    noisy, velocity = (1 - time) * x0 + time * x1, x1 - x0
    with torch.no_grad():
        known = torch.cat([network(t[:1].float(), part.float()).double() for part in noisy.split(ROWS)])
    targets = {"pairs": velocity, f"pools of {pools.size}": pools(t, noisy, velocity, drawn, generator=generator),
               "forces": velocity + forces(Pairs(t=t, x0=x0, x1=x1, gradient=gradient))}
    return {name: (known - target).square().mean((1, 2)) for name, target in targets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("generator")
    parser.add_argument("--data", type=Path, required=True, help="equilibrium configurations of the system")
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("-n", type=int, default=500, help="pairs at each time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    system, x = load_system(options.system), store.load_samples(options.data).x
    network = load_trained(generator_path(options.system, recipe=options.generator), system=system)[1].network
    makers, generator, rows = target_makers(system, x, options.pool), torch.Generator().manual_seed(options.seed), []
    for time in TIMES:
        for name, square in distances(system, network, x, makers, time=time, n=options.n, generator=generator).items():
            rows.append(Row(metric=f"mean square from targets at t = {time:g}", value=square.mean().item(), n=options.n, seed=options.seed,
                            stderr=square.std().item() / options.n**0.5, system=options.system, method=f"{options.generator}, {name}"))
    publish(rows)


if __name__ == "__main__":
    main()
