"""Any OpenMM System as a target: batches, float64, gradients through autograd, worker processes."""

from __future__ import annotations

import numpy as np
import openmm
import torch
from torch import Tensor

from bgwork.spaces import Space
from bgwork.targets import worker
from bgwork.targets.counting import CountedTarget
from bgwork.targets.outside import OutsideEnergy
from bgwork.targets.workers import WorkerEnded, Workers

ROWS_PER_WORKER = 500  # below this a worker costs more time to start than it saves


class OpenMMError(ValueError):
    """A System that cannot be a target, or a worker process that ended, with the remedy."""


class OpenMMTarget(CountedTarget):
    """The potential energy of an OpenMM System in units of kT, on the Reference platform, which is double precision.

        u(x) = U(x) / kT,  grad u = -F(x) / kT

    The numbers do not depend on the number of workers, to the last bit. An energy of +inf (overlap) stays +inf; NaN and -inf, which no
    configuration with a weight has, come back as NaN and are counted in `n_nan`. Barostats and thermostats play no part.

    Example:
        >>> from bgwork.spaces import MeanFree
        >>> target = OpenMMTarget(lennard_jones_system(2), space=MeanFree(n=2, d=3), kT=1.0)
        >>> target.u(torch.tensor([[[0.5, 0, 0], [-0.5, 0, 0]]]))
        tensor([-1.7500], dtype=torch.float64)

    Args:
        system: any openmm.System without virtual sites and constraints.
        space: of the configurations, with as many particles as the System, d = 3.
        kT: thermal energy in kJ/mol (`units.kT(temperature)`).
        nm: the length unit of x, in nm.
        workers: processes that share a large batch; 1 evaluates in this process.
        name: printed with every figure.

    Raises:
        OpenMMError: if the System and the space do not fit, or the System has virtual sites or constraints.
    """

    batch = 1_000_000  # one configuration is held at a time anyway; large batches keep the workers busy

    def __init__(self, system: openmm.System, *, space: Space, kT: float, nm: float = 1.0, workers: int = 1, name: str = "openmm") -> None:
        super().__init__(name, space)
        if (system.getNumParticles(), 3) != (space.n, space.d):
            raise OpenMMError(f"{name}: the System has {system.getNumParticles()} particles in 3 dimensions, the space is {space}")
        if any(system.isVirtualSite(k) for k in range(space.n)):
            raise OpenMMError(f"{name}: the System has virtual sites, whose positions are not free; use a force field without them")
        if system.getNumConstraints():
            raise OpenMMError(f"{name}: the System has {system.getNumConstraints()} constraints, on which positions have no density; build "
                              "it with constraints=None and rigidWater=False")
        if not (kT > 0 and nm > 0 and workers >= 1):
            raise OpenMMError(f"{name}: kT, nm and workers must be positive, got {kT}, {nm}, {workers}")
        self.kT, self.nm, self.workers = kT, nm, workers
        self.xml = openmm.XmlSerializer.serialize(system)
        self._engine: worker.Engine | None = None
        self.pool = Workers({"engine": "openmm", "xml": self.xml}, space.n)

    def system(self) -> openmm.System:
        """A copy of the System, to run dynamics on or to add forces to."""
        return openmm.XmlSerializer.deserialize(self.xml)

    def _energy(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return OutsideEnergy.apply(x, self)
        return self._evaluate(x, forces=False)[0]

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._evaluate(x, forces=True)

    def _evaluate(self, x: Tensor, *, forces: bool) -> tuple[Tensor, Tensor]:
        positions = x.detach().cpu().numpy() * self.nm
        share = min(self.workers, len(positions) // ROWS_PER_WORKER)
        energies, gradients = self._in_workers(positions, share, forces) if share > 1 else self._here(positions, forces)
        u = torch.from_numpy(energies) / self.kT
        u[u == -torch.inf] = torch.nan
        return u.to(x.device), (torch.from_numpy(gradients) * (-self.nm / self.kT)).to(x.device)

    def _here(self, positions: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray]:
        if self._engine is None:
            self._engine = worker.openmm_engine({"xml": self.xml})
        return worker.evaluate(self._engine, positions, forces=forces)

    def _in_workers(self, positions: np.ndarray, share: int, forces: bool) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.pool.evaluate(positions, share=share, forces=forces)
        except WorkerEnded as error:
            raise OpenMMError(f"{self.name}: an OpenMM worker ended ({error}); its message is on stderr. workers=1 runs without") from error

    def close(self) -> None:
        """End the worker processes; the next large batch starts new ones."""
        self.pool.close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_engine": None}


def lennard_jones_system(n: int, *, depth: float = 2.0, r_min: float = 1.0, trap: float = 1.0) -> openmm.System:
    """The cluster of `LennardJones` as an OpenMM System; numbers are in kJ/mol and nm, so that kT = 1 kJ/mol makes them reduced.

        u(x) = sum_{i<j} depth (r_min/r)^6 ((r_min/r)^6 - 2) + trap r^2 / 2n

    The trap is a pair term because sum_{i<j} r_ij^2 = n sum_i |x_i - xbar|^2. A CustomBondForce over all pairs is, on the Reference
    platform, faster than the CustomNonbondedForce with the same expression.

    Args:
        n: number of particles.
        depth, r_min, trap: as in `LennardJones`.
    """
    force = openmm.CustomBondForce("depth*s6*(s6 - 2) + stiffness*r^2; s6 = (r_min/r)^6")
    for name, value in {"depth": depth, "r_min": r_min, "stiffness": trap / (2 * n)}.items():
        force.addGlobalParameter(name, value)
    for i in range(n):
        for j in range(i + 1, n):
            force.addBond(i, j, [])
    system = openmm.System()
    for _ in range(n):
        system.addParticle(1.0)
    system.addForce(force)
    return system
