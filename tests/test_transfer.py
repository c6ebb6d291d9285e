"""Samples of one energy brought to another: averages are those of the second, error bars cover and hold what the chains brought along;
and reference data of a molecule are made so, or refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from annealing import exactly, right, seed, square
from commands import call, refused
from oracles import GaussianOracle, TwoWells, propose

from bgwork import reference_transfer
from bgwork.molecule import TransferSection
from bgwork.priors import Gaussian
from bgwork.records import Cost, Density, Origin, Proposal
from bgwork.reference import save
from bgwork.reference_checks import ReferenceError
from bgwork.reference_populations import estimate
from bgwork.reweighting import ess, expectation, weigh
from bgwork.samplers.mcmc import HMC
from bgwork.samplers.moves import Hamiltonian
from bgwork.samplers.moves import Path as EnergyPath
from bgwork.samplers.schedules import Schedule
from bgwork.samplers.transfer import Transferred, drawn_evenly
from bgwork.spaces import MeanFree
from bgwork.store import load_samples, save_samples
from bgwork.system import load_system, reference_samples

SPACE = MeanFree(n=4, d=2)


def gaussian_samples(n, *, std, k):
    """Independent draws of a Gaussian energy whose normaliser is taken to be unknown."""
    prior = Gaussian(space=SPACE, std=std)
    drawn = propose(prior, n, seed=k)
    return replace(drawn, log_q=drawn.log_q + 7.0, density=Density.UNNORMALISED)


def to_narrow(source, **options):
    other, target = GaussianOracle(space=SPACE, std=1.0), GaussianOracle(space=SPACE, std=0.5)
    kernel = Hamiltonian(leapfrog=2, first_step=0.3)
    return Transferred(source=source, other=other, target=target, kernel=kernel, **options), target


def test_averages_are_those_of_the_second_energy():
    source = gaussian_samples(4000, std=1.0, k=0)
    transfer, target = to_narrow(source, islands=20, keep=0.7)
    proposal = transfer.sample(2000, generator=seed(1))
    assert proposal.density is Density.UNNORMALISED and proposal.origin.method.endswith("transferred")
    found = expectation(weigh(proposal, target), square)
    assert abs(found.z(exactly(target.mean_square))) < 4 and found.stderr < 0.05 * target.mean_square


def test_error_bars_are_smaller_than_after_reweighting_at_once():
    source = gaussian_samples(1000, std=1.0, k=3)
    transfer, target = to_narrow(source, islands=20)
    assert abs(ess(weigh(source, target)).value - target.ess_from(1.0)) < 0.03  # .084
    at_once, brought = (expectation(weigh(rows, target), square) for rows in (source, transfer.sample(1000, generator=seed(3))))
    assert brought.stderr < 0.6 * at_once.stderr


def test_error_bars_cover():
    """60 repetitions with one frozen schedule: |z| < 1 in 68 % of them, less a little for 20 islands."""
    schedule = Schedule(betas=(0.15, 0.5, 1.0), steps=(0.4, 0.3, 0.2))
    z = []
    for k in range(60):
        transfer, target = to_narrow(gaussian_samples(400, std=1.0, k=k), islands=20, schedule=schedule)
        z.append(expectation(weigh(transfer.sample(400, generator=seed(k)), target), square).z(exactly(target.mean_square)))
    z = torch.tensor(z).abs()
    assert abs((z < 1).double().mean().item() - 0.67) < 4 * math.sqrt(0.67 * 0.33 / 60) and (z < 2).double().mean() > 0.85


def in_wells(group, side):
    """Rows of `TwoWells`, each in the well that its chain is stuck in."""
    wells = TwoWells()
    x = wells.std * torch.randn(len(group), 1, wells.d, generator=seed(5), dtype=torch.float64)
    x[:, 0, 0] += wells.shift * side[group]
    return wells, Proposal(x=x, log_q=-wells.u(x), space=wells.space, density=Density.UNNORMALISED, group=group,
                           origin=Origin(method="stuck chains", system="wells"))


def stuck(source, wells, **options):
    """The share of the right well after a transfer that changes nothing and moves nothing."""
    options = {"islands": 10, "kernel": Hamiltonian(leapfrog=1), "schedule": Schedule(betas=(1.0,), steps=(0.01,))} | options
    transfer = Transferred(source=source, other=wells, target=wells, **options)
    return expectation(weigh(transfer.sample(1000, generator=seed(6)), wells), right)


def test_islands_inherit_what_their_chains_disagree_on():
    """Ten chains of unequal lengths, each stuck in one of two wells: the share of wells is as uncertain as they make it, however many rows
    there are, and an island that held parts of two chains would hide some of it."""
    side = torch.tensor([1.0, 1, -1, 1, -1, 1, 1, -1, 1, 1], dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(10), torch.tensor([100, 260, 240, 180, 220, 150, 290, 210, 150, 200]))
    wells, source = in_wells(group, side)
    exact, found = expectation(weigh(source, wells), right), stuck(source, wells)
    assert abs(found.value - exact.value) < 0.01 and abs(found.stderr / exact.stderr - 1) < 0.05


def test_strata_make_what_is_rare_certain_without_bias():
    """One row in fifty lies to the right: with half of the rows drawn there, the share has the same value, and survives resampling."""
    group, generator = torch.arange(4000) % 40, seed(7)
    rare = (torch.rand(4000, generator=generator) < 0.02).long()
    wells, source = in_wells(torch.arange(4000), 2.0 * rare.double() - 1)
    source = replace(source, group=group)
    exact = expectation(weigh(source, wells), right)
    shares = [stuck(source, wells, strata=strata, resample_below=1.0) for strata in (None, rare)]
    assert abs(shares[1].value - exact.value) < 0.1 * exact.stderr  # all rows to the right were drawn
    assert abs(shares[0].value - exact.value) < 4 * shares[0].stderr and shares[0].stderr > 1.5 * shares[1].stderr


def test_every_row_of_a_stratum_is_drawn_as_often():
    island, stratum = torch.arange(60) // 6, (torch.arange(60) % 12 == 0).long()
    drawn = torch.stack([drawn_evenly(island, stratum, 20, generator=seed(k)).bincount(minlength=60) for k in range(400)])
    assert drawn.max() == 1 and drawn[:, stratum == 1].sum(1).eq(5).all() and drawn.sum(1).eq(20).all()  # five rows are all that there are
    by_island = torch.stack([drawn[:, (island == k) & (stratum == 0)].sum(1) for k in range(10)], 1)
    exact = 15 / 55 * torch.tensor([((island == k) & (stratum == 0)).sum() for k in range(10)])
    assert ((by_island - exact).abs() < 1).all()  # evenly from all islands, not just on average
    share, often = 15 / 55, drawn[:, stratum == 0].double().mean(0)
    assert ((often - share).abs() < 4 * math.sqrt(share * (1 - share) / 400)).all()


def test_from_chains_as_they_come():
    """Hamiltonian Monte Carlo of one energy, brought to another."""
    other, target = GaussianOracle(space=SPACE, std=1.0), GaussianOracle(space=SPACE, std=0.7)
    start = torch.randn(40, SPACE.n, SPACE.d, generator=seed(8), dtype=torch.float64)
    chains = HMC(target=other, start=SPACE.project(start), burn_in=200, thin=5).sample(2000, generator=seed(9))
    transfer = Transferred(source=chains, other=other, target=target, islands=20, kernel=Hamiltonian(leapfrog=2, first_step=0.3))
    found = expectation(weigh(transfer.sample(1000, generator=seed(10)), target), square)
    assert abs(found.z(exactly(target.mean_square))) < 4 and found.stderr < 0.1 * target.mean_square


def test_more_rows_than_samples_are_refused():
    transfer, _ = to_narrow(gaussian_samples(30, std=1.0, k=0), islands=4, pilot=8)
    with pytest.raises(ValueError, match="40 rows were asked for, of 30 samples"):
        transfer.sample(40, generator=seed())


@pytest.mark.parametrize("density", [Density.EXACT, Density.PATH])
def test_samples_of_a_generator_are_no_equilibrium_set(density):
    with pytest.raises(ValueError, match=f"these are {density.value} ones.*resample them by weight first"):
        to_narrow(replace(gaussian_samples(30, std=1.0, k=0), density=density), islands=4)


def test_more_islands_than_chains_are_refused():
    source = replace(gaussian_samples(30, std=1.0, k=0), group=torch.arange(30) % 3)
    with pytest.raises(ValueError, match="4 islands need as many chains, the source has 3"):
        to_narrow(source, islands=4)


def test_labels_must_match_the_rows():
    with pytest.raises(ValueError, match="30 rows need as many stratum labels"):
        to_narrow(gaussian_samples(30, std=1.0, k=0), islands=4, strata=torch.zeros(29, dtype=torch.int64))


def test_no_stratum_may_be_left_out():
    with pytest.raises(ValueError, match="8 rows cannot hold some of each of 10 strata"):
        transfer, _ = to_narrow(gaussian_samples(30, std=1.0, k=0), islands=4, strata=torch.arange(30) % 10, pilot=8)
        transfer.sample(20, generator=seed())


def test_the_work_of_the_source_is_not_counted_again():
    source = replace(gaussian_samples(400, std=1.0, k=0), cost=Cost(gradient=1_000_000))
    transfer, target = to_narrow(source, islands=4, pilot=16)
    assert transfer.sample(100, generator=seed()).cost.gradient == target.n_gradient < 100_000


def test_a_path_has_one_start():
    target = GaussianOracle(space=SPACE, std=1.0)
    with pytest.raises(ValueError, match="give one of them"):
        EnergyPath(target=target, prior=Gaussian(space=SPACE), other=target)
    with pytest.raises(ValueError, match="the other energy lives on"):
        EnergyPath(target=target, other=GaussianOracle(space=MeanFree(n=3, d=2), std=1.0))


@pytest.fixture
def beside_vacuum(tmp_path, monkeypatch):
    """A working directory with data of ala2-vacuum, and ala2-obc2 told to start from them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "ala2-vacuum" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(load_system("ala2-vacuum").path / "reference.npz", folder / "samples.npz")
    settings = TransferSection(sampler="transfer", start="ala2-vacuum", chains=10, pilot=8, transitions=1, relaxation=1, keep=0.6)
    return replace(load_system("ala2-obc2"), reference=settings)


def test_a_molecule_is_brought_to_another_energy(beside_vacuum):
    told = []
    run = reference_transfer.generate(beside_vacuum, 40, seed=0, progress=lambda done, total, text: told.append((done, total, text)))
    assert len(run.proposal) == 40 and run.proposal.density is Density.UNNORMALISED and set(run.proposal.group.tolist()) <= set(range(10))
    torch.testing.assert_close(-run.proposal.log_q, beside_vacuum.target.u(run.proposal.x), rtol=0, atol=1e-5)
    assert set(run.estimates) >= {"u", "virial", "phi_positive"} and run.made["start"]["fingerprint"] and "islands" in run.made["note"]
    names = [check.name for check in run.checks]
    assert any("halves" in name for name in names) and any("Delta F(phi)" in name for name in names)
    assert told[-1][0] == told[-1][1] and told[0][1] is None  # all that was expected, once the steps were known
    assert run.proposal.cost.gradient == told[-1][0]  # pilot, islands and relaxation; what the checks ask for afterwards is not sampling


def test_a_basin_that_was_hardly_filled_is_not_passed(beside_vacuum):
    run = reference_transfer.generate(beside_vacuum, 40, seed=0)
    (check,) = [check for check in run.checks if "Delta F(phi)" in check.name]
    assert not check.passed
    with pytest.raises(ReferenceError, match="set more transitions or keep nearer 1"):
        save(run, Path("out"))
    assert not Path("out").exists()


def test_configurations_brought_to_their_own_energy_pass_and_are_saved(beside_vacuum):
    """Nothing changes but what the moves make of the rows: the averages are those of the data, and every check passes."""
    vacuum = load_system("ala2-vacuum")
    settings = beside_vacuum.reference.model_copy(update={"chains": 20})
    run = reference_transfer.generate(replace(vacuum, reference=settings), 400, seed=0)
    assert all(check.passed for check in run.checks), [str(check) for check in run.checks if not check.passed]
    exact = estimate(vacuum, weigh(reference_samples(vacuum), vacuum.target))
    for name in ("u", "phi_positive", "psi_cos", "delta_f_phi"):
        assert abs(run.estimates[name].z(exact[name])) < 4
    assert run.estimates["delta_f_phi"].stderr < 0.3 and run.proposal.cost == Cost(**run.made["cost"])
    save(run, Path("out"))
    assert len(load_samples(Path("out") / "samples.npz")) == 400


@pytest.mark.parametrize("change, said", [
    ({"start": "lj13"}, "is not the molecule of"), ({"start": "ala3-obc2"}, "is not the molecule of"),
    ({"start": "ala2-xtb"}, "bgwork reference ala2-xtb"), ({"chains": 50}, "50 islands")])
def test_data_that_do_not_fit_are_refused(beside_vacuum, change, said):
    system = replace(beside_vacuum, reference=beside_vacuum.reference.model_copy(update=change))
    with pytest.raises(ReferenceError, match=said):
        reference_transfer.generate(system, 400, seed=0)


def test_too_few_configurations_are_refused(beside_vacuum):
    with pytest.raises(ReferenceError, match="39 configurations are too few for 10 islands; ask for at least 40"):
        reference_transfer.generate(beside_vacuum, 39, seed=0)


def test_more_configurations_than_there_are_data_are_refused_before_any_work(beside_vacuum):
    with pytest.raises(ReferenceError, match="3000 configurations are to start from, .* has 2000"):
        reference_transfer.generate(beside_vacuum, 3000, seed=0)
    assert beside_vacuum.differentiable_target.n_gradient == 0


def test_weighted_samples_are_no_data(beside_vacuum):
    path = Path("runs/ala2-vacuum/reference/samples.npz")
    save_samples(path, replace(load_samples(path), density=Density.EXACT))
    with pytest.raises(ReferenceError, match="not equilibrium data"):
        reference_transfer.generate(beside_vacuum, 400, seed=0)


def test_the_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("reference", "ala2-xtb", "-n", "100")
    refused(result, "bgwork reference ala2-vacuum")
    assert not list(tmp_path.rglob("*.npz"))
