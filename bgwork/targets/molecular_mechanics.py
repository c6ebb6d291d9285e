"""The energy of an OpenMM System in torch: the same numbers, differentiable any number of times, in batches, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import openmm
import torch
from torch import Tensor

from bgwork.spaces import Space
from bgwork.targets.bonded import Term, harmonic_angles, harmonic_bonds, periodic_torsions
from bgwork.targets.cmap import correction_maps
from bgwork.targets.counting import CountedTarget
from bgwork.targets.nonbonded import born_obc, pairs

READERS: dict[type[openmm.Force], Callable[[openmm.Force], Term | None]] = {
    openmm.HarmonicBondForce: harmonic_bonds,
    openmm.HarmonicAngleForce: harmonic_angles,
    openmm.PeriodicTorsionForce: periodic_torsions,
    openmm.CMAPTorsionForce: correction_maps,
    openmm.NonbondedForce: pairs,
    openmm.GBSAOBCForce: born_obc,
    openmm.CMMotionRemover: lambda _: None,
}
BORN_REMEDY = "exchange it for a GBSAOBCForce of radius or + 0.009 nm and scale sr / or"
OTHER_REMEDY = "use OpenMMTarget, which takes any force, if first derivatives are enough"


class UnsupportedForce(ValueError):
    """A System with a part that has no torch twin, with the part's name and the remedy."""


class MolecularMechanics(CountedTarget):
    """The potential energy of an OpenMM System in units of kT, in torch and float64.

        u(x) = U(x) / kT

    U sums harmonic bonds and angles, periodic torsions, correction maps, Lennard-Jones and Coulomb pairs with exceptions and without
    cutoff, and the GBSA-OBC model, each as OpenMM defines it. Weights should use `OpenMMTarget` of the same System; this is its
    differentiable twin.

    Example:
        >>> import openmm, torch
        >>> from bgwork.spaces import MeanFree
        >>> system, bond = openmm.System(), openmm.HarmonicBondForce()
        >>> _ = system.addParticle(12.0), system.addParticle(12.0), bond.addBond(0, 1, 0.1, 200.0), system.addForce(bond)
        >>> MolecularMechanics(system, space=MeanFree(n=2, d=3), kT=2.5).u(torch.tensor([[[0.1, 0, 0], [-0.1, 0, 0]]]))
        tensor([0.4000], dtype=torch.float64)

    Args:
        system: without constraints, virtual sites and periodic boundaries.
        space: of the configurations, with as many particles as the System, d = 3.
        kT: thermal energy in kJ/mol (`units.kT(temperature)`).
        nm: the length unit of x, in nm.
        name: printed with every figure.

    Raises:
        UnsupportedForce: naming the first part of the System that cannot be taken over.
        ValueError: if the System and the space do not fit.
    """

    batch = 1024

    def __init__(self, system: openmm.System, *, space: Space, kT: float, nm: float = 1.0, name: str = "molecular-mechanics") -> None:
        super().__init__(name, space)
        if (system.getNumParticles(), 3) != (space.n, space.d):
            raise ValueError(f"{name}: the System has {system.getNumParticles()} particles in 3 dimensions, the space is {space}")
        if not (kT > 0 and nm > 0):
            raise ValueError(f"{name}: kT and nm must be positive, got {kT} and {nm}")
        self.kT, self.nm = kT, nm
        self._terms = {torch.device("cpu"): read_terms(system, name=name)}

    def _energy(self, x: Tensor) -> Tensor:
        positions = x * self.nm
        u = positions.new_zeros(len(x))
        for term in self._terms_on(x.device):
            u = u + term(positions)
        return u / self.kT

    def _terms_on(self, device: torch.device) -> tuple[Term, ...]:
        """The terms with their parameters on a device, moved there once."""
        if device not in self._terms:
            self._terms[device] = tuple(_moved(term, device) for term in self._terms[torch.device("cpu")])
        return self._terms[device]


def read_terms(system: openmm.System, *, name: str) -> tuple[Term, ...]:
    """Every force of a System as a function of positions [B, n, 3] in nm to kJ/mol [B].

    Raises:
        UnsupportedForce: for constraints, virtual sites, periodic boundaries, or a force without a reader.
    """
    if system.getNumConstraints():
        raise UnsupportedForce(f"{name}: the System has {system.getNumConstraints()} constraints, under which Cartesian positions have no "
                               "density; create it with constraints=None and rigidWater=False")
    if any(system.isVirtualSite(k) for k in range(system.getNumParticles())):
        raise UnsupportedForce(f"{name}: the System has virtual sites, whose positions are not free; use a force field without them")
    terms = [_read(force, name) for force in system.getForces()]
    return tuple(term for term in terms if term is not None)


def _moved(term: Term, device: torch.device) -> Term:
    tensors = {f.name: getattr(term, f.name) for f in fields(term) if isinstance(getattr(term, f.name), Tensor)}
    return replace(term, **{name: tensor.to(device) for name, tensor in tensors.items()})


def _read(force: openmm.Force, name: str) -> Term | None:
    kind = type(force).__name__
    if type(force) not in READERS:
        known = ", ".join(cls.__name__ for cls in READERS)
        remedy = BORN_REMEDY if isinstance(force, openmm.CustomGBForce) else OTHER_REMEDY
        raise UnsupportedForce(f"{name}: a {kind} has no torch twin (those that have: {known}); {remedy}")
    if force.usesPeriodicBoundaryConditions():
        raise UnsupportedForce(f"{name}: the {kind} has periodic boundaries; molecules here float in free space, so turn them off")
    try:
        return READERS[type(force)](force)
    except ValueError as error:
        raise UnsupportedForce(f"{name}: {error}") from error
