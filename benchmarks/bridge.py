"""Throughput of the OpenMM bridge against a raw single-context loop, on reference configurations.

    python benchmarks/bridge.py lj13 ala2-vacuum ala2-obc2

Run it on an idle machine. Wall time, best of five, by turns; two workers are compared with one on a larger batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import openmm
import torch
from openmm import unit
from rows import Row, publish

from bgwork.reference_md import dynamics_target
from bgwork.system import load_system, reference_samples
from bgwork.targets.openmm import OpenMMTarget

REPEATS = 5
MANY = 50_000  # rows for one worker and for two, whose messages have a cost of their own


def best(*rivals: Callable[[], object]) -> list[float]:
    """Shortest wall time of each; they run by turns, so that a busy spell hits all of them."""
    times = [[] for _ in rivals]
    for _ in range(REPEATS):
        for f, own in zip(rivals, times, strict=True):
            started = time.perf_counter()
            f()
            own.append(time.perf_counter() - started)
    return [min(own) for own in times]


def raw_loop(system: openmm.System, x: torch.Tensor, *, forces: bool) -> list:
    """What a script without the bridge does; x in nm."""
    context = openmm.Context(system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    found = []
    for positions in x.numpy():
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=forces)
        found.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        if forces:
            found.append(state.getForces(asNumpy=True))
    return found


def openmm_target(name: str) -> OpenMMTarget:
    """A system's energy in OpenMM, without the walls between mirror images."""
    system = load_system(name)
    return system.target if isinstance(system.target, OpenMMTarget) else dynamics_target(system)


def rows_of(name: str) -> list[Row]:
    """Energies, energies with forces, and two workers."""
    target, x = openmm_target(name), reference_samples(load_system(name)).x
    common = {"system": name, "n": len(x)}
    system, many = target.system(), x.repeat(MANY // len(x), 1, 1)
    raw, ours = best(lambda: raw_loop(system, x, forces=False), lambda: target.u(x))
    raw_forces, ours_forces = best(lambda: raw_loop(system, x, forces=True), lambda: target.u_and_grad(x))
    two = OpenMMTarget(system, space=target.space, kT=target.kT, nm=target.nm, workers=2, name=name)
    two.u(many)
    one_worker, two_workers = best(lambda: target.u_and_grad(many), lambda: two.u_and_grad(many))
    return [
        Row(metric="energies/s", method="raw OpenMM loop", value=len(x) / raw, **common),
        Row(metric="energies/s", method="bridge, one process", value=len(x) / ours, **common),
        Row(metric="bridge / raw, energy", method="bridge, one process", value=raw / ours, goal=">= .9", **common),
        Row(metric="bridge / raw, energy and forces", method="bridge, one process", value=raw_forces / ours_forces, goal=">= .9", **common),
        Row(metric="two workers / one, energy and forces", method="bridge", value=one_worker / two_workers, goal=">= 1.7",
            **{**common, "n": len(many)})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+")
    options = parser.parse_args()
    publish([row for name in options.systems for row in rows_of(name)])


if __name__ == "__main__":
    main()
