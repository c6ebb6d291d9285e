"""Metadynamics with its cross-check, end to end on alanine dipeptide, too short to converge: what holds of any run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import pytest
import torch
from frames import tiny_reference

from bgwork import reference_md, reference_populations
from bgwork.records import MOVED, RESAMPLED, Density, WeightedSamples
from bgwork.reference import generate
from bgwork.reference_checks import ReferenceError, ReferenceRun
from bgwork.reference_stages import Stages
from bgwork.reweighting import normalised_weights, weigh
from bgwork.samplers.chains import silent
from bgwork.samplers.metadynamics import BiasRun
from bgwork.system import System, load_system, reference_samples
from bgwork.targets.openmm import OpenMMTarget

N = 42  # no multiple of the walkers
COMPARED = ("u", "virial", "phi_positive", "phi_cos", "phi_sin", "psi_cos", "psi_sin", "radius_of_gyration")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run, and what passed between its steps."""

    system: System
    run: ReferenceRun
    filled: BiasRun
    walkers: WeightedSamples
    told: list[str]


@pytest.fixture(scope="module")
def made() -> Watched:
    seen: dict = {}
    told: list[str] = []

    def watch(name: str, step: object) -> object:
        def watched(*args: object, **settings: object) -> object:
            seen[name] = args, step(*args, **settings)
            return seen[name][1]
        return watched

    with pytest.MonkeyPatch.context() as patch:
        for name in ("build_bias", "equilibrium"):
            patch.setattr(reference_md, name, watch(name, getattr(reference_md, name)))
        run = generate(tiny_reference(), N, seed=3, progress=lambda done, total, text: told.append(text))
    return Watched(system=tiny_reference(), run=run, filled=seen["build_bias"][1], walkers=seen["equilibrium"][0][0], told=told)


def test_walkers_weigh_the_bias_that_they_ran_under(made):
    """log w = V/kT with the bias capped and frozen, evaluated here by an OpenMM System of its own."""
    target, settings = made.system.target, made.system.reference
    biased = target.system()
    biased.addForce(made.filled.bias.capped(settings.level * target.kT).force())
    v = OpenMMTarget(biased, space=target.space, kT=target.kT).u(made.walkers.x) - target.u(made.walkers.x)
    torch.testing.assert_close(made.walkers.log_w, v, rtol=0, atol=1e-6)
    cap = made.filled.bias.table.max() / target.kT - settings.level
    assert v.std() > 0.1 and (v > cap - 0.01).any(), "a bias that is equal everywhere, or cut nowhere, would prove nothing"
    assert made.walkers.proposal.group.tolist() == [k % 4 for k in range(2 * N)]


def test_the_set_descends_from_walkers_by_weight(made):
    proposal, walkers = made.run.proposal, made.walkers
    assert len(proposal) == N and proposal.density is Density.UNNORMALISED and proposal.resampled
    assert proposal.group.tolist() == (proposal.ancestor % 4).tolist() and set(proposal.ancestor.tolist()) <= set(range(len(walkers)))
    torch.testing.assert_close(-proposal.log_q, made.system.target.u(proposal.x), rtol=0, atol=1e-9)
    first, second = proposal.origin.edits
    assert first == f"{RESAMPLED}{N} of {2 * N} rows" and second.startswith(f"{MOVED}5 steps of Hamiltonian Monte Carlo, ")
    moved = (proposal.x - walkers.x[proposal.ancestor]).abs().amax((1, 2)) > 1e-9
    assert f"{moved.double().mean().item():.2f} accepted" in second
    assert (proposal.origin.system, proposal.origin.seed, proposal.origin.method) == ("ala2-vacuum", 3, "biased-md")


def test_many_rows_show_the_weights_that_they_were_drawn_by(made):
    """The weights here are nearly equal, so they are made uneven first."""
    uneven = torch.linspace(0.0, 3.0, len(made.walkers), dtype=torch.float64)
    proposal = replace(made.walkers.proposal, log_q=made.walkers.proposal.log_q - uneven)
    walkers, n = weigh(proposal, made.system.target), 3000
    settings, target = made.system.reference.model_copy(update={"decorrelation": 1}), made.system.target
    drawn = reference_md.equilibrium(walkers, target, n, settings, generator=torch.Generator().manual_seed(0)).ancestor
    p = normalised_weights(walkers)
    mean = p @ uneven
    stderr = (p @ (uneven - mean).square() / n).sqrt()
    assert (uneven[drawn].mean() - mean).abs() < 4 * stderr and (uneven.mean() - mean).abs() > 20 * stderr


def test_estimates_are_those_of_the_weighted_walkers(made):
    p, found = normalised_weights(made.walkers), made.run.estimates
    x, target = made.walkers.x, made.system.target
    assert found["u"].value == pytest.approx((p @ target.u(x)).item(), abs=1e-9)
    assert found["virial"].value == pytest.approx((p @ (x * target.u_and_grad(x)[1]).sum((1, 2))).item(), abs=1e-6)
    assert found["phi_cos"].value == pytest.approx((p @ made.system.functions["phi_cos"](x)).item(), abs=1e-9)
    assert {name for name in found if not name.startswith("delta_f")} == set(COMPARED)


def test_every_check_is_there_and_compares_what_it_says(made):
    checks = {c.name: c for c in made.run.checks}
    methods = [f"standard error of Delta F(phi) by {method}, kT" for method in ("metadynamics", "replica exchange")]
    pairs = [[f"metadynamics and replica exchange agree on {name}", f"the resampled set agrees on {name}"] for name in COMPARED]
    assert list(checks)[0].startswith("virial") and list(checks)[1:3] == methods
    assert list(checks)[3:-1] == [f"{name}, difference in standard errors" for pair in pairs for name in pair]
    assert list(checks)[-1] == "share of configurations with inverted centres" and checks[list(checks)[-1]].limit == 1 / N
    exchange = made.run.made["cross_check"]["estimates"]
    for name in COMPARED:
        ours, theirs = made.run.estimates[name], exchange[name]
        apart = checks[f"metadynamics and replica exchange agree on {name}, difference in standard errors"]
        assert apart.value == pytest.approx(abs(ours.z(theirs))) and apart.limit == (3.0 if name == "phi_positive" else 4.0)
    virial = made.run.estimates["virial"]
    assert next(iter(checks.values())).value == pytest.approx(abs(virial.value - 63) / virial.stderr)


def test_a_basin_that_was_never_reached_fails(made):
    """30 ps from the extended basin: neither method has anything to say about Delta F(phi)."""
    failed = [c.name for c in made.run.checks if not c.passed]
    assert "standard error of Delta F(phi) by metadynamics, kT" in failed and "delta_f_phi" not in made.run.estimates
    assert made.run.estimates["phi_positive"].value == 0


def test_how_it_was_made_is_told(made):
    record = made.run.made
    assert (record["system"], record["n"], record["seed"], record["chains"]) == ("ala2-vacuum", N, 3, 4)
    assert record["settings"] == made.system.reference.model_dump() and record["cost"] == asdict(made.run.proposal.cost)
    walkers, ladders = 4 * (100 + 2 * N // 4 * 20), 4 * 24 * 20 * 2
    assert made.run.proposal.cost.gradient == 30_000 + walkers + ladders + N * 6
    assert "exchanges accepted between neighbours" in record["cross_check"]["note"]
    stages = ["metadynamics", "walker 1 of 4", "walker 4 of 4", "replica exchange, 4 ladders", "decorrelating"]
    assert [text for text in dict.fromkeys(made.told) if text in stages] == stages


def test_more_ladders_are_run_until_populations_are_certain(made, monkeypatch):
    """Never certain: twice four of them, the second four with noise of their own; certain at once: four."""
    def found(most, is_certain=None):
        if is_certain is not None:
            monkeypatch.setattr(reference_md, "settled", lambda *_, **__: is_certain)
        ladders = reference_md.Ladders(system=tiny_reference(most_ladders=most), filled=made.filled, stages=Stages(), progress=silent,
                                       generator=torch.Generator().manual_seed(0))
        return reference_md.cross_check(ladders, made.walkers, ladders.more()).proposal

    eight, four = found(9), found(100, is_certain=True)
    assert (len(eight), len(four)) == (160, 80) and eight.group.unique().tolist() == list(range(8))
    assert torch.equal(eight.x[:80], four.x) and not torch.equal(eight.x[80:], four.x)
    assert eight.cost.gradient == 2 * four.cost.gradient and eight.note.count("exchanges accepted") == 2


def with_share(share: float, groups: int = 20) -> WeightedSamples:
    """Two thousand rows of alanine dipeptide in independent groups, a share of them beyond phi = 0."""
    system = load_system("ala2-vacuum")
    rows, inside = reference_samples(system), round(2000 * share)
    beyond = system.functions["phi_positive"](rows.x) > 0
    chosen = torch.cat([torch.nonzero(beyond).flatten().repeat(40)[:inside], torch.nonzero(~beyond).flatten().repeat(2)[: 2000 - inside]])
    mixed = chosen[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    return weigh(replace(rows.take(mixed), group=torch.arange(2000) * groups // 2000), system.target)


@pytest.mark.parametrize(("share", "rare", "expected"), [
    (0.2, (), True), (0.001, (), False), (0.0, (), False), (1.0, (), False), (0.0, ("phi_positive",), True)])
def test_populations_are_certain_where_both_basins_were_seen_often(share, rare, expected):
    assert reference_populations.certain(load_system("ala2-vacuum"), with_share(share), rare=rare) is expected


@pytest.mark.parametrize(("share", "rare"), [(0.2, []), (0.003, ["phi_positive"]), (0.997, ["phi_positive"]), (0.0, [])])
def test_basins_of_less_than_half_a_per_cent_are_rare(share, rare):
    """One that was never visited is none: metadynamics has nothing to say of it."""
    system, walkers = load_system("ala2-vacuum"), with_share(share)
    assert reference_populations.rare_basins(system, walkers) == rare
    assert reference_populations.lost_basins(system, walkers) == ([] if share else ["phi_positive"])


def test_a_rare_basin_that_replica_exchange_never_saw_is_no_contradiction():
    """Three rows in a thousand against none in six ladders pass, and no error of Delta F is asked for; ten times as many do not pass."""
    system, walkers = load_system("ala2-vacuum"), with_share(0.003)
    unseen, more, often = (
        reference_populations.check(system, walkers, with_share(share, groups=6), walkers.proposal) for share in (0.0, 0.03, 0.2))
    names = [c.name for c in unseen]
    assert "standard error of Delta F(phi) by metadynamics, kT" in names
    assert "standard error of Delta F(phi) by replica exchange, kT" not in names
    populations = [[c.passed for c in checks if "agree on phi_positive" in c.name] for checks in (unseen, more, often)]
    assert populations == [[True], [False], [False]]
    common = reference_populations.check(system, with_share(0.2), with_share(0.0, groups=6), with_share(0.2).proposal)
    assert {c.name: c.passed for c in common}["standard error of Delta F(phi) by replica exchange, kT"] is False


@pytest.mark.parametrize(("share", "exchanged", "expected"), [(0.2, 0.2, True), (0.2, 0.02, False), (0.2, 0.0, False)])
def test_more_ladders_cannot_help_where_populations_agree_and_are_certain(share, exchanged, expected):
    """Certain of another population is not settled: either the ladders are too few after all, or something is wrong."""
    system, walkers, exchange = load_system("ala2-vacuum"), with_share(share), with_share(exchanged, groups=8)
    assert reference_populations.settled(system, walkers, exchange) is expected
    assert reference_populations.settled(system, walkers, exchange, rare=["phi_positive"]) is True
    assert reference_populations.certain(system, exchange) is (exchanged > 0)


def test_a_basin_that_walkers_never_reached_costs_no_more_ladders(monkeypatch):
    """Metadynamics' own check fails there, whatever replica exchange finds."""
    asked, cross_check = [], reference_md.cross_check
    monkeypatch.setattr(reference_md, "cross_check", lambda *a, rare, **more: asked.append(rare) or cross_check(*a, rare=rare, **more))
    generate(tiny_reference(filling=2000, level=0.2, burn_in=20, exchanges=5), 16, seed=1)
    assert asked == [["phi_positive"]]


def test_same_seed_same_numbers(made):
    quick = tiny_reference(filling=2000, level=0.2, burn_in=20, exchanges=5)
    a, b, c = (generate(quick, 16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.proposal.x, b.proposal.x) and torch.equal(a.proposal.ancestor, b.proposal.ancestor)
    assert a.made["cross_check"] == b.made["cross_check"] and [str(x) for x in a.checks] == [str(x) for x in b.checks]
    assert not torch.equal(a.proposal.x, c.proposal.x) and a.made["cross_check"] != c.made["cross_check"]


def test_too_few_configurations_are_refused_before_any_work(monkeypatch):
    monkeypatch.delattr(reference_md, "build_bias")
    with pytest.raises(ReferenceError, match="15 configurations are too few to compare 4 walkers; ask for at least 16"):
        generate(tiny_reference(), 15, seed=0)


def test_a_bias_that_is_all_cut_off_is_refused():
    with pytest.raises(ReferenceError, match=r"a bias of \S+ kT, .* cut off 40 kT .level.*raise filling .2000 steps"):
        generate(tiny_reference(filling=2000, level=40.0), N, seed=3)
