"""A compiled field passes on the field's own numbers at every batch size up to its own, so that a compiled flow samples as before; and
grids can shorten towards the data."""

from dataclasses import replace

import pytest
import torch
from flows import framed
from simple_fields import randomise

from bgwork.fields.compiled import CompiledField
from bgwork.fields.egnn import EGNN
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.generators import load_generator
from bgwork.paths import LinearInterpolant, stops
from bgwork.priors import Gaussian
from bgwork.recipes import Request, load_recipe
from bgwork.recipes.sections import GridSection
from bgwork.records import Origin
from bgwork.runs import SampleSettings, find_run
from bgwork.samplers.compiled import compiled
from bgwork.samplers.directional import directional
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.samplers.internal_map import InternalMap
from bgwork.samplers.kernels import FieldKernels, velocity_table
from bgwork.samplers.mapped_flow import MappedFlow
from bgwork.samplers.sde import PathSampler
from bgwork.spaces import Euclidean, MeanFree
from bgwork.system import load_system

SPACE = MeanFree(n=3, d=2)


@pytest.fixture
def quick(monkeypatch):
    """Traced, but not handed to the C++ compiler, which takes minutes."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: original(f, dynamic=dynamic, backend="eager"))


@pytest.fixture
def field(quick):
    return small_field()


def small_field():
    return randomise(MultiHop(3, 2, MultiHopConfig(hidden=6, message=4, vectors=3, node_hidden=6, n_basis=5)))


@pytest.mark.parametrize("times", ["one", "each"])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 11])
def test_batches_are_filled_up_or_split(field, size, times):
    x = torch.randn(size, 3, 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    t = torch.tensor(0.3) if times == "one" else torch.linspace(0.1, 0.8, size)
    for got, expected in zip(CompiledField(field, rows=4).value_and_jacobian(t, x), field.value_and_jacobian(t, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_framed_field_can_be_traced(quick):
    """The turn onto the template included."""
    field = randomise(framed())
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for got, expected in zip(CompiledField(field, rows=4).value_and_jacobian(torch.tensor(0.3), x),
                             field.value_and_jacobian(torch.tensor(0.3), x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def flow_of(field, space=SPACE):
    return Flow(prior=Gaussian(space=space), field=field, grid=Grid(steps=3), origin=Origin(method="flow", system="none"),
                n_round_trip=8)


def check_equal_sampling(flow):
    plain, fast = (f.sample(150, generator=torch.Generator().manual_seed(1)) for f in (flow, compiled(flow)))
    torch.testing.assert_close(fast.x, plain.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast.log_q, plain.log_q, rtol=0, atol=1e-4)
    assert (fast.density, fast.cost.jacobian) == (plain.density, plain.cost.jacobian)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_compiled_flow_draws_the_same_samples_with_the_same_density(field, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_equal_sampling(flow_of(field))
    finally:
        torch.set_num_threads(before)


def test_so_do_flows_of_other_fields(quick):
    check_equal_sampling(flow_of(randomise(EGNN(3, 2, layers=1, hidden=4))))
    check_equal_sampling(flow_of(randomise(MLP(3, 2, hidden=6, depth=2)), Euclidean(n=3, d=2)))


@pytest.mark.slow
def test_so_does_one_that_went_through_the_compiler():
    check_equal_sampling(flow_of(small_field()))


def test_it_inverts_its_samples(field):
    flow = compiled(flow_of(field))
    proposal = flow.sample(5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.log_prob(proposal.x), proposal.log_q, rtol=0, atol=1e-4)


def test_a_compiled_flow_keeps_the_map_at_its_end(quick):
    system = load_system("ala2-vacuum")
    small = randomise(MultiHop(22, 3, MultiHopConfig(hidden=6, message=4, vectors=3, node_hidden=6, n_basis=5)))
    last = InternalMap(system.topology)
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, last.parameters()):
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    flow = MappedFlow(prior=system.prior, field=small, map=last, grid=Grid(steps=2), batch=4, n_round_trip=1,
                      origin=Origin(method="flow", system="none"))
    plain, fast = (f.sample(6, generator=torch.Generator().manual_seed(1)) for f in (flow, compiled(flow)))
    assert "a map of internal coordinates" in fast.note and (last(plain.x)[0] - plain.x).abs().max() > 1e-3
    torch.testing.assert_close(fast.x, plain.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast.log_q, plain.log_q, rtol=0, atol=1e-3)


def test_batches_are_twice_those_that_fit_a_cache_uncompiled(quick):
    assert compiled(load_generator("lj13")).rows == 2 * load_generator("lj13").rows == 32


def test_a_batch_that_was_asked_for_is_kept(field):
    assert compiled(replace(flow_of(field), batch=3)).rows == 3


def test_without_a_compiler_it_says_what_to_do(field, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="no-such-compiler not found.*leave out --compiled"):
        compiled(flow_of(field))


def walk_of(field):
    prior = Gaussian(space=SPACE)
    table = velocity_table(LinearInterpolant(), stops(4), prior_std=1.0, spread=1.0)
    plain = FieldKernels(space=SPACE, field=field, table=table)
    return PathSampler(start=prior, kernels=directional(plain), origin=Origin(method="walk", system="none"))


def test_so_do_walks_with_directional_weights(field):
    check_equal_sampling(walk_of(field))
    fast = compiled(walk_of(field))
    assert isinstance(fast.kernels.plain.field, CompiledField) and fast.kernels.batch == fast.kernels.plain.field.rows == 64
    plain = walk_of(field)
    assert compiled(replace(plain, kernels=replace(plain.kernels, batch=3))).kernels.batch == 3


def test_walks_compile_after_their_kernels_were_fitted(quick):
    settings = SampleSettings(n=10, weights="directional", compiled=True, steps=3)
    run = find_run("dw4", settings, recipe="diffusion", folder=None)
    assert isinstance(run.sampler(lambda *_: None).kernels.plain.field, CompiledField)


def test_samplers_without_jacobians_are_refused():
    with pytest.raises(ValueError, match="one width a step take no Jacobians.*leave out --compiled"):
        compiled(load_generator("dw4", recipe="diffusion"))
    with pytest.raises(ValueError, match="FlowMapSampler"):
        find_run("dw4", SampleSettings(n=10, compiled=True), recipe="distill", folder=None)


@pytest.mark.parametrize(("system", "name"), [("ala2-torsions", "TorusFlow"), ("vmf-s2", "GeodesicFlow")])
def test_flows_on_other_spaces_are_refused(system, name):
    with pytest.raises(ValueError, match=f"a {name} takes no Jacobians.*flat space.*leave out --compiled"):
        find_run(system, SampleSettings(n=10, weights="density", compiled=True), folder=None)


def test_a_missing_compiler_is_noticed_before_any_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="leave out --compiled"):
        SampleSettings(n=10, compiled=True)


def test_nor_does_a_training_start_without_one(toy, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    recipe = load_recipe(load_system(toy.system), overrides=["training.compiled=true"])
    with pytest.raises(ValueError, match="--set training.compiled=false"):
        recipe.job(Request(system=load_system(toy.system), name="eqot-fm", folder=toy.root / "run", data=torch.randn(20, 1, 2), seed=0))


def test_a_run_compiles_what_it_was_asked_to():
    plain, fast = (find_run("dw4", SampleSettings(n=10, compiled=asked), folder=None).sampler(lambda *_: None) for asked in (False, True))
    assert isinstance(fast.field, CompiledField) and not isinstance(plain.field, CompiledField)


def test_only_compiling_changes_what_identifies_a_run():
    plain, fast = (find_run("dw4", SampleSettings(n=10, compiled=asked), folder=None) for asked in (False, True))
    assert plain.fingerprint != fast.fingerprint
    assert "compiled" not in plain.settings.decisive


def test_steps_shorten_towards_the_data():
    assert GridSection(steps=4).build() == Grid(steps=4)
    grid = GridSection(steps=4, power=2.0).build()
    torch.testing.assert_close(torch.tensor([h for _, h in grid.intervals]), torch.tensor([7.0, 5.0, 3.0, 1.0]) / 16)
    assert GridSection(steps=4, power=2.0).build(integrator="rk4", steps=2) == Grid(integrator="rk4", steps=2, times=(0.0, 0.75, 1.0))
