"""Derivatives of the executed map's density: in x, in the parameters at fixed x, in the times of the steps; preimages; folds."""

import pytest
import torch
from oracles import GaussianOracle
from simple_fields import Linear, folding, randomise, squashing

from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.objectives.executed_density import preimages, push, push_with_log_det, score, signed_singular_value
from bgwork.objectives.polish import CoarseFlow
from bgwork.priors import Gaussian
from bgwork.records import Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import TABLEAUS, Grid, LearnedGrid
from bgwork.spaces import Euclidean, MeanFree

SPACE, LINE = MeanFree(n=3, d=2), Euclidean(n=1, d=1)
PRIOR = Gaussian(space=SPACE, std=1.3)


def multihop(*, seed=0, size=0.5):
    torch.manual_seed(seed)
    return randomise(MultiHop(3, 2, MultiHopConfig(hidden=8, message=6, vectors=4, node_hidden=10, n_basis=6)), seed=seed, size=size)


def model_of(grid, **options):
    return CoarseFlow(multihop(**options), grid)


def draw(n=4, *, seed=0, prior=PRIOR):
    return prior.sample(n, generator=torch.Generator().manual_seed(seed))


def uneven(steps=3, *, symmetric=False):
    grid = LearnedGrid(integrator="midpoint", steps=steps, symmetric=symmetric).double()
    with torch.no_grad():
        grid.logits += torch.linspace(-0.4, 0.5, len(grid.logits))
    return grid


def flow_of(model, prior=PRIOR):
    field, grid = model.executed()
    return Flow(prior=prior, field=field, grid=grid, origin=Origin(method="flow", system="test"))


def euler(field, steps):
    grid = Grid(integrator="euler", steps=steps)
    return Flow(prior=Gaussian(space=LINE), field=field, grid=grid, origin=Origin(method="flow", system="test")).steps


def whole_log_q(model, z):
    """log p0(z) - log|det DT| at one z, by autograd through all steps at once; a function of the parameters, too."""
    jacobian = torch.autograd.functional.jacobian(lambda y: push(model.steps, y[None])[0].flatten(), z, create_graph=True)
    return PRIOR.log_prob(z[None])[0] - torch.linalg.slogdet(jacobian.reshape(z.numel(), z.numel())).logabsdet


def test_push_with_log_det_is_the_samplers_map():
    model = model_of(uneven())
    x, log_det = push_with_log_det(model.steps, draw())
    pushed = flow_of(model).push(draw())
    assert torch.allclose(x, pushed.x, atol=1e-12)
    assert torch.allclose(log_det, pushed.log_det, atol=1e-12)


def test_push_with_log_det_is_differentiable_in_parameters_times_and_z():
    model, z = model_of(uneven()), draw(1).requires_grad_()
    wanted = (z, model.grid.logits, model.field.hops[1].filters.weight)
    _, log_det = push_with_log_det(model.steps, z)
    ours = torch.autograd.grad(log_det.sum(), wanted)
    truth = torch.autograd.grad((PRIOR.log_prob(z)[0] - whole_log_q(model, z[0])), wanted)
    for a, b in zip(ours, truth, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("integrator", TABLEAUS)
def test_score_is_the_gradient_of_log_q_in_x(integrator):
    model = model_of(Grid(integrator=integrator, steps=3))
    sampler, scored = flow_of(model), score(model.steps, PRIOR, draw(3), rows=2)
    assert torch.allclose(scored.log_q, sampler.log_prob(scored.x), atol=1e-8)
    generator, step = torch.Generator().manual_seed(5), 1e-5
    for _ in range(3):
        direction = SPACE.project(torch.randn(3, 3, 2, generator=generator, dtype=torch.float64))
        slope = (sampler.log_prob(scored.x + step * direction) - sampler.log_prob(scored.x - step * direction)) / (2 * step)
        assert torch.allclose((scored.score * direction).sum((1, 2)), slope, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_parameter_gradient_at_fixed_x_is_that_of_brute_force(symmetric):
    """d log q(x) with the preimage found anew at every parameter value, by central differences along random directions."""
    model = model_of(uneven(symmetric=symmetric))
    parameters = list(model.parameters())
    scored = score(model.steps, PRIOR, draw(3), parameters=parameters, rows=2)
    generator, step = torch.Generator().manual_seed(1), 1e-5
    grid_only = [torch.ones_like(p) * (p is model.grid.logits) * torch.arange(len(p)) if p.ndim == 1 else 0 * p for p in parameters]
    for direction in ([torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters], grid_only):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, v in zip(parameters, direction, strict=True):
                    p.add_(sign * step * v)
                values.append(flow_of(model).log_prob(scored.x).sum())
                for p, v in zip(parameters, direction, strict=True):
                    p.sub_(sign * step * v)
        ours = sum((g * v).sum() for g, v in zip(scored.parameter_gradient, direction, strict=True))
        assert abs(ours - (values[0] - values[1]) / (2 * step)) < 1e-6 * (1 + abs(ours))


def test_parameter_gradient_is_the_implicit_formula():
    """L(z) - <a, T(z)> with L = log p0 - log|det DT| and a = DT^-T grad L, differentiated through the whole map at fixed z and a."""
    model, z = model_of(uneven()), draw(2)
    parameters = list(model.parameters())
    scored = score(model.steps, PRIOR, z, parameters=parameters)
    x, log_det = push_with_log_det(model.steps, z)
    surrogate = (-log_det - (scored.score * x).sum((1, 2))).sum()
    for ours, truth in zip(scored.parameter_gradient, torch.autograd.grad(surrogate, parameters), strict=True):
        assert torch.allclose(ours, truth, atol=1e-9)


def test_preimages_come_back():
    model = model_of(Grid(steps=4))
    x = flow_of(model).forward(draw(8))
    z, found = preimages(model.steps, x, tolerance=1e-9)
    assert found.all()
    assert torch.allclose(push(model.steps, z), x, atol=1e-7)
    assert torch.allclose(z, draw(8), atol=1e-6)


def test_preimages_that_defect_correction_cannot_find_go_to_newton():
    """A strong linear field: the reversed step undoes the step so badly that corrections diverge, Newton solves it at once."""
    steps = euler(Linear(torch.tensor([[6.0, 0.0], [0.0, 2.0]], dtype=torch.float64)), 1)
    x = torch.tensor([[[1.0, -2.0]], [[3.0, 0.5]]], dtype=torch.float64)
    z, found = preimages(steps, x, tolerance=1e-10)
    assert found.all()
    assert torch.allclose(z, x / torch.tensor([7.0, 3.0]), atol=1e-9)


def test_points_without_a_preimage_are_told():
    steps = euler(squashing(), 1)
    x = torch.tensor([[[0.5]], [[1.5]]], dtype=torch.float64)
    z, found = preimages(steps, x, tolerance=1e-10)
    assert found.tolist() == [True, False]
    assert torch.allclose(z[0], torch.atanh(x[0]))


def test_folded_rows_are_told_and_their_singular_value_is_negative():
    steps, prior = euler(folding(), 1), Gaussian(space=LINE)
    z = torch.tensor([[[0.1]], [[1.2]], [[3.0]]], dtype=torch.float64)
    scored = score(steps, prior, z)
    slope = 1 + 3 * torch.cos(2 * z)[:, 0, 0]
    assert torch.allclose(scored.singular[0], slope)
    assert scored.folded.tolist() == [False, True, False]


def test_signed_singular_value_is_differentiable_in_the_parameters():
    model, z = model_of(uneven(), size=0.8), draw(3)
    step, weight = model.steps[2], model.field.readout.gamma.weight
    gradient = torch.autograd.grad(signed_singular_value(step, z).sum(), weight)[0]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-5 * direction)
            values.append(signed_singular_value(model.steps[2], z).sum())
            weight.sub_(sign * 1e-5 * direction)
    assert abs((gradient * direction).sum() - (values[0] - values[1]) / 2e-5) < 1e-6
    assert abs(gradient).max() > 1e-3


def test_score_of_a_linear_map_is_that_of_its_gaussian():
    """T z = M z sends N(0, 1) to N(0, M M^T)."""
    matrix = torch.tensor([[0.3, -0.8], [0.5, -0.6]], dtype=torch.float64)
    steps = euler(Linear(matrix), 2)
    oracle = GaussianOracle(space=Euclidean(n=1, d=2))
    scored = score(steps, oracle, draw(5, prior=oracle))
    whole = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) + matrix / 2, 2)
    assert torch.allclose(scored.score[:, 0], -torch.linalg.solve(whole @ whole.T, scored.x[:, 0].T).T, atol=1e-12)
