"""Internal coordinates and the map between two energies in them: there and back, determinant, symmetry, moments, proper weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from test_topology import topology

from bgwork.internal_coordinates import spanning_tree
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin
from bgwork.samplers.integrators import Grid
from bgwork.samplers.internal_map import InternalMap, _moved, _unmoved, _waves, gradient_before
from bgwork.samplers.mapped_flow import InternalStep, MappedFlow
from bgwork.spaces import MeanFree
from bgwork.system import load_system, reference_samples

MOLECULES = ("ala2-vacuum", "ala3-obc2")


def seed(value=0):
    return torch.Generator().manual_seed(value)


def near(name, n, *, std=0.003, start=0):
    """Configurations around a molecule's structure, mean-free, [n, atoms, 3]."""
    system = load_system(name)
    return system.structure.double() + Gaussian(space=system.space, std=std).sample(n, generator=seed(start))


def random_map(name, *, size=0.01):
    """A map with random coefficients everywhere, but for the widths and centres, which are those of configurations."""
    made = InternalMap(load_system(name).topology)
    made.fit(near(name, 2000), near(name, 2000, std=0.004, start=1))
    with torch.no_grad():
        for number, p in enumerate(p for p in made.parameters() if p.requires_grad):
            p.add_(size * torch.randn(p.shape, generator=seed(number), dtype=p.dtype))
    return made


@pytest.fixture(scope="module", params=MOLECULES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def moving(name):
    return random_map(name)


def test_coordinates_lead_there_and_back_in_place(name):
    tree, x = spanning_tree(load_system(name).topology), near(name, 8) + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(tree.cartesian(tree.internal(x), x), x, rtol=0, atol=1e-13)


def test_a_tree_follows_the_bonds(name):
    molecule = load_system(name).topology
    tree = spanning_tree(molecule)
    bonded = [set(pair) <= {i, *molecule.neighbours[i]} for i, *pair in ((i, b) for i, b, _, _ in tree.placed)]
    assert all(bonded) and len(tree) == len(molecule) == len({*tree.root, *(i for i, *_ in tree.placed)})
    known = set(tree.root)
    for i, *others in tree.placed:
        assert set(others) <= known and len({i, *others}) == 4
        known.add(i)


def test_alanine_turns_about_five_bonds_and_its_amides_do_not():
    made, names = InternalMap(load_system("ala2-vacuum").topology), load_system("ala2-vacuum").topology.names
    middles = [{names[atom] for atom in made.tree.placed[k][1:3]} for k in made.soft]
    assert middles == [{"N", "CA"}, {"CA", "C"}, {"CA", "CB"}, {"CH3", "C"}, {"C", "N"}]  # phi, psi and three methyl groups
    assert len(made.stiff) == 14


def test_what_has_no_internal_coordinates_is_refused():
    with pytest.raises(ValueError, match="at least 4 atoms, got 3 atoms in 1 pieces"):
        spanning_tree(topology("OHH", [(0, 1), (0, 2)]))
    with pytest.raises(ValueError, match="got 6 atoms in 2 pieces"):
        spanning_tree(topology("OHHOHH", [(0, 1), (0, 2), (3, 4), (3, 5)]))


def test_rings_have_a_tree_too():
    ring = topology("CCCCC", [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)])
    x = torch.randn(4, 5, 3, generator=seed(), dtype=torch.float64)
    tree = spanning_tree(ring)
    torch.testing.assert_close(tree.cartesian(tree.internal(x), x), x, rtol=0, atol=1e-12)


def test_a_map_is_the_identity_until_it_is_fitted(name):
    x = near(name, 3)
    image, log_det = InternalMap(load_system(name).topology)(x)
    torch.testing.assert_close(image, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_determinant_is_that_of_the_jacobian(name, moving):
    x = near(name, 3, start=2)
    image, jacobian = InternalStep(map=moving).with_jacobian(x)
    found, log_det = moving(x)
    sign, expected = torch.linalg.slogdet(jacobian)
    assert (log_det.abs() > 0.1).all() and (sign > 0).all()
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(image, found)
    brute = torch.autograd.functional.jacobian(lambda row: moving(row[None])[0][0], x[0]).reshape(jacobian[0].shape)
    torch.testing.assert_close(jacobian[0], brute, rtol=0, atol=1e-8)


def test_the_inverse_undoes_it(name, moving):
    x = near(name, 5, start=3)
    image, _ = moving(x)
    assert (image - x).abs().max() > 1e-3
    torch.testing.assert_close(moving.inverse(image), x, rtol=0, atol=1e-10)


def test_it_moves_with_the_molecule(name, moving):
    x = near(name, 3, start=4)
    turn, shift = torch.linalg.qr(torch.randn(3, 3, generator=seed(), dtype=torch.float64))[0], torch.tensor([0.3, -1.0, 2.0])
    turn = turn * torch.linalg.det(turn).sign()
    (first, one), (second, other) = moving(x), moving(x @ turn + shift)
    torch.testing.assert_close(second, first @ turn + shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-8)  # sums of logarithms, whose round-off differs from processor to processor
    torch.testing.assert_close(first.mean(1), x.mean(1), rtol=0, atol=1e-14)


def test_a_fit_takes_moments_to_moments():
    start, end = (reference_samples(load_system(each)).x.double() for each in ("ala2-vacuum", "ala2-xtb"))
    made = InternalMap(load_system("ala2-vacuum").topology)
    made.fit(start, end)
    with torch.no_grad():
        (moved, tau, _), (wanted, others, _) = made._coordinates(made(start)[0]), made._coordinates(end)
        moved, wanted = (y / made.scale - _waves(angles) @ made.new_mean for y, angles in ((moved, tau), (wanted, others)))
    torch.testing.assert_close(moved.mean(0) / wanted.std(0), torch.zeros_like(moved[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(wanted.T), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(made.linear, made.linear.T, rtol=0, atol=1e-9)


def test_too_few_configurations_are_refused():
    made = InternalMap(load_system("ala2-vacuum").topology)
    with pytest.raises(ValueError, match="100 and 2000 configurations do not determine .* 55 stiff coordinates; give at least 110"):
        made.fit(near("ala2-vacuum", 100), near("ala2-vacuum", 2000))


def test_turns_are_one_to_one_however_large_their_coefficients():
    angle = torch.linspace(-torch.pi, torch.pi, 2001, dtype=torch.float64)[1:]
    for size in (0.1, 3.0, 1e4):
        coefficients = (size * torch.randn(1, 6, generator=seed(), dtype=torch.float64)).expand(len(angle), -1)
        image, slope = _moved(angle, coefficients)
        assert (slope > 0.04).all() and (image.diff() > 0).all() and abs((image[-1] - image[0]).item() - (angle[-1] - angle[0])) < 0.01
        torch.testing.assert_close(_unmoved(image, coefficients), angle, rtol=0, atol=1e-12)


def test_the_gradient_before_a_map_is_that_of_what_is_mapped(moving, name):
    target, x = load_system(name).differentiable_target, near(name, 3)
    step = 1e-6 * torch.randn(x.shape, generator=seed(5), dtype=torch.float64)

    def before(y):
        image, log_det = moving(y)
        return target.u(image) - log_det

    with torch.no_grad():
        change = (before(x + step) - before(x - step)) / 2
    torch.testing.assert_close((gradient_before(moving, x, target) * step).sum((1, 2)), change, rtol=1e-4, atol=1e-6)


def test_weights_of_moved_configurations_are_proper():
    """From a Gaussian around the structure to its image under another map, both normalised: E[w] = 1, and averages are the image's."""
    system = load_system("ala2-vacuum")
    prior, structure, true, made = Gaussian(space=system.space, std=0.003), system.structure.double(), *(
        InternalMap(system.topology) for _ in range(2))
    start = structure + prior.sample(4000, generator=seed(5))
    true.fit(start, start)
    with torch.no_grad():
        true.linear.mul_(0.8).add_(0.01 * torch.randn(true.linear.shape, generator=seed(6), dtype=torch.float64))
        true.new_mean[0] += 0.2
        made.fit(start, true(start)[0])
        x = structure + prior.sample(20_000, generator=seed(7))
        image, log_det = made(x)
        z = true.inverse(image)
        log_w = prior.log_prob(z - structure) - true(z)[1] - prior.log_prob(x - structure) + log_det
        bond, expected = (tree.lengths[:, 0] for tree in (made.tree.internal(image), made.tree.internal(true(x)[0])))
    w = log_w.exp()
    assert (w.sum() ** 2 / w.square().sum() / len(w)).item() > 0.3 and log_w.std() > 0.3
    for value, truth in ((w, 1.0), (w * (bond - expected.mean()), 0.0)):
        assert abs(value.mean().item() - truth) < 4 * (value.std() / len(value) ** 0.5).item()


class Still:
    """No velocity, so that the prior is what the map gets."""

    n, d = 22, 3

    def __call__(self, t, x):
        return self.value_and_jacobian(t, x)[0]

    def value_and_jacobian(self, t, x):  # noqa: ARG002
        return torch.zeros_like(x, dtype=torch.float32), torch.zeros(len(x), 66, 66)


@dataclass
class Folding(Still):
    """Displaces along one direction by a sine that is steep enough to fold."""

    structure: torch.Tensor
    direction: torch.Tensor
    size: float = 0.004
    width: float = 0.001

    def value_and_jacobian(self, t, x):  # noqa: ARG002
        angle = ((x - self.structure) * self.direction).sum((1, 2)) / self.width
        e = self.direction.flatten()
        slope = self.size / self.width * angle.cos()[:, None, None] * e[:, None] * e
        return self.size * angle.sin()[:, None, None] * self.direction, slope


@dataclass(frozen=True, kw_only=True)
class Around(Gaussian):
    """Gaussian around a structure, or there would be no molecule."""

    structure: torch.Tensor

    def sample(self, n, *, generator):
        return super().sample(n, generator=generator) + self.structure

    def log_prob(self, x):
        return super().log_prob(x - self.structure)


@pytest.fixture(scope="module")
def around():
    system = load_system("ala2-vacuum")
    return Around(space=system.space, std=0.003, structure=system.structure.double())


def test_a_flow_with_a_map_at_its_end_has_the_density_of_the_whole(around):
    made = random_map("ala2-vacuum")
    flow = MappedFlow(prior=around, field=Still(), map=made, origin=Origin(method="m", system="s"))
    proposal = flow.sample(6, generator=seed())
    assert proposal.density is Density.EXACT and "a map of internal coordinates" in proposal.note and flow.evaluations == 32
    z = around.sample(6, generator=seed())
    torch.testing.assert_close(proposal.x, made(z)[0].detach())
    torch.testing.assert_close(proposal.log_q, around.log_prob(z) - made(z)[1].detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.log_prob(proposal.x), proposal.log_q, rtol=0, atol=1e-3)
    assert isinstance(proposal.space, MeanFree)


def test_signed_weights_of_a_flow_that_folds_before_a_map_are_unbiased(around):
    """On the image of the prior under the map, whose Z is one; plain weights count some molecules three times."""
    made, space = random_map("ala2-vacuum"), around.space
    direction = space.project(torch.randn(1, 22, 3, generator=seed(4), dtype=torch.float64))[0]
    field = Folding(structure=around.structure, direction=direction / direction.norm())
    flow = MappedFlow(prior=around, field=field, map=made, grid=Grid(integrator="euler", steps=1), n_round_trip=0,
                      origin=Origin(method="m", system="s"))
    proposal = flow.sample(700, generator=seed())
    assert proposal.density is Density.SIGNED and (proposal.sign < 0).any() and proposal.certificate.degree_margin > 10
    with torch.no_grad():
        z = made.inverse(proposal.x)
        log_w = around.log_prob(z) - made(z)[1] - proposal.log_q
    signed, plain = proposal.sign * log_w.exp(), log_w.exp()
    assert abs(signed.mean() - 1) < 4 * signed.std() / 700**0.5 and plain.mean() - 1 > 5 * plain.std() / 700**0.5


def test_threads_do_not_disturb_each_others_jacobians():
    made = random_map("ala2-vacuum")
    rows = [near("ala2-vacuum", 4, start=k) for k in range(12)]
    alone = [InternalStep(map=made).with_jacobian(x)[1] for x in rows]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x: InternalStep(map=made).with_jacobian(x)[1], rows * 3))
    for k, found in enumerate(together):
        torch.testing.assert_close(found, alone[k % 12], rtol=0, atol=1e-9)
