"""Samples and weights as files that other programs read: DCD, XTC and PDB trajectories, NPZ and HDF5 arrays.

A trajectory `name.dcd` comes with `name_topology.pdb`, which names its atoms, and `name_weights.npz`, row for row; another format of the
same samples, `name.xtc`, shares both with it. The arrays `name.npz` and `name.h5` hold everything in one file:

    x            [N, n, d] configurations, in the unit that `meta` names
    weight       [N] normalised weights; averages are sum(weight * f(x))
    log_w, u     [N] logarithms of the weights' magnitudes, and reduced energies in kT
    sign         [N] signs of the weights, where the generator's map folds
    log_q        [N] log-density of the generator; up to a constant for MD and MCMC
    group        [N] labels of correlated rows, where there are any
    atom, element, residue   names, for molecules
    meta         JSON: system, target, method, density, edits, seed, commit, units

A molecule's `name.h5` is also a trajectory for `mdtraj.load` (which needs PyTables): with `coordinates`, another name of x, `topology`, and
the attributes of mdtraj's HDF5 format.
"""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from openmm import app
from torch import Tensor

from bgwork import store
from bgwork.provenance import versions
from bgwork.records import Density, WeightedSamples
from bgwork.reweighting import normalised_weights
from bgwork.system import System
from bgwork.targets.force_fields import read_pdb

ARRAYS, TRAJECTORIES = ("npz", "hdf5"), ("dcd", "xtc", "pdb")
FORMATS = (*TRAJECTORIES, *ARRAYS)
SUFFIXES = {"hdf5": "h5"}
ANGSTROM = 10.0  # in a nm
NM = "nm"  # the unit of a molecule's lengths
XTC_NOTE = ("XTC holds coordinates at the precision of 0.001 nm: averages over positions hardly change, but energies of such frames are "
            "shifted; DCD or HDF5 keep what energies need")
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
        ExportError: unknown format, another space than the system's, a stem that is a folder or has a suffix, a trajectory of something
            that is no molecule or of coordinates that are not numbers or too large, one that would share its weights file with another
            format's trajectory of other samples, HDF5 without h5py.
    """
    if kind not in FORMATS:
        raise ExportError(f"unknown format {kind!r}; choose one of {', '.join(FORMATS)}")
    if weighted.proposal.space != system.space:
        raise ExportError(f"the samples live on {weighted.proposal.space}, {system.name} on {system.space}; give the system they belong to")
    stem, columns = Path(stem), columns_of(weighted, system)
    samples = samples_file(stem, kind)
    if kind in ARRAYS:
        _write_arrays(samples, {"x": weighted.x.numpy(), **columns}, kind, system)
        return (samples,)
    topology = _writable(weighted.x, system, kind)
    structure, weights = stem.with_name(f"{stem.name}_topology.pdb"), stem.with_name(f"{stem.name}_weights.npz")
    _refuse_to_orphan([other for each in TRAJECTORIES if (other := samples_file(stem, each)) != samples], weights, columns)
    store.write_atomically(structure, lambda temporary: _write_pdb(temporary, topology, system.structure[None].numpy()))
    store.write_atomically(samples, lambda temporary: WRITERS[kind](temporary, topology, weighted.x.numpy()))
    _write_arrays(weights, columns, "npz", system)
    return samples, structure, weights


def samples_file(stem: Path, kind: str) -> Path:
    """Where `export_samples` puts configurations; ExportError if the stem names no file, or a folder, or has a format's suffix."""
    if not stem.name:
        raise ExportError(f"{str(stem)!r} names no file to write; give a path without suffix, such as runs/samples")
    if stem.is_dir():
        raise ExportError(f"{stem} is a folder; give a path without suffix, such as {stem / 'samples'}")
    if stem.suffix.lower()[1:] in (*FORMATS, *SUFFIXES.values()):
        raise ExportError(f"{stem} has a suffix, and every format adds its own; give {stem.with_suffix('')}, and the format by --format")
    return stem.with_name(f"{stem.name}.{SUFFIXES.get(kind, kind)}")


def _refuse_to_orphan(others: list[Path], weights: Path, columns: dict[str, np.ndarray]) -> None:
    """Trajectories of several formats share a weights file only while it holds for all of them."""
    beside = [str(other) for other in others if other.exists()]
    if beside and weights.exists() and not _holds(weights, columns):
        raise ExportError(f"{weights} belongs to {' and '.join(beside)}, whose samples are others than these; give another --out, or move "
                          f"{'it' if len(beside) == 1 else 'them'} away")


def _holds(path: Path, columns: dict[str, np.ndarray]) -> bool:
    """Whether an NPZ file holds these very arrays."""
    def known(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        return {name: (values.dtype.str, values.shape, values.tobytes()) for name, values in arrays.items()}

    try:
        with np.load(path, allow_pickle=False) as file:
            return known(dict(file)) == known(columns)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


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
    if not _is_molecule(system):
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


def _is_molecule(system: System) -> bool:
    return system.topology is not None and system.length_unit == NM


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


def _write_arrays(path: Path, arrays: dict[str, np.ndarray], kind: str, system: System) -> None:
    if kind == "hdf5":
        return _write_hdf5(path, arrays, system)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    store.write_atomically(path, write)


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray], system: System) -> None:
    """One dataset each; names and the header as UTF-8 strings. A molecule's file is one of mdtraj's too."""
    if importlib.util.find_spec("h5py") is None:
        raise ExportError("HDF5 files need h5py, which is not installed; `pip install 'bgwork[md]'`, or take npz, which holds the same "
                          "arrays and needs nothing")
    import h5py  # optional

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, values in arrays.items():
                file[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values
            if _is_molecule(system):
                file["coordinates"] = file["x"]  # a second name, not a copy
                file["coordinates"].attrs["units"] = "nanometers"
                file["topology"] = np.array([json.dumps(_mdtraj_topology(read_pdb(system.topology.path).topology)).encode("ascii")])
                file.attrs.update(_mdtraj_attributes(system))

    store.write_atomically(path, write)


def _mdtraj_topology(topology: app.Topology) -> dict[str, Any]:
    """What mdtraj's HDF5 format keeps of a topology (`HDF5TrajectoryFile.convert_topology_to_dict`)."""
    def residue_of(residue: app.topology.Residue) -> dict[str, Any]:
        atoms = [{"index": a.index, "name": a.name, "element": a.element.symbol} for a in residue.atoms()]
        number = int(residue.id) if residue.id.lstrip("-").isdecimal() else residue.index
        return {"index": residue.index, "name": residue.name, "atoms": atoms, "resSeq": number, "segmentID": ""}

    chains = [{"index": chain.index, "residues": [residue_of(each) for each in chain.residues()]} for chain in topology.chains()]
    return {"chains": chains, "bonds": [sorted((a.index, b.index)) for a, b in topology.bonds()]}


def _mdtraj_attributes(system: System) -> dict[str, str]:
    """Of the file itself, as mdtraj's HDF5 format asks for."""
    return {"conventions": "Pande", "conventionVersion": "1.1", "program": "bgwork", "programVersion": versions()["bgwork"],
            "application": "bgwork export", "title": system.description}
