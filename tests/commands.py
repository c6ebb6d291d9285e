"""Calling the commands from tests, and what holds of every refusal."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from bgwork import store
from bgwork.commands import app

QUICK = ("-n", "40")
GENERATOR = Path("systems/toy/generators/eqot-fm.safetensors")


def call(*arguments: str) -> object:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def files(folder: Path) -> set[str]:
    """All files below a folder, with their contents' hash."""
    return {f"{path.relative_to(folder)} {hash(path.read_bytes())}" for path in folder.rglob("*") if path.is_file()}


def refused(result: object, *words: str) -> None:
    """Exit code 2, one message on stderr naming the words, no traceback."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Error: " in result.stderr or "Usage: " in result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def steeper(factor: float) -> None:
    """Multiply the shipped generator's velocity."""
    tensors, meta = store.load_checkpoint(GENERATOR)
    store.save_checkpoint(GENERATOR, tensors | {"last.weight": tensors["last.weight"] * factor}, meta)
