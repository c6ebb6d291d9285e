"""The default generator: a flow integrated by K Runge-Kutta steps, with the exact density of the map that was executed.

The sampler *is* the map T = T_K o ... o T_1 of its steps, so its density (see `executed`) has no step-size bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bgwork.protocols import Field
from bgwork.samplers.executed import ExecutedMap
from bgwork.samplers.integrators import Grid, Tableau, step, step_with_jacobian


@dataclass(frozen=True, kw_only=True)
class RungeKuttaStep:
    """One explicit Runge-Kutta step of dx/dt = v(t, x), from t to t + h."""

    field: Field
    tableau: Tableau
    t: float
    h: float

    @property
    def evaluations(self) -> int:
        return self.tableau.stages

    def __call__(self, x: Tensor) -> Tensor:
        """T(x) [B, n, d]."""
        return step(self.field, self.tableau, self.t, self.h, x)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) [B, n, d] and DT(x) [B, nd, nd]."""
        return step_with_jacobian(self.field, self.tableau, self.t, self.h, x)

    def backward(self, x: Tensor) -> Tensor:
        """The step of the same length in reverse time, which undoes this one up to its order."""
        return step(self.field, self.tableau, self.t + self.h, -self.h, x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow(ExecutedMap):
    """Sampler with the exact density of the executed Runge-Kutta steps.

    Args:
        prior, origin, batch, round_trip, n_round_trip, tolerance, on_batch: as for `ExecutedMap`.
        field: velocity v(t, x) with a Jacobian.
        grid: integrator and steps.

    Example:
        >>> from bgwork.fields.mlp import MLP
        >>> from bgwork.priors import Gaussian
        >>> from bgwork.records import Origin
        >>> from bgwork.spaces import Euclidean
        >>> flow = Flow(prior=Gaussian(space=Euclidean(n=1, d=2)), field=MLP(1, 2), origin=Origin(method="flow", system="plane"))
        >>> proposal = flow.sample(8, generator=torch.Generator().manual_seed(0))
        >>> proposal.density, torch.allclose(flow.log_prob(proposal.x), proposal.log_q)
        (<Density.EXACT: 'exact'>, True)
    """

    field: Field
    grid: Grid = Grid()

    @property
    def steps(self) -> tuple[RungeKuttaStep, ...]:
        return tuple(RungeKuttaStep(field=self.field, tableau=self.grid.tableau, t=t, h=h) for t, h in self.grid.intervals)

    @property
    def velocity(self) -> Field:
        return self.field

    @property
    def description(self) -> str:
        return f"{self.grid.integrator} with {self.grid.steps} steps"
