"""The Ramachandran notebook end to end on made-up samples, as a notebook and as a script; both hold the same cells."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path

import pytest
from ala2 import generated, simulated

from bgwork import store
from bgwork.export import export_samples
from bgwork.reweighting import weigh
from bgwork.system import load_system

FOLDER = Path(__file__).parents[1] / "analysis"
SCRIPT, NOTEBOOK = FOLDER / "ramachandran.py", FOLDER / "ramachandran.ipynb"


def cells_of_script() -> list[tuple[str, str]]:
    """(kind, source) of every cell of the percent script, after its header."""
    body = SCRIPT.read_text().split("# ---\n", 2)[2]
    cells = []
    for part in body.split("# %%")[1:]:
        head, _, source = part.partition("\n")
        if "markdown" in head:
            cells.append(("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.strip("\n").split("\n"))))
        else:
            cells.append(("code", source.strip("\n")))
    return cells


def cells_of_notebook() -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(NOTEBOOK.read_text())["cells"]]


def test_script_and_notebook_are_a_pair():
    assert cells_of_notebook() == cells_of_script()
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["jupytext"]["formats"]) == (4, "ipynb,py:percent")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a system, its reference samples and a run."""
    for name in [key for key in os.environ if key.startswith("BGWORK_")]:
        monkeypatch.delenv(name)
    shutil.copytree(load_system("ala2-vacuum").path, tmp_path / "systems" / "ala2-vacuum")
    monkeypatch.chdir(tmp_path)
    system = load_system("ala2-vacuum")
    store.save_samples(system.path / "reference.npz", simulated(system, 200))
    store.save_samples(tmp_path / "runs" / "ala2-vacuum" / "shipped" / "samples.npz", generated(system, 200))
    return tmp_path


WORDS = ("200 samples by flow made-up", "effective sample size", "Delta F(phi) from weights", "Delta F(phi) from reference",
         "Of 200 samples, 0 have a broken bond", "Delta F(phi) at 350 K", "basins: ")


def test_notebook_runs(folder, capsys):
    namespace: dict = {"__name__": "__main__"}
    for kind, source in cells_of_notebook():
        if kind == "code":
            exec(compile(source, str(NOTEBOOK), "exec"), namespace)
    said = capsys.readouterr().out
    for word in WORDS:
        assert word in said, word
    pictures = {path.name for path in (folder / "pictures").glob("*.png")}
    assert pictures == {"maps.png", "phi.png", "bonds.png"}


def test_script_runs_on_a_trajectory(folder, capsys, monkeypatch):
    """Made-up frames are no equilibrium data, and it says so."""
    system = load_system("ala2-vacuum")
    files = export_samples(weigh(simulated(system, 400, seed=7), system.target), system, folder / "md", kind="dcd")
    for name, value in {"SAMPLES": files[0], "SYSTEM": "ala2-vacuum", "FRAME_TIME": 1.0, "PICTURES": folder / "here"}.items():
        monkeypatch.setenv(f"BGWORK_{name}", str(value))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    assert "400 samples by trajectory" in said and "may be no equilibrium data: virial" in said
    assert (folder / "here" / "maps.png").read_bytes().startswith(b"\x89PNG")
