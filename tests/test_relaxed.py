"""Configurations of a cheap energy moved towards a dear one: what moves long enough is in equilibrium, what does not claims nothing."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from annealing import exactly, seed, square
from commands import call, refused
from oracles import GaussianOracle, propose

from bgwork.priors import Gaussian
from bgwork.records import Density, Estimate
from bgwork.reference_checks import ReferenceError
from bgwork.relaxed import TRUNCATED, Relaxation, equilibrium_set, first_rows, relax, snapshots, truncated, weighted_start
from bgwork.reweighting import weigh
from bgwork.samplers.chains import silent
from bgwork.spaces import MeanFree
from bgwork.store import load_samples, save_samples
from bgwork.system import load_system

SHORT = Relaxation(transitions=2, snapshots=2, between=1, leapfrog=2, pilot=4)


@pytest.fixture
def beside_vacuum(tmp_path, monkeypatch):
    """A working directory with data of ala2-vacuum."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "ala2-vacuum" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(load_system("ala2-vacuum").path / "reference.npz", folder / "samples.npz")


@pytest.fixture
def pair(beside_vacuum):
    """A system, and equilibrium data of another one."""
    system = load_system("ala2-obc2")
    return system, equilibrium_set(system, load_system("ala2-vacuum"))


def mean_square(x, n):
    """Of one snapshot of independent walkers."""
    values = square(x)
    return Estimate(value=values.mean().item(), stderr=(values.var() / n).sqrt().item())


def test_what_is_moved_long_enough_is_in_equilibrium():
    space = MeanFree(n=4, d=2)
    start, target = propose(Gaussian(space=space, std=1.0), 2000, seed=1).x, GaussianOracle(space=space, std=0.5)
    relaxation = Relaxation(transitions=1, snapshots=2, between=20, leapfrog=4)
    x, u = snapshots(target, start, 0.2, relaxation, silent, generator=seed(2))
    early, late = (mean_square(part, 2000) for part in x.split(2000))
    assert abs(late.z(exactly(target.mean_square))) < 4 < abs(early.z(exactly(target.mean_square)))
    torch.testing.assert_close(u, target.u(x))


def test_a_molecule_is_moved_and_its_work_counted(pair):
    system, start = pair
    told, target = [], system.differentiable_target
    before = target.n_gradient
    made = relax(system, start, 40, relaxation=SHORT, seed=0, progress=lambda done, total, text: told.append((done, total)))
    assert len(made) == 40 and sorted(made.group.tolist()) == sorted([*range(20), *range(20)])
    assert torch.equal(made.group[::2], made.group[1::2]) and not torch.equal(made.x[::2], made.x[1::2])
    torch.testing.assert_close(-made.log_q, system.target.u(made.x), rtol=0, atol=1e-4)
    assert told[-1] == (60, 60)
    assert made.cost.gradient == target.n_gradient - before == 4 * 20 * (1 + SHORT.leapfrog) + 20 * (1 + SHORT.leapfrog * SHORT.total)
    assert "ala2-vacuum, moved by 2 to 3 transitions" in made.note
    assert system.functions["phi_positive"](made.x[::2]).sum() == 10  # half of the walkers from each basin


def test_nothing_weighs_them_unasked(pair):
    system, start = pair
    made = relax(system, start, 8, relaxation=SHORT, seed=0)
    assert made.density is Density.UNCERTIFIED
    with pytest.raises(ValueError, match="uncertified"):
        weigh(made, system.target)


def test_same_seed_same_numbers(pair):
    first, again, other = (relax(*pair, 8, relaxation=SHORT, seed=k).x for k in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("n", (7, 6002))
def test_walkers_must_come_out_even_and_be_there(pair, n):
    with pytest.raises(ReferenceError, match=f"{n} configurations are not 2 snapshots of each of at most 2000 walkers"):
        relax(*pair, n, relaxation=SHORT, seed=0)


def test_weighted_samples_start_walkers_by_weight(pair, tmp_path):
    system, data = pair
    weighted = weigh(replace(data.take(slice(0, 60)), log_q=data.log_q[:60]), system.target)
    heavy = replace(weighted, u=torch.where(torch.arange(60) % 6 == 0, -weighted.proposal.log_q, torch.inf))  # ten rows, of equal weight
    save_samples(tmp_path / "w.npz", heavy)
    start = weighted_start(system, tmp_path / "w.npz")
    basin = system.functions[system.basins](heavy.x)[::6].long()
    x = heavy.x[first_rows(system, start, 40, generator=seed())]
    distances = (x[:, None] - heavy.x[::6][None]).abs().amax((2, 3))
    assert distances.amin(1).max() == 0  # none of the others
    shares = [int((basin[distances.argmin(1)] == k).sum()) for k in basin.unique()]
    assert set(shares) == {40 // len(shares)}
    made = relax(system, start, 8, relaxation=SHORT, seed=0)
    assert "drawn by weight" in made.note and made.density is Density.UNCERTIFIED
    assert made.origin.edits == (*heavy.proposal.origin.edits, TRUNCATED)
    assert made.ancestor.tolist() == sorted(made.ancestor.tolist()) and torch.equal(made.group[::2], made.group[1::2])
    assert set((made.ancestor % 6).tolist()) == {0}


def test_large_weights_are_cut_off_for_training():
    p = torch.full((100,), 0.3 / 99, dtype=torch.float64)
    p[7] = 0.7
    cut = truncated(p)
    assert cut[7].item() == pytest.approx(0.1) and torch.equal(cut[:7], p[:7])


def test_one_row_of_most_of_the_weight_is_not_where_most_walkers_start(pair):
    system, data = pair
    alike = data.take(system.functions["phi_positive"](data.x) == 0).take(slice(0, 100))
    weighted = weigh(alike, system.target)
    heavy = replace(weighted, u=-alike.log_q - math.log(99 * 0.7 / 0.3) * (torch.arange(100) == 7))  # seven tenths, cut off at one
    x = heavy.x[first_rows(system, heavy, 50, generator=seed())]
    assert 0 < (x == alike.x[7]).flatten(1).all(1).sum() < 25  # a quarter of 50 is to be expected, 35 without the limit


def test_a_start_that_holds_no_weights_of_the_system_is_refused(pair, tmp_path):
    system, data = pair
    save_samples(tmp_path / "plain.npz", data)
    save_samples(tmp_path / "other.npz", weigh(data.take(slice(0, 4)), load_system("ala2-vacuum").target))
    for name in ("plain.npz", "other.npz"):
        with pytest.raises(ReferenceError, match="holds no weighted samples of ala2-obc2; make some with `bgwork transport"):
            weighted_start(system, tmp_path / name)


def test_another_molecule_and_no_data_are_refused(pair):
    system, vacuum = pair[0], load_system("ala2-vacuum")
    with pytest.raises(ReferenceError, match="ala3-obc2 is not the molecule of ala2-obc2"):
        equilibrium_set(system, load_system("ala3-obc2"))
    with pytest.raises(ReferenceError, match="bgwork reference ala2-obc2"):
        equilibrium_set(vacuum, system)


def test_settings_below_one_are_refused():
    with pytest.raises(ValueError, match="snapshots must be at least 1, got 0"):
        Relaxation(snapshots=0)


def test_the_command_makes_something_to_train_on(beside_vacuum):
    made = call("relax", "ala2-obc2", "--start", "ala2-vacuum", "-n", "8", "--snapshots", "2", "--transitions", "1")
    assert made.exit_code == 0, made.output
    path = Path("runs/ala2-obc2/relaxed/samples.npz")
    assert len(load_samples(path)) == 8 and f"--data {path}" in made.output.replace("\n", " ")
    refused(call("estimate", path), "uncertified")
    settings = ("training.steps=2", "training.batch=4", "training.compiled=false", "training.initial=", "field.hidden=8",
                "training.evaluate_every=0")
    trained = call("train", "ala2-obc2", "--data", path, *(word for setting in settings for word in ("--set", setting)))
    assert trained.exit_code == 0, (trained.output, trained.exception)


def test_a_system_that_names_no_other_is_told_so(beside_vacuum):
    refused(call("relax", "ala2-obc2", "-n", "8"), "ala2-obc2 names no system", "--start")
    refused(call("relax", "ala2-obc2", "-n", "8", "--start", "lj13"), "lj13 is not the molecule")
    assert not Path("runs/ala2-obc2").exists() or not any(Path("runs/ala2-obc2").rglob("*.npz"))
