"""From figures to words: each check looks at one way in which weighted samples go wrong, and says so or stays silent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from bgwork.records import MOVED, RESAMPLED, SPLIT, Density, Estimate
from bgwork.samplers.diagnosis import Comparison, Diagnosis

MAX_FAILED = 1e-3  # fraction of NaN rows (design section 3)
MAX_SINGLE_WEIGHT = 0.05  # share of the total that one sample may carry
MIN_EFFECTIVE = 100  # below it the error bars themselves are uncertain by more than 1/sqrt(200) = 7 %
MIN_GROUPS = 8  # below it an error bar from block means is uncertain by more than 25 %
FORWARD_TO_REVERSE = 0.5  # forward ESS below this fraction of reverse ESS: the target has weight where the samples have none
MAX_Z = 4.0
HARMLESS = ("thinned ", "kept every ", RESAMPLED, MOVED, SPLIT)  # how edits begin that leave weights proper; any other may bias


def judge(figures: Diagnosis) -> Diagnosis:
    """The same figures with what is wrong, most telling first, and the verdict."""
    problems = tuple(problem for check in CHECKS for problem in check(figures))
    return replace(figures, problems=problems, verdict="do not trust: " + "; ".join(problems) if problems else _praise(figures))


def _praise(figures: Diagnosis) -> str:
    """The figures that trust rests on, and what was not looked at."""
    parts = [f"{effective(figures):.0f} effective of {figures.n} samples"]
    if math.isfinite(figures.ess.value):
        parts.append(f"ESS{' per ancestor' if figures.resampled else ''} {_percent(figures.ess)}")
    if figures.forward_ess:
        parts.append(f"forward ESS {_percent(figures.forward_ess)}")
    if math.isfinite(figures.pareto_k):
        parts.append(f"Pareto k {figures.pareto_k:.2f} below {figures.pareto_k_limit:.2f}")
    compared = len(figures.reference) + len(figures.basin_reference)
    if compared:
        parts.append(f"all {compared} reference values within {MAX_Z:g} standard errors")
    if figures.density is Density.SIGNED:
        parts.append(f"weights signed, since the map folds ({figures.negative_mass.value:.1g} of the weight is negative)")
    parts += [f"edited: {edit}" for edit in figures.edits]
    if not (figures.forward_ess or compared):
        parts.append("missing modes were not looked for, for want of an independent reference")
    return "trust: " + ", ".join(parts)


def effective(figures: Diagnosis) -> float:
    """Effective number of samples: Kish's, or, where rows are correlated, that of the worst-sampled observable if smaller.

    Resampled rows have only the latter: what moves made of the copies shows in the scatter of groups, not in weights.
    """
    correlated = [e.n_eff for e in figures.observables.values() if math.isfinite(e.n_eff)] if figures.n_groups else []
    return min([figures.n if figures.resampled and correlated else figures.ess.n_eff, *correlated])


def _edits(figures: Diagnosis) -> Iterator[str]:
    biasing = [edit for edit in figures.edits if not edit.startswith(HARMLESS)]
    if biasing:
        yield f"the weights may not be the proper ones ({', '.join(biasing)}), so compare with the figures without that"


def _folds(figures: Diagnosis) -> Iterator[str]:
    certificate = figures.certificate
    if certificate is None or figures.density is Density.SIGNED:
        return
    if certificate.n_negative:
        bias = "" if figures.negative_mass is None else f", biasing Z by {2 * figures.negative_mass.value:.2g} of itself"
        yield f"the executed map folds ({certificate.n_negative} of {certificate.n} determinants not positive{bias}); use more steps"
    if certificate.n_round_trip_failed:
        yield (f"{certificate.n_round_trip_failed} of {certificate.n_round_trip} {certificate.round_trip_of} did not return from the "
               "round trip through the map; use more steps")
    if not certificate.n_round_trip:
        yield "the executed map made no round trip, so nothing shows that it is injective"


def _failures(figures: Diagnosis) -> Iterator[str]:
    if figures.n_failed > MAX_FAILED * figures.n:
        yield f"{figures.n_failed} of {figures.n} samples failed (NaN), more than {MAX_FAILED:.1%}"


def _missing_modes(figures: Diagnosis) -> Iterator[str]:
    forward = figures.forward_ess
    if forward and not forward.value >= FORWARD_TO_REVERSE * figures.ess.value:
        yield (f"missing modes or tails: forward ESS {_percent(forward)} against reverse ESS {_percent(figures.ess)}, so the generator "
               "hardly reaches part of the reference samples")
    if figures.overlap_failure:
        yield f"missing modes could not be looked for: {figures.overlap_failure}"


def _unseen(figures: Diagnosis) -> Iterator[str]:
    for label, found in figures.unseen.items():
        if found.n_failed and not figures.overlap_failure:
            yield (f"nothing is known of {found.n_failed} of {found.n + found.n_failed} reference samples of basin {label}, where the "
                   "density failed; use more steps")
        if found.at_least > found.error:
            yield (f"basin {label} lacks weight: {found.n_above} of {found.n} reference samples there weigh more than any that was drawn, "
                   f"so that at least {found.at_least:.1%} of its weight is missing, where its error bar admits {found.error:.1%}; "
                   "draw more, or train more on that basin (training.oversample)")


def _partition_function(figures: Diagnosis) -> Iterator[str]:
    if figures.log_z and figures.log_z_bar and not abs(figures.log_z.z(figures.log_z_bar)) < MAX_Z:
        yield f"log Z from the weights ({figures.log_z}) disagrees with BAR against the reference samples ({figures.log_z_bar})"


def _populations(figures: Diagnosis) -> Iterator[str]:
    yield from _disagreements("basin ", figures.basins, figures.basin_reference)


def _references(figures: Diagnosis) -> Iterator[str]:
    yield from _disagreements("", figures.observables, figures.reference)


def _tail(figures: Diagnosis) -> Iterator[str]:
    if figures.pareto_k > figures.pareto_k_limit:
        shown = f"{figures.pareto_k:.2f}" if math.isfinite(figures.pareto_k) else "unknown"
        yield f"heavy-tailed weights: Pareto k {shown} above its limit {figures.pareto_k_limit:.2f}; averages converge too slowly"


def _single_weight(figures: Diagnosis) -> Iterator[str]:
    if figures.max_weight > MAX_SINGLE_WEIGHT:
        carrier = "all that descends from a single draw" if figures.resampled else "a single sample"
        yield f"{carrier} carries {figures.max_weight:.1%} of the weight"


def _too_few(figures: Diagnosis) -> Iterator[str]:
    if not effective(figures) >= MIN_EFFECTIVE:
        yield f"only {effective(figures):.0f} effective samples of {figures.n}; {MIN_EFFECTIVE} are needed"
    if figures.n_groups and figures.n_groups < MIN_GROUPS:
        yield f"rows are correlated and fall into {figures.n_groups} independent groups only; error bars need {MIN_GROUPS}"


def _disagreements(prefix: str, ours: Mapping[str, Estimate], theirs: Mapping[str, Comparison]) -> Iterator[str]:
    for name, truth in theirs.items():
        if not abs(truth.z) < MAX_Z:
            yield f"{prefix}{name} is {ours[name]} against {truth.value:.6g} +- {truth.stderr:.2g} in the reference (z = {truth.z:+.1f})"


def _percent(fraction: Estimate) -> str:
    return f"{fraction.value:.1%} +- {fraction.stderr:.1%}"


CHECKS = (_edits, _folds, _failures, _missing_modes, _unseen, _partition_function, _populations, _references, _tail, _single_weight,
          _too_few)
