"""Molecular dynamics on the very Hamiltonian that weights use: Langevin walkers, plain or with a frozen bias on torsions.

Like other Markov chains they hand over UNNORMALISED proposals: log_q = -(u + v), with v the bias in kT, so that `weigh` gives log w = v and
averages come out unbiased. The time step leaves an error of second order in the configurations, which the checks of reference data see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.samplers.batches import check_count
from bgwork.samplers.mcmc import Progress, silent
from bgwork.spaces import Space
from bgwork.targets.openmm import OpenMMTarget

BIAS_GROUP = 31  # force group of the bias; the System's own forces are in the others

Atoms = tuple[int, int, int, int]


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


@dataclass(frozen=True, kw_only=True)
class TorsionBias:
    """A fixed bias V(theta_1, ..., theta_k) on torsion angles, tabulated and interpolated by splines.

    Attributes:
        torsions: the four atoms of each angle, k <= 3 of them.
        table: V in kJ/mol on a grid over [-pi, pi] with both ends, [grid] * k, axis i for angle i.
    """

    torsions: tuple[Atoms, ...]
    table: Tensor

    def force(self) -> openmm.Force:
        """As an OpenMM force, in a group of its own."""
        atoms = sorted({atom for torsion in self.torsions for atom in torsion})
        angles = [f"dihedral({','.join(f'p{atoms.index(atom) + 1}' for atom in torsion)})" for torsion in self.torsions]
        force = openmm.CustomCompoundBondForce(len(atoms), f"bias({','.join(angles)})")
        force.addTabulatedFunction("bias", self._function())
        force.addBond(atoms, [])
        force.setForceGroup(BIAS_GROUP)
        return force

    def _function(self) -> openmm.TabulatedFunction:
        kinds = {1: openmm.Continuous1DFunction, 2: openmm.Continuous2DFunction, 3: openmm.Continuous3DFunction}
        k = self.table.ndim
        sizes = [] if k == 1 else list(self.table.shape)
        values = self.table.numpy().flatten(order="F").tolist()  # OpenMM runs fastest along the first angle
        return kinds[k](*sizes, values, *([-math.pi, math.pi] * k), True)

    def capped(self, level: float) -> TorsionBias:
        """The bias cut off at `level` kJ/mol below its maximum: barriers are lowered to that height, lower basins keep their shape."""
        return TorsionBias(torsions=self.torsions, table=self.table.clamp_max(self.table.max().item() - level))


@dataclass(frozen=True, kw_only=True)
class WellTempered:
    """Settings of well-tempered metadynamics on torsions (Barducci, Bussi and Parrinello 2008).

    Attributes:
        torsions: the four atoms of each angle, at most three angles.
        steps: time steps.
        height: of the first hills, in kJ/mol.
        width: of the hills, in rad.
        factor: bias factor (T + dT) / T.
        every: time steps between hills.
    """

    torsions: tuple[Atoms, ...]
    steps: int = 4_000_000
    height: float = 1.2
    width: float = 0.35
    factor: float = 10.0
    every: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= len(self.torsions) <= 3:
            raise DynamicsError(f"metadynamics takes one to three torsions, got {len(self.torsions)}")
        if self.steps < self.every or self.factor <= 1 or self.height <= 0 or self.width <= 0:
            raise DynamicsError(f"steps >= every, factor > 1, height > 0 and width > 0 are needed, got {self}")


@dataclass(frozen=True, kw_only=True)
class BiasRun:
    """What metadynamics leaves behind.

    Attributes:
        bias: at the end, frozen.
        x: [M, n, 3] configurations of the run, one per hill, in the target's length unit.
        angles: [M, k] torsions there, in rad.
    """

    bias: TorsionBias
    x: Tensor
    angles: Tensor


def build_bias(target: OpenMMTarget, start: Tensor, settings: WellTempered, *, dynamics: Langevin, generator: torch.Generator,
               progress: Progress = silent) -> BiasRun:
    """Fill the free-energy basins of some torsions with hills, by `openmm.app.Metadynamics`.

    Args:
        target: of the unbiased energy.
        start: [n, 3] first configuration, in the target's length unit.
        settings: of metadynamics.
        dynamics: time step and friction.
        generator: of velocities and noise.
        progress: called as progress(done, total, text).
    Raises:
        DynamicsError: if the trajectory blows up.
    """
    system = target.system()
    variables = [_bias_variable(torsion, settings.width) for torsion in settings.torsions]
    meta = app.Metadynamics(system, variables, temperature(target.kT), settings.factor, settings.height, settings.every)
    simulation = app.Simulation(_no_topology(len(start)), system, dynamics.integrator(target.kT, seed=draw_seed(generator)), _reference())
    _place(simulation.context, start.numpy() * target.nm, target.kT, draw_seed(generator))
    hills, x, angles = settings.steps // settings.every, [], []
    for hill in range(hills):
        meta.step(simulation, settings.every)
        x.append(_positions(simulation.context, target))
        angles.append(meta.getCollectiveVariables(simulation))
        progress(hill + 1, hills, "metadynamics")
    free = meta.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
    table = torch.from_numpy(-free * (settings.factor - 1) / settings.factor)  # [grid] * k, last angle first
    bias = TorsionBias(torsions=settings.torsions, table=table.permute(*range(table.ndim - 1, -1, -1)).contiguous())
    return BiasRun(bias=bias, x=torch.from_numpy(np.stack(x)), angles=torch.from_numpy(np.array(angles)))


@dataclass(frozen=True, kw_only=True)
class MolecularDynamics:
    """Independent Langevin walkers, one after the other; `group` is the walker.

        log_q = -u(x) - V(x)/kT, up to one constant

    Args:
        target: of the unbiased energy.
        start: [C, n, 3] first configurations, in the target's length unit.
        bias: added to the energy, or None.
        burn_in: time steps discarded of each walker.
        thin: time steps between kept configurations.
        dynamics: time step and friction.
        system: name that the proposal's origin carries.
        progress: called as progress(done, total, text).
    Raises:
        DynamicsError: if a setting is out of range.
    """

    target: OpenMMTarget
    start: Tensor
    bias: TorsionBias | None = None
    burn_in: int = 100_000
    thin: int = 100
    dynamics: Langevin = field(default_factory=Langevin)
    system: str = ""
    progress: Progress = field(default=silent, repr=False)

    def __post_init__(self) -> None:
        self.target.space.check(self.target.space.project(self.start))
        if self.burn_in < 0 or self.thin < 1:
            raise DynamicsError(f"burn_in must not be negative and thin positive, got {self.burn_in} and {self.thin}")

    @property
    def space(self) -> Space:
        return self.target.space

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """n configurations, draw by draw: row k belongs to walker k mod C.

        Raises:
            DynamicsError: if a trajectory blows up.
        """
        check_count(n)
        began, walkers = time.perf_counter(), len(self.start)
        draws = -(-n // walkers)
        context = self._context(draw_seed(generator))
        x = np.empty((draws, walkers, self.space.n, 3))
        total = np.empty((draws, walkers))
        for walker, draw in self._kept(context, draws, generator):
            x[draw, walker] = _positions(context, self.target)
            total[draw, walker] = context.getState(energy=True).getPotentialEnergy()._value / self.target.kT
            if not math.isfinite(total[draw, walker]):
                raise DynamicsError(f"the dynamics blew up (walker {walker}); use a shorter time step than {self.dynamics.step} ps")
        steps = walkers * (self.burn_in + draws * self.thin)
        method = "md" if self.bias is None else "biased-md"
        return Proposal(
            x=self.space.project(torch.from_numpy(x).flatten(0, 1)[:n].clone()), log_q=-torch.from_numpy(total).flatten()[:n].clone(),
            space=self.space, density=Density.UNNORMALISED, cost=Cost(gradient=steps, seconds=time.perf_counter() - began),
            origin=Origin(method=method, system=self.system or self.target.name, seed=generator.initial_seed()),
            group=torch.arange(walkers).repeat(draws)[:n].clone())

    def _context(self, seed: int) -> openmm.Context:
        system = self.target.system()
        if self.bias is not None:
            system.addForce(self.bias.force())
        return openmm.Context(system, self.dynamics.integrator(self.target.kT, seed=seed), _reference())

    def _kept(self, context: openmm.Context, draws: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
        """Runs the dynamics; yields (walker, draw) whenever the context stands at a configuration to keep."""
        walkers = len(self.start)
        for walker in range(walkers):
            _place(context, self.start[walker].numpy() * self.target.nm, self.target.kT, draw_seed(generator))
            context.getIntegrator().step(self.burn_in)
            for draw in range(draws):
                context.getIntegrator().step(self.thin)
                yield walker, draw
                if draw % 100 == 0:
                    self.progress(walker * draws + draw + 1, walkers * draws, f"walker {walker + 1} of {walkers}")


def decorrelate(target: OpenMMTarget, x: Tensor, *, steps: int, dynamics: Langevin, generator: torch.Generator,
                progress: Progress = silent) -> Tensor:
    """Every configuration moved on by a short unbiased trajectory with fresh velocities, which leaves exp(-u) as it is.

    Copies of one configuration become different ones.

    Args:
        target: reduced energy.
        x: [N, n, 3] in its length unit.
        steps: time steps of each trajectory.
        dynamics: time step and friction.
        generator: of velocities and noise.
        progress: called as progress(done, total, text).
    Returns:
        [N, n, 3], on the target's space.
    """
    context = openmm.Context(target.system(), dynamics.integrator(target.kT, seed=draw_seed(generator)), _reference())
    moved = np.empty(x.shape)
    for k, row in enumerate(x.numpy() * target.nm):
        _place(context, row, target.kT, draw_seed(generator))
        context.getIntegrator().step(steps)
        moved[k] = _positions(context, target)
        if k % 1000 == 0:
            progress(k + 1, len(x), "decorrelating")
    return target.space.project(torch.from_numpy(moved))


def draw_seed(generator: torch.Generator) -> int:
    """A positive seed for OpenMM, which takes 0 for "any"."""
    return int(torch.randint(1, 2**31 - 1, (), generator=generator))


def _place(context: openmm.Context, positions: np.ndarray, kT: float, seed: int) -> None:
    context.setPositions(positions)
    context.setVelocitiesToTemperature(temperature(kT), seed)


def _positions(context: openmm.Context, target: OpenMMTarget) -> np.ndarray:
    """[n, 3] in the target's length unit."""
    return context.getState(positions=True).getPositions(asNumpy=True)._value / target.nm


def _reference() -> openmm.Platform:
    return openmm.Platform.getPlatformByName("Reference")


def _bias_variable(torsion: Atoms, width: float) -> app.BiasVariable:
    force = openmm.CustomTorsionForce("theta")
    force.addTorsion(*torsion, [])
    return app.BiasVariable(force, -math.pi, math.pi, width, True)


def _no_topology(n: int) -> app.Topology:
    """A topology that says nothing, which `Simulation` asks for: n atoms of one residue."""
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for _ in range(n):
        topology.addAtom("X", None, residue)
    return topology
