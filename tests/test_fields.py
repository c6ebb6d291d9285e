"""One table of what every field must do: shapes, exact divergence and Jacobian, their parameter gradients, symmetries, round-off."""

import itertools

import pytest
import torch
from simple_fields import randomise

from bgwork.fields.divergence import Hutchinson, rademacher
from bgwork.fields.egnn import EGNN
from bgwork.fields.framed import Framed
from bgwork.fields.frames import Frame
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.fields.species import Species, every_atom_its_own_kind
from bgwork.protocols import Field
from bgwork.system import load_system


def multihop(n, d, hops, nearest=0.0):
    return MultiHop(n, d, MultiHopConfig(hidden=8, message=6, vectors=4, hops=hops, node_hidden=10, n_basis=6, nearest=nearest))


def molecular(n, d, hops, chiral):
    generator = torch.Generator().manual_seed(n)
    node = torch.arange(n) % 3
    low, high = torch.minimum(node[:, None], node), torch.maximum(node[:, None], node)
    centre, spread = (low + torch.rand(9, generator=generator) for low in (0.5, 0.05))
    species = Species(node=node, pair=low * 3 + high, centre=centre, spread=spread)
    sizes = MultiHopConfig(hidden=8, message=6, vectors=4, hops=hops, node_hidden=10, n_basis=6, kind_basis=8, chiral=chiral)
    return MultiHop(n, d, sizes, species=species)


def framed(n, hops, nearest=0.0):
    template = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    return Framed(molecular(n, 3, hops, chiral=True), Frame(template, length=1.0), hidden=16, depth=2, nearest=nearest)


FIELDS = {
    "mlp 1x2": lambda: MLP(1, 2, hidden=16, depth=3, scale=2.0),
    "mlp 1x2, waves": lambda: MLP(1, 2, hidden=16, depth=2, scale=2.0, waves=3),
    "mlp 3x2": lambda: MLP(3, 2, hidden=12, depth=1),
    "egnn 4x2": lambda: EGNN(4, 2, layers=3, hidden=8, reach=1.0),
    "egnn 3x3": lambda: EGNN(3, 3, layers=2, hidden=8, reach=1.0),
    "one hop 4x2": lambda: multihop(4, 2, 1),
    "two hops 5x2": lambda: multihop(5, 2, 2),
    "two hops 4x3": lambda: multihop(4, 3, 2),
    "two hops 4x3, logarithmic times": lambda: multihop(4, 3, 2, nearest=0.01),
    "three hops 4x3": lambda: multihop(4, 3, 3),
    "three hops 2x2": lambda: multihop(2, 2, 3),
    "species 5x2": lambda: molecular(5, 2, 2, chiral=False),
    "species, chiral, one hop 5x3": lambda: molecular(5, 3, 1, chiral=True),
    "species, chiral, two hops 5x3": lambda: molecular(5, 3, 2, chiral=True),
    "species, framed, one hop 5x3": lambda: framed(5, 1),
    "species, framed, two hops 4x3, logarithmic times": lambda: framed(4, 2, nearest=0.01),
}
SYMMETRIC = [name for name in FIELDS if not name.startswith(("mlp", "species"))]
every_field = pytest.mark.parametrize("name", FIELDS)


def make(name, seed=0):
    torch.manual_seed(seed)
    return randomise(FIELDS[name](), seed=seed)


def batch(field, size=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(size, field.n, field.d, generator=generator, dtype=torch.float64)
    return torch.rand(size, generator=generator, dtype=torch.float64), x


def autograd_jacobian(field, t, x):
    """[B, nd, nd] by reverse mode, one output at a time, still attached to the parameters."""
    x = x.clone().requires_grad_()
    v = field(t, x).flatten(1)
    rows = [torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0].flatten(1) for i in range(v.shape[1])]
    return torch.stack(rows, 1)


@every_field
def test_shapes_and_times(name):
    field = make(name)
    t, x = batch(field)
    dof = field.n * field.d
    assert isinstance(field, Field)
    assert field(t, x).shape == x.shape
    v, divergence = field.value_and_divergence(t, x)
    assert v.shape == x.shape and divergence.shape == (3,)
    assert field.value_and_jacobian(t, x)[1].shape == (3, dof, dof)
    assert field(t[:1], x[:1]).shape == x[:1].shape
    scalar, one_each = torch.tensor(0.3, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)
    for method in (lambda s: field(s, x), lambda s: field.value_and_divergence(s, x)[1], lambda s: field.value_and_jacobian(s, x)[1]):
        torch.testing.assert_close(method(scalar), method(one_each), rtol=0, atol=1e-12)
    assert (field(t, x) - field(t + 0.1, x)).abs().max() > 1e-6


@every_field
def test_a_new_field_is_at_rest(name):
    field = FIELDS[name]()
    t, x = batch(field)
    assert field(t.float(), x.float()).abs().max() == 0


@every_field
def test_divergence_and_jacobian_equal_autograd(name):
    field = make(name)
    t, x = batch(field)
    exact = autograd_jacobian(field, t, x)
    v, jacobian = field.value_and_jacobian(t, x)
    v_again, divergence = field.value_and_divergence(t, x)
    assert trace(exact).abs().max() > 1e-2
    torch.testing.assert_close(jacobian, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(divergence, trace(exact), rtol=1e-10, atol=1e-10)
    for value in (v, v_again):
        torch.testing.assert_close(value, field(t, x), rtol=1e-12, atol=1e-12)


def test_divergence_and_jacobian_of_alanine_dipeptides_field_equal_autograd():
    """At n = 22, with every atom a kind of its own, around the structure and in nm: the recipe's field but for its widths."""
    system = load_system("ala2-vacuum")
    sizes = MultiHopConfig(hidden=8, message=6, vectors=4, hops=2, node_hidden=10, n_basis=6, kind_basis=8, chiral=True, r_max=1.5,
                           softening=0.002)
    field = randomise(MultiHop(22, 3, sizes, species=every_atom_its_own_kind(system.structure[None])), seed=0)
    t, noise = batch(field, size=2)
    x = system.structure + 0.02 * noise
    exact = autograd_jacobian(field, t, x)
    scale = exact.abs().max().item()
    assert trace(exact).abs().min() > 1e-2 * scale / 66
    torch.testing.assert_close(field.value_and_jacobian(t, x)[1], exact, rtol=1e-9, atol=1e-10 * scale)
    torch.testing.assert_close(field.value_and_divergence(t, x)[1], trace(exact), rtol=1e-9, atol=1e-9 * scale)


@every_field
def test_divergence_and_jacobian_are_differentiable_in_the_parameters(name):
    field = make(name)
    t, x = batch(field, size=2)
    exact = autograd_jacobian(field, t, x)
    probe = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = {
        "jacobian": ((exact * probe).sum(), (field.value_and_jacobian(t, x)[1] * probe).sum()),
        "divergence": (trace(exact).square().sum(), field.value_and_divergence(t, x)[1].square().sum()),
    }
    for kind, (expected, got) in pairs.items():
        expected, got = parameter_gradients(expected, field), parameter_gradients(got, field)
        assert expected.abs().max() > 1e-6, kind
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def trace(jacobian):
    return jacobian.diagonal(dim1=1, dim2=2).sum(1)


def parameter_gradients(scalar, field):
    parameters = [p for p in field.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(scalar, parameters, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, gradients, strict=True)])


@pytest.mark.parametrize("name", SYMMETRIC)
def test_equivariance(name):
    field = make(name)
    t, x = batch(field)
    v, divergence = field.value_and_divergence(t, x)
    assert v.mean(1).abs().max() < 1e-12
    order = torch.randperm(field.n, generator=torch.Generator().manual_seed(2)).roll(1)
    rotation = torch.linalg.qr(torch.randn(field.d, field.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    for moved, expected in ((x[:, order], v[:, order]), (x @ rotation.T, v @ rotation.T), (x + 0.7, v)):
        v_moved, divergence_moved = field.value_and_divergence(t, moved)
        torch.testing.assert_close(v_moved, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(divergence_moved, divergence, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in FIELDS if "chiral" in name or "framed" in name])
def test_a_chiral_field_turns_with_rotations_and_sees_reflections(name):
    field = make(name)
    t, x = batch(field)
    v = field(t, x)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    rotation = rotation * rotation.det()
    torch.testing.assert_close(field(t, x @ rotation.T), v @ rotation.T, rtol=0, atol=1e-10)
    assert (field(t, -x) + v).abs().max() > 1e-6
    torch.testing.assert_close(field(t, x + 0.7), v, rtol=0, atol=1e-10)


def test_only_particles_of_one_kind_are_exchangeable():
    field = make("species, chiral, two hops 5x3")
    t, x = batch(field)
    same, other = torch.tensor([3, 1, 2, 0, 4]), torch.tensor([1, 0, 2, 3, 4])
    torch.testing.assert_close(field(t, x[:, same]), field(t, x)[:, same], rtol=0, atol=1e-10)
    assert (field(t, x[:, other]) - field(t, x)[:, other]).abs().max() > 1e-6


def test_species_that_do_not_fit_are_refused():
    kinds = {"node": torch.zeros(3, dtype=torch.int64), "centre": torch.ones(1), "spread": torch.ones(1)}
    with pytest.raises(ValueError, match="symmetric"):
        Species(pair=torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 0]]), **kinds)
    with pytest.raises(ValueError, match="spreads"):
        Species(pair=torch.zeros(3, 3, dtype=torch.int64), **{**kinds, "spread": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit a field of 4"):
        MultiHop(4, 3, species=Species(pair=torch.zeros(3, 3, dtype=torch.int64), **kinds))
    with pytest.raises(ValueError, match="three dimensions"):
        MultiHop(4, 2, MultiHopConfig(chiral=True))


@every_field
def test_a_float32_field_takes_float64_configurations(name):
    exact = make(name)
    t, x = batch(exact)
    field = make(name).float()
    for got, expected in ((field(t, x), exact(t, x)), (field.value_and_divergence(t, x)[1], exact.value_and_divergence(t, x)[1]),
                          (field.value_and_jacobian(t, x)[1], exact.value_and_jacobian(t, x)[1])):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-3)


@every_field
def test_rows_do_not_see_their_batch_mates(name):
    field = make(name)
    t, x = batch(field, size=5)
    together, alone = field.value_and_divergence(t, x), field.value_and_divergence(t[2:3], x[2:3])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[2:3], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_coinciding_particles_stay_finite(name):
    field = make(name)
    t, x = batch(field)
    x[:, 1] = x[:, 0]
    for value in (*field.value_and_divergence(t, x), *field.value_and_jacobian(t, x)):
        assert torch.isfinite(value).all()


def test_brute_force_does_not_depend_on_the_memory_bound():
    field = make("egnn 4x2")
    t, x = batch(field)
    whole = field.value_and_jacobian(t, x)[1], field.value_and_divergence(t, x)[1]
    field.memory = 3 * 3 * field.bytes_per_sample  # three tangents of three configurations: chunks of 3, 3 and 2
    assert field._chunk(x) == 3
    for a, b in zip(whole, (field.value_and_jacobian(t, x)[1], field.value_and_divergence(t, x)[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_hutchinson_averages_to_the_divergence_over_all_signs():
    field = make("egnn 3x3")
    t, x = batch(field, size=2)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64).view(1, -1, 3, 3).expand(2, -1, -1, -1)
    v, estimates = Hutchinson(field, signs).value_and_divergence(t, x)
    torch.testing.assert_close(v, field(t, x))
    assert estimates.std(1).min() > 1e-2
    torch.testing.assert_close(estimates.mean(1), field.value_and_divergence(t, x)[1], rtol=1e-10, atol=1e-10)


def test_rademacher_probes_are_signs_and_seeded():
    probes = rademacher((100, 2, 4, 2), generator=torch.Generator().manual_seed(0))
    assert set(probes.unique().tolist()) == {-1.0, 1.0} and probes.mean().abs() < 4 / 40
    assert torch.equal(probes, rademacher((100, 2, 4, 2), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("build", [lambda: MLP(1, 2, depth=0), lambda: MLP(1, 2, waves=-1), lambda: MLP(1, 2, scale=0.0),
                                   lambda: EGNN(4, 2, layers=0), lambda: EGNN(4, 2, reach=-1.0), lambda: multihop(4, 2, 0)])
def test_impossible_sizes_are_refused(build):
    with pytest.raises(ValueError, match="at least|positive"):
        build()


def test_egnn_is_its_equations():
    field = make("egnn 3x3")
    t, x = torch.tensor(0.4, dtype=torch.float64), batch(field, size=1)[1]
    start, x, h = x[0], x[0], field.node_in(t.view(1, 1)).expand(3, -1)
    for k, layer in enumerate(field.layers):
        moved, received = x.clone(), torch.zeros_like(h)
        for i, j in itertools.permutations(range(3), 2):
            squares = torch.stack([(x[i] - x[j]).square().sum(), (start[i] - start[j]).square().sum()])
            m = layer.edge(layer.from_node(h[i]) + layer.to_node(h[j]) + layer.from_distance(squares))
            m = layer.attention(m) * m
            moved[i] = moved[i] + (x[i] - x[j]) / ((squares[0] + 1e-8).sqrt() + 1) * layer.reach * layer.move(m)
            received[i] = received[i] + m
        if k < len(field.updates):
            h = h + field.updates[k](torch.cat([h, received], -1))
        x = moved
    v = x - start
    torch.testing.assert_close(field(t, start[None])[0], v - v.mean(0), rtol=1e-10, atol=1e-10)
