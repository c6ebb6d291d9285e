"""Biases on torsion angles: well-tempered metadynamics builds one, then it is frozen and dynamics under it are reweighted."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from bgwork.observables import Atoms
from bgwork.records import Cost
from bgwork.samplers.chains import Progress, silent
from bgwork.samplers.md import DynamicsError, Langevin, draw_seed, place, positions_of, reference_platform, temperature
from bgwork.targets.openmm import OpenMMTarget

BIAS_GROUP = 31  # force group of the bias; the System's own forces are in the others


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
        cost: one gradient a time step.
    """

    bias: TorsionBias
    x: Tensor
    angles: Tensor
    cost: Cost


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
    system, began = target.system(), time.perf_counter()
    variables = [_bias_variable(torsion, settings.width) for torsion in settings.torsions]
    meta = app.Metadynamics(system, variables, temperature(target.kT), settings.factor, settings.height, settings.every)
    integrator = dynamics.integrator(target.kT, seed=draw_seed(generator))
    simulation = app.Simulation(_no_topology(len(start)), system, integrator, reference_platform())
    place(simulation.context, start.numpy() * target.nm, target.kT, draw_seed(generator))
    hills, x, angles = settings.steps // settings.every, [], []
    for hill in range(hills):
        meta.step(simulation, settings.every)
        x.append(positions_of(simulation.context, target))
        angles.append(meta.getCollectiveVariables(simulation))
        progress(hill + 1, hills, "metadynamics")
    free = meta.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
    table = torch.from_numpy(-free * (settings.factor - 1) / settings.factor)  # [grid] * k, last angle first
    bias = TorsionBias(torsions=settings.torsions, table=table.permute(*range(table.ndim - 1, -1, -1)).contiguous())
    cost = Cost(gradient=hills * settings.every, seconds=time.perf_counter() - began)
    return BiasRun(bias=bias, x=torch.from_numpy(np.stack(x)), angles=torch.from_numpy(np.array(angles)), cost=cost)


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
