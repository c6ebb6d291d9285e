"""Rows added to rare basins by dynamics within them: in equilibrium there, and claiming nothing else."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from annealing import seed
from commands import call, refused

from bgwork import enriched
from bgwork.enriched import Excursions, enrich, inside_of, starts, staying
from bgwork.records import Density, Estimate
from bgwork.reference_checks import ReferenceError
from bgwork.reference_md import dynamics_of
from bgwork.relaxed import equilibrium_set
from bgwork.reweighting import weigh
from bgwork.samplers.md import Langevin
from bgwork.store import load_samples
from bgwork.system import load_system
from bgwork.topology import equivalent_hydrogens

SHORT = Excursions(rows=24, spacing=0.02)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working directory with data of ala2-vacuum, and these."""
    monkeypatch.chdir(tmp_path)
    system, path = load_system("ala2-vacuum"), Path("runs/ala2-vacuum/reference/samples.npz")
    path.parent.mkdir(parents=True)
    shutil.copy(system.path / "reference.npz", path)
    return equilibrium_set(system, system)


@pytest.fixture(scope="module")
def vacuum():
    return load_system("ala2-vacuum")


def mean_of(values):
    return Estimate(value=values.mean().item(), stderr=(values.var() / len(values)).sqrt().item())


def test_rows_are_added_where_they_are_rare(vacuum, data):
    told, phi = [], vacuum.functions["phi_positive"]
    made = enrich(vacuum, data, ["phi_positive"], excursions=SHORT, seed=0, progress=lambda done, total, text: told.append((done, total)))
    inside = int(phi(data.x).sum())
    trajectories = min(inside, 24)
    frames = -(-24 // trajectories)
    assert len(made) == len(data) + 24 and torch.equal(made.x[: len(data)], data.x)
    assert phi(made.x[len(data):]).all() and int(phi(made.x).sum()) == inside + 24
    assert told[-1] == (trajectories,) * 2 and made.cost.gradient == trajectories * frames * 20
    torch.testing.assert_close(-made.log_q, vacuum.target.u(made.x))
    assert f"phi_positive: 24 rows after {inside}" in made.note
    new = made.x[len(data):]
    assert (new[:, None] - made.x[None, : len(data)]).abs().amax((2, 3)).min() > 1e-3  # none is a copy
    assert len({tuple(row.flatten().tolist()) for row in new}) == 24


def test_no_more_rows_are_added_than_asked_for(vacuum, data):
    few = data.take(vacuum.functions["phi_positive"](data.x).bool()).take(slice(0, 5))
    made = enrich(vacuum, few, ["phi_positive"], excursions=replace(SHORT, rows=12), seed=0)
    assert len(made) == 5 + 12 and made.cost.gradient == 5 * 3 * 20


def test_within_the_basin_equilibrium_stays(vacuum, data):
    start = data.take(vacuum.functions["phi_positive"](data.x).bool())
    made = enrich(vacuum, start, ["phi_positive"], excursions=Excursions(rows=600, spacing=0.2), seed=1).x[len(start):]
    steps = (made[:, None] - start.x[None]).norm(dim=-1).mean(-1).amin(1)
    assert steps.median() > 0.01  # nm an atom
    u = vacuum.target.u(made).split(len(made) // 20)[:20]
    assert abs(mean_of(torch.stack([block.mean() for block in u])).z(mean_of(vacuum.target.u(start.x)))) < 4


def test_the_numbers_do_not_depend_on_the_processes(vacuum, data, monkeypatch):
    first, other = (enrich(vacuum, data, ["phi_positive"], excursions=SHORT, seed=k).x for k in (0, 1))
    monkeypatch.setattr(enriched, "cores", lambda: 1)
    again = enrich(vacuum, data, ["phi_positive"], excursions=SHORT, seed=0).x
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nothing_weighs_them_unasked(vacuum, data):
    made = enrich(vacuum, data, ["phi_positive"], excursions=SHORT, seed=0)
    assert made.density is Density.UNCERTIFIED
    with pytest.raises(ValueError, match="uncertified"):
        weigh(made, vacuum.target)


def test_a_trajectory_ends_at_its_first_frame_outside(vacuum, data):
    phi = vacuum.functions["phi_positive"](data.x).bool()
    inside, outside = data.x[phi][0], data.x[~phi][0]
    other, (first, second, *_) = inside.clone(), equivalent_hydrogens(vacuum.topology)[0]
    other[[first, second]] = inside[[second, first]]  # of infinite energy: a methyl group numbered the other way round
    frames = torch.stack([inside, outside, inside, inside, inside, other]).view(2, 3, 22, 3)
    assert staying(vacuum, "phi_positive", frames).tolist() == [[True, False, False], [True, True, False]]


def test_starts_are_as_many_as_it_takes():
    x = torch.arange(10.0)[:, None, None]
    few, frames = starts(x, 4, generator=seed())
    assert len(few) == len(few.unique()) == 4 and frames == 1
    assert few.flatten().tolist() != sorted(few.flatten().tolist())
    every, frames = starts(x, 21, generator=seed())
    assert every.flatten().sort().values.tolist() == list(range(10)) and frames == 3


@pytest.mark.parametrize(("name", "words"), [("chi", "no basin of ala2-vacuum: unknown observable 'chi'; known are"),
                                             ("phi_cos", "phi_cos is from .* give a bound")])
def test_what_is_no_basin_is_refused(vacuum, data, name, words):
    with pytest.raises(ReferenceError, match=words):
        inside_of(vacuum, name, data.x)


def test_a_basin_without_rows_is_refused(vacuum, data):
    outside = data.take(~vacuum.functions["phi_positive"](data.x).bool())
    with pytest.raises(ReferenceError, match=f"phi_positive at none of the {len(outside)} configurations"):
        enrich(vacuum, outside, ["phi_positive"], excursions=SHORT, seed=0)


@pytest.mark.parametrize("basins", ([], ["phi_positive", "phi_positive"]))
def test_a_basin_is_named_once(vacuum, data, basins):
    with pytest.raises(ReferenceError, match="each basin must be named, and once"):
        enrich(vacuum, data, basins, excursions=SHORT, seed=0)


@pytest.mark.parametrize("setting", ({"rows": 0}, {"spacing": 0.0}, {"spacing": -1.0}, {"spacing": math.nan}, {"spacing": math.inf}))
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ReferenceError, match="both must be positive"):
        Excursions(**setting)


def test_the_time_step_is_that_of_the_systems_reference(vacuum, data):
    slow = replace(vacuum, reference=vacuum.reference.model_copy(update={"time_step": 0.0005, "friction": 5.0}))
    assert dynamics_of(slow) == Langevin(step=0.0005, friction=5.0)
    made = enrich(slow, data, ["phi_positive"], excursions=SHORT, seed=0)
    assert made.cost.gradient == 2 * enrich(vacuum, data, ["phi_positive"], excursions=SHORT, seed=0).cost.gradient
    with pytest.raises(ReferenceError, match="a spacing of 0.0002 ps is less than the time step of 0.0005 ps"):
        enrich(slow, data, ["phi_positive"], excursions=replace(SHORT, spacing=0.0002), seed=0)


def test_the_command_makes_something_to_train_on(data):
    made = call("enrich", "ala2-vacuum", "phi_positive", "-n", "8", "--spacing", "0.01")
    assert made.exit_code == 0, made.output
    path = Path("runs/ala2-vacuum/enriched/samples.npz")
    assert len(load_samples(path)) == len(data) + 8 and f"--data {path}" in made.output.replace("\n", " ")
    again = call("enrich", "ala2-vacuum", "phi_positive", "-n", "8", "--spacing", "0.01")
    assert f"replaced what had been in {path}" in again.stderr.replace("\n", " ") and "replaced" not in made.stderr
    refused(call("estimate", path), "uncertified")
    settings = ("training.steps=2", "training.batch=4", "training.compiled=false", "training.initial=", "field.hidden=8",
                "training.evaluate_every=0", "training.oversample={phi_positive=0.2}")
    trained = call("train", "ala2-vacuum", "--data", path, *(word for setting in settings for word in ("--set", setting)))
    assert trained.exit_code == 0, (trained.output, trained.exception)
    refused(call("enrich", "ala2-vacuum", "phi_positive", "--data", path), "equilibrium data")
    refused(call("enrich", "lj13", "phi_positive"), "lj13 is not a molecule with an OpenMM target")
    refused(call("enrich", "ala2-obc2", "phi_positive"), "there are no data at", "bgwork reference ala2-obc2")
