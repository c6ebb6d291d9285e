"""The record that a report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bgwork.records import Certificate, Cost, Density, Estimate, WeightedSamples


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """What is known of the target beforehand.

    Attributes:
        samples: reference samples of the target with u (MCMC; grouped by chain), or None.
        log_q: [M] the generator's normalised log-density at them, or that of a path back from each; NaN where that failed, None if unknown.
        rows: [M] which of the samples `log_q` belongs to, or None for all of them.
        rare_log_q, rare_rows: the same of further samples, picked from rare basins; only a look at each basin by itself may use them.
        estimates: reference values by observable name; they take precedence over averages of `samples`.
        note: on what else there would be, printed with every figure.
    """

    samples: WeightedSamples | None = None
    log_q: Tensor | None = None
    rows: Tensor | None = None
    rare_log_q: Tensor | None = None
    rare_rows: Tensor | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A reference value with its standard error, and z = (ours - reference) / combined standard error.

    For populations, of basins and of observables that are 1 or 0, our own standard error is taken to be at least the one that the
    reference's population would give us.
    """

    value: float
    stderr: float
    z: float


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Reference samples of one basin that weigh more than every sample drawn there.

    Attributes:
        at_least: lower end of `value`'s one-sided 95 % interval (Clopper and Pearson 1934).
        n: reference samples of the basin that were looked at.
        n_above: those that weigh more.
        n_failed: further ones, at which the density could not be had.
        error: relative standard error of the basin's weight, as the samples drawn there have it; 1 where none was.
    """

    at_least: float
    n: int
    n_above: int
    n_failed: int
    error: float

    @property
    def value(self) -> float:
        """Share of the basin's reference samples, which estimates the share of its weight that was not drawn; NaN of none."""
        return self.n_above / self.n if self.n else math.nan


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that report.json holds. None means "cannot be had from these samples"; `notes` say why.

    Attributes:
        overlap_failure: why BAR and forward ESS could not be had although there was a reference; else empty.
        resampled: whether rows are copies; then `ess` and `max_weight` count all that descend from one draw as one sample (NaN where
            ancestors were not kept), and so does `pareto_k` (NaN where the rows weigh the same, since resampling has cut the tail off).
        cost: totals over the n samples.
        observables: averages by name; "u" is always among them.
        reference: the reference value of each observable that has one.
        basins: populations by basin label; basin_reference likewise.
        unseen: weight that the samples lack inside each basin, by label.
        problems: what is wrong, most telling first; empty means trust.
        verdict: one sentence, "trust: ..." with the figures it rests on, or "do not trust: ..." with exactly what is wrong.
    """

    system: str
    method: str
    target: str
    n: int
    seed: int | None
    density: Density
    certificate: Certificate | None
    resampled: bool
    ess: Estimate
    forward_ess: Estimate | None
    pareto_k: float
    pareto_k_limit: float
    max_weight: float
    n_failed: int
    n_groups: int | None
    log_z: Estimate | None
    log_z_bar: Estimate | None
    overlap_failure: str
    negative_mass: Estimate | None
    observables: Mapping[str, Estimate]
    reference: Mapping[str, Comparison]
    basins: Mapping[str, Estimate]
    basin_reference: Mapping[str, Comparison]
    cost: Cost
    edits: tuple[str, ...]
    notes: tuple[str, ...]
    unseen: Mapping[str, Unseen] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def trusted(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems
