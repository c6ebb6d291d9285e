"""Whether configurations are an equilibrium set of an energy: forces along bonds have known averages.

Integration by parts, <v . grad u> = <div v> for every vector field v, with v moving one end of a bond along it:

    <e . grad_j u> = <2 / r>,    r e = x_j - x_i
Another force field, solvent, cutoff or charge pulls at some bonds harder than their thermal motion does, long before it shows in their
temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgwork.multistate import quiet
from bgwork.topology import Topology

LIMIT = 2.0  # of the root mean square of z, which is about 1 in equilibrium
ROWS = 20_000  # evenly spread ones that are looked at: with millions the time step of sound dynamics would show


@dataclass(frozen=True, kw_only=True)
class BondBalance:
    """By how many standard errors forces along bonds differ from what thermal motion would balance.

    Attributes:
        z: [2 b], one for either end of every bond.
        worst: names of the atoms between which |z| is largest, the one that was moved second.
    """

    z: Tensor
    worst: tuple[str, str]

    @property
    def value(self) -> float:
        """Root mean square of z."""
        return float(self.z.square().mean().sqrt())

    @property
    def passed(self) -> bool:
        return self.value < LIMIT

    @property
    def largest(self) -> str:
        return f"{float(self.z.abs().max()):.1f}, between {' and '.join(self.worst)}"

    def __str__(self) -> str:
        return (f"forces along bonds are {self.value:.1f} standard errors off balance, root mean square, up to {LIMIT:g} pass; "
                f"most, {self.largest}")


def bond_balance(topology: Topology, x: Tensor, gradient: Tensor) -> BondBalance:
    """Means of e . grad_j u - 2 / r, in standard errors that know of the correlation between successive rows.

    Args:
        topology: with bonds.
        x: [N, n, 3], not weighted; in order of time, if they are of a trajectory.
        gradient: of the reduced energy there, [N, n, 3].

    Source: integration by parts, as in the configurational temperature (Rugh 1997; Butler et al. 1998), bond by bond.
    """
    x, gradient = looked_at(x), looked_at(gradient)
    i, j = torch.tensor(topology.bonds).T
    still, moved = torch.cat([i, j]), torch.cat([j, i])
    bond = x[:, moved] - x[:, still]
    excess = ((bond * gradient[:, moved]).sum(2) - 2) / bond.norm(dim=2)
    z = standard_scores(excess)
    worst = z.abs().argmax()
    return BondBalance(z=z, worst=(topology.labels[still[worst]], topology.labels[moved[worst]]))


def looked_at(values: Tensor) -> Tensor:
    """At most `ROWS` rows of [N, ...], evenly spread, in double precision."""
    return values[:: max(1, -(-len(values) // ROWS))].double()


def standard_scores(values: Tensor) -> Tensor:
    """Mean of each column of [N, k] over its standard error, where rows are in order of time, [k]."""
    return values.mean(0) / (values.var(0) * inefficiencies(values) / len(values)).sqrt()


def inefficiencies(values: Tensor) -> Tensor:
    """1 + 2 sum of the autocorrelation of each column of [N, k], where rows are in order of time (`pymbar.timeseries`)."""
    with quiet("pymbar"):  # it advises on its own installation at import
        from pymbar import timeseries
    return torch.tensor([timeseries.statistical_inefficiency(column.numpy()) for column in values.T], dtype=torch.float64)
