"""Polish: tune a flow together with its coarse grid for the weights of the very map it executes.

Let w = exp(-u)/q with q the exact density of the executed map T (`executed_density`), and c(x) = grad_x log q + grad u = -grad_x log w.
Every divergence between q and the target has a path gradient of one form, which vanishes row by row where q is the target,
    gradient = sum_b m_b c(x_b) . d_theta T(z_b)    at fixed z_b and c    (Roeder, Wu and Duvenaud 2017; Vaitl et al. 2022, 2024)
    own samples, z ~ p0:    "reverse" KL(q|pi), m = 1/B;  "forward" KL(pi|q), m = w/sum w;  "chi-square" log E_q w^2, m = 2 w^2/sum w^2
    data x ~ pi, z = T^-1(x):    "path" KL(pi|q), m = 1/B
so no gradient ever passes through a Jacobian into the parameters. Maximum likelihood ("likelihood": KL(pi|q) on data without the path
estimator, implicit function theorem, no energies) does, and its noise does not vanish; it is there for data whose energy is not at hand.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bgwork.objectives.executed_density import Scored, preimages, push, score, signed_singular_value
from bgwork.protocols import Field, Prior, Target
from bgwork.samplers.flow import RungeKuttaStep
from bgwork.samplers.integrators import Grid, LearnedGrid
from bgwork.training import TrainingState

POWERS = {"reverse": 0.0, "forward": 1.0, "chi-square": 2.0}  # m ~ w^power on own samples


class CoarseFlow(nn.Module):
    """A field with the grid it is executed on: what is polished.

    Args:
        field: velocity, an nn.Module.
        grid: fixed, or learned with the field.

    Attributes:
        arithmetic: what the steps call, the field itself or a compiled form of it.
    """

    def __init__(self, field: nn.Module, grid: Grid | LearnedGrid) -> None:
        super().__init__()
        self.field, self.grid = field, grid
        self.arithmetic: Field | None = None

    @property
    def steps(self) -> tuple[RungeKuttaStep, ...]:
        """The executed map's steps, differentiable in every parameter."""
        field, tableau = self.arithmetic or self.field, self.grid.tableau
        return tuple(RungeKuttaStep(field=field, tableau=tableau, t=t, h=h) for t, h in self.grid.intervals)

    def executed(self) -> tuple[Field, Grid]:
        """Field and grid as they stand, for samplers."""
        return self.field, self.grid.fixed() if isinstance(self.grid, LearnedGrid) else self.grid


@dataclass(frozen=True, kw_only=True)
class PolishSettings:
    """What is minimised, share * (divergence on data) + (1 - share) * (divergence on own samples) + fold_weight * folds.

    Args:
        batch: rows a step, own and data together.
        share: of the loss, and of the rows, that comes from data; 1 needs no own samples, 0 no data.
        data: "path" or "likelihood".
        own: "reverse", "forward" or "chi-square".
        margin: smallest singular value of a step below which the fold penalty sets in, relu(margin - sign(det) sigma_min)^2.
        fold_weight: of that penalty; it is evaluated at the points visited, taken as given.
        force_cap: own rows with |c| above it enter with |c| = force_cap (overlapping particles); they are counted.
        tolerance: max-norm residual of a preimage's step, in the system's length unit.
    """

    batch: int = 32
    share: float = 1.0
    data: Literal["path", "likelihood"] = "path"
    own: Literal["reverse", "forward", "chi-square"] = "forward"
    margin: float = 0.05
    fold_weight: float = 10.0
    force_cap: float = 1e4
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is the part of the loss that comes from data, between 0 and 1, got {self.share}")
        if self.own not in POWERS or self.data not in ("path", "likelihood"):
            raise ValueError(f"own must be one of {', '.join(POWERS)} and data path or likelihood, got {self.own!r} and {self.data!r}")
        if self.batch < 1 or min(self.margin, self.fold_weight, self.force_cap, self.tolerance) < 0:
            raise ValueError(f"batch must be positive, margin, fold_weight, force_cap and tolerance must not be negative, got {self}")

    @property
    def data_rows(self) -> int:
        """Rows from data: their share, at least one of each kind that has a part in the loss."""
        return min(max(round(self.share * self.batch), int(self.share > 0)), self.batch - int(self.share < 1))


class PolishBatch(NamedTuple):
    """One step's gradient, ready to be applied.

    Attributes:
        z: prior-side points [R, n, d].
        cotangent: m_b c(x_b) [R, n, d].
        parameter_gradient: of the likelihood's part of the loss, aligned with the model's parameters; empty without such a part.
        near_folds: for each step, points at which it folds or nearly does, [R_k, n, d].
        value: what the divergences amount to, scalar.
        seconds: what making the batch cost.
    """

    z: Tensor
    cotangent: Tensor
    parameter_gradient: tuple[Tensor, ...]
    near_folds: tuple[Tensor, ...]
    value: Tensor
    seconds: float


@dataclass(kw_only=True)
class PolishCounts:
    """What has happened to the rows so far. Rows that folded or have no preimage contribute to the fold penalty alone."""

    own_rows: int = 0
    own_folded: int = 0
    own_failed: int = 0  # energy, density or gradient not finite, at an unfolded map
    own_capped: int = 0
    data_rows: int = 0
    data_folded: int = 0
    data_not_inverted: int = 0
    gradients: int = 0  # energy-and-gradient evaluations


@dataclass(kw_only=True, eq=False)
class PolishSource:
    """Batches of a polish, as a `training.Source`.

    Args:
        prior: p0.
        target: reduced energy; its gradient evaluations are counted here too.
        settings: what is minimised.
        seed: together with the step, seeds everything drawn.
        x: equilibrium data [N, n, d]; None if settings.share is 0.
        rows: configurations whose Jacobians are differentiated at once.
        before: evaluations of the energy behind what is polished, as its header names them; empty if not known, or if there are data.
    """

    prior: Prior
    target: Target
    settings: PolishSettings
    seed: int
    x: Tensor | None = None
    rows: int = 16
    before: Mapping[str, int] = field(default_factory=dict)
    counts: PolishCounts = field(default_factory=PolishCounts)

    def __post_init__(self) -> None:
        if self.settings.share > 0 and self.x is None:
            raise ValueError(f"share = {self.settings.share} of the loss is to come from data; hand over data, or set share = 0")

    def batch(self, state: TrainingState) -> PolishBatch:
        """Draw, invert, differentiate the density."""
        started = time.process_time()
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + state.step)
        parts, folds = [], []
        if self.settings.batch > self.settings.data_rows:
            parts.append(self._own(state.model, generator, folds))
        if self.settings.data_rows:
            parts.append(self._data(state.model, generator, folds))
        z, cotangent, gradient, value = zip(*parts, strict=True)
        return PolishBatch(z=torch.cat(z), cotangent=torch.cat(cotangent), parameter_gradient=sum(gradient, ()),
                           near_folds=tuple(torch.cat(points) for points in zip(*folds, strict=True)), value=sum(value),
                           seconds=time.process_time() - started)

    def _own(self, model: CoarseFlow, generator: torch.Generator, folds: list) -> tuple[Tensor, Tensor, tuple, Tensor]:
        n, share = self.settings.batch - self.settings.data_rows, 1 - self.settings.share
        z = self.prior.sample(n, generator=generator)
        scored = score(model.steps, self.prior, z, rows=self.rows)
        folds.append(self._near_folds(scored))
        log_w, c = self._log_w_and_pull(scored)
        upright = ~scored.folded
        usable = upright & torch.isfinite(log_w) & torch.isfinite(c).flatten(1).all(1)
        nothing = upright & (log_w == -torch.inf)  # u = +inf: no weight, so nothing to do but for the reverse divergence
        self.counts.own_rows += n
        self.counts.own_folded += int(scored.folded.sum())
        self.counts.own_failed += int((upright & ~usable & ~(nothing & (self.settings.own != "reverse"))).sum())
        z, log_w, c = z[usable], log_w[usable], self._capped(c[usable])
        power = POWERS[self.settings.own]
        m = power * torch.softmax(power * log_w, 0) if power else torch.full_like(log_w, 1 / n)
        return z, share * m[:, None, None] * c, (), share * divergence(self.settings.own, log_w)

    def _data(self, model: CoarseFlow, generator: torch.Generator, folds: list) -> tuple[Tensor, Tensor, tuple, Tensor]:
        n, share = self.settings.data_rows, self.settings.share
        x = self.x[torch.randint(len(self.x), (n,), generator=generator)]
        z, found = preimages(model.steps, x, tolerance=self.settings.tolerance)
        self.counts.data_rows += n
        self.counts.data_not_inverted += int((~found).sum())
        folds.append(self._at_failures(model, z[~found]))
        parameters = tuple(model.parameters()) if self.settings.data == "likelihood" else ()
        scored = score(model.steps, self.prior, z[found], parameters=parameters, rows=self.rows)
        folds.append(self._near_folds(scored))
        upright = ~scored.folded
        self.counts.data_folded += int(scored.folded.sum())
        if parameters:
            if not upright.all():  # their gradients are in the sum already: once more without them
                scored = score(model.steps, self.prior, z[found][upright], parameters=parameters, rows=self.rows)
            gradient = tuple(-share / n * g for g in scored.parameter_gradient)
            nothing = z[:0]
            return nothing, nothing, gradient, -share * scored.log_q.sum() / n
        log_w, c = self._log_w_and_pull(scored)
        return z[found][upright], share / n * c[upright], (), share * log_w[upright].sum() / n

    def _log_w_and_pull(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """log w [B] and c = grad_x log q + grad u [B, n, d]."""
        u, gradient = self.target.u_and_grad(scored.x)
        self.counts.gradients += len(u)
        return -u - scored.log_q, scored.score + gradient

    def _capped(self, c: Tensor) -> Tensor:
        size = c.flatten(1).norm(dim=1)
        self.counts.own_capped += int((size > self.settings.force_cap).sum())
        return c * (self.settings.force_cap / size).clamp(max=1.0)[:, None, None]

    def _near_folds(self, scored: Scored) -> tuple[Tensor, ...]:
        """For each step, the starting points at which its smallest singular value is below the margin."""
        return tuple(z[value < self.settings.margin] for z, value in zip(scored.starts, scored.singular, strict=True))

    @staticmethod
    @torch.no_grad()
    def _at_failures(model: CoarseFlow, z: Tensor) -> tuple[Tensor, ...]:
        """Where the steps start for data without a preimage, as near as the reversed steps get."""
        points = []
        for step in model.steps:
            points.append(z)
            z = step(z)
        return tuple(points)

    def figures(self) -> dict[str, float]:
        """The counts, for every row of the metrics, and evaluations from the very beginning, where those before are known."""
        own = {"gradient_evaluations": self.counts.gradients}
        return asdict(self.counts) | {name: count + own.get(name, 0) for name, count in self.before.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in asdict(self.counts).items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.counts = PolishCounts(**{f.name: int(tensors[f.name]) for f in fields(PolishCounts)})


def divergence(kind: str, log_w: Tensor) -> Tensor:
    """Estimate of the divergence from own samples' log-weights, zero where all are equal: KL(q|pi), KL(pi|q) or log E w^2 / (E w)^2."""
    if not len(log_w):
        return log_w.sum()
    log_z = torch.logsumexp(log_w, 0) - torch.tensor(float(len(log_w))).log()
    if kind == "reverse":
        return log_z - log_w.mean()
    if kind == "forward":
        return (torch.softmax(log_w, 0) * log_w).sum() - log_z
    return torch.logsumexp(2 * log_w, 0) - torch.tensor(float(len(log_w))).log() - 2 * log_z


class PolishLoss:
    """(model, batch) -> scalar whose gradient is the batch's, plus the fold penalty.

    Args:
        settings: for the penalty.
    """

    def __init__(self, settings: PolishSettings) -> None:
        self.settings = settings

    def __call__(self, model: CoarseFlow, batch: PolishBatch) -> Tensor:
        linear = (batch.cotangent * push(model.steps, batch.z)).sum()
        for p, gradient in zip(model.parameters(), batch.parameter_gradient, strict=False):
            linear = linear + (gradient * p).sum()
        return batch.value + linear - linear.detach() + fold_penalty(model.steps, batch.near_folds, self.settings)


def fold_penalty(steps: Sequence[RungeKuttaStep], near_folds: Sequence[Tensor], settings: PolishSettings) -> Tensor:
    """fold_weight / batch * sum relu(margin - sign(det) sigma_min)^2 over the points given for each step."""
    penalty = torch.zeros((), dtype=torch.float64)
    for step, z in zip(steps, near_folds, strict=True):
        if len(z):
            penalty = penalty + (settings.margin - signed_singular_value(step, z)).clamp(min=0).square().sum()
    return settings.fold_weight / settings.batch * penalty
