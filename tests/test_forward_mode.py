"""Threads that take derivatives by forward mode at once get what each would get alone: torch's dual numbers share one global level."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bgwork.curved import Sphere
from bgwork.fields.divergence import Hutchinson, rademacher
from bgwork.fields.egnn import EGNN
from bgwork.samplers.geodesic_flow import GeodesicStep

THREADS, TASKS = 4, 60


def drawn(*shape, k):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


def egnn():
    """A field whose Jacobian is not zero, as that of fresh weights is."""
    field = EGNN(4, 2, layers=2, hidden=8).double()
    for k, parameter in enumerate(field.parameters()):
        parameter.data = 0.3 * drawn(*parameter.shape, k=k)
    return field, torch.tensor(0.3, dtype=torch.float64)


def jacobian(k):
    field, t = egnn()
    return field.value_and_jacobian(t, drawn(3, 4, 2, k=k))


def divergence(k):
    field, t = egnn()
    return field.value_and_divergence(t, drawn(3, 4, 2, k=k))


def probed(k):
    field, t = egnn()
    probes = rademacher((3, 5, 4, 2), generator=torch.Generator().manual_seed(k))
    return Hutchinson(field, probes).value_and_divergence(t, drawn(3, 4, 2, k=k))


def geodesic(k):
    space = Sphere(n=2, d=3)
    x = space.project(drawn(3, 2, 3, k=k))
    step = GeodesicStep(space=space, velocity=lambda t, x: space.tangent(x, x.roll(1, 2) * (1 + t)), t=0.1, h=0.3)
    return step.with_jacobian(x)


@pytest.mark.parametrize("derivative", (jacobian, divergence, probed, geodesic))
def test_threads_get_what_each_would_get_alone(derivative):
    def alone(k):
        with torch.no_grad():
            return derivative(k)

    expected = [alone(k) for k in range(TASKS)]
    assert all((tangents.abs().amax() > 1e-3) for _, tangents in expected)
    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(alone, range(TASKS)))
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
