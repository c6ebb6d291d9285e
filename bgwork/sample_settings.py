"""How samples are asked for: their number and seed, and the integrator, steps, weights and grid of the sampler behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bgwork.fields.compiled import check_compiler
from bgwork.recipes import Recipe
from bgwork.recipes.files import OBJECTIVES

INTEGRATORS = tuple(dict.fromkeys(name for kind in OBJECTIVES.values() for name in kind.integrators))  # of any generator
MOST_STEPS = 100_000  # a slip of the finger beyond; their grid alone would fill the memory before anything is drawn
WEIGHTS = ("density", "continuous", "path", "directional")


class RunError(ValueError):
    """A run that cannot be found or made as asked."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What decides the numbers of a sampling run, together with the generator.

    Args:
        n: number of samples.
        seed: of the prior draws.
        integrator: euler, midpoint, heun, rk4 on a fixed grid, or dopri5 (adaptive); by default the generator's own.
        steps: of the sampler; by default the generator's own.
        weights: "density" (exact, of the map that was run), "continuous" (divergence integral, the only one for dopri5), "path" (of
            the kernels that were run) or "directional" (the same with a width for each direction); by default the generator's own.
        compiled: whether Jacobians are compiled first, which changes the numbers by round-off.
        overrides: "sampler.key=value" for other values in the recipe's [sampler] table.
    """

    n: int = 2000
    seed: int = 0
    integrator: str | None = None
    steps: int | None = None
    weights: str | None = None
    compiled: bool = False
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RunError(f"the number of samples must be positive, got {self.n}")
        if self.steps is not None and self.steps < 1:
            raise RunError(f"the number of steps must be positive, got {self.steps}")
        if self.steps is not None and self.steps > MOST_STEPS:
            raise RunError(f"{self.steps} steps are more than any sampler here is good for; ask for {MOST_STEPS} at most")
        if self.integrator not in (*INTEGRATORS, None):
            raise RunError(f"unknown integrator {self.integrator!r}; choose one of {', '.join(INTEGRATORS)}")
        if self.weights not in (*WEIGHTS, None):
            raise RunError(f"unknown weights {self.weights!r}; choose one of {', '.join(WEIGHTS)}")
        if self.integrator == "dopri5" and self.weights != "continuous":
            raise RunError("an adaptive solver has no executed map to take the determinant of; add --weights continuous, or leave out "
                           "--integrator where the generator has no such weights")
        if self.integrator == "dopri5" and self.steps is not None:
            raise RunError(f"dopri5 chooses its own steps, so {self.steps} of them cannot be asked for; leave out --steps")
        if self.compiled:
            check_compiler()

    def check_overrides(self) -> None:
        """Raise RunError if a key of `overrides` is also given by itself."""
        keys = {override.partition("=")[0].strip() for override in self.overrides}
        twice = [key for key in ("integrator", "steps") if getattr(self, key) is not None and f"sampler.{key}" in keys]
        if twice:
            raise RunError(f"{twice[0]} is given twice, by --{twice[0]} and by --set sampler.{twice[0]}; leave one out")

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the numbers; without the last two they are those of versions that did not know of them."""
        return {key: value for key, value in asdict(self).items() if key not in ("compiled", "overrides") or value}

    def on(self, recipe: Recipe) -> SampleSettings:
        """The same with what was left open taken from a generator's recipe.

        Raises:
            RunError: if its samplers cannot do what is asked for.
        """
        own = recipe.default_choice()
        if self.weights not in (*recipe.weights, None):
            raise RunError(f"a generator by {recipe.objective} has weights {', '.join(recipe.weights)}, not {self.weights!r}")
        if self.integrator not in (*recipe.integrators, None):
            has = ", ".join(recipe.integrators) or "none"
            raise RunError(f"a generator by {recipe.objective} has integrators {has}, not {self.integrator!r}; leave out --integrator")
        if self.integrator == "dopri5":
            return self
        open_keys = {key: getattr(own, key) for key in ("integrator", "steps", "weights") if getattr(self, key) is None}
        return replace(self, **open_keys)
