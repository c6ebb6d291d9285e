"""The report as one self-contained HTML page: pictures inlined, system fonts, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

CSS = """
:root { color: #1c1c1c; background: #f4f5f7; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
main { background: #fff; border-radius: .5rem; padding: 1.5rem 2rem 2rem; box-shadow: 0 1px 4px rgba(0, 0, 0, .12); }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.about { color: #5a5f66; margin: 0 0 1.2rem; }
.verdict { padding: .8rem 1rem; border-left: .35rem solid; border-radius: .25rem; font-weight: 600; }
.trust { background: #eaf6ec; border-color: #2e8540; } .doubt { background: #fdecea; border-color: #b2182b; }
.edits { background: #fff4e0; border-left: .35rem solid #e08214; border-radius: .25rem; padding: .6rem 1rem; margin-top: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #e4e6e9; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { color: #5a5f66; font-weight: 600; font-size: .9rem; }
.meaning td:last-child, .meaning th:last-child, .pairs td { text-align: left; } .meaning td:nth-child(2) { white-space: nowrap; }
.pairs td:first-child { color: #5a5f66; white-space: nowrap; width: 11rem; }
td.bad { color: #b2182b; font-weight: 600; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; display: block; } figcaption { color: #5a5f66; font-size: .9rem; }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def with_error(value: float | None, stderr: float | None) -> str:
    """value ± stderr, the value rounded where the error begins (two digits of the error)."""
    if value is None or stderr is None or not (math.isfinite(value) and math.isfinite(stderr)) or stderr <= 0:
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    if decimals > 8:
        return f"{value:.6g} ± {stderr:.1e}"
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", bad: Sequence[bool] = ()) -> str:
    """An HTML table of plain text; `bad` marks the last cell of a row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for k, row in enumerate(rows):
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if k < len(bad) and bad[k]:
            cells[-1] = cells[-1].replace("<td>", '<td class="bad">', 1)
        body.append(f"<tr>{''.join(cells)}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{"".join(body)}</tbody></table></div>'


def picture(figure: Figure, caption: str) -> str:
    """A figure as an inlined PNG with its caption, which is the alternative text too."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def render(report: Mapping[str, Any], pictures: Sequence[tuple[Figure, str]]) -> str:
    """The page.

    Args:
        report: what report.json holds.
        pictures: figures with their captions, in order.
    """
    title = f"{report['system']}: {report['n']:,} samples, {report['method']}"
    sections = [
        f"<h1>{escape(report['system'])}</h1>", f'<p class="about">{escape(about(report))}</p>', _verdict(report),
        "<h2>Weights</h2>", _weights(report), "<h2>Averages</h2>", _averages(report),
        "<h2>Pictures</h2>", *(picture(figure, caption) for figure, caption in pictures),
        "<h2>How the density was obtained</h2>", _certificate(report), "<h2>Cost</h2>", _cost(report), "<h2>Provenance</h2>", _provenance(report),
    ]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n" + "\n".join(sections) + "\n</main></body></html>\n")


def about(report: Mapping[str, Any]) -> str:
    """One line under the title."""
    return f"{report['n']:,} samples from {report['method']}, weighed with {report['target']}; error bars are one standard error"


def _verdict(report: Mapping[str, Any]) -> str:
    kind = "trust" if report["trusted"] else "doubt"
    edits = report["edits"]
    marked = f'<div class="edits">Edited, not raw: {escape("; ".join(edits))}.</div>' if edits else ""
    return f'<div class="verdict {kind}">{escape(report["verdict"])}</div>{marked}'


def _estimate(value: Mapping[str, float] | None) -> str:
    return "–" if value is None else with_error(value["value"], value["stderr"])


def figures_with_meaning(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of every figure about the weights, as table rows."""
    limit = number(report["pareto_limit"], 2)
    return [
        ("ESS", _estimate(report["ess"]), "fraction of the samples that count; blind to a mode that no sample reached"),
        ("forward ESS", _estimate(report["forward_ess"]), "the same seen from reference samples; a missing mode shows here"),
        ("Pareto k", number(report["pareto_k"], 3), f"tail of the weights; averages are reliable up to {limit} at this N"),
        ("largest weight", number(report["max_weight"], 3), "share of the total carried by one sample"),
        ("failed rows", str(report["n_failed"]), "rows with a NaN, kept with zero weight"),
        ("log Z", _estimate(report["log_z"]), "absolute log partition function" if report["log_z"] else "unknown for samples of unknown normalisation"),
    ]


def _weights(report: Mapping[str, Any]) -> str:
    return table(("figure", "value", "meaning"), figures_with_meaning(report), kind="meaning")


def averages(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, ours, reference, z) as table rows."""
    rows = []
    for name, ours in report["observables"].items():
        theirs = report["reference"].get(name)
        rows.append((name, _estimate(ours), _estimate(theirs), number(theirs["z"], 2) if theirs else "–"))
    return rows


def _averages(report: Mapping[str, Any]) -> str:
    z = [report["reference"].get(name, {}).get("z") for name in report["observables"]]
    header = ("observable", "reweighted", "reference", "z")
    return table(header, averages(report), bad=[value is not None and abs(value) >= 4 for value in z])


def _certificate(report: Mapping[str, Any]) -> str:
    rows = [("density", report["density"])]
    if report["note"]:
        rows.append(("note", report["note"]))
    if certificate := report["certificate"]:
        trips = f"{certificate['n_round_trip'] - certificate['n_round_trip_failed']} of {certificate['n_round_trip']} returned"
        rows += [
            ("determinants <= 0", f"{certificate['n_negative']} of {certificate['n']} samples"),
            ("smallest singular value", number(certificate["smallest_singular"], 3)),
            ("round trip", f"{trips} ({certificate['round_trip_of']}), largest error {number(certificate['round_trip_error'], 2)}"),
        ]
    return table((), rows, kind="pairs")


def _cost(report: Mapping[str, Any]) -> str:
    cost = report["cost"]
    names = {"network": "network evaluations", "divergence": "divergences", "jacobian": "Jacobians", "energy": "energies", "gradient": "gradients"}
    rows = [(f"{label} per sample", number(cost[name])) for name, label in names.items() if cost[name]]
    return table((), [*rows, ("seconds in all", number(cost["seconds"], 3))], kind="pairs")


def _provenance(report: Mapping[str, Any]) -> str:
    rows = [(str(name), str(value)) for name, value in report["provenance"].items()]
    return table((), [("seed", str(report["seed"])), *rows], kind="pairs")
