"""Flows with untrained fields on small spaces, for the tests of executed maps."""

from __future__ import annotations

import torch
from simple_fields import randomise

from bgwork.fields.egnn import EGNN
from bgwork.fields.framed import Framed
from bgwork.fields.frames import Frame
from bgwork.fields.mlp import MLP
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.priors import Gaussian
from bgwork.records import Origin
from bgwork.samplers.flow import Flow
from bgwork.samplers.integrators import Grid
from bgwork.spaces import Euclidean, MeanFree

LINE, PLANE, DW4, FOUR_ATOMS = Euclidean(n=1, d=1), Euclidean(n=1, d=2), MeanFree(n=4, d=2), MeanFree(n=4, d=3)
A = torch.tensor([[0.3, -0.8], [0.5, -0.6]], dtype=torch.float64)
SMALL = {"hidden": 8, "message": 6, "vectors": 4, "node_hidden": 10, "n_basis": 6}


def framed():
    template = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return Framed(MultiHop(4, 3, MultiHopConfig(hops=1, **SMALL)), Frame(template, length=1.0), hidden=12, depth=2)


FIELDS = {
    "mlp": (PLANE, lambda: MLP(1, 2, hidden=16, depth=3)),
    "egnn": (DW4, lambda: EGNN(4, 2, layers=2, hidden=8, reach=1.0)),
    "two hops": (DW4, lambda: MultiHop(4, 2, MultiHopConfig(**SMALL))),
    "framed": (FOUR_ATOMS, framed),
}


def flow(space, field, *, integrator="midpoint", steps=4, std=1.0, **options):
    grid = Grid(integrator=integrator, steps=steps)
    return Flow(prior=Gaussian(space=space, std=std), field=field, origin=Origin(method="flow", system="test"), grid=grid, **options)


def made(name, **options):
    space, build = FIELDS[name]
    torch.manual_seed(0)
    return flow(space, randomise(build()), **options)


def seed(value=0):
    return torch.Generator().manual_seed(value)
