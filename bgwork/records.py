"""What passes between the rooms: frozen records, no mathematics beyond the definition of a log-weight, no input or output.

    generator  --sample-->  Proposal(x, log_q, density, ...)
    Proposal + Target  --weigh-->  WeightedSamples (log_w = -u - log_q; w negative where a SIGNED map reverses orientation)
    WeightedSamples  --estimate-->  Estimate(value, stderr, n_eff)
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bgwork.spaces import Space

COLUMNS = ("x", "log_q", "group", "ancestor", "sign")  # of a `Proposal`: one entry for each row
RESAMPLED = "resampled "  # how the edit of `reweighting.resample` begins
SPLIT = "split in time: "  # how the edit begins that parts a run into what is trained on and what is set aside
MOVED = "each moved on by "  # how the edit of a Markov chain that leaves the target invariant begins; weights are not touched


class Density(enum.Enum):
    """How log_q was obtained, and therefore what may be done with it."""

    EXACT = "exact"  # density of the map actually executed, certificate clean
    SIGNED = "signed"  # the same where the map folds: weights carry the determinant's sign, which a map of degree one leaves unbiased
    CONTINUOUS = "continuous"  # density of the ODE by quadrature of the exact divergence: right up to solver error
    PATH = "path"  # path-space or extended-space weight
    UNNORMALISED = "unnormalised"  # known up to one constant (MD, MCMC): ratios and averages only, never log Z
    STOCHASTIC = "stochastic"  # noisy log-density (Hutchinson): refused unless asked for by name
    UNCERTIFIED = "uncertified"  # executed map whose certificate failed otherwise: refused unless asked for by name

    @property
    def normalised(self) -> bool:
        """Whether log Z may be read off the weights."""
        return self is not Density.UNNORMALISED

    @property
    def trusted(self) -> bool:
        """Whether proper weighting holds, so that `weigh` accepts it without being asked."""
        return self not in (Density.STOCHASTIC, Density.UNCERTIFIED)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Work done for a batch, in totals over its samples (one evaluation = one network forward pass of one sample).

    Attributes:
        seconds: on the clock.
        core_seconds: of this process on all its cores, where samples come from an executed map; zero where it was not measured. Worker
            processes of costly energies are not in it.
    """

    network: int = 0
    divergence: int = 0
    jacobian: int = 0
    energy: int = 0
    gradient: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where samples came from. `edits` names every operation that changed weights or rows, in order; empty means raw."""

    method: str
    system: str
    seed: int | None = None
    config_hash: str = ""
    commit: str = ""
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was checked about the injectivity of the executed map (design: determinants, round trip), and its degree where it folds.

    Attributes:
        n: samples whose determinants were inspected.
        n_negative: samples for which some step determinant is zero, negative or not finite.
        smallest_singular: smallest singular value of any step Jacobian over the samples inspected (NaN if not computed).
        n_round_trip: configurations sent through the inverse map and back.
        n_round_trip_failed: those that did not return within `tolerance`.
        round_trip_error: largest max-norm distance among those that returned, in the system's length unit.
        tolerance: the distance that counts as having returned.
        round_trip_of: "reference" (held-out target samples) or "samples" (the sampler's own).
        n_degree: points of a far sphere whose images were looked at, 0 where nothing was found to fold (`samplers.degree`).
        degree_margin: how far from the origin the images of that sphere stay on their way, over the farthest sample.
    """

    n: int
    n_negative: int
    smallest_singular: float = math.nan
    n_round_trip: int = 0
    n_round_trip_failed: int = 0
    round_trip_error: float = math.nan
    tolerance: float = math.nan
    round_trip_of: str = "none"
    n_degree: int = 0
    degree_margin: float = math.nan

    @property
    def degree_one(self) -> bool:
        """Whether all that was seen of a far sphere goes around every sample once: preimages, counted with their signs, are then one."""
        return self.n_degree > 0 and self.degree_margin > 1

    @property
    def clean(self) -> bool:
        """No negative determinant, and a round trip that was made and never failed."""
        return self.n_negative == 0 and self.n_round_trip > 0 and self.n_round_trip_failed == 0


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Samples with what makes their weights proper.

    Attributes:
        x: configurations [N, n, d], float64, in the system's length unit.
        log_q: [N] float64; for UNNORMALISED up to one unknown constant.
        space: the space x lives on; log_q is with respect to its volume.
        density: how log_q was obtained.
        origin: method, system, seed, commit, edits.
        cost: total work of sampling, and of the energies once weighed; a certificate's own work is in the note.
        group: [N] int64 chain, island or ancestor label where rows are correlated, else None.
        ancestor: [N] int64 label of the draw that each row is a copy of, perhaps moved on, where rows were resampled, else None.
        sign: [N] sign of the executed map's determinant, where there is one.
        certificate: of the executed map, where there is one.
        note: one sentence on the solver error or the like, printed with every figure.
    """

    x: Tensor
    log_q: Tensor
    space: Space
    density: Density
    origin: Origin
    cost: Cost = field(default_factory=Cost)
    group: Tensor | None = None
    ancestor: Tensor | None = None
    sign: Tensor | None = None
    certificate: Certificate | None = None
    note: str = ""

    def __post_init__(self) -> None:
        n = len(self.x)
        if self.x.shape[1:] != (self.space.n, self.space.d):
            raise ValueError(f"x has shape {tuple(self.x.shape)}, expected [N, {self.space.n}, {self.space.d}]")
        for name in COLUMNS[1:]:
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected [{n}]")
        if self.x.dtype != torch.float64 or self.log_q.dtype != torch.float64:
            raise ValueError(f"x and log_q must be float64, got {self.x.dtype} and {self.log_q.dtype}")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor | slice) -> Proposal:
        """Some of the rows, by indices, a mask or a slice."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS if getattr(self, name) is not None})

    @property
    def resampled(self) -> bool:
        """Whether rows are copies, so that the weights of single rows say nothing of how many samples there are."""
        return self.ancestor is not None or any(edit.startswith(RESAMPLED) for edit in self.origin.edits)


@dataclass(frozen=True, kw_only=True)
class WeightedSamples:
    """A proposal with the reduced energies that weigh it; the log-weight is always derived, never stored."""

    proposal: Proposal
    u: Tensor
    target: str

    def __post_init__(self) -> None:
        if self.u.shape != self.proposal.log_q.shape or self.u.dtype != torch.float64:
            raise ValueError(f"u must be float64 [{len(self.proposal)}], got {self.u.dtype} {tuple(self.u.shape)}")

    def __len__(self) -> int:
        return len(self.u)

    def take(self, rows: Tensor | slice) -> WeightedSamples:
        """Some of the rows, by indices, a mask or a slice."""
        return replace(self, proposal=self.proposal.take(rows), u=self.u[rows])

    @property
    def x(self) -> Tensor:
        return self.proposal.x

    @property
    def failed(self) -> Tensor:
        """[N] bool: rows with a NaN in x or u, u = -inf, or a log_q that is not finite. They count as zero weight and are reported.

        A drawn sample has a positive finite density and a finite or infinitely high energy, so anything else went wrong.
        """
        no_energy = torch.isnan(self.u) | (self.u == -math.inf)
        return no_energy | ~torch.isfinite(self.proposal.log_q) | torch.isnan(self.x).flatten(1).any(1)

    @property
    def n_failed(self) -> int:
        return int(self.failed.sum())

    @property
    def sign(self) -> Tensor:
        """[N] sign of each weight: -1 where a SIGNED map reverses orientation, 1 everywhere else."""
        if self.proposal.density is not Density.SIGNED or self.proposal.sign is None:
            return torch.ones_like(self.u)
        return torch.where(self.failed, 1.0, self.proposal.sign)

    @property
    def magnitudes(self) -> WeightedSamples:
        """The same samples with the weights' signs left out, as if the map did not fold; an edit, where any is negative."""
        if not (self.sign < 0).any():
            return self
        return replace(self, proposal=with_edit(replace(self.proposal, sign=None), "signs of the weights left out"))

    @property
    def log_w(self) -> Tensor:
        """log |w| = -u - log q, [N]; -inf where u = +inf (a legitimate zero weight) or the row failed, finite elsewhere."""
        zero = self.failed | (self.u == math.inf)
        return torch.where(zero, -math.inf, -self.u - self.proposal.log_q)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error and the effective number of samples behind it."""

    value: float
    stderr: float
    n_eff: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.6g} +- {self.stderr:.2g}"

    def z(self, other: Estimate) -> float:
        """Difference in combined standard errors; 0 or infinite where both values are exact."""
        if self.stderr == other.stderr == 0:
            return 0.0 if self.value == other.value else math.copysign(math.inf, self.value - other.value)
        return (self.value - other.value) / math.hypot(self.stderr, other.stderr)


def with_edit(proposal: Proposal, edit: str) -> Proposal:
    """A copy whose origin records one more edit."""
    return replace(proposal, origin=replace(proposal.origin, edits=(*proposal.origin.edits, edit)))


def proposal_of(samples: Proposal | WeightedSamples) -> Proposal:
    """The proposal in either record."""
    return samples.proposal if isinstance(samples, WeightedSamples) else samples
