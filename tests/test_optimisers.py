"""SOAP turns with its weights, leaves vectors to Adam, and finds the eigenvectors of its gradients' moments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bgwork.optimisers import LARGEST, OPTIMISERS, SOAP, moment, rotated, seen_in, turn_basis


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, seed):
    return torch.linalg.qr(drawn(n, n, seed=seed))[0]


def followed(start, gradients, **options):
    """A weight after steps with these gradients."""
    weight = nn.Parameter(start.clone())
    optimiser = SOAP([weight], **({"lr": 0.1, "every": 3, "weight_decay": 0.1} | options))
    for gradient in gradients:
        weight.grad = gradient
        optimiser.step()
    return weight.detach()


def test_a_turned_problem_has_turned_steps():
    """W -> A W B^T with gradients to match: Adam's steps depend on the axes, SOAP's do not."""
    start, gradients = drawn(4, 3), [drawn(4, 3, seed=k) * torch.tensor([1.0, 3.0, 0.2]) for k in range(1, 20)]
    left, right = orthogonal(4, 50), orthogonal(3, 51)
    plain = followed(start, gradients)
    turned = followed(left @ start @ right.T, [left @ g @ right.T for g in gradients])
    torch.testing.assert_close(turned, left @ plain @ right.T, rtol=0, atol=1e-7)
    assert (plain - start).abs().max() > 0.3


def test_vectors_are_left_to_adam():
    """After a first gradient that only sets things up."""
    start, gradients = drawn(5), [drawn(5, seed=k) for k in range(1, 9)]
    weight = nn.Parameter(start.clone())
    adam = torch.optim.AdamW([weight], lr=0.1, betas=(0.95, 0.95), weight_decay=0.1)
    for gradient in gradients[1:]:
        weight.grad = gradient
        adam.step()
    torch.testing.assert_close(followed(start, gradients), weight.detach(), rtol=0, atol=1e-7)  # eps stands elsewhere


def test_seeing_and_back_is_the_identity():
    x, bases = drawn(4, 3, 2), [orthogonal(4, 1), None, orthogonal(2, 2)]
    seen = seen_in(bases, x)
    torch.testing.assert_close(seen, torch.einsum("abc,ai,ck->ibk", x, bases[0], bases[2]), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen_in([None if basis is None else basis.T for basis in bases], seen), x, rtol=0, atol=1e-12)


def test_moments_add_up_what_gradients_share():
    grad = drawn(2, 3, 4)
    torch.testing.assert_close(moment(grad, 1), torch.einsum("abc,adc->bd", grad, grad), rtol=0, atol=1e-12)


def test_bases_turn_towards_eigenvectors_and_second_moments_keep_to_theirs():
    vectors, values = orthogonal(4, 3), torch.tensor([1.0, 8.0, 4.0, 2.0], dtype=torch.float64)
    start = torch.eye(4, dtype=torch.float64)
    own = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    state = {"moment_0": (vectors * values) @ vectors.T, "basis_0": start.clone(), "exp_avg_sq": own.clone()}
    turn_basis(state, 0)
    order = state["moment_0"].diagonal().argsort(descending=True)
    torch.testing.assert_close(state["exp_avg_sq"], own[order], rtol=0, atol=0)
    for _ in range(60):
        turn_basis(state, 0)
    found = (vectors.T @ state["basis_0"]).abs()
    torch.testing.assert_close(found[[1, 2, 3, 0]], start, rtol=0, atol=1e-6)


def test_state_lies_in_memory_as_a_checkpoint_will_give_it_back():
    """Products of a matrix and of its transposed copy round differently, and a resumed training would not be the same bit for bit."""
    weight = nn.Parameter(drawn(4, 3))
    optimiser = SOAP([weight], lr=0.1, every=2)
    for k in range(5):
        weight.grad = drawn(4, 3, seed=k)
        optimiser.step()
        assert all(value.is_contiguous() for value in optimiser.state[weight].values())


def test_moments_follow_the_gradients_and_bases_turn_every_so_many_steps():
    """The first gradient sets up and is no step."""
    weight, gradients = nn.Parameter(drawn(3, 2)), [drawn(3, 2, seed=k) for k in range(6)]
    optimiser, expected, bases = SOAP([weight], lr=0.1, betas=(0.9, 0.8), every=2), torch.zeros(3, 3, dtype=torch.float64), []
    for gradient in gradients:
        weight.grad = gradient
        optimiser.step()
        expected = 0.8 * expected + 0.2 * gradient @ gradient.T
        torch.testing.assert_close(optimiser.state[weight]["moment_0"], expected, rtol=0, atol=1e-12)
        bases.append(optimiser.state[weight]["basis_0"].clone())
    assert [torch.equal(a, b) for a, b in zip(bases, bases[1:], strict=False)] == [True, False, True, False, True]


def test_long_dimensions_are_left_as_they_are():
    assert rotated(torch.zeros(LARGEST + 1, 3)) == [1] and rotated(torch.zeros(7)) == []


def test_an_ill_conditioned_regression_is_learned_sooner():
    """Inputs and outputs of very different sizes, mixed: what SOAP is for."""
    sizes = torch.logspace(0, -2, 8, dtype=torch.float64)
    left, right = orthogonal(8, 1) * sizes, orthogonal(8, 2) * sizes
    truth, x = drawn(8, 8, seed=3), drawn(200, 64, 8, seed=4)
    losses = {}
    for name, optimiser in OPTIMISERS.items():
        weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
        steps = optimiser([weight], lr=0.05)
        for rows in x:
            steps.zero_grad()
            loss = ((rows @ right.T @ (weight - truth) @ left) ** 2).mean()
            loss.backward()
            steps.step()
        losses[name] = loss.item()
    assert losses["soap"] < losses["adamw"] / 3


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": 0.1, "every": 0}, {"lr": 0.1, "betas": (0.9, 1.0)}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="lr must be positive"):
        SOAP([nn.Parameter(torch.zeros(2))], **options)


def test_closures_are_refused():
    with pytest.raises(ValueError, match="no closure"):
        SOAP([nn.Parameter(torch.zeros(2))], lr=0.1).step(lambda: None)
