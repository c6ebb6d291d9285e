"""Samples and weights as files that other programs read: DCD, XTC and PDB trajectories, NPZ and HDF5 arrays.

A trajectory `name.dcd` comes with `name_topology.pdb`, which names its atoms, and `name_weights.npz`, row for row. The arrays `name.npz`
and `name.h5` hold everything in one file:

    x            [N, n, d] configurations, in the unit that `meta` names
    weight       [N] normalised weights; averages are sum(weight * f(x))
    log_w, u     [N] logarithms of the weights' magnitudes, and reduced energies in kT
    sign         [N] signs of the weights, where the generator's map folds
    log_q        [N] log-density of the generator; up to a constant for MD and MCMC
    group        [N] labels of correlated rows, where there are any
    atom, element, residue   names, for molecules
    meta         JSON: system, target, method, density, edits, seed, commit, units
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from openmm import app
from torch import Tensor

from bgwork import store
from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import normalised_weights
from bgwork.system import System
from bgwork.targets.force_fields import read_pdb

ARRAYS, TRAJECTORIES = ("npz", "hdf5"), ("dcd", "xtc", "pdb")
FORMATS = (*TRAJECTORIES, *ARRAYS)
SUFFIXES = {"hdf5": "h5"}
ANGSTROM = 10.0  # in a nm
LARGEST = {"dcd": 1e6, "xtc": 1e5, "pdb": 99.0}  # nm; what the format has digits for


class ExportError(ValueError):
    """Samples that cannot be written as asked, with the remedy."""


def export_samples(weighted: WeightedSamples, system: System, stem: Path, *, kind: str) -> tuple[Path, ...]:
    """Write samples and their weights; row i of every file is the same sample, and none is left out.

    DCD keeps float32, XTC and PDB a thousandth of a nm and of an Angstrom; NPZ and HDF5 keep everything. For frames of equal weight, hand
    over `reweighting.resample(weighted, n, generator=...)`.

    Args:
        weighted: samples of the system.
        system: with the topology and the length unit.
        stem: path of the files without suffix; folders are made, existing files replaced.
        kind: one of `FORMATS`.
    Returns:
        The files written, the samples first.
    Raises:
        ExportError: unknown format, another space than the system's, a trajectory of something that is no molecule or of coordinates that
            are not numbers or too large, HDF5 without h5py.
    """
    if kind not in FORMATS:
        raise ExportError(f"unknown format {kind!r}; choose one of {', '.join(FORMATS)}")
    if weighted.proposal.space != system.space:
        raise ExportError(f"the samples live on {weighted.proposal.space}, {system.name} on {system.space}; give the system they belong to")
    stem, columns = Path(stem), columns_of(weighted, system)
    samples = samples_file(stem, kind)
    if kind in ARRAYS:
        _write_arrays(samples, {"x": weighted.x.numpy(), **columns}, kind)
        return (samples,)
    topology = _writable(weighted.x, system, kind)
    structure, weights = stem.with_name(f"{stem.name}_topology.pdb"), stem.with_name(f"{stem.name}_weights.npz")
    store.write_atomically(structure, lambda temporary: _write_pdb(temporary, topology, system.structure[None].numpy()))
    store.write_atomically(samples, lambda temporary: WRITERS[kind](temporary, topology, weighted.x.numpy()))
    _write_arrays(weights, columns, "npz")
    return samples, structure, weights


def samples_file(stem: Path, kind: str) -> Path:
    """Where `export_samples` puts configurations; ExportError if the stem names no file."""
    if not stem.name:
        raise ExportError(f"{str(stem)!r} names no file to write; give a path without suffix, such as runs/samples")
    return stem.with_name(f"{stem.name}.{SUFFIXES.get(kind, kind)}")


def pdb_text(x: Tensor, system: System) -> str:
    """Configurations [N, n, 3] of a molecule as the text of a PDB file, one model each, for viewers.

    Raises:
        ExportError: as `export_samples`.
    """
    stream = io.StringIO()
    _write_models(stream, _writable(x, system, "pdb"), x.numpy())
    return stream.getvalue()


def columns_of(weighted: WeightedSamples, system: System) -> dict[str, np.ndarray]:
    """Everything but the configurations, by the names in the module's docstring."""
    proposal = weighted.proposal
    columns = {"weight": normalised_weights(weighted), "log_w": weighted.log_w, "u": weighted.u, "log_q": proposal.log_q}
    arrays = {name: values.numpy() for name, values in columns.items()}
    if proposal.density is Density.SIGNED:
        arrays["sign"] = weighted.sign.numpy()
    if proposal.group is not None:
        arrays["group"] = proposal.group.numpy()
    if system.topology is not None:
        names = {"atom": system.topology.names, "element": system.topology.elements, "residue": system.topology.residues}
        arrays |= {name: np.array(values) for name, values in names.items()}
    return arrays | {"meta": np.array(json.dumps(_meta(weighted, system)))}


def _meta(weighted: WeightedSamples, system: System) -> dict[str, Any]:
    proposal = weighted.proposal
    return {"format": "bgwork-export-1", "target": weighted.target, "density": proposal.density.value, "n_failed": weighted.n_failed,
            "length_unit": system.length_unit, "energy_unit": "kT", "note": proposal.note, **asdict(proposal.origin)}


def _writable(x: Tensor, system: System, kind: str) -> app.Topology:
    """OpenMM's topology of the system, once it is clear that the format can hold the coordinates."""
    if system.topology is None or system.length_unit != "nm":
        raise ExportError(f"{system.name} is no molecule with named atoms and lengths in nm, which a {kind} file needs; use npz")
    numbers = x.isfinite()
    if not numbers.all():
        bad = int((~numbers).flatten(1).any(1).sum())
        raise ExportError(f"{bad} of {len(x)} samples have coordinates that are not numbers, which a {kind} file cannot hold; use npz, or "
                          "--resample, which draws by weight and they have none")
    reach = x.abs().max().item() if len(x) else 0.0
    if reach > LARGEST[kind]:
        raise ExportError(f"a coordinate is {reach:.3g} nm, and a {kind} file has digits for {LARGEST[kind]:g} nm only; use npz, or "
                          "--resample")
    return read_pdb(system.topology.path).topology


def _write_dcd(path: Path, topology: app.Topology, x: np.ndarray) -> None:
    with path.open("wb") as stream:
        file = app.DCDFile(stream, topology, dt=1.0)
        for positions in x:
            file.writeModel(positions)


def _write_xtc(path: Path, topology: app.Topology, x: np.ndarray) -> None:
    path.unlink()  # OpenMM insists on making the file itself
    file = app.XTCFile(str(path), topology, dt=1.0)
    for positions in x:
        file.writeModel(positions)


def _write_pdb(path: Path, topology: app.Topology, x: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as stream:
        _write_models(stream, topology, x)


def _write_models(stream: TextIO, topology: app.Topology, x: np.ndarray) -> None:
    app.PDBFile.writeHeader(topology, stream)
    for number, positions in enumerate(x, start=1):
        app.PDBFile.writeModel(topology, ANGSTROM * positions, stream, modelIndex=number if len(x) > 1 else None)
    app.PDBFile.writeFooter(topology, stream)


WRITERS: dict[str, Callable[[Path, app.Topology, np.ndarray], None]] = {"dcd": _write_dcd, "xtc": _write_xtc, "pdb": _write_pdb}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray], kind: str) -> None:
    if kind == "hdf5":
        return _write_hdf5(path, arrays)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    store.write_atomically(path, write)


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One dataset each; names and the header as UTF-8 strings."""
    if importlib.util.find_spec("h5py") is None:
        raise ExportError("HDF5 files need h5py (`pip install h5py`); npz holds the same arrays and needs nothing")
    import h5py  # optional

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, values in arrays.items():
                file[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values

    store.write_atomically(path, write)
