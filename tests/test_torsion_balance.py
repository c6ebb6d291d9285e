"""Torques about bonds: balanced by thermal motion on an oracle, with standard errors that hold, and not on another energy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from molecules import KT, TERMS, chain_start, chain_target

from bgwork.geometry import torsions
from bgwork.system import load_system
from bgwork.targets.torsion_angles import rotatable_bonds, turned
from bgwork.topology import Topology
from bgwork.torsion_balance import HARMONICS, LIMIT, excess, torque, torsion_balance

CHAIN = Topology(names=("A", "B", "C", "D"), elements=("C",) * 4, residues=("MOL",) * 4, residue_of=(0,) * 4,
                 bonds=((0, 1), (1, 2), (2, 3)), path=Path("none.pdb"))


def draws(n: int, seed: int) -> torch.Tensor:
    """The chain at its rest geometry with exact draws of its torsion, [n, 4, 3]."""
    grid = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1]
    energy = sum(strength * (1 + torch.cos(order * grid - phase)) for order, phase, strength in TERMS) / KT
    generator = torch.Generator().manual_seed(seed)
    drawn = grid[torch.multinomial(torch.softmax(-energy, 0), n, replacement=True, generator=generator)]
    (bond,), start = rotatable_bonds(CHAIN), chain_start()[None]
    return turned(start.expand(n, -1, -1), bond, drawn - torsions(start, torch.tensor([bond.atoms]))[0, 0])


def balance(x: torch.Tensor, kT: float = KT):
    return torsion_balance(CHAIN, x, chain_target(kT).u_and_grad(x)[1])


def test_balanced_with_errors_that_hold():
    """z of an exact sample is standard normal in every function of the torsion, over 60 samples."""
    z = torch.cat([balance(draws(400, seed)).z for seed in range(60)])
    assert z.shape == (60, 2 * HARMONICS + 1)
    assert (z.square().mean(0) - 1).abs().max() < 4 * math.sqrt(2 / 60) and z.abs().max() < LIMIT


def test_rows_that_are_alike_count_less():
    once, often = balance(draws(300, 1)).z, balance(draws(300, 1).repeat_interleave(10, 0)).z
    assert (0.6 < often / once).all() and (often / once < 1.6).all()


def test_torsional_terms_a_tenth_weaker_show():
    """As at a temperature a tenth higher; bonds and angles, which are rigid here, say nothing."""
    x = draws(16_000, 2)
    own, other = balance(x), balance(x, 1.1 * KT)
    assert own.passed and not other.passed
    assert "about MOL1-B and MOL1-C" in str(other) or "about MOL1-C and MOL1-B" in str(other)


def test_torque_is_the_derivative_of_turning():
    """Of every rotatable bond of alanine dipeptide, by central differences; the excess is tau, and tau sin k theta - k cos k theta, ..."""
    system = load_system("ala2-vacuum")
    x = system.structure[None] + 0.003 * torch.randn(3, 22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient, step = system.differentiable_target.u_and_grad(x)[1], torch.full((3,), 1e-5, dtype=torch.float64)
    for bond in rotatable_bonds(system.topology):
        up, down = (system.differentiable_target.u(turned(x, bond, sign * step)) for sign in (1, -1))
        found = torque(x, gradient, bond)
        torch.testing.assert_close(found, (up - down) / 2e-5, rtol=1e-5, atol=1e-4)
        theta = torsions(x, torch.tensor([bond.atoms]))[:, 0]
        columns = excess(x, gradient, bond)
        torch.testing.assert_close(columns[:, 0], found)
        torch.testing.assert_close(columns[:, 3], (2 * theta).sin() * found - 2 * (2 * theta).cos())
        torch.testing.assert_close(columns[:, 8], (4 * theta).cos() * found + 4 * (4 * theta).sin())


def test_nothing_to_turn():
    pair = Topology(names=("A", "B"), elements=("C",) * 2, residues=("MOL",) * 2, residue_of=(0, 0), bonds=((0, 1),), path=Path("none.pdb"))
    found = torsion_balance(pair, torch.randn(9, 2, 3), torch.randn(9, 2, 3))
    assert found.passed and found.value == pytest.approx(0.0) and "nothing can be turned" in str(found)
