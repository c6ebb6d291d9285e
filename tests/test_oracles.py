"""The oracles' closed forms against independent quadrature (scipy), since everything else is tested against them."""

import math

import pytest
import torch
from oracles import LINE, GaussianOracle, HarmonicMolecule, LineOracle, MissingMode, chains, double_well, gaussian_mixture, propose
from scipy.integrate import quad

from bgwork.protocols import Prior, Target
from bgwork.reweighting import expectation, log_z, weigh
from bgwork.spaces import Euclidean, MeanFree


def at(x: float) -> torch.Tensor:
    return torch.tensor([[[x]]], dtype=torch.float64)


@pytest.mark.parametrize("target", [double_well(), gaussian_mixture()], ids=lambda t: t.name)
def test_line_oracle_matches_quadrature(target: LineOracle):
    z = quad(lambda x: math.exp(-target.u(at(x)).item()), -12, 12, points=[-5, -2, 0, 2, 5], limit=200)[0]
    mean = quad(lambda x: x * math.exp(-target.u(at(x)).item()), -12, 12, points=[-5, -2, 0, 2, 5], limit=200)[0] / z
    assert target.log_z == pytest.approx(math.log(z), abs=1e-8)
    assert target.average(lambda x: x[:, 0, 0]) == pytest.approx(mean, abs=1e-8)


def test_line_oracle_samples_its_target():
    target = double_well()
    x = target.sample(40_000, generator=torch.Generator().manual_seed(0))[:, 0, 0]
    for f in (lambda x: x, lambda x: x.square(), lambda x: (x > 0).double()):
        stderr = f(x).std().item() / 200
        assert abs(f(x).mean().item() - target.average(lambda c, f=f: f(c[:, 0, 0]))) < 4 * stderr


@pytest.mark.parametrize("space", [LINE, Euclidean(n=2, d=1), MeanFree(n=3, d=1)])
def test_gaussian_log_z_on_the_spaces_own_volume(space):
    """Product of one-dimensional integrals over an orthonormal basis of the space."""
    target = GaussianOracle(space=space, std=1.7, offset=0.4)
    basis = torch.linalg.svd(space.project(torch.eye(space.n * space.d, dtype=torch.float64)[:, :, None]).flatten(1)).Vh[: space.dim]
    log_z = -0.4
    for direction in basis:
        log_z += math.log(quad(lambda s, v=direction: math.exp(0.4 - target.u(s * v.view(1, space.n, space.d)).item()), -20, 20)[0])
    assert target.log_z == pytest.approx(log_z, abs=1e-8)


def test_gaussian_ess_formula():
    target, std = GaussianOracle(space=LINE), 1.3
    q = GaussianOracle(space=LINE, std=std)
    second_moment = quad(lambda x: math.exp(2 * target.log_prob(at(x)).item() - q.log_prob(at(x)).item()), -15, 15)[0]
    assert target.ess_from(std) == pytest.approx(1 / second_moment, abs=1e-8)
    assert target.ess_from(0.7) == 0.0  # the second moment of the weights is infinite below std = sqrt(1/2)


def test_the_missing_mode_is_three_tenths_of_the_mixture():
    assert gaussian_mixture().average(lambda x: (x[:, 0, 0] > 0).double()) == pytest.approx(0.3, abs=1e-5)
    assert quad(lambda x: math.exp(MissingMode().log_prob(at(x)).item()), -12, 3)[0] == pytest.approx(1.0, abs=1e-8)


def test_oracles_meet_the_protocols():
    assert isinstance(GaussianOracle(), Prior) and isinstance(GaussianOracle(), Target) and isinstance(double_well(), Target)
    u, grad = GaussianOracle(std=2.0).u_and_grad(torch.ones(3, 4, 2))
    assert torch.allclose(grad, torch.full_like(grad, 0.25)) and torch.allclose(u, torch.ones_like(u))


def test_chains_have_the_stated_memory():
    x = chains(GaussianOracle(space=LINE), 50, 400, memory=0.9, seed=0).x.view(50, 400)
    assert (x[:, 1:] * x[:, :-1]).mean().item() == pytest.approx(0.9, abs=0.08)
    assert x.var().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("n", [3, 4])
def test_harmonic_molecule_by_importance_sampling(n):
    """log Z and an average from a Gaussian that knows nothing of bonds, for constants soft enough."""
    molecule = HarmonicMolecule(n=n, bond=(0.2, 250.0), angle=(1.9, 3.0), torsion=(1, 0.7, 1.0))
    weighted = weigh(propose(GaussianOracle(space=molecule.space, std=0.16), 200_000, seed=0), molecule)
    assert abs(log_z(weighted).value - molecule.log_z) < 4 * log_z(weighted).stderr < 0.1
    length = expectation(weighted, lambda x: (x[:, 1] - x[:, 0]).norm(dim=1))
    assert abs(length.value - molecule.average_of("r", lambda r: r)) < 4 * length.stderr


def test_harmonic_molecule_draws_from_itself():
    """Lengths, angles and torsions of its own draws; <|x|> has no preferred direction; log_prob is that of exp(-u)/Z by construction."""
    molecule = HarmonicMolecule(n=5)
    x = molecule.sample(20_000, generator=torch.Generator().manual_seed(0))
    b = x[:, 1:] - x[:, :-1]
    along = b[:, 1] / b[:, 1].norm(dim=1, keepdim=True)
    first, last = (v - (v * along).sum(1, keepdim=True) * along for v in (-b[:, 0], b[:, 2]))
    phi = torch.atan2((torch.linalg.cross(first, last) * along).sum(1), (first * last).sum(1))
    theta = torch.arccos(-(b[:, 0] * b[:, 1]).sum(1) / (b[:, 0].norm(dim=1) * b[:, 1].norm(dim=1)))
    for axis, values in (("r", b[:, 3].norm(dim=1)), ("theta", theta), ("phi", phi)):
        for f in (torch.sin, torch.cos):
            found = f(values)
            assert abs(found.mean().item() - molecule.average_of(axis, f)) < 4 * found.std().item() / math.sqrt(len(x))
    square = x.square().sum(1).mean(0)
    assert square.std() / square.mean() < 0.05
    degrees = 2 * molecule.u(x).mean().item()  # equipartition: one kT/2 for each of 4 lengths and 3 angles, and the cosines
    cosines = 2 * 2 * molecule.average_of("phi", lambda p: 1.5 * (1 + torch.cos(2 * p - 0.7)))
    assert degrees - cosines == pytest.approx(7, abs=0.3)
