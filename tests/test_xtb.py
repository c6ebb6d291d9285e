"""The tight-binding target: units, gradients, cache, workers, refusals."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
import torch

from bgwork import units
from bgwork.spaces import MeanFree
from bgwork.targets.xtb import EnergyCache, TightBinding, XtbError, XtbTarget

pytest.importorskip("tblite")
WATER = ("O", "H", "H")
SPACE = MeanFree(n=3, d=3)


def water(count=1, seed=0):
    """[count, 3, 3] in nm, near the minimum."""
    x = torch.tensor([[0.0, 0, 0], [0.0958, 0, 0], [-0.024, 0.0927, 0]], dtype=torch.float64)
    noise = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return SPACE.project(x + 0.003 * noise)


def target(*, charge=0, method="GFN2-xTB", **settings):
    return XtbTarget(TightBinding(elements=WATER, charge=charge, method=method), space=SPACE, **{"kT": units.kT(300.0), **settings})


@pytest.fixture(scope="module")
def plain():
    made = target()
    yield made
    made.close()


def test_energy_is_tblites_own(plain):
    from tblite.interface import Calculator

    x = water(2)
    calculator = Calculator("GFN2-xTB", np.array([8, 1, 1]), x[1].numpy() / 0.0529177210903)
    calculator.set("verbosity", 0)
    hartree = calculator.singlepoint().get("energy")
    assert hartree == pytest.approx(-5.07, abs=0.02)
    assert plain.u(x)[1].item() * plain.kT == pytest.approx(hartree * 2625.49964, rel=1e-9)


def test_offset_and_temperature():
    x = water(2)
    shifted = target(offset=-13_000.0, kT=2 * units.kT(300.0))
    plain = target()
    expected = (plain.u(x) * plain.kT + 13_000.0) / shifted.kT
    torch.testing.assert_close(shifted.u(x), expected, rtol=0, atol=1e-9)


def test_gradient_by_differences(plain):
    x = water()
    _, grad = plain.u_and_grad(x)
    step = 1e-5
    for atom, axis in ((0, 0), (1, 1), (2, 0)):
        ends = x.repeat(2, 1, 1)
        ends[:, atom, axis] += torch.tensor([step, -step], dtype=torch.float64)
        u = plain.u(ends)
        assert grad[0, atom, axis].item() == pytest.approx(((u[0] - u[1]) / (2 * step)).item(), rel=1e-4, abs=0.05)
    leaf = x.clone().requires_grad_()
    plain.u(leaf).sum().backward()
    assert torch.equal(leaf.grad, grad)


def test_workers_and_order_change_no_bit(plain):
    x = water(7)
    many = target(workers=3)
    u, grad = plain.u_and_grad(x)
    u_many, grad_many = many.u_and_grad(x.flip(0))
    assert torch.equal(u, u_many.flip(0)) and torch.equal(grad, grad_many.flip(0))
    assert len(many.pool.processes) == 3
    many.close()


def test_cache_spares_every_second_evaluation(tmp_path, monkeypatch):
    x = water(5)
    first = target(cache=tmp_path / "deep" / "water.sqlite")
    u, grad = first.u_and_grad(x)
    assert first.n_cached == 0 and first.n_gradient == 5
    first.close()
    second = target(cache=tmp_path / "deep" / "water.sqlite")
    monkeypatch.setattr(second.pool, "evaluate", lambda *a, **k: pytest.fail("computed again"))
    u_again, grad_again = second.u_and_grad(x)
    assert torch.equal(u, u_again) and torch.equal(grad, grad_again) and second.n_cached == 5


def test_cache_is_keyed_by_every_bit_and_by_what_is_computed(tmp_path):
    x, path = water(1), tmp_path / "water.sqlite"
    made = target(cache=path)
    made.u(x)
    moved = x.clone()
    moved[0, 0, 0] = np.nextafter(moved[0, 0, 0].item(), 1.0)
    made.u(moved)
    assert made.n_cached == 0
    made.u(torch.cat([x, water(1, seed=9), moved]))
    assert made.n_cached == 2
    charged, other = target(cache=path, charge=1), target(cache=path, method="GFN1-xTB")
    values = [t.u(x).item() for t in (made, charged, other)]
    assert charged.n_cached == other.n_cached == 0 and len(set(values)) == 3
    for each in (made, charged, other):
        each.close()


def test_failures_are_nan_and_counted(tmp_path):
    """Atoms so far apart that the charges do not become self-consistent, and a row that is not finite."""
    x = water(3)
    x[1, 0, 0] = torch.nan
    made = target(cache=tmp_path / "c.sqlite")
    u, grad = made.u_and_grad(x)
    assert torch.isnan(u).tolist() == [False, True, False] and torch.isnan(grad[1]).all() and made.n_nan == 1
    assert torch.isnan(made.u(x)).tolist() == [False, True, False] and made.n_cached == 3
    made.close()


def test_dead_worker_is_reported_and_replaced():
    made, x = target(), water(1)
    u = made.u(x)
    made.pool.processes[0].kill()
    made.pool.processes[0].wait()
    with pytest.raises(XtbError, match="tblite worker ended"):
        made.u(x)
    assert torch.equal(made.u(x), u)
    made.close()


@pytest.mark.parametrize(("molecule", "settings", "message"), [
    ({"elements": ("O", "H", "Xx")}, {}, r"unknown elements \['Xx'\]"), ({"elements": ("O", "H")}, {}, "2 atoms in 3 dimensions"),
    ({"method": "GFN9"}, {}, r"method GFN9 \(known: GFN2-xTB"), ({}, {"kT": 0.0}, "must be positive, got 0.0"),
    ({}, {"workers": 0}, "must be positive"),
])
def test_refusals(molecule, settings, message):
    with pytest.raises(XtbError, match=message):
        XtbTarget(TightBinding(**{"elements": WATER, **molecule}), space=SPACE, **{"kT": 2.5, **settings})


def test_cache_that_is_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(XtbError, match="cannot use .*notes.txt as a cache .*give another path"):
        target(cache=tmp_path / "notes.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(XtbError, match="cannot use"):
        target(cache=tmp_path / "file" / "below.sqlite")


def test_without_tblite(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(XtbError, match=r"pip install 'bgwork\[xtb\]'"):
        target().u(water())


def test_a_cache_may_be_read_while_another_process_writes(tmp_path):
    cache = EnergyCache(tmp_path / "c.sqlite", label="x")
    x = water(2).numpy()
    other = sqlite3.connect(tmp_path / "c.sqlite")
    cache.add(x[:1], np.array([1.5]), np.zeros((1, 3, 3)))
    assert other.execute("select count(*) from energies").fetchone() == (1,)
    energies, _, known = cache.find(x)
    assert known.tolist() == [True, False] and energies[0] == 1.5
