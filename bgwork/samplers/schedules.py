"""Schedules of annealing: temperatures and step sizes, how the next temperature is found on a pilot, and what it costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bgwork.protocols import Target
from bgwork.records import Cost
from bgwork.samplers.resampling import Population, conditional_ess, slope

HALVINGS = 100  # of a step in beta: enough to start from energies of 1e25 kT
MAX_TEMPERATURES = 1000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Temperatures and step sizes, fixed before the samples that they are used on are drawn.

    Attributes:
        betas: rising, the last one exactly 1.
        steps: step size of the kernel at each.
        cost: what learning them took.

    Raises:
        ValueError: if betas do not rise to 1, or steps do not match them.
    """

    betas: tuple[float, ...]
    steps: tuple[float, ...]
    cost: Cost = Cost()

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.betas), self.betas, strict=False))
        if not self.betas or self.betas[-1] != 1.0 or not rising:
            raise ValueError(f"betas must rise from above 0 to exactly 1, got {self.betas}")
        if len(self.steps) != len(self.betas) or not all(step > 0 for step in self.steps):
            raise ValueError(f"each of the {len(self.betas)} temperatures needs one positive step, got {self.steps}")


class Meter:
    """Work done on a target since the meter was made."""

    def __init__(self, target: Target) -> None:
        self.target, self.energy, self.gradient, self.began = target, target.n_energy, target.n_gradient, time.perf_counter()

    def read(self) -> Cost:
        """Energies, gradients and seconds."""
        return Cost(energy=self.target.n_energy - self.energy, gradient=self.target.n_gradient - self.gradient,
                    seconds=time.perf_counter() - self.began)


def living(population: Population, target: Target) -> Population:
    """The rows of positive weight alone, for tuning; at any beta > 0 the others weigh nothing.

    Raises:
        ValueError: if there are none.
    """
    alive = population.alive
    if not alive.any():
        raise ValueError(f"all {len(alive)} pilot rows have zero weight under {target.name}; check its length unit, or enlarge `pilot`")
    return Population(walkers=population.walkers.take(alive), log_w=population.log_w[alive], island=population.island[alive],
                      ancestor=population.ancestor[alive])


def next_beta(population: Population, beta: float, *, keep: float) -> float:
    """The largest beta' <= 1 at which the conditional effective fraction stays at `keep`, by bisection."""
    rate = slope(population.walkers, population.alive)

    def kept(step: float) -> float:
        return conditional_ess(population.log_w, -step * rate)

    low, high = 0.0, 1.0 - beta
    if kept(high) >= keep:
        return 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) >= keep else (low, middle)
    return beta + high
