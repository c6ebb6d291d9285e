"""What the project asks for when it is installed: pyproject.toml, environment.yml and constraints.txt say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec

ROOT = Path(__file__).parent.parent
CONDA_NAME = {"torch": "pytorch", "matplotlib": "matplotlib-base", "tblite": "tblite-python"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA = [spec for spec in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(spec, str)]
TOP_LEVEL = {"pyproject.toml", "README.md", "environment.yml", "bgwork", "systems", "analysis", "tests", "benchmarks", "Makefile",
             "LICENSE", "CONTRIBUTING.md", "constraints.txt"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("text", CONDA)
def test_conda_specs_parse(text):
    spec = MatchSpec(text)
    assert spec.name is not None and spec.name.normalized == text.split()[0]


def test_conda_and_pip_ask_for_the_same():
    pip = {CONDA_NAME.get(canonical(r.name), canonical(r.name)): {str(s) for s in r.specifier} for r in requirements()}
    pip["python"] = set(PYPROJECT["project"]["requires-python"].split(","))
    pip |= {canonical(r.name): {str(s) for s in r.specifier} for r in map(Requirement, PYPROJECT["build-system"]["requires"])}
    conda = {name: set(version.split(",")) - {""} for name, _, version in (text.partition(" ") for text in CONDA)}
    assert conda.pop("pip") == set()
    assert conda == pip


def test_conda_installs_the_package_itself():
    whole = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert whole["channels"] == ["conda-forge"]
    assert {"pip": ["-e ."]} in whole["dependencies"]


def test_constraints_pin_every_requirement_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"
    for requirement in requirements():
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement


def test_only_what_was_agreed_lies_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    top = {path.split("/")[0] for path in tracked}
    assert not {name for name in top - TOP_LEVEL if not name.startswith(".")}


def test_entry_point_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="bgwork")
    assert script.value == "bgwork.cli:main" and callable(script.load())


@pytest.mark.slow
def test_the_wheel_holds_the_systems(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shipped = [path.relative_to(ROOT / "systems") for path in (ROOT / "systems").rglob("*") if path.is_file()]
    assert shipped and all((tmp_path / "installed/bgwork/_systems" / path).is_file() for path in shipped)
    code = "import bgwork; s = bgwork.load_system('lj13'); print(s.path, len(bgwork.reference_samples(s)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")}, check=True,
                          capture_output=True, text=True)
    assert "installed/bgwork/_systems/lj13" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "bgwork").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_nothing_that_only_comes_with_an_extra(path):
    declared = {canonical(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in (name.split(".")[0] for name in names):
            assert name in sys.stdlib_module_names or name == "bgwork" or canonical(name) in declared, name


def test_the_package_can_be_run_as_a_module():
    run = subprocess.run([sys.executable, "-m", "bgwork", "--help"], capture_output=True, text=True, check=True)
    assert "From an energy to equilibrium averages" in run.stdout


def held_by(extra: str) -> set[str]:
    """Packages of an extra."""
    return {canonical(Requirement(text).name) for text in PYPROJECT["project"]["optional-dependencies"][extra]}


def test_messages_name_an_extra_that_holds_the_package():
    """Every `pip install 'bgwork[extra]'` that a missing package is answered with, beside the name that was looked for."""
    pattern, found = r"""find_spec\("(\w+)"\)(?:(?!find_spec)[\s\S])*?pip install '?([\w\[\]]+)""", []
    for path in sorted((ROOT / "bgwork").rglob("*.py")):
        for package, advised in re.findall(pattern, path.read_text(encoding="utf-8")):
            extra = re.fullmatch(r"bgwork\[(\w+)\]", advised)
            assert extra and canonical(package) in held_by(extra[1]), (path, package, advised)
            found.append(package)
    assert {"mdtraj", "h5py", "tblite"} <= set(found)


def test_the_notebook_extra_holds_what_the_notebook_looks_for():
    text = (ROOT / "analysis" / "ramachandran.py").read_text(encoding="utf-8")
    wanted = set(re.findall(r'find_spec\("(\w+)"\)', text)) - {"IPython"} | {"jupytext", "ipykernel"}
    assert "py3Dmol" in wanted and {canonical(name) for name in wanted} <= held_by("notebook")
