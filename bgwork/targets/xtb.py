"""Extended tight binding (GFN2-xTB) through tblite as a target: worker processes, and every energy kept on disk.

An evaluation takes about a hundred times as long as a force field's, so that none is made twice: energies and gradients are kept in an
SQLite file under the SHA-256 of the exact coordinates, the method, the elements and the charge.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bgwork import units
from bgwork.provenance import cache_folder
from bgwork.spaces import Space
from bgwork.targets.counting import CountedTarget
from bgwork.targets.outside import OutsideEnergy
from bgwork.targets.workers import WorkerEnded, Workers

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
ATOMIC_NUMBERS = {symbol: number for number, symbol in enumerate(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr".split(), start=1)}
CHUNK = 256  # configurations between writes to the cache, so that an interruption loses little


class XtbError(ValueError):
    """A molecule or a cache that the tight-binding target cannot use, with the remedy."""


@dataclass(frozen=True, kw_only=True)
class TightBinding:
    """What is calculated, whatever its temperature.

    Attributes:
        elements: symbols of the atoms.
        charge: total charge in units of e.
        method: one of `METHODS`.
    """

    elements: tuple[str, ...]
    charge: int = 0
    method: str = METHODS[0]

    @property
    def numbers(self) -> list[int]:
        """Atomic numbers."""
        return [ATOMIC_NUMBERS[element] for element in self.elements]


class XtbTarget(CountedTarget):
    """The GFN2-xTB energy of a molecule in units of kT.

        u(x) = (E(x) - E_0) / kT

    E_0 is a constant of the system, which no normalised weight depends on; without it, u would be a number of five digits. An energy whose
    charges do not become self-consistent is NaN, and counted in `n_nan`. Calculations always run in worker processes, on one thread each
    and from the same initial guess, so that the numbers depend on nothing but the coordinates.

    Args:
        molecule: elements, charge and method.
        space: of the configurations, d = 3, in nm.
        kT: thermal energy in kJ/mol (`units.kT(temperature)`).
        offset: E_0 in kJ/mol.
        workers: processes.
        cache: SQLite file, made if there is none; None keeps nothing.
        name: printed with every figure.

    Attributes:
        n_cached: configurations so far whose energy was found in the cache.

    Raises:
        XtbError: if an element or method is unknown, the space does not fit, or the cache cannot be used; where an energy has to be
            calculated, if tblite is not installed.
    """

    batch = 1_000_000  # workers take one configuration at a time anyway

    def __init__(self, molecule: TightBinding, *, space: Space, kT: float, offset: float = 0.0, workers: int = 1,
                 cache: Path | None = None, name: str = "xtb") -> None:
        super().__init__(name, space)
        elements, method = molecule.elements, molecule.method
        unknown = [element for element in elements if element not in ATOMIC_NUMBERS]
        if unknown or method not in METHODS or (len(elements), 3) != (space.n, space.d):
            raise XtbError(f"{name}: unknown elements {unknown or 'none'}, method {method} (known: {', '.join(METHODS)}), "
                           f"{len(elements)} atoms in 3 dimensions for {space}")
        if not (kT > 0 and workers >= 1):
            raise XtbError(f"{name}: kT and workers must be positive, got {kT} and {workers}")
        self.kT, self.offset, self.workers = kT, offset, workers
        numbers = molecule.numbers
        self.pool = Workers({"engine": "tblite", "method": method, "numbers": numbers, "charge": molecule.charge, "bohr": units.BOHR,
                             "hartree": units.HARTREE}, space.n)
        self.cache = None if cache is None else EnergyCache(cache, label=f"{method} {molecule.charge} {numbers}")
        self.n_cached = 0

    def _energy(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return OutsideEnergy.apply(x, self)
        return self._energy_and_grad(x)[0]

    def _energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._chunk(part) for part in np.array_split(x.detach().cpu().numpy(), -(-len(x) // CHUNK) or 1)]
        energies, forces = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        u = (torch.from_numpy(energies) - self.offset) / self.kT
        return u.to(x.device), torch.from_numpy(forces).to(x.device) * (-1.0 / self.kT)

    def _chunk(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies [B] in kJ/mol and forces [B, n, 3], from the cache where it has them."""
        if self.cache is None:
            return self._calculate(positions)
        energies, forces, known = self.cache.find(positions)
        self.n_cached += int(known.sum())
        if not known.all():
            energies[~known], forces[~known] = self._calculate(positions[~known])
            self.cache.add(positions[~known], energies[~known], forces[~known])
        return energies, forces

    def _calculate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if importlib.util.find_spec("tblite") is None:
            raise XtbError(f"{self.name}: tblite is not installed; `pip install 'bgwork[xtb]'`")
        try:
            return self.pool.evaluate(positions, share=max(1, min(self.workers, len(positions))), forces=True)
        except WorkerEnded as error:
            raise XtbError(f"{self.name}: a tblite worker ended ({error}); its message is on stderr") from error

    def close(self) -> None:
        """End the worker processes; the next energy starts new ones."""
        self.pool.close()


class EnergyCache:
    """Energies and forces by exact coordinates, in an SQLite file that several processes may use at once.

    Args:
        path: of the file.
        label: of what is computed; the same coordinates under another label are another entry.
    Raises:
        XtbError: if the file cannot be made, or is something else.
    """

    def __init__(self, path: Path, *, label: str) -> None:
        self.path, self.label = Path(path), label.encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connect() as database:
                database.execute("create table if not exists energies (key blob primary key, energy real, forces blob)")
        except (OSError, sqlite3.Error) as error:
            raise XtbError(f"cannot use {self.path} as a cache of energies: {error}; give another path, or delete it") from error

    def find(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies [B], forces [B, n, 3] and whether they are known [B]; NaN where they are not."""
        energies, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
        known = np.zeros(len(positions), dtype=bool)
        with self._connect() as database:
            for k, row in enumerate(positions):
                found = database.execute("select energy, forces from energies where key = ?", (self._key(row),)).fetchone()
                if found is not None:
                    energies[k] = np.nan if found[0] is None else found[0]
                    forces[k], known[k] = np.frombuffer(found[1]).reshape(row.shape), True
        return energies, forces, known

    def add(self, positions: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> None:
        """Keep results; a failed one (NaN) is kept too, since it would fail again."""
        rows = [(self._key(x), None if np.isnan(energy) else float(energy), force.tobytes())
                for x, energy, force in zip(positions, energies, forces, strict=True)]
        with self._connect() as database:
            database.executemany("insert or replace into energies values (?, ?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60.0)

    def _key(self, positions: np.ndarray) -> bytes:
        return hashlib.sha256(self.label + np.ascontiguousarray(positions, dtype=np.float64).tobytes()).digest()


def default_cache(name: str) -> Path:
    """File in which energies of a system are kept."""
    return cache_folder() / f"{name}.sqlite"
