"""Weight that a sampler leaves out within a basin: seen where it is missing, silent where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from oracles import LINE
from scipy.stats import beta

from bgwork import held_out, store, tables
from bgwork.held_out import MOST_RARE, PER_BASIN, evaluate, keep, rare_rows, stored_density
from bgwork.records import Cost, Density, Origin, Proposal, WeightedSamples
from bgwork.report import HeldOut
from bgwork.samplers.diagnosis import Unseen
from bgwork.samplers.diagnostics import ReferenceSet, diagnose, to_json_dict
from bgwork.samplers.unseen import unseen_in_basins
from bgwork.samplers.verdict import judge
from bgwork.system import System, load_system, reference_samples

WEIGHTS = (0.9, 0.088, 0.012)  # of three normal distributions: the last two make up the right basin
CENTRES = torch.tensor([-10.0, 10.0, 16.0], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


def log_density(x: torch.Tensor, widths: torch.Tensor = ONES, weights: tuple[float, ...] = WEIGHTS) -> torch.Tensor:
    log_p = torch.tensor(weights, dtype=torch.float64).log() - widths.log() - 0.5 * math.log(2 * math.pi)
    return (log_p - 0.5 * ((x.view(-1, 1) - CENTRES) / widths) ** 2).logsumexp(1)


def drawn(n: int, widths: torch.Tensor = ONES, weights: tuple[float, ...] = WEIGHTS, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor(weights, dtype=torch.float64), n, replacement=True, generator=generator)
    return (CENTRES[which] + widths[which] * torch.randn(n, generator=generator, dtype=torch.float64)).view(-1, 1, 1)


def weighed(x: torch.Tensor, log_q: torch.Tensor, density: Density = Density.EXACT) -> WeightedSamples:
    proposal = Proposal(x=x, log_q=log_q, space=LINE, density=density, origin=Origin(method="two", system="two"), cost=Cost())
    return WeightedSamples(proposal=proposal, u=-log_density(x), target="two")


def side(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0, 0] > 0).long()


def case(width: float = 1.1, *, far: float = WEIGHTS[2], n: int = 3000, m: int = 2000,
         seed: int = 0) -> tuple[WeightedSamples, ReferenceSet]:
    """A sampler that is wider, and puts another weight on the far part of the right basin, and reference samples with its density."""
    made = torch.full((3,), width, dtype=torch.float64), (WEIGHTS[0], 1 - WEIGHTS[0] - far, far)
    x, known = drawn(n, *made, seed=seed), drawn(m, seed=seed + 1000)
    samples = weighed(known, log_density(known), Density.UNNORMALISED)
    return weighed(x, log_density(x, *made)), ReferenceSet(samples=samples, log_q=log_density(known, *made))


def test_a_part_of_a_basin_that_was_never_drawn_is_missed_and_the_verdict_says_so():
    """Twelve per cent of a basin of a tenth: one per cent of all, which neither Pareto k nor the population shows."""
    weighted, reference = case(far=1e-9)
    found, far = unseen_in_basins(weighted, reference, side)["1"], (reference.samples.x > 13).sum().item()
    assert found.n == side(reference.samples.x).sum() and far <= found.n_above <= far + 2 and found.value == found.n_above / found.n
    diagnosis = diagnose(weighted, reference=reference, basin_of=side)
    problems = [p for p in diagnosis.problems if p.startswith("basin")]
    assert len(problems) == 1 and problems[0].startswith(f"basin 1 lacks weight: {found.n_above} of {found.n} reference samples")
    assert diagnosis.pareto_k < diagnosis.pareto_k_limit and abs(diagnosis.basin_reference["1"].z) < 4


def test_the_share_is_that_of_the_weight_above_the_largest():
    """With so many reference samples the count is within four standard errors of the missing part."""
    weighted, reference = case(far=1e-9, m=40_000)
    found, exact = unseen_in_basins(weighted, reference, side)["1"], WEIGHTS[2] / (WEIGHTS[1] + WEIGHTS[2])
    assert abs(found.value - exact) < 4 * math.sqrt(exact * (1 - exact) / found.n)
    assert exact - 0.02 < found.at_least < found.value


def test_the_bound_holds_as_often_as_it_says():
    """One in twenty may lie above the share that it bounds, and not much fewer do."""
    exact, missed = WEIGHTS[2] / (WEIGHTS[1] + WEIGHTS[2]), 0
    for seed in range(200):
        weighted, reference = case(far=1e-9, m=600, seed=seed)
        missed += unseen_in_basins(weighted, reference, side)["1"].at_least > exact
    assert 1 <= missed <= 10 + 4 * math.sqrt(10)


@pytest.mark.parametrize("width", [0.8, 1.0, 1.3])
def test_proper_weights_hardly_ever_lack_any(width):
    """Forty samplers with two basins each: the interval is a one-sided one of 95 %, and error bars admit more than what is missing."""
    flagged = 0
    for seed in range(40):
        weighted, reference = case(width, n=1000, m=1000, seed=seed)
        flagged += sum(found.at_least > found.error for found in unseen_in_basins(weighted, reference, side).values())
    assert flagged <= 1


def test_a_basin_without_samples_lacks_all_but_says_so_by_its_population():
    """Its error is all of it, so that nothing is said here: populations are compared elsewhere."""
    weighted, reference = case()
    left = replace(weighted, proposal=weighted.proposal.take(side(weighted.x) == 0), u=weighted.u[side(weighted.x) == 0])
    found = unseen_in_basins(left, reference, side)["1"]
    assert (found.value, found.error) == (1.0, 1.0) and found.at_least < 1


def test_the_error_is_that_of_the_weights_in_the_basin():
    weighted, reference = case(1.3)
    w = torch.exp(weighted.log_w[side(weighted.x) == 1])
    assert unseen_in_basins(weighted, reference, side)["1"].error == pytest.approx((w.square().sum().sqrt() / w.sum()).item())


def test_the_bound_is_that_of_clopper_and_pearson():
    weighted, reference = case(far=1e-9)
    found = unseen_in_basins(weighted, reference, side)["1"]
    assert found.at_least == pytest.approx(beta.ppf(0.05, found.n_above, found.n - found.n_above + 1), rel=1e-6)


@pytest.mark.parametrize(("at_least", "error", "said"), [(0.05, 0.06, False), (0.07, 0.06, True)])
def test_the_verdict_rests_on_the_bound_and_the_error(at_least, error, said):
    weighted, reference = case()
    found = Unseen(at_least=at_least, n=100, n_above=10, n_failed=0, error=error)
    problems = judge(replace(diagnose(weighted, reference=reference, basin_of=side), unseen={"1": found})).problems
    assert any(p.startswith("basin 1 lacks weight: 10 of 100") for p in problems) is said


def test_densities_that_failed_are_counted_and_told():
    """Were they left out in silence, a tail that the inverse map cannot reach would look as if it were not there."""
    weighted, reference = case()
    right = (side(reference.samples.x) == 1).nonzero().flatten()
    more = right[10:]
    rare = replace(reference, rows=torch.arange(10), log_q=reference.log_q[:10], rare_rows=more, rare_log_q=reference.log_q[more])
    rare.rare_log_q[:4] = math.nan
    diagnosis = diagnose(weighted, reference=rare, basin_of=side)
    assert diagnosis.unseen["1"].n_failed == 4
    assert any(p.startswith("nothing is known of 4 of ") and "reference samples of basin 1" in p for p in diagnosis.problems)
    rare.rare_log_q[:] = math.nan
    none = unseen_in_basins(weighted, replace(rare, rows=right[:0], log_q=rare.log_q[:0]), side)["1"]
    assert (none.n, none.n_failed, none.at_least) == (0, len(right) - 10, 0.0) and math.isnan(none.value)


def test_samples_without_a_normalised_density_have_none():
    """A constant in log q would make all reference samples seen, or none."""
    weighted, reference = case(far=1e-9)
    moved = replace(weighted, proposal=replace(weighted.proposal, density=Density.UNNORMALISED))
    assert unseen_in_basins(moved, reference, side) == {}


def test_copies_of_one_draw_count_once():
    weighted, reference = case(far=1e-9)
    twice = torch.arange(2000).repeat(2)
    proposal = replace(reference.samples.proposal.take(twice), ancestor=twice)
    copied = ReferenceSet(samples=replace(reference.samples, proposal=proposal, u=reference.samples.u[twice]), log_q=reference.log_q[twice])
    assert unseen_in_basins(weighted, copied, side) == unseen_in_basins(weighted, reference, side)


def test_impossible_reference_samples_count():
    weighted, reference = case()
    right, log_q = (side(reference.samples.x) == 1).nonzero().flatten(), reference.log_q.clone()
    log_q[right[3:5]] = -math.inf
    before, found = (unseen_in_basins(weighted, replace(reference, log_q=each), side)["1"] for each in (reference.log_q, log_q))
    assert found.n == before.n and before.n_above < 2 <= found.n_above


def test_rows_of_rare_basins_count_there_and_nowhere_else():
    """The other figures rest on the evenly spread rows alone."""
    weighted, reference = case(far=1e-9)
    half = torch.arange(0, 2000, 2)
    rare = torch.tensor([k for k in range(1, 2000, 2) if side(reference.samples.x[k : k + 1]) == 1])
    few = replace(reference, log_q=reference.log_q[half], rows=half)
    more = replace(few, rare_log_q=reference.log_q[rare], rare_rows=rare)
    assert unseen_in_basins(weighted, more, side)["1"].n == unseen_in_basins(weighted, few, side)["1"].n + len(rare)
    assert unseen_in_basins(weighted, more, side)["0"] == unseen_in_basins(weighted, few, side)["0"]
    a, b = (diagnose(weighted, reference=each, basin_of=side) for each in (few, more))
    assert a.forward_ess == b.forward_ess and a.log_z_bar == b.log_z_bar


def test_nothing_is_said_without_basins_density_or_one_preimage():
    weighted, reference = case()
    signed = replace(weighted, proposal=replace(weighted.proposal, density=Density.SIGNED, sign=torch.ones(len(weighted)).double()))
    assert unseen_in_basins(weighted, reference, None) == unseen_in_basins(weighted, replace(reference, log_q=None), side) == {}
    assert unseen_in_basins(signed, reference, side) == unseen_in_basins(weighted, ReferenceSet(), side) == {}


def test_the_report_shows_the_worst_basin():
    weighted, reference = case(far=1e-9)
    content = to_json_dict(diagnose(weighted, reference=reference, basin_of=side))
    assert set(content["unseen"]) == {"0", "1"}
    assert set(content["unseen"]["1"]) == {"at_least", "n", "n_above", "n_failed", "error"}
    row = next(row for row in tables.weight_rows(content) if row[0].startswith("unseen"))
    assert row[0] == "unseen in basin 1" and row[1] == f"{content['unseen']['1']['n_above']} of {content['unseen']['1']['n']}"


def test_the_worst_basin_is_the_one_whose_error_bar_admits_least():
    weighted, reference = case(far=1e-9)
    content = to_json_dict(diagnose(weighted, reference=reference, basin_of=side))
    other = content["unseen"]["1"] | {"at_least": 0.8, "n_above": 9, "n": 10, "error": 1.0}
    row = next(row for row in tables.weight_rows(content | {"unseen": {"0": other, "1": content["unseen"]["1"]}}) if "unseen" in row[0])
    assert row[0] == "unseen in basin 1"


def test_rare_basins_are_filled_up_rarest_first():
    system = replace(load_system("dw4"), basins="label", functions={"label": lambda x: x[:, 0, 0].long()})
    counts = {0: 900, 1: 60, 2: 500, 3: 40}
    x = torch.cat([torch.full((n, 4, 2), float(label)) for label, n in counts.items()]).double()
    chosen = torch.arange(0, len(x), 10)
    labels = x[rare_rows(x, chosen, system), 0, 0].long()
    assert len(set(rare_rows(x, chosen, system).tolist()) & set(chosen.tolist())) == 0
    assert [int((labels == label).sum()) for label in range(4)] == [10, 54, 50, 36] and PER_BASIN == 100
    many = torch.arange(50.0).repeat_interleave(100).view(-1, 1, 1).expand(-1, 4, 2).double()
    assert len(rare_rows(many, torch.arange(0, 5000, 50), system)) == MOST_RARE == 200
    assert len(rare_rows(x, chosen, replace(system, basins=""))) == 0
    taken = torch.arange(900, 930)
    assert not set(rare_rows(x, chosen, system, taken=taken).tolist()) & set(taken.tolist())


@dataclass(frozen=True)
class FirstCoordinate:
    """Stands in for a sampler with a density."""

    space: object = None

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0].clone()


def test_the_density_is_asked_for_at_the_rare_rows_themselves(tmp_path, monkeypatch):
    system = load_system("ala2-vacuum")
    run = SimpleNamespace(folder=tmp_path, system=system, fingerprint="x", sampler=lambda progress: FirstCoordinate())
    told: list[str] = []
    evaluate(run, progress=lambda *_: None, note=told.append)
    found, x = stored_density(tmp_path, system, made_with="x"), reference_samples(system).x
    inside = system.functions["phi_positive"](x) > 0
    assert torch.equal(found.log_q, x[found.rows, 0, 0]) and torch.equal(found.rare.log_q, x[found.rare.rows, 0, 0]) and not told
    assert bool(inside[found.rare.rows].all()) and int(inside[torch.cat([found.rows, found.rare.rows])].sum()) == int(inside.sum())
    seeds: list[int] = []
    monkeypatch.setattr(held_out, "log_q_at", lambda _, x, *, seed=held_out.PATH_SEED: seeds.append(seed) or x[:, 0, 0].clone())
    evaluate(SimpleNamespace(**vars(run) | {"fingerprint": "y"}), progress=lambda *_: None, note=told.append)
    assert len(set(seeds)) == 2, "paths back from the two sets must not share their noise"
    keep(replace(found, rare=None), tmp_path, system, made_with="x")
    evaluate(run, progress=lambda *_: None, note=told.append)
    assert len(told) == 1 and "without further samples of rare basins" in told[0]


def test_rare_rows_are_kept_with_the_run(tmp_path):
    system: System = load_system("dw4")
    rare = HeldOut(log_q=torch.tensor([0.5]).double(), rows=torch.tensor([7]))
    found = HeldOut(log_q=torch.tensor([0.1, 0.2]).double(), rows=torch.tensor([3, 5]), rare=rare)
    keep(found, tmp_path, system, made_with="x")
    read = stored_density(tmp_path, system, made_with="x")
    assert read.rare.rows.tolist() == [7] and read.rare.log_q.tolist() == [0.5] and read.rows.tolist() == [3, 5]
    keep(replace(found, rare=None), tmp_path, system, made_with="x")
    assert stored_density(tmp_path, system, made_with="x").rare is None
    assert store.load_checkpoint(tmp_path / "held_out.safetensors")[0].keys() == {"log_q", "rows"}
