"""Energies and forces of a batch by an outside engine, in this process or in a worker process of its own.

Run as a script, this file is the worker: it reads requests from stdin and answers on stdout, in raw float64, until stdin closes. It
imports neither bgwork nor the user's main module, so that targets work in scripts without a main guard and in notebooks.

    first message    REQUEST(length of JSON, number of atoms), JSON {"engine": name, ...}
    request          REQUEST(number of configurations, 1 if forces are wanted), positions [B, n, 3] in nm
    answer           energies [B] in kJ/mol, forces [B, n, 3] in kJ/mol/nm (or none)
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

REQUEST = struct.Struct("<qq")
ALL_GROUPS = 0xFFFFFFFF

Engine = Callable[[np.ndarray, bool], tuple[float, np.ndarray | None]]  # positions [n, 3], forces wanted -> energy, forces [n, 3] or None


def openmm_engine(settings: Mapping[str, Any]) -> Engine:
    """A serialised System, settings["xml"], on the Reference platform, which is double precision."""
    import openmm

    system = openmm.XmlSerializer.deserialize(settings["xml"])
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))

    def energy(positions: np.ndarray, forces: bool) -> tuple[float, np.ndarray | None]:
        context.setPositions(positions)
        state = context.getState(energy=True, forces=forces, groups=ALL_GROUPS)
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value if forces else None

    return energy


def tblite_engine(settings: Mapping[str, Any]) -> Engine:
    """Extended tight binding, settings["method"], for atomic numbers settings["numbers"] and a total charge settings["charge"].

    settings["bohr"] and settings["hartree"] are atomic units in nm and kJ/mol.
    Every configuration starts from the same guess, so that its energy does not depend on those before it. Where the charges do not
    become self-consistent, the energy is NaN.
    """
    from tblite.interface import Calculator

    numbers, bohr, hartree = np.array(settings["numbers"]), settings["bohr"], settings["hartree"]
    calculator = Calculator(settings["method"], numbers, np.arange(3.0 * len(numbers)).reshape(-1, 3), charge=settings["charge"])
    calculator.set("verbosity", 0)

    def energy(positions: np.ndarray, forces: bool) -> tuple[float, np.ndarray | None]:
        try:
            calculator.update(positions=positions / bohr)
            result = calculator.singlepoint()
        except RuntimeError:
            return np.nan, np.full_like(positions, np.nan)
        return result.get("energy") * hartree, -result.get("gradient") * (hartree / bohr)

    return energy


ENGINES: dict[str, Callable[[Mapping[str, Any]], Engine]] = {"openmm": openmm_engine, "tblite": tblite_engine}


def evaluate(engine: Engine, positions: np.ndarray, *, forces: bool) -> tuple[np.ndarray, np.ndarray]:
    """Potential energies and forces, one configuration after the other.

    Args:
        engine: of `ENGINES`.
        positions: [B, n, 3] in nm. A row that is not finite is not handed to the engine; its energy is NaN.
        forces: whether forces are wanted.
    Returns:
        energies [B] in kJ/mol and forces [B, n, 3] in kJ/mol/nm ([0, n, 3] if not wanted).
    """
    energies = np.full(len(positions), np.nan)
    gradients = np.full(positions.shape if forces else (0, *positions.shape[1:]), np.nan)
    for k in np.flatnonzero(np.isfinite(positions).all((1, 2))):
        energies[k], row = engine(positions[k], forces)
        if forces:
            gradients[k] = row
    return energies, gradients


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes.

    Raises:
        EOFError: if the stream ends before.
    """
    parts, missing = [], size
    while missing:
        part = stream.read(missing)
        if not part:
            raise EOFError(f"the stream ended {missing} bytes early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the stream closes."""
    length, n = REQUEST.unpack(read_exactly(requests, REQUEST.size))
    settings = json.loads(read_exactly(requests, length))
    engine = ENGINES[settings["engine"]](settings)
    while header := requests.read(REQUEST.size):
        count, forces = REQUEST.unpack(header)
        positions = np.frombuffer(read_exactly(requests, count * n * 24)).reshape(count, n, 3)
        for array in evaluate(engine, positions, forces=bool(forces)):
            answers.write(array.tobytes())
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the numbers
        serve(sys.stdin.buffer, channel)
