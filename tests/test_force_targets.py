"""Targets freed from noise by forces: the same mean as the plain ones, a fraction of their noise, nothing before their time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bgwork.couplings import MolecularAlignment, random_turns
from bgwork.generators import load_trained
from bgwork.geometry import angles, coordinate_hessian, coordinate_jacobian, coordinates_of, distances, torsions, wrap
from bgwork.objectives.force_targets import ForceTargets, Pairs, inverse_within, steadfast
from bgwork.objectives.stiffness import Stiffness
from bgwork.recipes import RecipeError, Request, load_recipe
from bgwork.system import load_system, reference_samples

LATE = 0.97


def seed(value=0):
    return torch.Generator().manual_seed(value)


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def stiffness(system):
    return Stiffness.of(system.topology, reference_samples(system).x)


def aligned(system, coupling, *, n=2000, t=LATE):
    """Pairs at one time."""
    x1 = reference_samples(system).x[:n] @ random_turns(n, 3, generator=seed(1))
    x1 = x1 - x1.mean(1, keepdim=True)
    x0, x1 = coupling(system.prior.sample(n, generator=seed(2)), x1, generator=seed(3))
    gradient = system.differentiable_target.u_and_grad(x1)[1]
    return Pairs(t=torch.full((n,), t, dtype=torch.float64), x0=x0, x1=x1, gradient=gradient)


def targets(system, stiffness, coupling):
    return ForceTargets(prior=system.prior, stiffness=stiffness, coupling=coupling, after=0.8, damping=800.0)


def noisy(pairs):
    t = pairs.t[:, None, None]
    return (1 - t) * pairs.x0 + t * pairs.x1


def bond_shifts(targets, pairs, tree):
    """What the addition moves lengths and angles of the predicted data point by, on average, and its standard error, both [41]."""
    t = pairs.t[:, None, None]
    moved = (tree.jacobian(noisy(pairs))[:, :41] @ (targets(pairs) * (1 - t)).flatten(1)[:, :, None]).squeeze(2)
    return moved.mean(0), moved.std(0) / len(moved) ** 0.5


@pytest.fixture(scope="module")
def coupling(system):
    return load_recipe(system, "fm-forces").coupling.build(system)


@pytest.fixture(scope="module")
def untied(coupling):
    """Triples left as they are."""
    return replace(coupling, triples=())


@pytest.mark.parametrize(("coordinate", "atoms"), [
    (distances, [[0, 1], [2, 1], [0, 3]]), (angles, [[0, 1, 2], [3, 1, 0]]), (torsions, [[0, 1, 2, 3], [3, 0, 1, 2]])])
def test_derivatives_of_coordinates(coordinate, atoms):
    x, atoms = torch.randn(3, 4, 3, generator=seed(), dtype=torch.float64), torch.tensor(atoms)
    found = coordinate_jacobian(coordinate, x, atoms)
    for row, expected in zip(found, (torch.func.jacrev(lambda y: coordinate(y[None], atoms)[0])(y) for y in x), strict=True):
        torch.testing.assert_close(row, expected.flatten(1))


def test_stiffness_is_the_precision_of_the_data(system, stiffness):
    """Along a coordinate that moves alone, H is what the covariance of the data says."""
    x = reference_samples(system).x[:3]
    hessian = stiffness(x)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-6 * hessian.abs().max()
    torch.testing.assert_close(hessian, hessian.mT)
    rows = stiffness.tree.jacobian(x)[:, stiffness.stiff]
    moves = torch.linalg.pinv(rows)  # each column moves one stiff coordinate
    lengths, bends, turns = stiffness.tree.internal(reference_samples(system).x)
    start = turns[:1]  # stiff ones are far from half a turn away from it
    values = torch.cat([lengths, bends, wrap(turns - start)], 1)[:, stiffness.stiff]
    covariance = torch.linalg.inv(moves.mT @ hessian @ moves)
    torch.testing.assert_close(covariance, torch.cov(values.T).expand(3, -1, -1), rtol=1e-4, atol=1e-10)
    with pytest.raises(ValueError, match="55 coordinates; give more data"):
        Stiffness.of(system.topology, reference_samples(system).x[:50])


def test_second_derivatives_of_coordinates():
    x = torch.randn(2, 5, 3, generator=seed(), dtype=torch.float64)
    for coordinate, atoms in ((distances, [[0, 1], [2, 1]]), (angles, [[0, 1, 2], [3, 1, 0]]), (torsions, [[0, 1, 2, 3], [4, 0, 1, 2]])):
        atoms = torch.tensor(atoms)
        found, own = coordinate_hessian(coordinate, x, atoms), coordinates_of(atoms)
        for b in range(2):
            whole = torch.func.hessian(lambda y, f=coordinate, a=atoms: f(y.view(1, 5, 3), a)[0])(x[b].flatten())
            torch.testing.assert_close(found[b], torch.stack([whole[k][own[k]][:, own[k]] for k in range(2)]))


@pytest.mark.parametrize("normals", [True, False])
def test_the_divergence_of_the_inverse(system, stiffness, coupling, normals):
    """Against central differences, column by column."""
    x, plane = reference_samples(system).x[:2], steadfast(coupling.whole(reference_samples(system).x[7:9]))

    def inverse(y):
        return inverse_within(stiffness(y) + 500 * torch.eye(66, dtype=torch.float64), plane if normals else plane[:, :0])

    expected, step = torch.zeros(2, 66, dtype=torch.float64), 1e-5
    for j in range(66):
        move = torch.zeros(66, dtype=torch.float64)
        move[j] = step
        expected += (inverse(x + move.view(22, 3)) - inverse(x - move.view(22, 3)))[:, :, j] / (2 * step)
    torch.testing.assert_close(stiffness.divergence(x, inverse(x)), expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().max() > 1e-3


def test_inverses_within_a_plane_give_the_constrained_maximum():
    generator = seed()
    root, normals, slope = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 7, 7), (4, 2, 7), (4, 7, 1)))
    precision = root @ root.mT + torch.eye(7, dtype=torch.float64)
    y = inverse_within(precision, normals) @ slope
    assert (normals @ y).abs().max() < 1e-10
    left = slope - precision @ y  # must be a combination of the normals
    outside = left - normals.mT @ torch.linalg.lstsq(normals.mT, left).solution
    assert outside.abs().max() < 1e-10


def test_steps_keep_pairs_aligned_and_their_volume_as_it_is(system, stiffness, coupling):
    pairs = aligned(system, coupling, n=50)
    x = coupling.whole(noisy(pairs))
    moment = x.mT @ pairs.x1
    torch.testing.assert_close(moment, moment.mT)
    added = targets(system, stiffness, coupling)(pairs)
    assert added.abs().max() > 1e-3 and (x.mT @ added).abs().max() < 1e-9 * added.abs().max()
    assert added.sum(1).abs().max() < 1e-9 * added.abs().max()
    assert (steadfast(x) @ added.flatten(1)[:, :, None]).abs().max() < 1e-9 * added.abs().max()


@pytest.mark.parametrize("t", [0.85, LATE])
def test_forces_leave_the_mean_where_it_is(system, stiffness, coupling, untied, t):
    """With triples turned at random and without; with the best turns, which the targets are not made for, the mean moves."""
    for made in (untied, coupling):
        pairs = aligned(system, made, n=1000, t=t)
        mean, stderr = bond_shifts(targets(system, stiffness, made), pairs, stiffness.tree)
        z = mean / stderr
        assert z.abs().max() < 4 and z.square().mean().sqrt() < 1.4  # 41 of them, correlated
    pairs = aligned(system, MolecularAlignment(triples=coupling.triples), t=t)
    mean, stderr = bond_shifts(targets(system, stiffness, untied), pairs, stiffness.tree)
    assert (mean / stderr).square().mean().sqrt() > (4 if t == LATE else 2)


def test_the_damping_is_that_with_the_least_noise(system, stiffness, coupling):
    """By the squares of the targets of other pairs; none, and a great deal, leave more."""
    x = reference_samples(system).x
    gradient = system.differentiable_target.u_and_grad(x)[1]
    found = ForceTargets.of(x, gradient, prior=system.prior, stiffness=stiffness, coupling=coupling, after=0.8)
    assert found.after == 0.8
    pairs = aligned(system, coupling, n=500, t=0.85)
    square = [(pairs.x1 - pairs.x0 + replace(found, damping=damping)(pairs)).square().sum().item()
              for damping in (found.damping, 0.0, 100 * found.damping)]
    assert square[0] < (pairs.x1 - pairs.x0).square().sum().item() and square[0] < min(square[1:])


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_at_the_end_the_mean_is_that_of_the_prior_draws_aligned_to_the_configuration(system, stiffness, coupling, width):
    """At t -> 1 the noisy configuration is x1 itself, so that means given it can be taken at a single one, in all directions."""
    n = 3000
    x1 = reference_samples(system).x[:1].expand(n, -1, -1).contiguous()
    gradient = system.differentiable_target.u_and_grad(x1[:1])[1].expand(n, -1, -1)
    t = torch.full((n,), 0.99995, dtype=torch.float64)
    made = replace(coupling, width=width * system.prior.std)
    x0, _ = made(system.prior.sample(n, generator=seed(4)), x1, generator=seed())
    added = (targets(system, stiffness, made)(Pairs(t=t, x0=x0, x1=x1, gradient=gradient)) / system.prior.std).flatten(1)
    shift = (added.mean(0).square() - added.var(0) / n).sum()  # without what the mean of n draws has by chance
    assert abs(shift) < 0.02 < 0.1 < added.var(0).sum()


@pytest.mark.parametrize(("t", "share"), [(0.95, 0.4), (0.97, 0.25), (0.99, 0.15)])
def test_forces_take_most_of_the_noise(system, stiffness, coupling, t, share):
    """Noise as seen from a trained velocity, whose own error is far less."""
    pairs = aligned(system, coupling, n=300, t=t)
    velocity = load_trained(system.path / "generators" / "fm-most.safetensors", system=system)[1].network
    with torch.no_grad():
        known = velocity(pairs.t.float(), noisy(pairs).float()).double()
    plain = pairs.x1 - pairs.x0
    before, after = ((target - known).square().mean() for target in (plain, plain + targets(system, stiffness, coupling)(pairs)))
    assert after < share * before


def test_nothing_is_added_before_its_time(system, stiffness, coupling):
    pairs = aligned(system, coupling, n=4)
    pairs = pairs._replace(t=torch.tensor([0.1, 0.799, 0.8, 0.97], dtype=torch.float64))
    added = targets(system, stiffness, coupling)(pairs).abs().amax((1, 2))
    assert added[:2].tolist() == [0, 0] and (added[2:] > 0).all()


def test_a_recipe_adds_them_to_late_velocities_alone(system, tmp_path):
    request = Request(system=system, name="fm-forces", folder=tmp_path, seed=0, data=reference_samples(system).x)
    overrides = ["training.initial=''", "training.compiled=false", "training.batch=32"]
    plain, freed = (load_recipe(system, "fm-forces", overrides=[*overrides, f"training.forces_after={after}"]).job(request).data(3)
                    for after in (1.0, 0.93))
    assert torch.equal(plain.x, freed.x) and torch.equal(plain.t, freed.t)
    changed = (plain.velocity != freed.velocity).flatten(1).any(1)
    assert torch.equal(changed, plain.t >= 0.93) and changed.any() and not changed.all()
    t, x, velocity = plain.t.double(), plain.x.double(), plain.velocity.double()
    x0, x1 = x - t[:, None, None] * velocity, x + (1 - t[:, None, None]) * velocity  # turned as they were
    pairs = Pairs(t=t, x0=x0, x1=x1, gradient=system.differentiable_target.u_and_grad(x1)[1])
    made = load_recipe(system, "fm-forces", overrides=[*overrides, "training.forces_after=0.93"]).job(request).data.forces.targets
    torch.testing.assert_close(freed.velocity[changed].double(), (velocity + made(pairs))[changed], rtol=0, atol=1e-3)


def test_forces_want_data_of_their_own_ensemble(system, tmp_path):
    """Those of implicit water look alike and are others."""
    request = Request(system=system, name="fm-forces", folder=tmp_path, seed=0, data=reference_samples(load_system("ala2-obc2")).x)
    with pytest.raises(RecipeError, match="2000 training configurations are no equilibrium set .*leave out training.forces_after"):
        load_recipe(system, "fm-forces", overrides=["training.initial=''", "training.compiled=false"]).job(request)


def test_forces_want_a_molecule_and_its_coupling(system, tmp_path):
    request = Request(system=system, name="fm-forces", folder=tmp_path, seed=0, data=reference_samples(system).x)
    overrides = ["training.initial=''", "training.compiled=false", "training.forces_after=0.9"]
    for kind in ("independent", "molecular"):
        with pytest.raises(RecipeError, match="molecules with coupling.kind"):
            load_recipe(system, "fm-forces", overrides=[*overrides, f"coupling.kind={kind}"]).job(request)
    broken = request.data.clone()
    broken[7, 3] = broken[7, 4]
    with pytest.raises(RecipeError, match="no finite gradient at 1 of 2000"):
        load_recipe(system, "fm-forces", overrides=overrides).job(replace(request, data=broken))
    with pytest.raises(RecipeError, match="forces_after"):
        load_recipe(system, "fm-forces", overrides=["training.forces_after=0"])
