"""Replica exchange between temperatures (parallel tempering) by molecular dynamics: what biased runs are checked against.

A rung is a temperature with its own dynamics. After every round neighbouring rungs exchange configurations by the Metropolis rule, and
momenta are rescaled by the square root of the temperatures' ratio, so that each rung keeps its canonical distribution (Sugita and Okamoto
1999). Ladders are independent, and several run at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import openmm
import torch

from bgwork import units
from bgwork.samplers.chains import ChainSampler, Kept
from bgwork.samplers.forked import Tick, run_forked
from bgwork.samplers.md import DynamicsError, Langevin, draw_seed, place, reference_platform
from bgwork.targets.openmm import OpenMMTarget


@dataclass(kw_only=True)
class Replicas:
    """One ladder: positions and velocities [R, n, 3] in nm and nm/ps, potential energies [R] in kJ/mol, and exchange counts [R - 1]."""

    x: np.ndarray
    v: np.ndarray
    energy: np.ndarray
    tried: np.ndarray
    accepted: np.ndarray

    @classmethod
    def at(cls, x: np.ndarray) -> Replicas:
        """The rungs at configurations [R, n, 3] in nm."""
        pairs = np.zeros(len(x) - 1)
        return cls(x=x.copy(), v=np.zeros_like(x), energy=np.zeros(len(x)), tried=pairs, accepted=pairs.copy())

    def exchange(self, kT: np.ndarray, *, parity: int, generator: torch.Generator) -> None:
        """Try to swap rungs (parity, parity + 1), (parity + 2, ...), ..., in place.

            accept (a, b) with min(1, exp((1/kT_a - 1/kT_b) (U_a - U_b))), then v -> v sqrt(T_new / T_old)

        Args:
            kT: thermal energy of each rung [R] in kJ/mol.
            parity: 0 or 1.
            generator: of the acceptances.
        """
        for a in _pairs(len(kT), parity):
            b = a + 1
            log_ratio = (1 / kT[a] - 1 / kT[b]) * (self.energy[a] - self.energy[b])
            self.tried[a] += 1
            if math.log(1.0 - torch.rand((), generator=generator, dtype=torch.float64).item()) < log_ratio:
                self.accepted[a] += 1
                scale = math.sqrt(kT[b] / kT[a])
                for array in (self.x, self.v, self.energy):
                    array[[a, b]] = array[[b, a]]
                self.v[a] /= scale
                self.v[b] *= scale


def _pairs(rungs: int, parity: int) -> range:
    """The lower rung of every pair that may swap."""
    return range(parity, rungs - 1, 2)


@dataclass(frozen=True, kw_only=True)
class ReplicaExchange(ChainSampler):
    """Independent ladders of replicas; configurations of the first rung are handed over, `group` is the ladder.

    Args:
        target: reduced energy at the temperature of the first rung.
        start: [C, R, n, 3] first configuration of each rung of each ladder, in the target's length unit.
        temperatures: in K, rising; the first must be the target's.
        burn_in: rounds discarded of each ladder.
        steps: time steps a round.
        thin: rounds between kept configurations.
        dynamics: time step and friction, of all rungs.
        workers: processes, each with one ladder at a time; the numbers do not depend on how many.
        system, progress: as in `ChainSampler`.
    Raises:
        DynamicsError: if the temperatures are no ladder up from the target's, or a setting is out of range.
    """

    target: OpenMMTarget
    temperatures: tuple[float, ...]
    burn_in: int = 100
    steps: int = 500
    thin: int = 1
    dynamics: Langevin = field(default_factory=Langevin)
    workers: int = 1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.temperatures, self.temperatures[1:], strict=False))
        if len(self.temperatures) < 2 or not rising or not math.isclose(units.kT(self.temperatures[0]), self.target.kT, rel_tol=1e-9):
            wanted = self.target.kT / units.GAS_CONSTANT
            raise DynamicsError(f"temperatures must rise from the target's {wanted:g} K in at least two rungs, got {self.temperatures}")
        if self.start.ndim != 4 or self.start.shape[1] != len(self.temperatures):
            raise DynamicsError(f"start has shape {tuple(self.start.shape)}, expected [C, {len(self.temperatures)}, n, 3]")
        if self.burn_in < 0 or min(self.steps, self.thin, self.workers) < 1:
            raise DynamicsError(f"burn_in must not be negative, steps, thin and workers positive; got {self.burn_in}, {self.steps}, "
                                f"{self.thin} and {self.workers}")

    @property
    def method(self) -> str:
        return "replica-exchange"

    def _run(self, draws: int, generator: torch.Generator) -> Kept:
        ladders = len(self.start)
        x, energy = np.empty((draws, ladders, self.space.n, 3)), np.empty((draws, ladders))
        rates, sources = [], [self._own(draws, generator) for _ in range(ladders)]
        made = run_forked(lambda k, tick: self._ladder(k, draws, tick, generator=sources[k]), ladders, workers=self.workers,
                          total=ladders * self._rounds(draws), progress=self.progress, text=f"replica exchange, {ladders} ladders")
        for ladder, kept in enumerate(made):
            x[:, ladder], energy[:, ladder], rate = kept
            rates.append(rate)
        positions = self.space.project(torch.from_numpy(x / self.target.nm).flatten(0, 1)).view(x.shape)
        steps = ladders * self._rounds(draws) * self.steps * len(self.temperatures)
        acceptance = ", ".join(f"{rate:.2f}" for rate in np.mean(rates, 0))
        return Kept(x=positions, log_q=torch.from_numpy(-energy / self.target.kT), gradients=steps,
                    note=f"exchanges accepted between neighbours: {acceptance}")

    def _rounds(self, draws: int) -> int:
        return self.burn_in + draws * self.thin

    def _own(self, draws: int, generator: torch.Generator) -> torch.Generator:
        """A generator for one ladder, which stands where this one does; this one is moved on by all that the ladder will draw."""
        own, rungs = torch.Generator(), len(self.temperatures)
        own.set_state(generator.get_state())
        for _ in range(2 * rungs):
            draw_seed(generator)
        for _ in range(sum(len(_pairs(rungs, k % 2)) for k in range(self._rounds(draws)))):
            torch.rand((), generator=generator, dtype=torch.float64)
        return own

    def _ladder(self, ladder: int, draws: int, tick: Tick, *, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kept positions [draws, n, 3] in nm and energies [draws] of the first rung, and acceptance of each exchange [R - 1]."""
        kT = np.array([units.kT(temperature) for temperature in self.temperatures])
        contexts = [self._context(energy, generator) for energy in kT]
        replicas = Replicas.at(self.start[ladder].numpy() * self.target.nm)
        for rung, context in enumerate(contexts):
            place(context, replicas.x[rung], kT[rung], draw_seed(generator))
            replicas.v[rung] = context.getState(velocities=True).getVelocities(asNumpy=True)._value
        x, energy = np.empty((draws, self.space.n, 3)), np.empty(draws)
        for k in range(self._rounds(draws)):
            self._advance(contexts, replicas)
            if not np.isfinite(replicas.energy).all():
                raise DynamicsError(f"the dynamics blew up (ladder {ladder}); use a shorter time step than {self.dynamics.step} ps")
            replicas.exchange(kT, parity=k % 2, generator=generator)
            if k >= self.burn_in and (k - self.burn_in + 1) % self.thin == 0:
                draw = (k - self.burn_in) // self.thin
                x[draw], energy[draw] = replicas.x[0], replicas.energy[0]
            tick()
        return x, energy, replicas.accepted / np.maximum(replicas.tried, 1)

    def _context(self, kT: float, generator: torch.Generator) -> openmm.Context:
        integrator = self.dynamics.integrator(kT, seed=draw_seed(generator))
        return openmm.Context(self.target.system(), integrator, reference_platform())

    def _advance(self, contexts: list[openmm.Context], replicas: Replicas) -> None:
        """One round of dynamics of every rung."""
        for rung, context in enumerate(contexts):
            context.setPositions(replicas.x[rung])
            context.setVelocities(replicas.v[rung])
            context.getIntegrator().step(self.steps)
            state = context.getState(positions=True, velocities=True, energy=True)
            replicas.x[rung] = state.getPositions(asNumpy=True)._value
            replicas.v[rung] = state.getVelocities(asNumpy=True)._value
            replicas.energy[rung] = state.getPotentialEnergy()._value
