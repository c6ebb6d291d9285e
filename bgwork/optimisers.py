"""Optimisers of a training, by name: AdamW, and SOAP, which is Adam in the directions that Shampoo finds.

Gradients G of a weight matrix have second moments L = E[G G^T] and R = E[G^T G]. In the eigenvectors of both the coordinates of G
are nearly uncorrelated, so that Adam's division by root mean squares, coordinate by coordinate, does what it is meant for. All state is
tensors under plain names, which a checkpoint keeps as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

LARGEST = 512  # of a dimension that is rotated; longer ones are left as they are


class SOAP(torch.optim.Optimizer):
    """Adam in slowly turning eigenvectors of the gradients' second moments, one basis for each dimension of a weight.

        G' = Q_L^T G Q_R,    M = mean of G,    S' = mean of G'^2,    W -= lr Q_L [(Q_L^T M Q_R) / sqrt(S')] Q_R^T
        source: Vyas et al. 2024 (arXiv:2409.11321), algorithm 3

    Vectors are left to Adam. The first gradient only sets up the bases, as in the authors' code.

    Args:
        params: weights to train.
        lr: learning rate.
        betas: decay of the mean and of the second moments, those of L and R included.
        weight_decay: decoupled, as in AdamW.
        every: steps between two turns of the bases, each one step of orthogonal iteration.
        eps: added to the root of the second moments.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimiser = SOAP(layer.parameters(), lr=1e-3)
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, betas: tuple[float, float] = (0.95, 0.95), weight_decay: float = 0.0,
                 every: int = 10, eps: float = 1e-8) -> None:
        if not lr > 0 or every < 1 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr must be positive, every at least 1 and betas in [0, 1), got {lr}, {every} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "every": every, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update of every weight that has a gradient; `closure`, which torch's interface has, is refused.

        Raises:
            ValueError: for a closure.
        """
        if closure is not None:
            raise ValueError("SOAP takes no closure; compute gradients first")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, beta = self.state[p], group["betas"][1]
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            for k in rotated(p):
                state[f"moment_{k}"] = (1 - beta) * moment(p.grad, k)
                state[f"basis_{k}"] = torch.linalg.eigh(state[f"moment_{k}"])[1].flip(1).contiguous()
            return
        state["step"] += 1
        self._descend(p, group)
        for k in rotated(p):
            state[f"moment_{k}"].lerp_(moment(p.grad, k), 1 - beta)
        if state["step"].item() % group["every"] == 0:
            for k in rotated(p):
                turn_basis(state, k)

    def _descend(self, p: Tensor, group: dict[str, Any]) -> None:
        state, (slow, fast), t = self.state[p], group["betas"], self.state[p]["step"].item()
        bases = [state.get(f"basis_{k}") for k in range(p.ndim)]
        state["exp_avg"].lerp_(p.grad, 1 - slow)
        state["exp_avg_sq"].lerp_(seen_in(bases, p.grad).square(), 1 - fast)
        scale = state["exp_avg_sq"].sqrt().add_(group["eps"])
        update = seen_in([None if basis is None else basis.T for basis in bases], seen_in(bases, state["exp_avg"]) / scale)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(update, alpha=group["lr"] * (1 - fast**t) ** 0.5 / (1 - slow**t))


def rotated(p: Tensor) -> list[int]:
    """Dimensions of a weight that have a basis: none of vectors, and none that are too long."""
    return [k for k in range(p.ndim) if p.ndim > 1 and p.shape[k] <= LARGEST]


def moment(grad: Tensor, k: int) -> Tensor:
    """G G^T of a gradient's dimension k against all others."""
    rows = grad.movedim(k, 0).flatten(1)
    return rows @ rows.T


def seen_in(bases: list[Tensor | None], x: Tensor) -> Tensor:
    """x with every dimension in the coordinates of its basis, the columns of an orthogonal matrix; None leaves it as it is."""
    for basis in bases:  # each product takes the first dimension and puts it last, so that after all of them they are in order again
        x = x.movedim(0, -1) if basis is None else torch.tensordot(x, basis, dims=([0], [0]))
    return x


def turn_basis(state: dict[str, Tensor], k: int) -> None:
    """One step of orthogonal iteration towards the eigenvectors, largest first; second moments keep to their vectors."""
    basis, carried = state[f"basis_{k}"], state[f"moment_{k}"] @ state[f"basis_{k}"]
    order = (basis * carried).sum(0).argsort(descending=True)
    state["exp_avg_sq"].copy_(state["exp_avg_sq"].index_select(k, order))
    state[f"basis_{k}"] = torch.linalg.qr(carried[:, order])[0].contiguous()  # as a checkpoint gives it back


def moments_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state of a weight in a checkpoint, whatever the optimiser calls it.

    Raises:
        KeyError: if there is none.
    """
    split = ((*key.partition("."), key) for key in tensors)
    found = {kind: tensors[key] for kind, _, of, key in split if of == name and kind not in ("average", "model", "source")}
    if not found:
        raise KeyError(f"no state of the optimiser for {name}")
    return found


OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "soap": SOAP}
