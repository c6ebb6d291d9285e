"""The Ramachandran notebook end to end on made-up samples, in a kernel and as a script; both hold the same cells."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from ala2 import generated, share_of_left_handed, simulated
from nbclient import NotebookClient

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
PICTURES = ("maps.png", "phi.png", "bonds.png")  # in the order in which they are shown
PNG = b"\x89PNG"
SECONDS = 120  # for the kernel to start, and for each cell


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """The notebook after a kernel of its own ran it in that folder; nothing is written to the home folder."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, kernel_name="python3", resources=where).execute()


def outputs_of(notebook: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if output.output_type == kind]


def test_notebook_runs_in_a_kernel(folder, monkeypatch):
    """Basins and weights were made up independently, so that both sets have the same Delta F."""
    notebook = executed(folder, monkeypatch)
    said = "".join(output.text for output in outputs_of(notebook, "stream") if output.name == "stdout")
    for word in WORDS:
        assert word in said, word
    pictures = {path.name: path.read_bytes() for path in (folder / "pictures").glob("*.png")}
    assert pictures.keys() == set(PICTURES) and all(picture.startswith(PNG) for picture in pictures.values())
    shown = [base64.b64decode(output.data["image/png"]) for output in outputs_of(notebook, "display_data")]
    assert shown == [pictures[name] for name in PICTURES]
    truth = math.log(1 / share_of_left_handed() - 1)
    for route in ("weights", "reference"):
        value, stderr = map(float, re.search(rf"Delta F\(phi\) from {route}: (\S+) ± (\S+) kT", said).groups())
        assert abs(value - truth) < 4 * stderr < 4, route


def test_script_runs_on_a_trajectory(folder, capsys, monkeypatch):
    """Made-up frames are no equilibrium data, and it says so; without IPython it says where the pictures are."""
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, None)
    system = load_system("ala2-vacuum")
    files = export_samples(weigh(simulated(system, 400, seed=7), system.target), system, folder / "md", kind="dcd")
    files[2].unlink()  # an export would be refused
    for name, value in {"SAMPLES": files[0], "SYSTEM": "ala2-vacuum", "FRAME_TIME": 1.0, "PICTURES": folder / "here"}.items():
        monkeypatch.setenv(f"BGWORK_{name}", str(value))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    assert "400 samples by trajectory" in said and "may be no equilibrium data: virial" in said
    assert f"picture: {folder / 'here' / 'maps.png'}" in said
    assert (folder / "here" / "maps.png").read_bytes().startswith(PNG)
