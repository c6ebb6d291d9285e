"""Energies and forces of a batch in one OpenMM context, in this process or in a worker process of its own.

Run as a script, this file is the worker: it reads requests from stdin and answers on stdout, in raw float64, until stdin closes. It
imports neither bgwork nor the user's main module, so that targets work in scripts without a main guard and in notebooks.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

import numpy as np
import openmm

REQUEST = struct.Struct("<qq")  # number of configurations, 1 if forces are wanted
ALL_GROUPS = 0xFFFFFFFF


def make_context(xml: str) -> openmm.Context:
    """A context on the Reference platform (double precision) for a serialised System."""
    system = openmm.XmlSerializer.deserialize(xml)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


def evaluate(context: openmm.Context, positions: np.ndarray, *, forces: bool) -> tuple[np.ndarray, np.ndarray]:
    """Potential energies and forces, one configuration after the other.

    Args:
        context: of the system.
        positions: [B, n, 3] in nm. A row that is not finite is not handed to OpenMM; its energy is NaN.
        forces: whether forces are wanted.
    Returns:
        energies [B] in kJ/mol and forces [B, n, 3] in kJ/mol/nm ([0, n, 3] if not wanted).
    """
    energies = np.full(len(positions), np.nan)
    gradients = np.full(positions.shape if forces else (0, *positions.shape[1:]), np.nan)
    for k in np.flatnonzero(np.isfinite(positions).all((1, 2))):
        context.setPositions(positions[k])
        state = context.getState(energy=True, forces=forces, groups=ALL_GROUPS)
        energies[k] = state.getPotentialEnergy()._value
        if forces:
            gradients[k] = state.getForces(asNumpy=True)._value
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
    """Answer requests until the stream closes; the first message is the System's XML and its number of particles."""
    length, n = REQUEST.unpack(read_exactly(requests, REQUEST.size))
    context = make_context(read_exactly(requests, length).decode())
    while header := requests.read(REQUEST.size):
        count, forces = REQUEST.unpack(header)
        positions = np.frombuffer(read_exactly(requests, count * n * 24)).reshape(count, n, 3)
        for array in evaluate(context, positions, forces=bool(forces)):
            answers.write(array.tobytes())
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the numbers
        serve(sys.stdin.buffer, channel)
