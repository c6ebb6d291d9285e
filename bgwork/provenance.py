"""What a result was made with: the commit of the code and the versions of what it rests on; and where results are kept for later."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

PACKAGES = ("bgwork", "torch", "numpy", "scipy", "openmm", "torchdiffeq", "pymbar", "safetensors")


@cache
def commit() -> str:
    """Commit of the repository that bgwork runs from, "+changes" if files differ from it; "" for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    head, changes = (_git(root, *arguments) for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "bgwork", "systems")))
    return head and head + ("+changes" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # no git here: the commit is unknown, which is what "" says


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


@cache
def code() -> str:
    """Hash of the package's source files, which no edit leaves as it was."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    return hashlib.sha256(b"".join(f"{path.relative_to(root)} {file_fingerprint(path)} ".encode() for path in files)).hexdigest()


def cache_folder() -> Path:
    """Where what takes long to compute is kept between commands: $BGWORK_CACHE, or ~/.cache/bgwork."""
    return Path(os.environ.get("BGWORK_CACHE") or Path.home() / ".cache" / "bgwork")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of settings, equal for equal settings in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Short hash of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def tensor_fingerprint(x: Tensor) -> str:
    """Short hash of a tensor's numbers, in double precision."""
    return hashlib.sha256(x.double().contiguous().numpy().tobytes()).hexdigest()[:16]
