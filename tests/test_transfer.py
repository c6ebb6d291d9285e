"""Samples of one energy brought to another: averages are those of the second, error bars cover and hold what the chains brought along;
and reference data of a molecule are made so, or refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch
from annealing import exactly, right, seed, square
from commands import call, refused
from oracles import GaussianOracle, TwoWells, propose

from bgwork import reference_transfer
from bgwork.molecule import TransferSection
from bgwork.priors import Gaussian
from bgwork.records import Density, Origin, Proposal
from bgwork.reference_checks import ReferenceError
from bgwork.reweighting import ess, expectation, weigh
from bgwork.samplers.mcmc import HMC
from bgwork.samplers.moves import Hamiltonian, Path
from bgwork.samplers.schedules import Schedule
from bgwork.samplers.transfer import Transferred
from bgwork.spaces import MeanFree
from bgwork.system import load_system

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


def test_islands_inherit_what_their_chains_disagree_on():
    """Ten chains each stuck in one of two wells: the share of wells is as uncertain as ten coins, however many rows there are."""
    wells, generator = TwoWells(), seed(5)
    side = torch.tensor([1.0, 1, -1, 1, -1, 1, 1, -1, 1, 1], dtype=torch.float64)
    group = torch.arange(2000) % 10
    x = wells.std * torch.randn(2000, 1, wells.d, generator=generator, dtype=torch.float64)
    x[:, 0, 0] += wells.shift * side[group]
    source = Proposal(x=x, log_q=-wells.u(x), space=wells.space, density=Density.UNNORMALISED, group=group,
                      origin=Origin(method="stuck chains", system="wells"))
    schedule = Schedule(betas=(1.0,), steps=(0.01,))
    transfer = Transferred(source=source, other=wells, target=wells, islands=10, kernel=Hamiltonian(leapfrog=1), schedule=schedule)
    found = expectation(weigh(transfer.sample(1000, generator=generator), wells), right)
    assert abs(found.value - 0.7) < 0.02 and 0.1 < found.stderr < 0.2


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


def test_a_path_has_one_start():
    target = GaussianOracle(space=SPACE, std=1.0)
    with pytest.raises(ValueError, match="give one of them"):
        Path(target=target, prior=Gaussian(space=SPACE), other=target)
    with pytest.raises(ValueError, match="the other energy lives on"):
        Path(target=target, other=GaussianOracle(space=MeanFree(n=3, d=2), std=1.0))


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


def test_a_basin_that_was_hardly_filled_is_not_passed(beside_vacuum):
    run = reference_transfer.generate(beside_vacuum, 40, seed=0)
    (check,) = [check for check in run.checks if "Delta F(phi)" in check.name]
    assert not check.passed


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


def test_the_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("reference", "ala2-xtb", "-n", "100")
    refused(result, "bgwork reference ala2-vacuum")
    assert not list(tmp_path.rglob("*.npz"))
