"""Write what results/*.json hold as Markdown: everything into results/README.md, the headline rows between the marks of the README.

    python benchmarks/table.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import RESULTS

from bgwork import store

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- figures -->", "<!-- end of figures -->"
HEADLINES = {
    "ess": ("reverse ESS", "forward ESS", "log Z", "largest weight", "<u>", "z of <u>", "negative determinants", "round trips failed",
            "seconds per 1,000 samples"),
    "few_step": ("reverse ESS", "forward ESS", "log Z", "negative determinants", "largest abs(z) between values of log Z"),
    "data_free": ("energies and gradients spent", "reverse ESS", "log Z", "energy-W2, raw", "energy-W2, weighted", "energy-W2, floor"),
    "alanine": ("reverse ESS", "log Z", "negative determinants", "Delta F(phi) from weights",
                "Delta F(phi), metadynamics", "energy-W2", "torus-W2", "energy-W2, floor: reference against reference, 2000 samples",
                "torus-W2, floor: reference against reference, 2000 samples"),
    "field_cost": ("value + divergence / forward", "value + Jacobian / forward"),
}
COLUMNS = ("metric", "system", "method", "evaluations", "published", "goal", "ours", "n", "seed", "commit")


def cells(row: dict[str, Any]) -> list[str]:
    """One row's cells, in the order of COLUMNS."""
    stderr = "" if row["stderr"] is None else f" +- {row['stderr']:.2g}"
    ours = "" if row["value"] is None else f"{row['value']:.5g}{stderr}"
    shown = {**row, "ours": ours, "commit": row["commit"][:7] + ("+" if row["commit"].endswith("+changes") else "")}
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


def headlines() -> str:
    """The README's figures."""
    parts = []
    for stem, metrics in HEADLINES.items():
        path = RESULTS / f"{stem}.json"
        rows = [row for row in store.read_json(path) if row["metric"] in metrics] if path.exists() else []
        if rows:
            commands = ", ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in rows))
            parts.append(f"{markdown(rows)}\n\nPrinted by {commands}.")
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
