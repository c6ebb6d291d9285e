"""What a molecule's velocity is regressed on: its mean square distance from pairs, pools and forces, by time.

    python benchmarks/target_noise.py ala3-obc2 fm --data runs/ala3-obc2/reference/training.npz

All three targets have the same mean given the noisy configuration, the trained velocity's own error is in all three distances, and what is
left of them is the noise that a training has to average over. Pools are taken before 0.94, forces at all times.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rows import Row, publish

from bgwork import store
from bgwork.couplings import random_turns
from bgwork.generators import generator_path, load_trained
from bgwork.objectives.force_targets import ForceTargets, Pairs, Stiffness
from bgwork.objectives.pooled_targets import PooledTargets
from bgwork.objectives.posterior_mean import PooledPosterior
from bgwork.recipes.sections import CouplingSection
from bgwork.system import load_system

TIMES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
UNTIL = 0.94


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("generator")
    parser.add_argument("--data", type=Path, required=True, help="equilibrium configurations of the system")
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("-n", type=int, default=1000, help="pairs at each time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    system, x = load_system(options.system), store.load_samples(options.data).x
    _, trained = load_trained(generator_path(options.system, recipe=options.generator), system=system)
    coupling = CouplingSection(kind="soft-molecular").build(system)
    pools = PooledTargets.of(x, None, prior=system.prior, posterior=PooledPosterior(std=system.prior.std, coupling=coupling),
                             size=options.pool, until=UNTIL)
    forces = ForceTargets(std=system.prior.std, hessian=Stiffness.of(system.topology, x), coupling=coupling, after=0.0)
    generator, rows = torch.Generator().manual_seed(options.seed), []
    for time in TIMES:
        drawn = torch.randint(len(x), (options.n,), generator=generator)
        x1 = x[drawn] @ random_turns(options.n, 3, generator=generator)
        gradient = system.differentiable_target.u_and_grad(x1)[1]
        x0, x1 = coupling(system.prior.sample(options.n, generator=generator), x1, generator=generator)
        t = torch.full((options.n,), time, dtype=torch.float64)
        noisy, velocity = (1 - time) * x0 + time * x1, x1 - x0
        with torch.no_grad():
            known = torch.cat([trained.network(t[:1].float(), part.float()).double() for part in noisy.split(100)])
        targets = {"pairs": velocity, "forces": velocity + forces(Pairs(t=t, x0=x0, x1=x1, gradient=gradient)),
                   f"pools of {options.pool}": pools(t, noisy, velocity, drawn, generator=generator)}
        for name, target in targets.items():
            square = (known - target).square().mean((1, 2))
            rows.append(Row(metric=f"mean square from targets at t = {time:g}", value=square.mean().item(), n=options.n, seed=options.seed,
                            stderr=square.std().item() / options.n**0.5, system=options.system, method=f"{options.generator}, {name}"))
    publish(rows)


if __name__ == "__main__":
    main()
