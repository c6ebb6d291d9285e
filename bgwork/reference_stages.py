"""What a long reference run has finished, kept on disk, so that an interruption costs only what was not finished.

Every stage is drawn with one generator, whose state after the stage is kept with what the stage made: a run that goes on gives the same
numbers, to the last bit, as one of the same code that was never interrupted. A run that was refused because its cross-check was too
uncertain goes on, too: from the same stages, with more ladders.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bgwork import store
from bgwork.provenance import code, commit
from bgwork.records import Cost, Proposal
from bgwork.samplers.metadynamics import BiasRun, TorsionBias

BIAS = "metadynamics"
UNFINISHED = "unfinished-"  # how names of folders of stages begin
RANDOMNESS = "generator"  # the tensor that holds the generator's state after a stage


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of one run; with no folder, nothing is kept.

    Attributes:
        folder: where they are kept.
        commits: of the code that made each stage, by its name; a log, which fills as the run goes on.
    """

    folder: Path | None = None
    commits: dict[str, str] = field(default_factory=dict)

    def bias(self, make: Callable[[torch.Generator], BiasRun], *, generator: torch.Generator) -> BiasRun:
        """What metadynamics left behind: read, with the generator set to where it was then, or else made and kept.

        Args:
            make: runs metadynamics with the generator.
            generator: of the whole run.
        Returns:
            The bias and the configurations that it was built from.
        Raises:
            FileError: if what was kept cannot be read.
        """
        if self._finished(BIAS):
            tensors, meta = self._resume(BIAS, generator)
            torsions = tuple(tuple(atoms) for atoms in meta["torsions"])
            return BiasRun(bias=TorsionBias(torsions=torsions, table=tensors["table"]), x=tensors["x"], angles=tensors["angles"],
                           cost=Cost(**meta["cost"]))
        filled = make(generator)
        self._keep(BIAS, generator, {"table": filled.bias.table, "x": filled.x, "angles": filled.angles},
                   {"torsions": filled.bias.torsions, "cost": asdict(filled.cost)})
        return filled

    def rows(self, name: str, make: Callable[[torch.Generator], Proposal], *, generator: torch.Generator) -> Proposal:
        """The configurations of a stage: read, with the generator set to where it was then, or else made and kept.

        Args:
            name: of the stage, and of its files.
            make: draws them with the generator.
            generator: of the whole run.
        Raises:
            FileError: if what was kept cannot be read.
        """
        if self._finished(name):
            self._resume(name, generator)
            with self._readable():
                return store.load_samples(self.folder / f"{name}.npz")
        made = make(generator)
        if self.folder is not None:
            store.save_samples(self.folder / f"{name}.npz", made)
        self._keep(name, generator, {}, {})
        return made

    def finished(self) -> list[str]:
        """Names of the stages that are kept, in alphabetical order."""
        files = self.folder.glob("*.safetensors") if self.folder else []
        return sorted(path.stem for path in files if not path.name.startswith("."))

    def of_other_code(self) -> list[str]:
        """Names of those that another version of the code had made, which may have done something else."""
        with self._readable():
            return [name for name in self.finished() if store.load_checkpoint(self._file(name))[1].get("code") != code()]

    def others(self) -> list[Path]:
        """Folders beside this one that keep what runs with other settings had finished."""
        return sorted(set(self.folder.parent.glob(f"{UNFINISHED}*")) - {self.folder}) if self.folder else []

    def forget(self) -> None:
        """Remove what was kept.

        Raises:
            FileError: if it cannot be removed.
        """
        try:
            if self.folder is not None and self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise store.FileError(f"cannot remove {self.folder}, which is not needed any more: {error.strerror or error}") from error

    def _finished(self, name: str) -> bool:
        return self.folder is not None and self._file(name).exists()

    def _resume(self, name: str, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        with self._readable():
            tensors, meta = store.load_checkpoint(self._file(name))
            try:
                generator.set_state(tensors[RANDOMNESS])
                self.commits[name] = meta["commit"]
            except (KeyError, RuntimeError, TypeError) as error:
                raise store.FileError(f"{self._file(name)} is not what was kept of a stage ({error!r})") from error
        return tensors, meta

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except store.FileError as error:
            raise store.FileError(f"{error}; remove {self.folder} to begin anew") from error

    def _keep(self, name: str, generator: torch.Generator, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """The file that says that a stage is finished, written last."""
        self.commits[name] = commit()
        if self.folder is not None:
            made_by = {"commit": commit(), "code": code()}
            store.save_checkpoint(self._file(name), {**tensors, RANDOMNESS: generator.get_state()}, {**meta, **made_by})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
