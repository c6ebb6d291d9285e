"""The report as one self-contained HTML page: pictures inlined, system fonts, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from bgwork import tables

SCREEN = 96  # pixels an inch of a picture takes on the page; drawn at twice that, for sharp screens
CSS = """
:root { color: #1c1c1c; background: #f4f5f7; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
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
    figure.savefig(stream, format="png", dpi=2 * SCREEN)
    data = base64.b64encode(stream.getvalue()).decode()
    text = escape(caption, quote=True)
    image = f'<img alt="{text}" width="{figure.get_figwidth() * SCREEN:.0f}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def render(report: Mapping[str, Any], pictures: Sequence[tuple[Figure, str]]) -> str:
    """The page.

    Args:
        report: what report.json holds.
        pictures: figures with their captions, in order.
    """
    about = f"{report['n']:,} samples from {report['method']}, weighed with {report['target']}; error bars are one standard error"
    averages = tables.average_rows(report)
    sections = [
        f"<h1>{escape(report['system'])}</h1>", f'<p class="about">{escape(about)}</p>', _verdict(report),
        "<h2>Weights</h2>", table(("figure", "value", "meaning"), tables.weight_rows(report), kind="meaning"),
        "<h2>Averages</h2>", table(("observable", "reweighted", "reference", "z"), averages, bad=tables.far_off(averages)),
        "<h2>Pictures</h2>", *(picture(figure, caption) for figure, caption in pictures),
        "<h2>How the density was obtained</h2>", table((), tables.density_rows(report), kind="pairs"),
        "<h2>Cost</h2>", table((), tables.cost_rows(report), kind="pairs"),
        "<h2>Provenance</h2>", table((), tables.provenance_rows(report), kind="pairs"),
    ]
    head = (f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(report['system'])}: {report['n']:,} samples, {escape(report['method'])}</title><style>{CSS}</style>")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n' + "\n".join(sections) + "\n</main></body></html>\n"


def _verdict(report: Mapping[str, Any]) -> str:
    kind = "trust" if report["trusted"] else "doubt"
    edits = "; ".join(report["edits"])
    marked = f'<div class="edits">Edited, not raw: {escape(edits)}.</div>' if edits else ""
    return f'<div class="verdict {kind}">{escape(report["verdict"])}</div>{marked}'
