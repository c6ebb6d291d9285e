"""The only reader and writer of files: samples (NPZ without pickle), checkpoints (safetensors), JSON and text.

Every file is written to a temporary name in the same folder, flushed to disk and renamed, so that an interruption leaves either the
old file or the new one. Reading never executes code from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bgwork.curved import ConstantCurvature, Hyperboloid, Sphere
from bgwork.records import COLUMNS, Certificate, Cost, Density, Origin, Proposal, WeightedSamples
from bgwork.spaces import Euclidean, MeanFree, Space, Torus

RUNS = Path("runs")  # where results lie, from the working directory, unless a folder is given
SAMPLES_FILE = "samples.npz"

SPACES: dict[str, type[Space]] = {"euclidean": Euclidean, "mean-free": MeanFree, "sphere": Sphere, "hyperboloid": Hyperboloid,
                               "torus": Torus}


class FileError(ValueError):
    """A file that cannot be read or written, with its path and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)` and rename the result to `path`; if that fails, folders made for it are removed again.

    Raises:
        FileError: if the folder cannot be made or written.
    """
    path = Path(path)
    with no_folders_left_empty(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
            os.close(handle)
        except OSError as error:
            raise FileError(f"cannot write in {path.parent}: {error.strerror or error}; choose another output folder") from error
        _replaced(path, Path(name), write)


def _replaced(path: Path, temporary: Path, write: Callable[[Path], None]) -> None:
    """The rest of `write_atomically`, once there is a temporary file."""
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def no_folders_left_empty(folder: Path) -> Iterator[None]:
    """Removes, at the end, the folder and those above it that were not there at the beginning and have nothing in them."""
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]  # unlike Path.exists never raises
    try:
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # what holds a file stays, and so does what never came to be
                each.rmdir()


def ensure_writable(folder: Path) -> None:
    """Fail before the work rather than after it; nothing of the attempt stays behind.

    Raises:
        FileError: if files cannot be written in the folder.
    """
    probe = Path(folder) / ".writable"
    with no_folders_left_empty(probe.parent):
        try:
            write_text(probe, "")
        finally:
            with contextlib.suppress(OSError):  # there is none where it could not be written
                probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities become null, since JSON has none."""
    write_text(path, json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileError: if the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"no file {path}") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is not readable JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of one JSON value a line.

    Raises:
        FileError: if the file is missing or a line is not JSON.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is not readable JSON lines: {error}") from error


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Density):
        return value.value
    return value


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"bgwork": json.dumps(_jsonable(meta))}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, metadata=header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header of a safetensors file.

    Raises:
        FileError: if the file is missing, truncated, not safetensors (a pickle, say) or not written by bgwork.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FileError(f"no checkpoint {path}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(f"{path} is not a complete safetensors file ({error}); pickles are never loaded") from error
    if "bgwork" not in meta:
        raise FileError(f"{path} has no bgwork header; it was not written by bgwork")
    try:
        header = json.loads(meta["bgwork"])
    except ValueError as error:
        raise FileError(f"the header of {path} is damaged ({error}); take another copy, or train anew") from error
    if not isinstance(header, dict):
        raise FileError(f"the header of {path} is damaged: it is no JSON object but {str(header)[:40]!r}; take another copy, or train anew")
    return tensors, header


def save_samples(path: Path, samples: Proposal | WeightedSamples) -> None:
    """Write a proposal, or weighted samples (with u and the target's name), to one NPZ file."""
    proposal = samples.proposal if isinstance(samples, WeightedSamples) else samples
    space = next(name for name, cls in SPACES.items() if type(proposal.space) is cls)
    meta = {
        "format": "bgwork-samples-1", "space": space, **curvature_of(proposal.space), "density": proposal.density.value,
        "origin": proposal.origin, "cost": proposal.cost, "certificate": proposal.certificate, "note": proposal.note}
    arrays = {name: getattr(proposal, name).numpy() for name in COLUMNS if getattr(proposal, name) is not None}
    if isinstance(samples, WeightedSamples):
        arrays["u"], meta["target"] = samples.u.numpy(), samples.target
    arrays["meta"] = np.array(json.dumps(_jsonable(meta)))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    write_atomically(path, write)


def load_samples(path: Path) -> Proposal | WeightedSamples:
    """Read what `save_samples` wrote.

    Raises:
        FileError: if the file is missing, not NPZ, holds a pickle, lacks x, log_q or the header, or x is not [N, n, d] of its space.
    """
    arrays = _read_npz(path)
    missing = [name for name in ("x", "log_q", "meta") if name not in arrays]
    if missing:
        raise FileError(f"{path} lacks {', '.join(missing)}: samples need x and log_q (found {', '.join(sorted(arrays)) or 'nothing'})")
    try:
        return _samples_from(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is not a bgwork samples file: {error}") from error


def curvature_of(space: Space) -> dict[str, float]:
    """What the header says of a space besides its kind: {"curvature": kappa} of a curved one, nothing of a flat one."""
    return {"curvature": space.curvature} if isinstance(space, ConstantCurvature) else {}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise FileError(f"no samples file {path}") from error
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} is not a readable NPZ file ({error}); pickles are never loaded") from error


def _samples_from(arrays: Mapping[str, np.ndarray]) -> Proposal | WeightedSamples:
    meta = json.loads(str(arrays["meta"]))
    x = torch.from_numpy(arrays["x"]).double()
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [N, n, d]")
    space = SPACES[meta["space"]](n=x.shape[1], d=x.shape[2], **{key: meta[key] for key in ("curvature",) if key in meta})
    space.check(x)
    origin = Origin(**{**meta["origin"], "edits": tuple(meta["origin"]["edits"])})
    certificate = meta["certificate"] and Certificate(**{k: float("nan") if v is None else v for k, v in meta["certificate"].items()})
    proposal = Proposal(
        x=x, log_q=torch.from_numpy(arrays["log_q"]), space=space,
        density=Density(meta["density"]), origin=origin, cost=Cost(**meta["cost"]), certificate=certificate, note=meta["note"],
        **{name: torch.from_numpy(arrays[name]) for name in COLUMNS[2:] if name in arrays})
    if "u" not in arrays:
        return proposal
    return WeightedSamples(proposal=proposal, u=torch.from_numpy(arrays["u"]), target=meta["target"])
