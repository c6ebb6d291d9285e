"""Every figure that says whether weighted samples can be believed, and the verdict in one sentence.

    WeightedSamples + ReferenceSet  --diagnose-->  Diagnosis  --to_json_dict-->  report.json
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bgwork.free_energy import forward_ess, log_z_bar
from bgwork.pareto import tail_limit, tail_shape
from bgwork.records import Density, Estimate, Proposal, WeightedSamples
from bgwork.reweighting import average, effective_number, ess, evaluate, expectation, log_z, max_weight, negative_mass
from bgwork.samplers.diagnosis import Comparison, Diagnosis, ReferenceSet
from bgwork.samplers.unseen import unseen_in_basins
from bgwork.samplers.verdict import judge

__all__ = ["Comparison", "Diagnosis", "Observable", "ReferenceSet", "diagnose", "plain", "to_json_dict"]

Observable = Callable[[Tensor], Tensor]


def diagnose(weighted: WeightedSamples, *, reference: ReferenceSet | None = None, observables: Mapping[str, Observable] | None = None,
             basin_of: Observable | None = None) -> Diagnosis:
    """Compute every figure and judge.

    Args:
        weighted: samples of any generator; UNNORMALISED ones (MCMC) have no log Z and no forward ESS, and a note says so.
        reference: what is known of the target; without it missing modes cannot be seen, and the verdict says so.
        observables: functions of configurations [B, n, d] -> [B], by name.
        basin_of: integer basin label of each configuration, [B]; its populations are compared with those of the reference samples.
    Raises:
        ValueError: if there are no samples or no weight is positive.
    """
    reference = reference or ReferenceSet()
    proposal = weighted.proposal
    values = {"u": weighted.u} | {name: evaluate(f, weighted) for name, f in (observables or {}).items()}
    averages = {name: average(weighted, found) for name, found in values.items()}
    truth = _reference_values(averages, reference, observables or {})
    shares = {name: known for name, known in truth.items() if _is_indicator(values[name]) and 0 <= known.value <= 1}
    basins, basin_truth = _populations(weighted, reference.samples, basin_of)
    absolute, notes = _absolute(weighted, reference)
    figures = Diagnosis(
        system=proposal.origin.system, method=proposal.origin.method, target=weighted.target, n=len(weighted), seed=proposal.origin.seed,
        density=proposal.density, certificate=proposal.certificate, resampled=proposal.resampled,
        ess=ess(weighted), pareto_k=tail_shape(weighted), pareto_k_limit=tail_limit(weighted), max_weight=max_weight(weighted),
        n_failed=weighted.n_failed,
        n_groups=None if proposal.group is None else len(proposal.group.unique()),
        negative_mass=None if proposal.sign is None else negative_mass(weighted), observables=averages,
        reference=_compare(averages | _as_if_true(averages, shares, weighted), truth), basins=basins,
        basin_reference=_compare(_as_if_true(basins, basin_truth, weighted), basin_truth),
        unseen=unseen_in_basins(weighted, reference, basin_of), cost=proposal.cost, edits=proposal.origin.edits,
        notes=tuple(note for note in (proposal.note, _copies(proposal), reference.note, *notes) if note), **absolute)
    return judge(figures)


def to_json_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """The contents of report.json: plain types, with null for what is not finite or cannot be had.

    cost is per sample but for its seconds and core seconds, which are the total.
    """
    content = {f.name: getattr(diagnosis, f.name) for f in fields(diagnosis)}
    cost = {name: value if name in ("seconds", "core_seconds") else value / diagnosis.n for name, value in asdict(diagnosis.cost).items()}
    content |= {"cost": cost, "trusted": diagnosis.trusted}
    return plain(content)


def _absolute(weighted: WeightedSamples, reference: ReferenceSet) -> tuple[dict[str, Any], list[str]]:
    """log Z, and BAR and forward ESS where the reference allows; with notes on what could not be had."""
    figures = {"log_z": None, "log_z_bar": None, "forward_ess": None, "overlap_failure": ""}
    if not weighted.proposal.density.normalised:
        return figures, ["log Z and forward ESS are unknown for MCMC samples; ratios and averages only"]
    figures["log_z"] = log_z(weighted)
    if weighted.proposal.density is Density.SIGNED:
        return figures, ["no forward ESS and BAR: where the map folds, reference samples may have several preimages"]
    if reference.samples is None or reference.log_q is None:
        return figures, ["no forward ESS: it needs reference samples and the generator's density there"]
    rows = slice(None) if reference.rows is None else reference.rows
    chain = reference.samples.proposal.group
    sets, group = (weighted, reference.log_q, reference.samples.u[rows]), None if chain is None else chain[rows]
    try:
        figures["log_z_bar"] = log_z_bar(*sets, group=group)
        figures["forward_ess"] = forward_ess(*sets, group=group)
    except ValueError as error:
        figures["overlap_failure"] = str(error)
    return figures, []


def _copies(proposal: Proposal) -> str:
    """What resampling has left unknown."""
    if not proposal.resampled:
        return ""
    if proposal.ancestor is None:
        return "rows were resampled and it was not kept which are copies, so ESS and largest weight are unknown"
    return ("rows were resampled: ESS, largest weight and Pareto k are of all that descend from one draw; "
            "where rows weigh the same there is no Pareto k")


def _reference_values(names: Iterable[str], reference: ReferenceSet, observables: Mapping[str, Observable]) -> dict[str, Estimate]:
    """Known values first, averages of the reference samples otherwise."""
    values = {}
    for name in names:
        if name in reference.estimates:
            values[name] = reference.estimates[name]
        elif reference.samples is not None:
            f = observables.get(name)
            values[name] = expectation(reference.samples, f) if f else average(reference.samples, reference.samples.u)
    return values


def _populations(weighted: WeightedSamples, reference: WeightedSamples | None,
                 basin_of: Observable | None) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Populations of every basin seen by either set, in both."""
    if basin_of is None:
        return {}, {}
    sets = [weighted] if reference is None else [weighted, reference]
    labels = [torch.where(s.log_w > -math.inf, evaluate(basin_of, s), math.nan) for s in sets]
    seen = sorted({label for found in labels for label in found[~found.isnan()].unique().tolist()})
    broken = [label for label in seen if label != int(label)]
    if broken:
        raise ValueError(f"basin labels must be whole numbers, got {broken[0]:g}; round or bin the observable first")
    populations = [{str(int(label)): average(s, found == label) for label in seen} for s, found in zip(sets, labels, strict=True)]
    return populations[0], populations[1] if reference is not None else {}


def _as_if_true(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate], weighted: WeightedSamples) -> dict[str, Estimate]:
    """Populations with at least the standard error sqrt(p (1 - p) / n_eff) that they would have if the reference's p were true.

    A basin that few samples or none have reached knows little of its own scatter, and would seem further off than it is. n_eff is Kish's,
    so that for chains this is a lower bound, beside the scatter of the chains; where ancestors were not kept there is none. The normal
    error is lenient towards an empty basin: it takes some 16 missing samples to reach 4.
    """
    n_eff = effective_number(weighted)
    scatter = {name: math.sqrt(max(truth.value * (1 - truth.value), 0.0) / n_eff) for name, truth in theirs.items()}
    return {name: replace(ours[name], stderr=max(ours[name].stderr, found)) for name, found in scatter.items()}


def _is_indicator(values: Tensor) -> bool:
    """Whether an observable is 1 or 0 everywhere, so that its average is a population."""
    return bool(((values == 0) | (values == 1)).all())


def _compare(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> dict[str, Comparison]:
    return {name: Comparison(value=truth.value, stderr=truth.stderr, z=ours[name].z(truth)) for name, truth in theirs.items()}


def plain(value: Any) -> Any:
    """A record as report.json holds it: plain types, with null for what is not finite."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Density):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value
