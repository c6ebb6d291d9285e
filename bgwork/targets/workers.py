"""A pool of worker processes that share a batch of energies; the numbers do not depend on how many there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bgwork.targets import worker


class WorkerEnded(RuntimeError):
    """A worker process ended before it answered; its own message is on stderr."""


class Workers:
    """Worker processes of one engine (`bgwork.targets.worker`), started when first needed; they end with this object.

    Args:
        settings: of the engine: {"engine": name, ...}, JSON.
        n: number of atoms.
    """

    def __init__(self, settings: Mapping[str, Any], n: int) -> None:
        self.settings, self.n = dict(settings), n
        self.processes: list[subprocess.Popen[bytes]] = []

    def evaluate(self, positions: np.ndarray, *, share: int, forces: bool) -> tuple[np.ndarray, np.ndarray]:
        """Contiguous parts of the batch, one for each of `share` workers, put together in order; as `worker.evaluate`.

        Raises:
            WorkerEnded: if a worker ended; the next call starts new ones.
        """
        while len(self.processes) < share:
            self.processes.append(self._start())
        parts = np.array_split(positions, share)
        try:
            for process, part in zip(self.processes, parts, strict=False):
                process.stdin.write(worker.REQUEST.pack(len(part), forces) + part.tobytes())
                process.stdin.flush()
            answers = [_read_answer(process, part, forces) for process, part in zip(self.processes, parts, strict=False)]
        except (OSError, EOFError) as error:
            self.close()
            raise WorkerEnded(str(error)) from error
        return np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers])

    def close(self) -> None:
        """End the processes."""
        while self.processes:
            _stop(self.processes.pop())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "processes": []}

    def _start(self) -> subprocess.Popen[bytes]:
        """One more process, on one thread; -P keeps this folder, whose openmm.py is not OpenMM, off its path."""
        command = [sys.executable, "-P", str(Path(worker.__file__))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        weakref.finalize(self, _stop, process)
        data = json.dumps(self.settings).encode()
        process.stdin.write(worker.REQUEST.pack(len(data), self.n) + data)
        return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass  # closing flushes; nobody is left to read it


def _read_answer(process: subprocess.Popen[bytes], part: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray]:
    energies = np.frombuffer(bytearray(worker.read_exactly(process.stdout, 8 * len(part))))
    gradients = np.frombuffer(bytearray(worker.read_exactly(process.stdout, 8 * part.size * forces)))
    return energies, gradients.reshape(-1, *part.shape[1:])
