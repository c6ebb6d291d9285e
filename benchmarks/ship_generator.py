"""Put a trained generator into its system's folder, with its provenance beside it.

    python benchmarks/ship_generator.py runs/lj13/eqot-fm-0 --command "bgwork train lj13" --data "bgwork reference lj13 -n 100000"

Weights and header are those that training wrote, except that the header's [sampler] table is the recipe's present one (it is no part of the
training). Figures are the rows of results/{ess,few_step,data_free,alanine,egnn}.json that name it: run benchmarks/ess.py on the file first,
or ship again after the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rows import RESULTS

from bgwork import store
from bgwork.learning import METRICS_FILE, METRICS_SUFFIX
from bgwork.recipes import load_recipe
from bgwork.system import load_system

FIGURES = ("ess", "few_step", "data_free", "alanine", "egnn")


def figures_of(stem: str) -> list[dict]:
    """Rows of a script's results, if it has been run."""
    path = RESULTS / f"{stem}.json"
    return store.read_json(path) if path.exists() else []


def names(method: str, generator: str) -> bool:
    """Whether a row's method is of that generator: "flow polish, executed map, exact", "distill, path weights", "transported targeted"."""
    return method.split(",")[0].split()[-1] == generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="command that made the training configurations")
    parser.add_argument("--command", required=True, help="command that trained")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    tensors, meta = store.load_checkpoint(options.run / "generator.safetensors")
    if meta["seed"] and f"--seed {meta['seed']}" not in options.command:
        parser.error(f"the run was trained with seed {meta['seed']}, which --command does not say")
    system, name = load_system(meta["system"]), meta["recipe_name"]
    meta["recipe"]["sampler"] = load_recipe(system, name).sampler.model_dump()
    path = system.path / "generators" / f"{name}.safetensors"
    store.save_checkpoint(path, tensors, meta)
    progress, metrics = meta["progress"], options.run / METRICS_FILE
    if "energy_evaluations" in progress and metrics.exists():  # the report's learning curve; kept of trainings from the energy alone
        store.write_text(path.with_suffix(METRICS_SUFFIX), metrics.read_text(encoding="utf-8"))
    figures = [row for stem in FIGURES for row in figures_of(stem) if row["system"] == system.name and names(row["method"], name)]
    store.write_json(path.with_suffix(".json"), {
        "command": options.command, "config": meta["recipe"], "seed": meta["seed"],
        "commit": meta["commit"], "versions": meta["versions"], "steps": progress["step"],
        "core_minutes": round((progress["seconds"] + progress["worker_seconds"]) / 60, 1),
        "data": {"command": options.data, "fingerprint": meta.get("data", "not recorded")}, "note": options.note, "figures": figures})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(figures)} figures")


if __name__ == "__main__":
    main()
