"""Made-up samples of alanine dipeptide for the tests of export, analysis and pictures: both phi basins, uneven weights, no dynamics."""

from __future__ import annotations

import math

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from bgwork.conformation import residues, torsion_functions
from bgwork.records import Density, Origin, Proposal, WeightedSamples
from bgwork.reweighting import weigh
from bgwork.system import System
from bgwork.topology import Topology

SCATTER = 7.0  # degrees
WELLS = ((-80.0, 80.0), (-150.0, 160.0), (60.0, -60.0))  # degrees; near minima in vacuum


def turned(x: Tensor, topology: Topology, phi: float, psi: float) -> Tensor:
    """A structure [n, 3] with its first residue's backbone bonds turned to angles in radians."""
    x, residue, angle_of = x.clone(), residues(topology)[0], torsion_functions(topology)
    suffix = f"_{residue.name}" if residue.name else ""
    for name, atoms, wanted in (("phi" + suffix, residue.phi, phi), ("psi" + suffix, residue.psi, psi)):
        _, i, j, _ = atoms
        axis = ((x[j] - x[i]) / (x[j] - x[i]).norm()).numpy()
        turn = torch.from_numpy(Rotation.from_rotvec(axis * (wanted - angle_of[name](x[None]).item())).as_matrix())
        moving = beyond(topology, i, j)
        x[moving] = (x[moving] - x[j]) @ turn.T + x[j]
    return x


def beyond(topology: Topology, i: int, j: int) -> list[int]:
    """Atoms on j's side of the bond i-j."""
    found = [j]
    for atom in found:
        found += [k for k in topology.neighbours[atom] if k not in (i, *found)]
    return found


def conformers(system: System, n: int, *, seed: int) -> Tensor:
    """Structures around three wells, scattered in both torsions, with a little noise on every coordinate, [n, 22, 3]."""
    generator = torch.Generator().manual_seed(seed)
    wells = torch.tensor(WELLS, dtype=torch.float64)[torch.randint(len(WELLS), (n,), generator=generator)]
    angles = torch.deg2rad(wells + SCATTER * torch.randn(n, 2, generator=generator, dtype=torch.float64))
    x = torch.stack([turned(system.structure, system.topology, phi, psi) for phi, psi in angles.tolist()])
    return system.space.project(x + 0.002 * torch.randn(x.shape, generator=generator, dtype=torch.float64))


def generated(system: System, n: int, *, seed: int = 0, noise: float = 1.0) -> WeightedSamples:
    """As a generator's samples: a made-up log q that leaves log-weights around -60 with a standard deviation of `noise`."""
    x, generator = conformers(system, n, seed=seed), torch.Generator().manual_seed(seed + 1)
    log_q = -system.target.u(x) + 60.0 + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    origin = Origin(method="flow made-up", system=system.name, seed=seed)
    return weigh(Proposal(x=x, log_q=log_q, space=system.space, density=Density.EXACT, origin=origin), system.target)


def simulated(system: System, n: int, *, seed: int = 100, chains: int = 10) -> Proposal:
    """As reference data: equal weights, grouped into chains."""
    x = conformers(system, n, seed=seed)
    return Proposal(x=x, log_q=-system.target.u(x), space=system.space, density=Density.UNNORMALISED, group=torch.arange(n) % chains,
                    origin=Origin(method="md", system=system.name, seed=seed))


def share_of_left_handed(n_wells: int = len(WELLS)) -> float:
    """Population of 0 < phi <= 2 rad by construction."""
    inside = 0.5 * (math.erf(60 / (SCATTER * math.sqrt(2))) + math.erf((math.degrees(2) - 60) / (SCATTER * math.sqrt(2))))
    return inside / n_wells
