"""Several runs of one generator as one: nothing is lost, nothing is counted twice, and what does not belong together is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, files, refused

from bgwork import store
from bgwork.held_out import evaluate, keep, stored_density
from bgwork.joined import JoinError, Part, join, joint_certificate, joint_cost, save, together
from bgwork.records import Certificate, Density, WeightedSamples
from bgwork.reweighting import ess, log_z, weigh
from bgwork.runs import SampleSettings, draw, find_run, finish
from bgwork.system import load_system

FOLDED = Certificate(n=10, n_negative=1, n_round_trip=4, round_trip_of="reference", n_degree=640, degree_margin=30.0)


def drawn(folder, **settings):
    """A small run of DW4's flow with few steps; its folder."""
    run = find_run("dw4", SampleSettings(**{"n": 150, "steps": 8} | settings), recipe="polish", folder=folder)
    finish(run, draw(run, progress=lambda *_: None, note=lambda _: None), accept=())
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return drawn(folder / "a", seed=1), drawn(folder / "b", seed=2, n=50)


def stored(folder):
    return store.load_samples(folder / "samples.npz")


def test_all_rows_are_there_with_all_costs(pair):
    made, (first, second) = join(pair), (stored(folder) for folder in pair)
    both, proposal = made.weighted, made.weighted.proposal
    for name in ("x", "u", "log_w"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(first, name), getattr(second, name)]))
    assert log_z(both).value == pytest.approx(torch.cat([first.log_w, second.log_w]).logsumexp(0).item() - math.log(200))
    assert proposal.density is Density.EXACT and proposal.origin.seed is None and proposal.origin.method.endswith("seeds 1, 2")
    assert proposal.cost == first.proposal.cost + second.proposal.cost and proposal.certificate.n == 200
    assert proposal.certificate.n_round_trip == first.proposal.certificate.n_round_trip  # the same reference samples made both trips
    assert made.settings["n"] == 200 and made.settings["seeds"] == [1, 2] and "seed" not in made.settings


def test_core_seconds_are_those_of_all_runs_or_unknown(pair):
    """Energies add theirs to samples whose own are known, and a run from before they were counted makes the sum unknown."""
    first, second = (stored(folder).proposal for folder in pair)
    assert 0 < first.cost.core_seconds <= 1.5 * torch.get_num_threads() * first.cost.seconds
    assert joint_cost([first, second]).core_seconds == first.cost.core_seconds + second.cost.core_seconds
    old = replace(first, cost=replace(first.cost, core_seconds=0.0))
    assert joint_cost([old, second]) == replace(old.cost + second.cost, core_seconds=0.0)
    target = load_system("dw4").target
    assert weigh(old, target).proposal.cost.core_seconds == 0 < first.cost.core_seconds < weigh(first, target).proposal.cost.core_seconds


def test_a_joined_run_is_read_and_reported_as_any_other(pair, tmp_path):
    told = call("join", *pair, "--out", tmp_path / "all")
    assert told.exit_code == 0, (told.output, told.exception)
    again = stored(tmp_path / "all")
    assert isinstance(again, WeightedSamples) and ess(again) == ess(join(pair).weighted)
    assert (tmp_path / "all" / "recipe.toml").read_text() == (pair[0] / "recipe.toml").read_text()
    assert (tmp_path / "all" / "report.html").exists() and "200 weighted samples of 2 runs" in told.output
    assert call("estimate", tmp_path / "all").exit_code == 0
    refused(call("join", tmp_path / "all", pair[0], "--out", tmp_path / "more"), "bgwork sample")  # which seeds it holds is not looked into


def test_the_density_at_reference_samples_is_kept(tmp_path):
    a, b = drawn(tmp_path / "a", seed=3, n=20), drawn(tmp_path / "b", seed=4, n=20)
    run = find_run("dw4", SampleSettings(n=20, steps=8, seed=3), recipe="polish", folder=a)
    evaluate(run, progress=lambda *_: None, note=lambda _: None)
    made = join([b, a])
    assert made.held_out is not None
    save(made, tmp_path / "all")
    found = stored_density(tmp_path / "all", load_system("dw4"), made_with=made.weighted.proposal.origin.config_hash)
    density = stored_density(a, run.system, made_with=run.fingerprint)
    assert torch.equal(found.log_q, density.log_q)
    assert density.rare is not None
    for folder, known in ((b, replace(density, rare=None)), (a, density)):
        keep(known, folder, run.system, made_with=stored(folder).proposal.origin.config_hash)
    assert join([b, a]).held_out.rare is not None, "one with samples of rare basins comes first"


def test_runs_that_differ_are_refused(pair, tmp_path):
    with pytest.raises(JoinError, match="1 run given"):
        join(pair[:1])
    with pytest.raises(JoinError, match="seeds 1, 1"):
        join([pair[0], pair[0]])
    other = find_run("dw4", SampleSettings(n=20, seed=5, steps=2), recipe="distill", folder=tmp_path / "other")
    finish(other, draw(other, progress=lambda *_: None, note=lambda _: None), accept=tuple(Density))
    with pytest.raises(JoinError, match="generator is .*polish.* and .*distill"):
        join([pair[0], other.folder])
    with pytest.raises(JoinError, match="give folders of such runs"):
        join([pair[0], tmp_path / "nowhere"])


def test_the_same_generator_by_another_path_is_the_same(pair, tmp_path):
    settings = (pair[1] / "sampling.toml").read_text()
    generator = find_run("dw4", SampleSettings(), recipe="polish", folder=None).generator
    assert f'"{generator}"' in settings
    changed = {"b": (str(generator), str(tmp_path / generator.name)), "c": ('fingerprint = "', 'fingerprint = "x')}
    for name, (old, new) in changed.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.npz").write_bytes((pair[1] / "samples.npz").read_bytes())
        (tmp_path / name / "sampling.toml").write_text(settings.replace(old, new))
    assert len(join([pair[0], tmp_path / "b"]).weighted) == 200
    with pytest.raises(JoinError, match="generator_fingerprint is"):
        join([pair[0], tmp_path / "c"])


def test_energies_of_another_system_are_refused(pair, tmp_path):
    shifted = stored(pair[1])
    (tmp_path / "b").mkdir()
    store.save_samples(tmp_path / "b" / "samples.npz", replace(shifted, u=shifted.u + 0.01))
    (tmp_path / "b" / "sampling.toml").write_text((pair[1] / "sampling.toml").read_text())
    with pytest.raises(JoinError, match="are not those of dw4 as it is now"):
        join([pair[0], tmp_path / "b"])


def test_rows_that_belong_together_are_refused(pair, tmp_path):
    rows = stored(pair[1])
    (tmp_path / "b").mkdir()
    store.save_samples(tmp_path / "b" / "samples.npz", replace(rows, proposal=replace(rows.proposal, group=torch.arange(50) // 5)))
    (tmp_path / "b" / "sampling.toml").write_text((pair[1] / "sampling.toml").read_text())
    with pytest.raises(JoinError, match="belong together"):
        join([pair[0], tmp_path / "b"])


def with_fold(part, *, scale=1.0):
    """The part as if one of its determinants were negative, samples `scale` times as far out."""
    proposal = part.weighted.proposal
    sign = torch.ones(len(proposal), dtype=torch.float64).index_fill(0, torch.tensor([3]), -1.0)
    folded = replace(proposal, density=Density.SIGNED, sign=sign, x=scale * proposal.x, certificate=replace(FOLDED, n=len(proposal)))
    return replace(part, weighted=replace(part.weighted, proposal=folded))


def test_one_signed_run_makes_all_signed(pair):
    exact, other = (Part(folder=folder, weighted=stored(folder), settings={"seed": k}) for k, folder in enumerate(pair))
    proposal = together([exact, with_fold(other)])
    assert proposal.density is Density.SIGNED and proposal.sign.sum() == 198 and proposal.certificate.n_negative == 1
    old = replace(exact, weighted=replace(exact.weighted, proposal=replace(exact.weighted.proposal, sign=None)))
    assert together([old, with_fold(other)]).sign.sum() == together([with_fold(other), old]).sign.sum() == 198
    assert together([old, with_fold(other)]).density is Density.SIGNED
    with pytest.raises(JoinError, match="so far out"):
        together([exact, with_fold(other, scale=1e-3)])  # searched among samples that all lie further in


def test_a_margin_is_over_the_farthest_of_all():
    clean = Certificate(n=5, n_negative=0, n_round_trip=4, round_trip_of="reference")
    assert joint_certificate([clean, FOLDED], [4.0, 2.0]).degree_margin == 15.0
    assert joint_certificate([clean, FOLDED], [1.0, 2.0]).degree_margin == 30.0
    assert math.isnan(joint_certificate([clean, clean], [1.0, 2.0]).degree_margin)
    own = replace(clean, round_trip_of="samples")
    assert joint_certificate([own, own], [1.0, 1.0]).n_round_trip == 8 and joint_certificate([clean, clean], [1.0, 1.0]).n_round_trip == 4


def test_the_result_does_not_replace_a_part(pair):
    before = files(pair[0])
    refused(call("join", *pair, "--out", pair[0]), "would be lost")
    refused(call("join", pair[0]), "two or more")
    assert files(pair[0]) == before and not Path("runs/dw4/joined").exists()
