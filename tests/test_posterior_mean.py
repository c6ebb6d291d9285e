"""Velocities averaged over pools: the posterior within a pool is that of the pairs as they are drawn, and its mean leaves theirs alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bgwork.couplings import SoftMolecularAlignment, random_turns
from bgwork.objectives.flow_matching import FlowMatchingData
from bgwork.objectives.nested_pools import NestedPools
from bgwork.objectives.pooled_targets import PooledTargets, best_ascent
from bgwork.objectives.posterior_mean import PooledPosterior
from bgwork.priors import Gaussian
from bgwork.recipes import RecipeError, Request, load_recipe
from bgwork.spaces import MeanFree
from bgwork.system import load_system, reference_samples

STD = 0.8
MEMBERS = 3


def seed(value=0):
    return torch.Generator().manual_seed(value)


def centred(x):
    return x - x.mean(-2, keepdim=True)


def shapes(n):
    """Very different ones [MEMBERS, n, 3], nearly flat, so that other rotations are often as near and volumes differ much."""
    return centred(torch.randn(MEMBERS, n, 3, generator=seed(4), dtype=torch.float64) * torch.tensor([1.0, 0.7, 0.2]))


def pairs(n, triples, *, t, draws, value=0):
    """Aligned pairs at one time whose x1 is a member of the pool, turned at random: posterior, x_t, velocities and members."""
    prior, coupling = Gaussian(space=MeanFree(n=n, d=3), std=STD), SoftMolecularAlignment(triples=triples, width=0.5)
    posterior = PooledPosterior(prior=prior, coupling=coupling)
    g = seed(value)
    member = torch.randint(MEMBERS, (draws,), generator=g)
    x1 = shapes(n)[member] @ random_turns(draws, 3, generator=g)
    for triple in map(list, triples):
        shift = torch.randint(3, (draws,), generator=g)
        x1[:, triple] = torch.stack([x1[:, triple].roll(k, 1) for k in range(3)])[shift, torch.arange(draws)]
    x0 = posterior.prior.sample(draws, generator=g)
    x0, x1 = posterior.coupling(x0, x1, generator=g)
    return posterior, (1 - t) * x0 + t * x1, x1 - x0, member


def zero_within(values, stderrs=4.0):
    return abs(values.mean().item()) < stderrs * values.std().item() / len(values) ** 0.5


@pytest.mark.parametrize("t", [0.15, 0.3])
@pytest.mark.parametrize(("n", "triples"), [(4, ()), (5, ((2, 3, 4),))])
def test_weights_are_the_chances_of_the_members(n, triples, t):
    """1 - w_k where k is behind x_t, -w_k elsewhere, has mean zero along every function of x_t, such as w_j."""
    draws = 20_000
    posterior, x, _, member = pairs(n, triples, t=t, draws=draws)
    weights = posterior(torch.full((draws,), t, dtype=torch.float64), x, shapes(n).expand(draws, -1, -1, -1)).weights
    behind = torch.nn.functional.one_hot(member, MEMBERS).double()
    assert 0.1 < weights.std(0).min() and weights.std(0).max() < 0.45  # they tell something, and not all
    for j in range(MEMBERS):
        assert all(zero_within((behind - weights)[:, k] * weights[:, j]) for k in range(MEMBERS))


@pytest.mark.parametrize(("n", "triples"), [(4, ()), (5, ((2, 3, 4),))])
def test_what_is_taken_out_is_orthogonal_to_what_is_left(n, triples):
    draws, t = 20_000, 0.4
    posterior, x, velocity, _ = pairs(n, triples, t=t, draws=draws)
    mean = (posterior(torch.full((draws,), t, dtype=torch.float64), x, shapes(n).expand(draws, -1, -1, -1)).x1 - x) / (1 - t)
    removed = ((velocity - mean) * mean).sum((1, 2))
    assert zero_within(removed)
    assert (velocity - mean).square().sum((1, 2)).mean() > 20 * removed.std() / draws**0.5  # a bias of a twentieth of it would be seen


def test_a_pool_of_one_without_triples_is_the_pair():
    posterior, x, velocity, member = pairs(4, (), t=0.5, draws=50)
    found = posterior(torch.full((50,), 0.5, dtype=torch.float64), x, shapes(4)[member][:, None])
    torch.testing.assert_close((found.x1 - x) / 0.5, velocity)
    assert torch.equal(found.weights, torch.ones(50, 1, dtype=torch.float64))


def test_orientations_and_names_of_hydrogens_do_not_matter():
    posterior, x, _, _ = pairs(5, ((2, 3, 4),), t=0.5, draws=20)
    t, pool = torch.full((20,), 0.5, dtype=torch.float64), shapes(5).expand(20, -1, -1, -1)
    renamed = (pool.flatten(0, 1)[:, [0, 1, 3, 4, 2]] @ random_turns(20 * MEMBERS, 3, generator=seed(8))).view_as(pool)
    for found, expected in zip(posterior(t, x, renamed), posterior(t, x, pool), strict=True):
        torch.testing.assert_close(found, expected)


def test_members_that_another_rotation_would_have_been_nearer_to_are_impossible():
    """There, too, the determinant may be positive."""
    posterior, x, _, member = pairs(4, (), t=0.3, draws=2000)
    weights = posterior(torch.full((2000,), 0.3, dtype=torch.float64), x, shapes(4).expand(2000, -1, -1, -1)).weights
    assert (weights == 0).any() and (weights[torch.arange(2000), member] > 0).all() and torch.isfinite(weights).all()


def blocks(pools, depth):
    edges = pools.edges[depth].tolist()
    return [pools.order[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


@pytest.fixture(scope="module")
def x(system):
    return reference_samples(system).x


def test_every_depth_parts_the_rows_into_halves_more_alike(x, data):
    x = data.coupling.whole(x)
    pools = NestedPools.of(x, None, smallest=100)
    assert len(pools.edges) == 5 and [len(b) for b in blocks(pools, 4)] == [125] * 16
    spread = []
    for depth in range(5):
        assert torch.equal(torch.cat(blocks(pools, depth)).sort()[0], torch.arange(2000))
        distances = [torch.cdist(x[b], x[b]).flatten(1) for b in blocks(pools, depth)]
        spread.append(torch.stack([d.std(0).square().mean() for d in distances]).mean().item())
    assert all(b < 0.8 * a for a, b in zip(spread[:-1], spread[1:], strict=True))
    assert len(NestedPools.of(x[:150], None, smallest=100).edges) == 1


def test_pools_come_from_the_block_of_their_row_by_its_chances(x):
    chances = torch.ones(2000, dtype=torch.float64)
    chances[::2] = 3.0
    chances[5] = 0.0
    pools = NestedPools.of(x, chances, smallest=100)
    rows = torch.arange(400)
    drawn = pools.draw(rows, torch.full((400,), 3), 200, generator=seed())
    assert torch.equal(drawn[:, 0], rows) and not (drawn[:, 1:] == 5).any()
    within = {int(row): set(block.tolist()) for block in blocks(pools, 3) for row in block}
    assert all(set(pool) <= within[pool[0]] for pool in drawn.tolist())
    block = blocks(pools, 3)[0]
    drawn = pools.draw(block[:1].expand(500), torch.full((500,), 3), 200, generator=seed())[:, 1:]
    expected = (chances[block] * (block % 2 == 0)).sum() / chances[block].sum()
    assert abs((drawn % 2 == 0).double().mean() - expected) < 4 * (0.25 / drawn.numel()) ** 0.5


@pytest.fixture(scope="module")
def data(system, x):
    recipe = load_recipe(system, "fm-forces")
    return FlowMatchingData(x1=x.float(), prior=system.prior, coupling=recipe.coupling.build(system), batch=400, seed=1,
                            times=recipe.training.times(), turns=random_turns)


@pytest.fixture(scope="module")
def targets(system, data):
    posterior = PooledPosterior(prior=system.prior, coupling=data.coupling)
    return PooledTargets.of(data.x1, None, posterior=posterior, size=32, until=0.9)


def test_early_pools_are_wide_and_late_velocities_left_alone(data, targets):
    used = targets.depth[targets.depth >= 0]
    assert targets.depth[:5].tolist() == [0] * 5 and used[-1] > 0 and (used.diff() >= 0).all() and (targets.depth[len(used):] == -1).all()
    assert len(used) < 20, "late pools hold little more than their row"
    plain, averaged = data(7), replace(data, pools=targets)(7)
    assert torch.equal(plain.x, averaged.x) and torch.equal(plain.t, averaged.t)
    changed = (plain.velocity != averaged.velocity).flatten(1).any(1)
    assert changed[plain.t < 0.4].all() and not changed[plain.t >= 0.9].any()
    assert torch.equal(averaged.velocity, replace(data, pools=targets)(7).velocity)


@pytest.mark.parametrize(("span", "low", "high"), [(0, 0.0, 0.045), (7, 0.315, 0.36), (12, 0.54, 0.585)])
def test_every_span_of_time_has_its_depth(data, targets, span, low, high):
    """Spans of .9 / 20 each; in others velocities stay."""
    one = replace(targets, depth=torch.where(torch.arange(20) == span, 0, -1))
    plain, averaged = data(11), replace(data, pools=one)(11)
    changed = (plain.velocity != averaged.velocity).flatten(1).any(1)
    assert torch.equal(changed, (plain.t >= low) & (plain.t < high)) and changed.any()


def test_the_best_ascent_is_the_best_of_all():
    score = torch.randn(4, 3, generator=seed(2), dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    every = every[(every.diff(dim=1) >= 0).all(1)]
    found = best_ascent(score)
    assert torch.equal(found, every[score[torch.arange(4), every].sum(1).argmax()]) and not torch.equal(found, score.argmax(1))


def test_velocities_keep_their_mean_and_lose_most_of_their_noise(data, targets):
    """v' v' = v v' on average; of v - v', a bias of a tenth would be seen."""
    plain, averaged = data(3), replace(data, pools=targets)(3)
    early = plain.t < 0.5
    v, mean = plain.velocity[early].double(), averaged.velocity[early].double()
    removed = ((v - mean) * mean).sum((1, 2))
    assert zero_within(removed)
    assert (v - mean).square().sum((1, 2)).mean() > 10 * removed.std() / len(removed) ** 0.5


def test_pools_are_drawn_by_the_chances_of_their_rows(system, x, data):
    """With one basin drawn half of the time; pools of rows that are all alike would move the mean."""
    inside = system.functions["phi_positive"](x).double()
    often = replace(data, chances=inside / inside.sum() + (1 - inside) / (1 - inside).sum(), batch=2000)
    posterior, plain = PooledPosterior(prior=system.prior, coupling=data.coupling), often(5)
    early = (plain.t > 0.1) & (plain.t < 0.4)
    for chances, right in ((often.chances, True), (None, False)):
        pools = PooledTargets.of(data.x1, chances, posterior=posterior, size=32, until=0.9)
        mean = replace(often, pools=replace(pools, depth=torch.zeros(20, dtype=torch.int64)))(5).velocity[early].double()
        removed = ((plain.velocity[early].double() - mean) * mean).sum((1, 2))
        assert zero_within(removed) == right


def test_recipes_ask_for_pools(system, x, tmp_path):
    request = Request(system=system, name="fm-forces", folder=tmp_path, seed=0, data=x)
    overrides = ["training.initial=''", "training.compiled=false", "training.pool=16"]
    job = load_recipe(system, "fm-forces", overrides=overrides).job(request)
    assert (job.data.pools.size, job.data.pools.until) == (16, 0.94)
    assert job.data.chances.unique().numel() == 2 and torch.equal(job.data.pools.pools.chances, job.data.chances)
    with pytest.raises(RecipeError, match="training.pool is 16, but there are 10 configurations; lower it"):
        load_recipe(system, "fm-forces", overrides=[*overrides, "training.forces_after=1"]).job(replace(request, data=x[:10]))
    with pytest.raises(RecipeError, match="training.pool is for molecules"):
        load_recipe(system, "fm-forces", overrides=[*overrides, "training.forces_after=1", "coupling.kind=molecular"]).job(request)
