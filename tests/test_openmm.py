"""The OpenMM bridge: agreement with torch, units, infinities, worker processes, speed."""

from __future__ import annotations

import gc
import math
import pickle
import subprocess
import sys

import openmm
import pytest
import torch

from bgwork import units
from bgwork.spaces import Euclidean, MeanFree
from bgwork.targets.lennard_jones import LennardJones
from bgwork.targets.openmm import ROWS_PER_WORKER, OpenMMError, OpenMMTarget, lennard_jones_system


def clusters(n, count, seed=0):
    """From dilute to overlapping: energies over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 1.5 * n**0.4, count, dtype=torch.float64)[:, None, None]
    return MeanFree(n=n, d=3).project(scale * torch.randn(count, n, 3, generator=generator, dtype=torch.float64))


def lj_target(n, **options):
    return OpenMMTarget(lennard_jones_system(n), space=MeanFree(n=n, d=3), kT=1.0, name="lj", **options)


@pytest.mark.parametrize("n", [2, 13, 55])
def test_agrees_with_torch(n):
    x = clusters(n, 60)
    x[7, 1] = x[7, 0]
    (u, grad), (u_torch, grad_torch) = lj_target(n).u_and_grad(x), LennardJones(n).u_and_grad(x)
    assert u[7] == u_torch[7] == math.inf
    moderate = u_torch.abs() < 1e4
    assert moderate.sum() > 5
    assert (u - u_torch)[moderate].abs().max() < 1e-9
    torch.testing.assert_close(u, u_torch, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(grad, grad_torch, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_other_constants_agree_with_torch():
    x = 1.5 * clusters(6, 40)
    system = lennard_jones_system(6, depth=0.8, r_min=1.3, trap=0.5)
    u = OpenMMTarget(system, space=MeanFree(n=6, d=3), kT=1.0).u(x)
    torch.testing.assert_close(u, LennardJones(6, depth=0.8, r_min=1.3, trap=0.5).u(x), rtol=1e-12, atol=1e-10)


def bonded_pair(charges=(0.0, 0.0)):
    system = openmm.System()
    bond, coulomb = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    for charge in charges:
        system.addParticle(12.0)
        coulomb.addParticle(charge, 1.0, 0.0)
    bond.addBond(0, 1, 0.15, 1000.0)
    for force in (bond, coulomb):
        system.addForce(force)
    return system


def test_units_of_energy_and_length():
    """A harmonic bond in Angstrom at 300 K: u = k/2 (r - r0)^2 / RT."""
    kT = units.kT(300.0)
    target = OpenMMTarget(bonded_pair(), space=Euclidean(n=2, d=3), kT=kT, nm=0.1)
    x = torch.tensor([[[0.0, 0, 0], [1.7, 0, 0]]], dtype=torch.float64)
    u, grad = target.u_and_grad(x)
    assert u.item() == pytest.approx(500.0 * 0.02**2 / kT, rel=1e-12)
    assert grad[0, 1, 0].item() == pytest.approx(1000.0 * 0.02 / kT * 0.1, rel=1e-10)
    assert grad[0, 0, 0].item() == pytest.approx(-grad[0, 1, 0].item())


@pytest.mark.parametrize("expression", ["-1/r", "1/r - 1/r^2"])
def test_minus_infinity_and_nan_are_failures(expression):
    """Bare attraction at contact is no energy that a weight could be made from."""
    system, force = openmm.System(), openmm.CustomBondForce(expression)
    for _ in range(2):
        system.addParticle(1.0)
    force.addBond(0, 1, [])
    system.addForce(force)
    target = OpenMMTarget(system, space=Euclidean(n=2, d=3), kT=1.0)
    assert torch.isnan(target.u(torch.zeros(3, 2, 3))).all()
    assert target.n_nan == 3


def test_autograd_passes_through():
    target = lj_target(4)
    x = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.0, 0.1], [0.2, 0.1, 1.2]], dtype=torch.float64).expand(2, 4, 3).clone()
    assert torch.autograd.gradcheck(lambda y: target.u(1.1 * y) ** 2, x.requires_grad_(), eps=1e-6, atol=1e-4)


def test_workers_change_no_bit():
    x = clusters(5, 2 * ROWS_PER_WORKER + 1)
    x[3, 0, 0], x[4, 1] = math.nan, x[4, 0]
    alone, together = lj_target(5), lj_target(5, workers=2)
    for a, b in zip((alone.u(x), *alone.u_and_grad(x)), (together.u(x), *together.u_and_grad(x)), strict=True):
        assert torch.equal(a.view(torch.int64), b.view(torch.int64))
    assert len(together.pool.processes) == 2
    assert (alone.n_energy, alone.n_gradient, alone.n_nan) == (together.n_energy, together.n_gradient, together.n_nan)
    together.close()


def test_small_batches_start_no_worker():
    target = lj_target(5, workers=4)
    target.u(clusters(5, ROWS_PER_WORKER))
    assert not target.pool.processes


def test_workers_end_with_their_target():
    target = lj_target(5, workers=2)
    target.u(clusters(5, 2 * ROWS_PER_WORKER))
    processes = list(target.pool.processes)
    assert all(process.poll() is None for process in processes)
    del target
    gc.collect()
    assert all(process.poll() is not None for process in processes)


def test_dead_worker_is_reported_and_replaced():
    target, x = lj_target(5, workers=2), clusters(5, 2 * ROWS_PER_WORKER)
    u = target.u(x)
    target.pool.processes[1].kill()
    target.pool.processes[1].wait()
    with pytest.raises(OpenMMError, match="worker ended .*workers=1"):
        target.u(x)
    assert torch.equal(target.u(x), u)
    target.close()


def test_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import torch
from bgwork.spaces import MeanFree
from bgwork.targets.openmm import OpenMMTarget, lennard_jones_system
print("started")
target = OpenMMTarget(lennard_jones_system(3), space=MeanFree(n=3, d=3), kT=1.0, workers=2)
print(len(target.u(torch.randn(1000, 3, 3))), len(target.pool.processes))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["started", "1000", "2"], done.stderr


def test_target_can_be_pickled():
    target, x = lj_target(5), clusters(5, 10)
    u = target.u(x)
    assert torch.equal(pickle.loads(pickle.dumps(target)).u(x), u)


def virtual_site():
    system = bonded_pair()
    system.addParticle(0.0)
    system.getForce(1).addParticle(0.0, 1.0, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    return system


def constrained():
    system = lennard_jones_system(3)
    system.addConstraint(0, 1, 0.1)
    return system


@pytest.mark.parametrize(("system", "options", "message"), [
    (lennard_jones_system(4), {}, "4 particles in 3 dimensions"),
    (lennard_jones_system(3), {"kT": 0.0}, "must be positive"),
    (lennard_jones_system(3), {"workers": 0}, "must be positive"),
    (virtual_site(), {}, "virtual sites"),
    (constrained(), {}, "1 constraints, on which .*constraints=None"),
])
def test_systems_that_cannot_be_targets(system, options, message):
    with pytest.raises(OpenMMError, match=message):
        OpenMMTarget(system, **{"space": MeanFree(n=3, d=3), "kT": 1.0, **options})
