"""Rows of text from what report.json holds, for the terminal and the page alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bgwork.records import Estimate

MAX_Z = 4.0
NONE = "–"
NOT_FINITE = "not finite"
COUNTED = {"network": "network evaluations", "divergence": "divergences", "jacobian": "Jacobians", "energy": "energies",
           "gradient": "gradients"}
SPENT = {"energy_evaluations": "energies", "gradient_evaluations": "gradients"}  # by a training, as its metrics and header name them

WEIGHT_TEXTS = {
    False: (("ESS", "fraction of the samples that count; blind to a mode that no sample reached"),
            "share of the total carried by one sample"),
    True: (("ESS per ancestor", "all that descend from one draw count as one sample; what moves made of copies earns nothing here"),
           "share of the total carried by all that descend from one draw")}  # by whether rows were resampled


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}g}"


def with_error(value: float | None, stderr: float | None) -> str:
    """value ± stderr, both rounded at the second digit of the error; alone where the error is round-off, ± ? where it has none."""
    if value is None or not math.isfinite(value):
        return number(value)
    if not has_error(stderr):
        return f"{number(value)} ± ?"
    if stderr <= 1e-12 * (1 + abs(value)):
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}" if decimals <= 8 else f"{value:.6g} ± {stderr:.1e}"


def has_error(stderr: float | None) -> bool:
    """Whether there is a finite standard error; report.json has null for others."""
    return stderr is not None and math.isfinite(stderr)


def estimate(value: Estimate | Mapping[str, float] | None) -> str:
    """An estimate with its error, as a record or as it stands in report.json."""
    if isinstance(value, Estimate):
        return with_error(value.value, value.stderr)
    return NONE if value is None else with_error(value["value"], value["stderr"])


def weight_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, value, meaning) of everything that says whether the weights can be believed."""
    ess, share = WEIGHT_TEXTS[report["resampled"]]
    rows = [
        (ess[0], estimate(report["ess"]), ess[1]),
        ("forward ESS", estimate(report["forward_ess"]), "the same seen from reference samples; a missing mode shows here"),
        ("Pareto k", number(report["pareto_k"], 3), f"tail of the weights; reliable up to {number(report['pareto_k_limit'], 2)} at this N"),
        ("largest weight", number(report["max_weight"], 3), share),
        ("failed rows", f"{report['n_failed']} of {report['n']}", "rows with a NaN, kept with zero weight"),
        ("log Z", estimate(report["log_z"]), "absolute log partition function, from the weights alone"),
        ("log Z (BAR)", estimate(report["log_z_bar"]), "the same with the help of reference samples; the two must agree"),
    ]
    if report["n_groups"]:
        rows.append(("independent groups", str(report["n_groups"]), "chains or islands; the rows of one count as one for the error bars"))
    if unseen := report.get("unseen"):
        label, worst = max(unseen.items(), key=lambda item: (item[1]["at_least"] / item[1]["error"], item[1]["n_above"]))
        rows.append((f"unseen in basin {label}", f"{worst['n_above']} of {worst['n']}",
                     f"reference samples above the largest weight there: {worst['at_least']:.1%} or more was not drawn, "
                     f"its error bar admits {worst['error']:.1%}"))
    for part in report.get("lacking", []):
        factor = math.exp(part["excess"]["value"])
        rows.append(("drawn too seldom", part["where"], f"{part['share']:.1%} of the reference samples, {number(factor, 2)} times as heavy "
                                                        "as the others in the geometric mean (training.oversample)"))
    if report["negative_mass"]:
        meaning = "subtracted" if report["density"] == "signed" else "half the relative bias of Z"
        rows.append(("folded weight", estimate(report["negative_mass"]), f"where the map reverses orientation; {meaning}"))
    return rows


def average_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(observable, ours, reference, z), basins last."""
    rows = []
    for prefix, ours, theirs in (("", "observables", "reference"), ("basin ", "basins", "basin_reference")):
        for name, value in report[ours].items():
            truth = report[theirs].get(name)
            rows.append((prefix + name, estimate(value), estimate(truth), _z(truth) if has_error(value["stderr"]) else NONE))
    return rows


def _z(truth: Mapping[str, float] | None) -> str:
    """z of a comparison as it stands in report.json, where null is infinity or NaN; a dash where nothing is compared."""
    if truth is None:
        return NONE
    return NOT_FINITE if truth["z"] is None or not math.isfinite(truth["z"]) else number(truth["z"], 2)


def far_off(rows: list[tuple[str, str, str, str]]) -> list[bool]:
    """Which rows of `average_rows` lie four standard errors or more from their reference, or cannot be compared with it."""
    return [z == NOT_FINITE or (z != NONE and abs(float(z)) >= MAX_Z) for *_, z in rows]


def density_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) on how log q was obtained, what was checked about it, and what was changed afterwards."""
    rows = [("density", report["density"]), ("edits", "; ".join(report["edits"]) or "none"), *(("note", note) for note in report["notes"])]
    if report["overlap_failure"]:
        rows.append(("no forward ESS", report["overlap_failure"]))
    if certificate := report["certificate"]:
        returned = certificate["n_round_trip"] - certificate["n_round_trip_failed"]
        rows += [
            ("determinants <= 0", f"{certificate['n_negative']} of {certificate['n']} samples"),
            ("smallest singular value", number(certificate["smallest_singular"], 3)),
            ("round trip", f"{returned} of {certificate['n_round_trip']} {certificate['round_trip_of']} returned, "
                           f"largest error {number(certificate['round_trip_error'], 2)}"),
        ]
        if certificate.get("n_degree"):
            margin = certificate["degree_margin"] or 0.0
            rows.append(("degree", f"{'one' if margin > 1 else 'not known to be one'}: images of {certificate['n_degree']} far points stay "
                                   f"{number(margin, 3)} times as far out as any sample"))
    return rows


def cost_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the work per sample, the seconds in all, and what the training has asked of the energy, where that was counted."""
    cost = report["cost"]
    rows = [(f"{label} per sample", number(cost[name])) for name, label in COUNTED.items() if cost[name]]
    rows.append(("seconds in all", number(cost["seconds"], 3)))
    if cost.get("core_seconds"):
        rows.append(("core seconds in all", number(cost["core_seconds"], 3)))
    if training := cost.get("training"):
        rows += [(f"{COUNTED[name]} in training", f"{training[name]:,}") for name in ("energy", "gradient")]
        rows.append(("training", f"{training['steps']:,} steps, {training['seconds'] / 60:.3g} core-minutes"))
        rows += [(f"{each['method']}, {each['spent']:,} evaluations", f"{number(each['n_eff'], 3)} effective of {each['n']} configurations")
                 for each in training.get("baselines", [])]
    return rows


def training_text(row: Mapping[str, float]) -> str:
    """A few words on a row of the training metrics: loss, ESS, evaluations of the energy so far, and u of fresh samples, unweighted."""
    words = [f"{name} {row[name]:.3g}" for name in ("loss", "ess") if name in row]
    words += [f"{label} {row[name]:,.0f}" for name, label in SPENT.items() if name in row]
    for prefix in ("u", "raw_u"):
        if f"{prefix}_50" in row:
            low, middle, high = (number(row[f"{prefix}_{share}"], 3) for share in ("05", "50", "95"))
            return "  ".join([*words, f"raw u {middle} (5-95 %: {low} to {high})"])
    return "  ".join(words)


def provenance_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of seed, commands, commit and versions."""
    provenance = report["provenance"]
    sampling = [(f"sampling: {name}", str(value)) for name, value in provenance["sampling"].items() if name != "versions"]
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return [("seed", number(report["seed"], 20)), ("report command", provenance["command"]), ("commit", provenance["commit"] or NONE),
            ("versions", versions), *sampling]
