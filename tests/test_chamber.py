"""A molecule's energy on the chamber that its dynamics keeps: +inf outside, unchanged inside, by OpenMM and by torch."""

from dataclasses import replace

import pytest
import torch

from bgwork.couplings import MolecularAlignment, SoftMolecularAlignment, random_turns
from bgwork.system import load_system
from bgwork.topology import equivalent_hydrogens, handed_groups, stereocentres


@pytest.fixture(scope="module")
def system():
    return load_system("ala2-vacuum")


def swapped(x, i, j):
    order = list(range(x.shape[1]))
    order[i], order[j] = j, i
    return x[:, order]


def test_alanine_dipeptide_has_one_stereocentre_and_three_methyl_groups(system):
    assert [system.topology.names[c.atom] for c in stereocentres(system.topology, system.structure)] == ["CA"]
    assert len(handed_groups(system.topology, system.structure)) == 3


@pytest.mark.parametrize("engine", ["target", "differentiable_target"])
def test_mirror_images_and_renumbered_methyl_groups_have_weight_zero(system, engine):
    target, x = getattr(system, engine), system.structure[None].double()
    u, inner = target.u(x), target.inner.u(x)
    assert torch.isfinite(u).all() and torch.equal(u, inner)
    triple = equivalent_hydrogens(system.topology)[0]
    for y in (-x, swapped(x, triple[0], triple[1])):
        torch.testing.assert_close(target.inner.u(y), u, rtol=0, atol=1e-6)  # the same energy, and yet not reached
        assert torch.isposinf(target.u(y)).all()
        energy, grad = target.u_and_grad(y)
        assert torch.isposinf(energy).all() and torch.isnan(grad).all()
    turned = x[:, [triple[1] if k == triple[0] else triple[2] if k == triple[1] else triple[0] if k == triple[2] else k for k in range(22)]]
    assert torch.isfinite(target.u(turned)).all()


def test_the_gradient_inside_is_the_energys_own(system):
    x = system.structure[None].double().requires_grad_()
    (grad,) = torch.autograd.grad(system.differentiable_target.u(x).sum(), x)
    torch.testing.assert_close(grad, system.differentiable_target.u_and_grad(x)[1], rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(grad, system.target.u_and_grad(x)[1], rtol=1e-4, atol=1e-2)


def test_molecular_alignment_shortens_pairs_and_keeps_handedness(system):
    generator = torch.Generator().manual_seed(0)
    x1 = system.structure[None].double() @ random_turns(40, 3, generator=generator)
    x0 = system.prior.sample(40, generator=generator)
    triples = tuple(group for group in equivalent_hydrogens(system.topology) if len(group) == 3)
    rotated, _ = MolecularAlignment(sweeps=1)(x0, x1, generator=generator)
    aligned, same = MolecularAlignment(triples=triples)(x0, x1, generator=generator)
    before, once, twice = (((y - x1) ** 2).sum((1, 2)) for y in (x0, rotated, aligned))
    assert torch.equal(same, x1) and (once < before).all() and (twice <= once + 1e-9).all() and (twice < once - 1e-6).any()
    for group in handed_groups(system.topology, system.structure):
        volume = [torch.linalg.det(y[:, list(group.neighbours)] - y[:, None, group.atom]).sign() for y in (x0, aligned)]
        assert torch.equal(*volume)


def test_soft_molecular_alignment_turns_triples_as_often_as_it_says(system):
    """Every way to turn the triples of one pair: how often it is taken against `log_chance`, and the rotation that all of them share."""
    n, generator = 4000, torch.Generator().manual_seed(0)
    x1 = system.structure[None].double().expand(n, -1, -1)
    x0 = system.prior.sample(1, generator=generator).expand(n, -1, -1)
    triples = tuple(group for group in equivalent_hydrogens(system.topology) if len(group) == 3)
    soft = SoftMolecularAlignment(triples=triples, width=0.2)
    kept = x0.clone()
    aligned, same = soft(x0, x1, generator=generator)
    assert torch.equal(same, x1) and torch.equal(x0, kept)
    ways, taken = aligned.unique(dim=0, return_counts=True)
    chance = soft.log_chance(ways, x1[: len(ways)]).exp()
    assert len(triples) == 3 and len(ways) > 9 and chance.sum() <= 1 + 1e-9
    far = (ways - x1[: len(ways)]).square().sum((1, 2))
    torch.testing.assert_close(chance / chance[0], (-(far - far[0]) / (2 * soft.width**2)).exp())
    spread = (n * chance * (1 - chance)).sqrt()
    assert ((taken - n * chance).abs() < 4 * spread).all() and n * (1 - chance.sum()) < 20
    torch.testing.assert_close(soft.whole(ways), soft.whole(ways[:1]).expand_as(ways))
    moment = soft.whole(ways).mT @ x1[:1]
    torch.testing.assert_close(moment, moment.mT)
    assert (torch.linalg.eigvalsh(moment)[:, :2].sum(1) > 0).all()  # the best rotation, not one of the others that make it symmetric
    best, _ = MolecularAlignment(triples=triples)(x0[:1], x1[:1], generator=generator)
    sharp, _ = replace(soft, width=0.02)(x0[:1], x1[:1], generator=generator)
    assert (sharp - x1[:1]).square().sum() < 1.05 * (best - x1[:1]).square().sum()
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        SoftMolecularAlignment(triples=triples, width=0)


def test_random_turns_do_not_reflect():
    q = random_turns(200, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.det(q), torch.ones(200, dtype=torch.float64))
    assert q.mean(0).abs().max() < 4 / 200**0.5
