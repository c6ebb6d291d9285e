"""Polish: its gradients against quadrature, what becomes of folded rows, and that it does what it is for."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from oracles import LineOracle
from simple_fields import folding, randomise, squashing
from torch import nn

from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.objectives.executed_density import push_with_log_det, score, signed_singular_value
from bgwork.objectives.polish import CoarseFlow, PolishLoss, PolishSettings, PolishSource, divergence, fold_penalty
from bgwork.priors import Gaussian
from bgwork.records import Origin
from bgwork.reweighting import ess, weigh
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid, LearnedGrid
from bgwork.spaces import Euclidean, MeanFree
from bgwork.targets.double_well import DoubleWell
from bgwork.training import TrainingConfig, TrainingJob, train

LINE = Euclidean(n=1, d=1)
PRIOR = Gaussian(space=LINE, std=1.0)
ORACLE = LineOracle(lambda x: 0.7 * (x - 0.3).square() + 0.05 * x**4)


def line_model(seed=0):
    torch.manual_seed(seed)
    return CoarseFlow(randomise(MLP(1, 1, hidden=6, depth=2), size=0.4), LearnedGrid(steps=2).double())


def source_of(settings, *, seed=0, x=None, target=ORACLE, prior=PRIOR, **options):
    return PolishSource(prior=prior, target=target, settings=settings, seed=seed, x=x, **options)


def batch_of(source, model, step=0):
    return source.batch(SimpleNamespace(model=model, step=step))


def by_quadrature(model):
    """KL(q|pi), KL(pi|q) and log E w^2 / Z^2 by quadrature over z, differentiable in the parameters."""
    z = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None, None]
    x, log_det = push_with_log_det(model.steps, z)
    assert (x[:, 0, 0].diff() > 0).all()
    log_p = PRIOR.log_prob(z)
    log_w = -ORACLE.u(x) - ORACLE.log_z - log_p + log_det
    mass = log_p.exp() * 18 / 6000
    return {"reverse": -(mass * log_w).sum(), "forward": (mass * log_w.exp() * log_w).sum(),
            "chi-square": (mass * (2 * log_w).exp()).sum().log()}


def gradient_of(value, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()), materialize_grads=True, allow_unused=True)])


@pytest.mark.parametrize(("options", "truth"), [
    ({"share": 0.0, "own": "reverse"}, {"reverse": 1.0}), ({"share": 0.0, "own": "forward"}, {"forward": 1.0}),
    ({"share": 0.0, "own": "chi-square"}, {"chi-square": 1.0}), ({"data": "path"}, {"forward": 1.0}),
    ({"data": "likelihood"}, {"forward": 1.0}), ({"share": 0.3, "own": "reverse"}, {"forward": 0.3, "reverse": 0.7})])
def test_gradients_are_those_of_the_divergences(options, truth):
    """Against exact gradients by quadrature, along random directions and along each step size; |error| < 4 stderr."""
    model, settings = line_model(), PolishSettings(batch=600, margin=0.0, **options)
    x = ORACLE.sample(20_000, generator=torch.Generator().manual_seed(3))
    source, loss = source_of(settings, x=x, rows=600), PolishLoss(settings)
    found = torch.stack([gradient_of(loss(model, batch_of(source, model, step)), model) for step in range(16)])
    exact = by_quadrature(model)
    wanted = gradient_of(sum(weight * exact[kind] for kind, weight in truth.items()), model)
    directions = torch.randn(4, len(wanted), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, wanted = found @ directions.T, directions @ wanted
    stderr = ours.std(0) / math.sqrt(len(ours))
    assert ((ours.mean(0) - wanted).abs() < 4 * stderr).all()
    assert (wanted.abs() > 8 * stderr).any()
    assert source.counts.own_failed == source.counts.data_not_inverted == 0


def test_step_sizes_are_learned_too():
    model, settings = line_model(), PolishSettings(batch=64)
    source = source_of(settings, x=ORACLE.sample(100, generator=torch.Generator().manual_seed(0)))
    PolishLoss(settings)(model, batch_of(source, model)).backward()
    assert model.grid.logits.grad.abs().max() > 1e-4


def test_path_gradients_vanish_row_by_row_at_the_target():
    """q = pi: the cotangents are zero, not only their mean, while the likelihood's gradient still fluctuates."""
    model, target = line_model(), LineOracle(lambda x: x.square() / 2)
    nn.init.zeros_(model.field.last.weight)
    nn.init.zeros_(model.field.last.bias)
    for options in ({"share": 0.5, "own": "chi-square"}, {"share": 0.5, "own": "reverse"}):
        source = source_of(PolishSettings(batch=16, **options), target=target, x=PRIOR.sample(50, generator=torch.Generator()))
        assert batch_of(source, model).cotangent.abs().max() < 1e-12
    source = source_of(PolishSettings(batch=16, data="likelihood"), target=target, x=PRIOR.sample(50, generator=torch.Generator()))
    assert max(g.abs().max() for g in batch_of(source, model).parameter_gradient) > 1e-2


def test_energies_and_rows_are_counted_and_survive_a_checkpoint():
    source = source_of(PolishSettings(batch=10, share=0.3), x=torch.zeros(5, 1, 1, dtype=torch.float64))
    model, before = line_model(), ORACLE.n_gradient
    batch_of(source, model)
    figures = source.figures()
    assert (figures["own_rows"], figures["data_rows"], figures["gradients"]) == (7, 3, 10)
    assert ORACLE.n_gradient - before == 10
    other = source_of(source.settings, x=source.x)
    other.load_state_dict(source.state_dict())
    assert other.figures() == figures
    with pytest.raises(KeyError):
        other.load_state_dict({})


def test_the_same_step_gives_the_same_batch_whatever_came_before():
    x = ORACLE.sample(50, generator=torch.Generator().manual_seed(0))
    a, b = (source_of(PolishSettings(batch=8, share=0.5), x=x) for _ in range(2))
    model = line_model()
    batch_of(a, model, step=6)
    assert torch.equal(batch_of(a, model, step=7).cotangent, batch_of(b, model, step=7).cotangent)
    assert not torch.equal(batch_of(a, model, step=6).cotangent, batch_of(b, model, step=7).cotangent)


class Scaled(nn.Module):
    """strength * v for a field on the line with known slope."""

    n = d = 1

    def __init__(self, field):
        super().__init__()
        self.field, self.strength = field, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x):
        return self.strength * self.field(t, x)

    def value_and_jacobian(self, t, x):
        v, jacobian = self.field.value_and_jacobian(t, x)
        return self.strength * v, self.strength * jacobian


def one_step(field):
    return CoarseFlow(Scaled(field), Grid(integrator="euler", steps=1))


def test_folded_rows_are_counted_and_enter_the_penalty_alone():
    model, settings = one_step(folding()), PolishSettings(batch=40, share=0.0, own="reverse")
    source, prior = source_of(settings, prior=replace(PRIOR, std=2.0)), replace(PRIOR, std=2.0)
    batch = batch_of(source, model)
    z = prior.sample(40, generator=torch.Generator().manual_seed(0))
    folded = (1 + 3 * torch.cos(2 * z)[:, 0, 0]) <= 0
    assert source.counts.own_folded == folded.sum() > 5
    assert torch.equal(batch.z, z[~folded])
    assert torch.equal(batch.near_folds[0], z[1 + 3 * torch.cos(2 * z)[:, 0, 0] < settings.margin])
    penalty = fold_penalty(model.steps, batch.near_folds, settings)
    slope = 1 + 3 * torch.cos(2 * z[folded])
    assert penalty.item() == pytest.approx(settings.fold_weight / 40 * (settings.margin - slope).clamp(min=0).square().sum().item())
    loss = PolishLoss(settings)(model, batch)
    assert loss.item() == pytest.approx((batch.value + penalty).item())


def test_the_penalty_undoes_folds():
    model, settings = one_step(folding()), PolishSettings(batch=40, share=0.0)
    z = PRIOR.sample(40, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.005)
    assert (signed_singular_value(model.steps[0], z) < 0).any()
    for _ in range(150):
        optimiser.zero_grad()
        fold_penalty(model.steps, (z,), settings).backward()
        optimiser.step()
    assert (signed_singular_value(model.steps[0], z) > 0).all()
    assert model.field.strength > 0.2


def test_data_without_a_preimage_are_counted_and_enter_the_penalty_alone():
    model, settings = one_step(squashing()), PolishSettings(batch=30, margin=0.3)
    x = torch.linspace(-1.55, 1.55, 32, dtype=torch.float64)[:, None, None]
    source = source_of(settings, x=x)
    batch = batch_of(source, model)
    drawn = x[torch.randint(32, (30,), generator=torch.Generator().manual_seed(0))]
    outside = drawn[:, 0, 0].abs() > 1
    assert source.counts.data_not_inverted == outside.sum() > 3
    assert torch.allclose(batch.z, torch.atanh(drawn[~outside]), atol=1e-2)
    assert all(torch.isfinite(value).all() for value in (batch.value, batch.cotangent))
    reversed_step = 2 * drawn - torch.tanh(drawn)
    assert torch.allclose(batch.near_folds[0][: outside.sum()], reversed_step[outside])


def test_overlapping_particles_are_capped_and_counted():
    wall = LineOracle(lambda x: torch.where(x > 0, 1e5 * x, 0.0) + x.square() / 2)
    source = source_of(PolishSettings(batch=50, share=0.0, own="reverse", force_cap=1e3), target=wall)
    batch = batch_of(source, line_model())
    assert 5 < source.counts.own_capped < 50
    assert batch.cotangent.abs().max().item() == pytest.approx(1e3 / 50)


def test_infinite_energies_have_no_weight_but_spoil_the_reverse_divergence():
    wall = LineOracle(lambda x: torch.where(x > 0, torch.inf, 0.0) + x.square() / 2)
    for own, failed in (("forward", False), ("reverse", True)):
        source = source_of(PolishSettings(batch=50, share=0.0, own=own), target=wall)
        batch = batch_of(source, line_model())
        assert (source.counts.own_failed > 5) == failed
        assert torch.isfinite(batch.cotangent).all() and torch.isfinite(batch.value)


def test_divergences_are_zero_for_equal_weights_and_those_of_two_weights():
    for kind in ("reverse", "forward", "chi-square"):
        assert divergence(kind, torch.full((5,), 3.0)).abs() < 1e-6
    log_w = torch.tensor([1.0, 3.0], dtype=torch.float64).log()
    assert divergence("reverse", log_w).item() == pytest.approx(math.log(2) - math.log(3) / 2)
    assert divergence("forward", log_w).item() == pytest.approx(0.75 * math.log(3) - math.log(2))
    assert divergence("chi-square", log_w).item() == pytest.approx(math.log(5 / 4))


@pytest.mark.parametrize("options", [{"share": 1.5}, {"own": "backward"}, {"data": "none"}, {"batch": 0}, {"margin": -1.0}])
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        PolishSettings(**options)


def test_data_are_asked_for():
    with pytest.raises(ValueError, match="hand over data"):
        source_of(PolishSettings(share=0.5))


SPACE = MeanFree(n=3, d=2)
TARGET = DoubleWell(3, 2, quartic=0.9, quadratic=2.0, r0=2.0)


def equilibrium(n):
    """Approximate data: a broad Gaussian's draws, resampled by their weights."""
    generator = torch.Generator().manual_seed(5)
    broad = Gaussian(space=SPACE, std=1.6)
    x = broad.sample(100 * n, generator=generator)
    return x[torch.multinomial(torch.softmax(-TARGET.u(x) - broad.log_prob(x), 0), n, generator=generator)]


def polished(folder, *, steps, **options):
    torch.manual_seed(0)
    model = CoarseFlow(MultiHop(3, 2, MultiHopConfig(hidden=12, message=8, vectors=4, node_hidden=12, n_basis=10)), Grid(steps=2))
    settings = PolishSettings(batch=32, **options)
    source = PolishSource(prior=Gaussian(space=SPACE, std=1.4), target=TARGET, settings=settings, seed=0, x=equilibrium(500), rows=32)
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(steps=steps, learning_rate=1e-2, warmup=5, ema=0.9, log_every=5, checkpoint_every=4)
    return TrainingJob(model=model, loss=PolishLoss(settings), data=source, config=config, folder=folder, meta={"seed": 0})


def quality(model):
    """Reverse ESS, and the mean log-density of held-out data."""
    field, grid = model.executed()
    flow = Flow(prior=Gaussian(space=SPACE, std=1.4), field=field, grid=grid, origin=Origin(method="flow", system="toy"))
    proposal = flow.sample(1000, generator=torch.Generator().manual_seed(11))
    return ess(weigh(proposal, TARGET)), flow.log_prob(equilibrium(700)[500:]).mean().item()


@pytest.mark.parametrize("options", [{"share": 1.0}, pytest.param({"share": 0.5, "own": "chi-square"}, marks=pytest.mark.slow)])
def test_polish_raises_the_ess_and_lowers_the_forward_divergence(tmp_path, options):
    job = polished(tmp_path / "run", steps=35, **options)
    before, likelihood_before = quality(job.model)
    train(job, resume=False)
    after, likelihood_after = quality(job.model)
    assert after.value > before.value + 4 * math.hypot(after.stderr, before.stderr)
    assert likelihood_after > likelihood_before + 0.1


def test_a_resumed_polish_repeats_an_uninterrupted_one(tmp_path):
    whole, cut = (polished(tmp_path / name, steps=6, share=0.5) for name in ("whole", "cut"))

    class Kill(BaseException):
        pass

    def kill(row):
        if row["step"] == 5:
            raise Kill

    train(whole, resume=False)
    with pytest.raises(Kill):
        train(replace(cut, on_log=kill), resume=False)
    again = polished(tmp_path / "cut", steps=6, share=0.5)
    train(again, resume=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [json.loads(job.metrics.read_text().splitlines()[-1]) for job in (whole, again)]
    assert rows[0]["data_rows"] == rows[1]["data_rows"] == 6 * 16
    assert rows[0]["gradients"] == rows[1]["gradients"] == 6 * 32


def test_score_uses_no_more_memory_than_its_rows():
    """Splitting the batch changes nothing."""
    model, z = line_model(), PRIOR.sample(7, generator=torch.Generator().manual_seed(0))
    whole, split = (score(model.steps, PRIOR, z, parameters=list(model.parameters()), rows=rows) for rows in (7, 3))
    assert torch.allclose(whole.score, split.score) and torch.allclose(whole.starts, split.starts)
    for a, b in zip(whole.parameter_gradient, split.parameter_gradient, strict=True):
        assert torch.allclose(a, b)
