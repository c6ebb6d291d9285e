"""Throughput of the OpenMM bridge against a raw single-context loop, on LJ13 reference configurations.

    python benchmarks/bridge.py

Run it on an idle machine. Wall time, best of five; two workers are compared with one on a larger batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import openmm
import torch
from openmm import unit
from rows import Row, publish

from bgwork.system import load_system, reference_samples
from bgwork.targets.openmm import OpenMMTarget, lennard_jones_system


def best(f: Callable[[], object], repeats: int = 5) -> float:
    """Shortest wall time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        f()
        times.append(time.perf_counter() - started)
    return min(times)


def raw_loop(x: torch.Tensor, *, forces: bool) -> list:
    """What a script without the bridge does."""
    context = openmm.Context(lennard_jones_system(13, depth=2.0, r_min=1.0, trap=1.0), openmm.VerletIntegrator(1e-3),
                             openmm.Platform.getPlatformByName("Reference"))
    found = []
    for positions in x.numpy():
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=forces)
        found.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        if forces:
            found.append(state.getForces(asNumpy=True))
    return found


def main() -> None:
    system = load_system("lj13")
    x = reference_samples(system).x
    common = {"system": "lj13", "n": len(x), "seed": None}
    raw, raw_forces = (len(x) / best(lambda f=forces: raw_loop(x, forces=f)) for forces in (False, True))
    ours, ours_forces = (len(x) / best(lambda f=f: f(x)) for f in (system.target.u, system.target.u_and_grad))
    many = x.repeat(5, 1, 1)
    two = OpenMMTarget(lennard_jones_system(13, depth=2.0, r_min=1.0, trap=1.0), space=system.space, kT=1.0, workers=2, name="lj13")
    two.u(many)
    gain = best(lambda: system.target.u_and_grad(many)) / best(lambda: two.u_and_grad(many))
    publish([
        Row(metric="energies/s", method="raw OpenMM loop", value=raw, **common),
        Row(metric="energies/s", method="bridge, one process", value=ours, **common),
        Row(metric="bridge / raw, energy", method="bridge, one process", value=ours / raw, goal=">= 1", **common),
        Row(metric="bridge / raw, energy and forces", method="bridge, one process", value=ours_forces / raw_forces, goal=">= 1", **common),
        Row(metric="two workers / one, energy and forces", method="bridge", value=gain, **{**common, "n": len(many)})])


if __name__ == "__main__":
    main()
