"""Write what results/*.json hold as Markdown: everything into results/README.md, the headline rows between the marks of the README.

    python benchmarks/table.py
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rows import RESULTS

from bgwork import store

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- figures -->", "<!-- end of figures -->"
RESULTS_OF = {  # heading -> scripts, and the metrics that stand side by side, by column
    "Effective samples": (("ess", "few_step", "alanine"), {
        "ESS": "reverse ESS", "forward ESS": "forward ESS", "log Z": "log Z", "Pareto k": "Pareto k", "largest weight": "largest weight",
        "failed rows": "n_failed", "folds": "negative determinants"}),
    "From the energy alone": (("data_free",), {
        "evaluations of the energy": "energies and gradients spent", "ESS": "reverse ESS", "log Z": "log Z", "Pareto k": "Pareto k",
        "largest weight": "largest weight", "failed rows": "n_failed", "energy-W2, raw": "energy-W2, raw",
        "weighted": "energy-W2, weighted", "reference against itself": "energy-W2, floor"}),
    "Alanine dipeptide": (("alanine",), {
        "Delta F(phi)": "Delta F(phi) from weights", "by metadynamics": "Delta F(phi), metadynamics", "torus-W2": "torus-W2",
        "of other draws": "torus-W2, * draws", "its floor": "torus-W2, floor: reference against reference, * samples",
        "energy-W2": "energy-W2", "and its floor": "energy-W2, floor: reference against reference, * samples"}),
    "Beside an EGNN with dopri5 and a brute-force divergence": (("egnn",), {
        "core-minutes of training": "core-minutes of training", "CPU seconds per weighted sample": "CPU seconds per weighted sample",
        "EGNN's / ours": "CPU seconds, EGNN / ours", "ESS": "reverse ESS", "log Z": "log Z", "Pareto k": "Pareto k",
        "largest weight": "largest weight", "failed rows": "n_failed", "folds": "negative determinants"}),
    "Cost, in forward passes": (("field_cost",), {
        "value + divergence": "value + divergence / forward", "value + Jacobian": "value + Jacobian / forward"}),
}
SHARED = ("system", "method", "evaluations", "n", "seed", "commit")  # by the figures of one line
COLUMNS = ("metric", "system", "method", "evaluations", "published", "goal", "ours", "n", "seed", "commit")


def cells(row: dict[str, Any]) -> list[str]:
    """One row's cells, in the order of COLUMNS."""
    stderr = "" if row["stderr"] is None else f" +- {row['stderr']:.2g}"
    ours = "" if row["value"] is None else f"{row['value']:.5g}{stderr}"
    evaluations = None if row["evaluations"] is None else f"{row['evaluations']:g}"
    commit = row["commit"][:7] + ("+" if row["commit"].endswith("+changes") else "")
    shown = {**row, "ours": ours, "evaluations": evaluations, "commit": commit}
    return ["" if shown[name] is None else str(shown[name]).replace("|", "\\|").replace("<", "&lt;") for name in COLUMNS]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def everything() -> str:
    """All results, a section a script."""
    sections = ["# Results\n\nWritten by `python benchmarks/table.py`; the scripts' docstrings say how each figure is measured.\n"]
    for path in sorted(RESULTS.glob("*.json")):
        rows = store.read_json(path)
        commands = "\n".join(f"    {command}" for command in dict.fromkeys(row["command"] for row in rows))
        sections.append(f"## {path.stem}\n\n{commands}\n\n{markdown(rows)}\n")
    return "\n".join(sections)


def side_by_side(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """One line for all figures of the same samples, with what they are compared with."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row["system"]):
        for column, metric in columns.items():
            if fnmatchcase(row["metric"], metric):
                shown = dict(zip(COLUMNS, cells(row), strict=True))
                line = lines.setdefault(tuple(shown[name] for name in SHARED), {})
                line[column] = shown["ours"] + (f" (goal {shown['goal']})" if shown["goal"] else "")
    heads = ("system", "method", "evaluations", *columns, "n", "seed", "commit")
    table = [heads, ("---",) * len(heads)]
    table += [(*key[:3], *(line.get(column, "") for column in columns), *key[3:]) for key, line in lines.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def headlines() -> str:
    """The README's figures; published values and all the rest are in results/README.md."""
    parts = []
    for heading, (stems, columns) in RESULTS_OF.items():
        paths = [RESULTS / f"{stem}.json" for stem in stems]
        found = [row for path in paths if path.exists() for row in store.read_json(path)]
        rows = [row for row in found if any(fnmatchcase(row["metric"], metric) for metric in columns.values())]
        if rows:
            commands = "\n".join(f"    {command}" for command in dict.fromkeys(row["command"] for row in rows))
            printed = f"<details><summary>printed by</summary>\n\n{commands}\n\n</details>"
            parts.append(f"### {heading}\n\n{side_by_side(rows, columns)}\n\n{printed}")
    return "\n\n".join(parts)


def main() -> None:
    store.write_text(RESULTS / "README.md", everything())
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    store.write_text(README, f"{before}{START}\n{headlines()}\n{END}{after or rest}")
    print(f"wrote {RESULTS / 'README.md'} and the figures of {README}")


if __name__ == "__main__":
    main()
