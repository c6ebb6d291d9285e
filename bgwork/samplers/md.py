"""Molecular dynamics on the very Hamiltonian that weights use: Langevin walkers, plain or with a frozen bias on torsions.

Like other Markov chains they hand over UNNORMALISED proposals: log_q = -(u + v), with v the bias in kT, so that `weigh` gives log w = v and
averages come out unbiased. The time step leaves an error of second order in the configurations, which the checks of reference data see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from bgwork.samplers.chains import ChainSampler, Kept, Progress, silent
from bgwork.targets.openmm import OpenMMTarget

TOLD = 100  # draws of a walker between two calls of progress


class DynamicsError(ValueError):
    """Dynamics that cannot be run as asked, or that blew up, with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """The thermostat and the time step of LangevinMiddle dynamics (Zhang et al. 2019).

    Attributes:
        step: in ps.
        friction: in 1/ps.
    """

    step: float = 0.001
    friction: float = 1.0

    def integrator(self, kT: float, *, seed: int) -> openmm.Integrator:
        """At thermal energy kT in kJ/mol."""
        integrator = openmm.LangevinMiddleIntegrator(temperature(kT), self.friction, self.step)
        integrator.setRandomNumberSeed(seed)
        return integrator


def temperature(kT: float) -> float:
    """In K, by OpenMM's own gas constant, so that dynamics and weights share kT to the last digits that matter."""
    return kT / unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


class Bias(Protocol):
    """An energy that is added to the target's, so that dynamics cross barriers."""

    def force(self) -> openmm.Force:
        """As an OpenMM force."""
        ...


@dataclass(frozen=True, kw_only=True)
class MolecularDynamics(ChainSampler):
    """Independent Langevin walkers, one after the other; `group` is the walker.

        log_q = -u(x) - V(x)/kT, up to one constant

    Args:
        target: of the unbiased energy.
        start: [C, n, 3] first configurations, in the target's length unit.
        bias: added to the energy, or None.
        burn_in: time steps discarded of each walker.
        thin: time steps between kept configurations.
        dynamics: time step and friction.
        system, progress: as in `ChainSampler`.
    Raises:
        DynamicsError: if a setting is out of range.
    """

    target: OpenMMTarget
    bias: Bias | None = None
    burn_in: int = 100_000
    thin: int = 100
    dynamics: Langevin = field(default_factory=Langevin)

    def __post_init__(self) -> None:
        self.target.space.check(self.target.space.project(self.start))
        if self.burn_in < 0 or self.thin < 1:
            raise DynamicsError(f"burn_in must not be negative and thin positive, got {self.burn_in} and {self.thin}")

    @property
    def method(self) -> str:
        return "md" if self.bias is None else "biased-md"

    def _run(self, draws: int, generator: torch.Generator) -> Kept:
        walkers = len(self.start)
        context = self._context(draw_seed(generator))
        x = np.empty((draws, walkers, self.space.n, 3))
        total = np.empty((draws, walkers))
        for walker, draw in self._kept(context, draws, generator):
            x[draw, walker] = positions_of(context, self.target)
            total[draw, walker] = context.getState(energy=True).getPotentialEnergy()._value / self.target.kT
            if not math.isfinite(total[draw, walker]):
                raise DynamicsError(f"the dynamics blew up (walker {walker}); use a shorter time step than {self.dynamics.step} ps")
        positions = self.space.project(torch.from_numpy(x).flatten(0, 1)).view(x.shape)
        return Kept(x=positions, log_q=-torch.from_numpy(total), gradients=walkers * (self.burn_in + draws * self.thin))

    def _context(self, seed: int) -> openmm.Context:
        system = self.target.system()
        if self.bias is not None:
            system.addForce(self.bias.force())
        return openmm.Context(system, self.dynamics.integrator(self.target.kT, seed=seed), reference_platform())

    def _kept(self, context: openmm.Context, draws: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
        """Runs the dynamics; yields (walker, draw) whenever the context stands at a configuration to keep."""
        walkers = len(self.start)
        for walker in range(walkers):
            place(context, self.start[walker].numpy() * self.target.nm, self.target.kT, draw_seed(generator))
            context.getIntegrator().step(self.burn_in)
            for draw in range(draws):
                context.getIntegrator().step(self.thin)
                yield walker, draw
                if draw % TOLD == 0:
                    self.progress(walker * draws + draw + 1, walkers * draws, f"walker {walker + 1} of {walkers}")


def decorrelate(target: OpenMMTarget, x: Tensor, *, steps: int, step: float, generator: torch.Generator,
                progress: Progress = silent) -> tuple[Tensor, float]:
    """Every configuration moved on by one Hamiltonian Monte Carlo transition, which leaves exp(-u) exactly as it is.

        H(x, v) = U(x) + m v^2 / 2, velocity Verlet, accept with min(1, exp((H - H') / kT)), source: Duane et al. 1987

    Copies of one configuration become different ones unless they are rejected. Fresh velocities without the Metropolis step would heat the
    stiff bonds: at a finite time step their stationary velocities are not Maxwell's.

    Args:
        target: reduced energy.
        x: [N, n, 3] in its length unit.
        steps: time steps of each trajectory.
        step: in ps.
        generator: of velocities and acceptances.
        progress: called as progress(done, total, text).
    Returns:
        [N, n, 3], on the target's space, and the share that was accepted.
    """
    system = target.system()
    context = openmm.Context(system, openmm.VerletIntegrator(step), reference_platform())
    mass = np.array([system.getParticleMass(k)._value for k in range(system.getNumParticles())])[:, None]
    velocities = torch.randn(x.shape, generator=generator, dtype=torch.float64).numpy() * np.sqrt(target.kT / mass)
    threshold = -torch.empty(len(x), dtype=torch.float64).exponential_(generator=generator).numpy() * target.kT
    moved, accepted = x.numpy() * target.nm, 0
    for k in range(len(x)):
        proposed, loss = _verlet(context, moved[k], velocities[k], mass, steps, step)
        if loss > threshold[k]:
            moved[k], accepted = proposed, accepted + 1
        if k % 1000 == 0:
            progress(k + 1, len(x), "decorrelating")
    return target.space.project(torch.from_numpy(moved / target.nm)), accepted / len(x)


def _verlet(context: openmm.Context, x: np.ndarray, v: np.ndarray, mass: np.ndarray, steps: int, step: float) -> tuple[np.ndarray, float]:
    """End of a velocity-Verlet trajectory [n, 3] in nm, and the energy H - H' that it lost, in kJ/mol.

    OpenMM's leapfrog holds velocities half a step behind the positions, hence the half kicks at both ends.
    """
    context.setPositions(x)
    first = context.getState(energy=True, forces=True)
    context.setVelocities(v - 0.5 * step * first.getForces(asNumpy=True)._value / mass)
    context.getIntegrator().step(steps)
    last = context.getState(positions=True, velocities=True, energy=True, forces=True)
    end = last.getVelocities(asNumpy=True)._value + 0.5 * step * last.getForces(asNumpy=True)._value / mass
    kinetic = 0.5 * (mass * (v**2 - end**2)).sum()
    return last.getPositions(asNumpy=True)._value, first.getPotentialEnergy()._value - last.getPotentialEnergy()._value + kinetic


def draw_seed(generator: torch.Generator) -> int:
    """A positive seed for OpenMM, which takes 0 for "any"."""
    return int(torch.randint(1, 2**31 - 1, (), generator=generator))


def place(context: openmm.Context, positions: np.ndarray, kT: float, seed: int) -> None:
    """Positions [n, 3] in nm, and velocities from the Maxwell distribution."""
    context.setPositions(positions)
    context.setVelocitiesToTemperature(temperature(kT), seed)


def positions_of(context: openmm.Context, target: OpenMMTarget) -> np.ndarray:
    """[n, 3] in the target's length unit."""
    return context.getState(positions=True).getPositions(asNumpy=True)._value / target.nm


def reference_platform() -> openmm.Platform:
    """Double precision, and the fastest for small molecules."""
    return openmm.Platform.getPlatformByName("Reference")


