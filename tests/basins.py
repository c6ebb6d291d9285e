"""Two basins on a line, and counting what error bars cover."""

from __future__ import annotations

import math

import torch
from oracles import LineOracle

from bgwork.records import Estimate


def right(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 0] > 0


def left(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 0] <= 0


def exact(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0)


def covered(estimates: list[Estimate], truth: float) -> int:
    return sum(abs(e.value - truth) < 2 * e.stderr for e in estimates)


def quadrature_difference(target: LineOracle) -> float:
    return -math.log(target.average(right) / target.average(left))
