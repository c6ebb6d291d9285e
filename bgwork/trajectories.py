"""Trajectories of other programs: DCD, XTC and PDB through mdtraj, and mdtraj's HDF5, checked against a system's topology."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bgwork.conformation import broken_bonds
from bgwork.topology import Topology, chirality, handed_groups, stereocentres
from bgwork.trajectory_atoms import ALONE, TrajectoryError, check_atoms, check_named_atoms

if TYPE_CHECKING:
    import h5py

DCD_HEADER = 92  # bytes of the first record of a DCD file with its two length markers
BROKEN_SHARE = 0.5  # of the frames with a broken bond beyond which the molecule was wrapped into a box
UNIT_SLACK = 1.2  # factor by which bonds of ten times the length may differ from it and still be taken for another unit
HDF5 = (".h5", ".hdf5")
NM_IN = {"nanometers": 1.0, "nanometer": 1.0, "nm": 1.0, "angstroms": 0.1, "angstrom": 0.1, "picometers": 1e-3, "picometer": 1e-3}


def read_trajectory(path: Path, *, topology: Topology, top: Path | None = None) -> Tensor:
    """Coordinates of every frame, [N, n, 3] float64 in nm, in the order of the topology's atoms.

    Args:
        path: a .dcd, .xtc, .pdb or .h5 file, in upper or lower case.
        topology: what the atoms must be.
        top: PDB file that names the trajectory's atoms, since DCD and XTC name none; without it they are taken to be in the system's order.
    Raises:
        TrajectoryError: unknown format, missing, empty, truncated or damaged file, another number or order of atoms, coordinates that are
            not numbers.
    """
    path = Path(path)
    if _kind(path) not in READERS:
        raise TrajectoryError(f"{path}: trajectories of format {path.suffix!r} are not read; known are {', '.join(READERS)}")
    if not path.is_file():
        raise TrajectoryError(f"{path} is a folder, not a trajectory" if path.is_dir() else f"no trajectory {path}")
    check_atoms(top or (path if _kind(path) == ".pdb" else topology.path), topology)
    if top is None and _kind(path) in HDF5:
        check_named_atoms(_topology_in(path), path, topology)
    x = torch.from_numpy(np.asarray(READERS[_kind(path)](path), dtype=np.float64))
    if len(x) == 0:
        raise TrajectoryError(f"{path} holds no frames; was the simulation stopped before its first report?")
    if x.shape[1:] != (len(topology), 3):
        raise TrajectoryError(f"{path} has {x.shape[1]} atoms, {topology.path} has {len(topology)}; {ALONE}")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        count, first = int(bad.sum()), int(bad.nonzero()[0])
        raise TrajectoryError(f"{path}: {count} of {len(x)} frames hold NaN or infinity (first: frame {first}); the simulation blew up")
    return x


def is_trajectory(path: Path) -> bool:
    """Whether a file's name says that it is a trajectory of a format that is read; a folder is none, whatever its name."""
    return _kind(path) in READERS and not Path(path).is_dir()


def refuse_export(path: Path) -> None:
    """Refuse what `bgwork export` wrote: samples of a generator, whose weights a trajectory does not carry, would come back as dynamics.

    Raises:
        TrajectoryError: for an HDF5 file of its own, and for a trajectory with a weights file beside it.
    """
    path = Path(path)
    weights = path.with_name(f"{path.stem}_weights.npz")
    if weights.exists() or (_kind(path) in HDF5 and _program(path) == "bgwork"):
        beside = f", whose weights are in {weights}" if weights.exists() else ""
        raise TrajectoryError(f"{path} is an export of bgwork{beside}: weighted or resampled frames are no dynamics; give the samples.npz "
                              "that it was made from, or a trajectory of molecular dynamics")


def _kind(path: Path) -> str:
    return Path(path).suffix.lower()


def check_structure(x: Tensor, *, topology: Topology, structure: Tensor) -> None:
    """Refuse coordinates that are not the molecule of the topology.

    Args:
        x: [N, n, 3] in nm.
        topology: with the bonds.
        structure: [n, 3] the system's structure, in nm.
    Raises:
        TrajectoryError: if all lengths are in another unit, bonds are broken in many frames (a molecule cut by a periodic box, another
            order of atoms), or a centre has the other handedness throughout (a mirror image, or hydrogens that are numbered in the other
            sense).
    """
    _refuse_other_unit(x, topology, structure)
    broken = (broken_bonds(x, topology=topology, structure=structure) > 0).double().mean().item()
    if broken > BROKEN_SHARE:
        raise TrajectoryError(f"{broken:.0%} of the frames have broken bonds: the atoms are in another order than in {topology.path} (give "
                              "--top), or a periodic box cuts the molecule; make it whole (mdtraj: trajectory.image_molecules())")
    labels = topology.labels
    for centre in stereocentres(topology, structure) + handed_groups(topology, structure):
        if (chirality(x, centre.atom, centre.neighbours) != centre.sign).all():
            around = ", ".join(labels[k] for k in centre.neighbours)
            raise TrajectoryError(f"{around} are arranged around {labels[centre.atom]} in the other sense than in {topology.path}: "
                                  "a mirror image, or hydrogens numbered otherwise; make the system from a frame of this trajectory")


def _refuse_other_unit(x: Tensor, topology: Topology, structure: Tensor) -> None:
    """Lengths in Angstrom where the format has nm, or the other way round: bonds of ten times, or a tenth of, the right length."""
    i, j = torch.tensor(topology.bonds).T
    times = float(((x[:, i] - x[:, j]).norm(dim=2) / (structure[i] - structure[j]).norm(dim=1)).median())
    for factor, found, due in ((10.0, "Angstrom", "nm"), (0.1, "nm", "Angstrom")):
        if factor / UNIT_SLACK < times < factor * UNIT_SLACK:
            raise TrajectoryError(f"bonds are {times:.3g} times as long as in {topology.path}: the lengths are in {found} where the file's "
                                  f"format has {due} (DCD and PDB hold Angstrom, XTC and HDF5 nm); divide all coordinates by {factor:g}")


def _mdtraj() -> ModuleType:
    if importlib.util.find_spec("mdtraj") is None:
        raise TrajectoryError("trajectories are read through mdtraj, which is not installed; `pip install 'bgwork[md]'`")
    import mdtraj

    return mdtraj


def _read_dcd(path: Path) -> np.ndarray:
    _refuse_truncated_dcd(path)
    return _through(path, lambda mdtraj, name: mdtraj.formats.DCDTrajectoryFile(name), scale=0.1)  # Angstrom to nm


def _read_xtc(path: Path) -> np.ndarray:
    return _through(path, lambda mdtraj, name: mdtraj.formats.XTCTrajectoryFile(name), scale=1.0)


def _through(path: Path, open_file: Callable[[ModuleType, str], object], *, scale: float) -> np.ndarray:
    """All frames of a file that mdtraj reads without a topology."""
    mdtraj = _mdtraj()
    try:
        with _silent_stdout(), _ascii_name(path) as name, open_file(mdtraj, name) as file:
            return np.asarray(file.read()[0]) * scale
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise TrajectoryError(f"{path} is empty, truncated or damaged: {error}") from error


@contextlib.contextmanager
def _ascii_name(path: Path) -> Iterator[str]:
    """A name that mdtraj's C code can open: it takes no umlauts."""
    if str(path).isascii():
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"trajectory{path.suffix}"
        link.symlink_to(path.resolve())
        yield str(link)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """mdtraj's C code comments on the header of every DCD file on the process's own stdout, among our results."""
    c = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    c.fflush(None)  # of what others have printed
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError):  # no stdout, nothing to silence
            kept = os.dup(1)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, 1)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            undo.callback(c.fflush, None)
        yield


def _refuse_truncated_dcd(path: Path) -> None:
    """Compare the number of frames that the header claims with the size of the file; mdtraj would take what is there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        claimed, = struct.unpack_from("<i", data, 8)
        cell, = struct.unpack_from("<i", data, 48)
        title, = struct.unpack_from("<i", data, DCD_HEADER)
        atoms, = struct.unpack_from("<i", data, DCD_HEADER + title + 12)
    except struct.error as error:
        raise TrajectoryError(f"{path} is empty or truncated: it ends within its header") from error
    frame = 3 * (4 * atoms + 8) + (56 if cell else 0)
    frames, rest = divmod(len(data) - (DCD_HEADER + title + 8 + 12), frame)
    if data[4:8] == b"CORD" and (rest or frames < claimed):
        raise TrajectoryError(f"{path} is truncated: it claims {claimed} frames and holds {frames}{' and a part' if rest else ''}; "
                              "cut it to whole frames and correct the header (mdconvert -i), or copy it again")


def _read_pdb_models(path: Path) -> np.ndarray:
    mdtraj = _mdtraj()
    if not path.read_text().rstrip().endswith(("END", "ENDMDL")):
        raise TrajectoryError(f"{path} is truncated: it ends without END or ENDMDL")
    try:
        return mdtraj.load_pdb(str(path)).xyz
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise TrajectoryError(f"{path} is empty, truncated or damaged: {error}") from error


def _read_hdf5(path: Path) -> np.ndarray:
    """mdtraj's HDF5: coordinates in nm. Read by h5py, since mdtraj itself asks for PyTables."""
    if importlib.util.find_spec("h5py") is None:
        raise TrajectoryError("HDF5 trajectories are read by h5py, which is not installed; `pip install 'bgwork[md]'`, or convert to DCD")
    import h5py

    try:
        with h5py.File(path) as file:
            if "coordinates" not in file:
                raise TrajectoryError(f"{path} has no `coordinates`, it is not mdtraj's HDF5; found {', '.join(file) or 'nothing'}")
            return _coordinates(path, file["coordinates"])
    except (OSError, KeyError) as error:
        raise TrajectoryError(f"{path} is empty, truncated or damaged: {error}") from error


def _program(path: Path) -> str:
    """The program that wrote an HDF5 file, if it says so."""
    return _from_hdf5(path, lambda file: str(file.attrs.get("program", "")))


def _topology_in(path: Path) -> str:
    """mdtraj's description of the atoms of an HDF5 file, in JSON; empty if it has none."""
    def described(file: h5py.File) -> str:
        import h5py

        node = file.get("topology")
        raw = np.ravel(node[()])[0] if isinstance(node, h5py.Dataset) and node.size else ""
        return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)

    return _from_hdf5(path, described)


def _from_hdf5(path: Path, read: Callable[[h5py.File], str]) -> str:
    """What is read from an HDF5 file; empty if it cannot be opened, which `_read_hdf5` says better."""
    if importlib.util.find_spec("h5py") is None or not path.is_file():
        return ""
    import h5py

    try:
        with h5py.File(path) as file:
            return read(file)
    except OSError:
        return ""


def _coordinates(path: Path, node: h5py.Dataset | h5py.Group) -> np.ndarray:
    """In nm, whichever unit the dataset names; without one it is nm, as mdtraj has it."""
    import h5py

    if not isinstance(node, h5py.Dataset):
        raise TrajectoryError(f"{path}: `coordinates` is a group, not a dataset [N, n, 3] of numbers")
    if node.dtype.kind not in "fiu" or node.ndim != 3:
        raise TrajectoryError(f"{path}: `coordinates` is {list(node.shape or ())} of {node.dtype}, not [N, n, 3] of numbers")
    unit = node.attrs.get("units", "nanometers")
    unit = unit.decode(errors="replace") if isinstance(unit, bytes) else str(unit)
    if unit.lower() not in NM_IN:
        raise TrajectoryError(f"{path}: `coordinates` are in {unit!r}; known are {', '.join(NM_IN)} (attribute `units`)")
    return node[:].astype(np.float64) * NM_IN[unit.lower()]


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".dcd": _read_dcd, ".xtc": _read_xtc, ".pdb": _read_pdb_models, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
