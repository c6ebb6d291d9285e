"""The report: histograms with honest error bars, rows of text, and a page that stands alone, for any kind of samples."""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from dataclasses import replace
from html import escape

import numpy as np
import pytest
import torch
from ala2 import generated
from oracles import GaussianOracle, chains, propose
from scipy import stats

from bgwork import figures, page, tables
from bgwork.pareto import unseen_weight
from bgwork.records import Density, Estimate, Origin, Proposal, WeightedSamples
from bgwork.report import HeldOut, kept_report, pictures, write_report
from bgwork.reweighting import average, normalised_weights, resample, weigh
from bgwork.samplers.diagnosis import ReferenceSet
from bgwork.samplers.diagnostics import diagnose, to_json_dict
from bgwork.spaces import Euclidean
from bgwork.system import load_system, reference_samples
from bgwork.topology import equivalent_hydrogens

PLANE = Euclidean(n=1, d=2)
PROVENANCE = {"command": "bgwork report", "commit": "", "versions": {"torch": "2"}, "sampling": {"steps": 4}}


def weighted_gaussian(n: int, *, seed: int, std: float = 1.3) -> WeightedSamples:
    """Samples of a wider Gaussian, weighed for the standard one in the plane."""
    return weigh(propose(GaussianOracle(space=PLANE, std=std), n, seed=seed), GaussianOracle(space=PLANE))


def weighted_toy(system, n: int) -> WeightedSamples:
    """Exact draws of the toy, which are none of its reference samples."""
    x = system.differentiable_target.sample(n, generator=torch.Generator().manual_seed(77))
    origin = Origin(method="exact", system="toy", seed=77)
    return weigh(Proposal(x=x, log_q=-system.target.u(x), space=system.space, density=Density.UNNORMALISED, origin=origin), system.target)


def content_of(weighted: WeightedSamples, **changes: object) -> dict:
    return to_json_dict(diagnose(weighted)) | {"provenance": PROVENANCE} | changes


def test_reweighted_histogram_is_the_target_within_its_error_bars():
    edges = np.linspace(-2, 2, 17)
    expected = np.diff(stats.norm.cdf(edges)) / np.diff(edges)
    z = []
    for seed in range(20):
        weighted = weighted_gaussian(2000, seed=seed)
        found = figures.histogram(weighted.x[..., 0], normalised_weights(weighted), edges, group=None, unseen=0.0)
        z.append((found.density - expected) / found.stderr)
    assert np.abs(z).max() < 4.5 and 0.9 < np.std(z) < 1.1


def test_histogram_of_several_values_is_their_mixture():
    values = torch.tensor([[0.5, 1.5], [0.5, 0.5]], dtype=torch.float64)
    found = figures.histogram(values, torch.tensor([0.25, 0.75], dtype=torch.float64), np.array([0.0, 1.0, 3.0]), group=None, unseen=0.0)
    np.testing.assert_allclose(found.density, [0.875, 0.0625])


def test_error_bars_of_the_histogram_grow_with_correlation():
    proposal = chains(GaussianOracle(space=PLANE), 50, 40, memory=0.95, seed=0)
    p = torch.full((2000,), 1 / 2000, dtype=torch.float64)
    edges = np.linspace(-1, 1, 5)
    grouped, independent = (
        figures.histogram(proposal.x[..., 0], p, edges, group=group, unseen=0.0).stderr for group in (proposal.group, None))
    assert (grouped > 1.5 * independent).all()


def test_error_bars_of_the_histogram_are_those_of_averages():
    """Each bin's is that of the average of its indicator, with the weight that the tail has not shown."""
    weighted, edges = weighted_gaussian(300, seed=0, std=0.8), np.linspace(-2, 2, 9)
    unseen, x = unseen_weight(weighted), weighted.x[:, 0, 0]
    assert 0.01 < unseen < math.inf
    drawn = figures.histogram(x, normalised_weights(weighted), edges, group=None, unseen=unseen)
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        share = average(weighted, ((x >= low) & (x < high)).double())
        assert drawn.density[k] * (high - low) == pytest.approx(share.value)
        assert drawn.stderr[k] * (high - low) == pytest.approx(share.stderr)


def with_tail(weighted: WeightedSamples, k: float) -> WeightedSamples:
    """The samples with Pareto weights of shape k, whatever the energy: log w = k times a standard exponential variable."""
    log_w = k * torch.empty(len(weighted), dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(5))
    return replace(weighted, u=-weighted.proposal.log_q - log_w)


@pytest.mark.parametrize(("k", "endless"), [(3.0, True), (0.1, False)])
def test_infinite_error_bars_are_not_drawn_and_the_legend_says_so(tmp_path, k, endless):
    """Also of populations and of the growth with N; no axis becomes infinite, and nothing warns (warnings are errors here)."""
    weighted = with_tail(weighted_gaussian(400, seed=1), k)
    assert (unseen_weight(weighted) == math.inf) == endless
    ours = {"left": average(weighted, (weighted.x[:, 0, 0] < 0).double())}
    drawn = [figures.energies(weighted, None), figures.geometry(weighted, None, length_unit="1"), figures.populations(ours, {}),
             figures.growth(weighted)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k, figure in enumerate(drawn):
            figure.savefig(tmp_path / f"{k}.png")
            assert all(np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all() for axes in figure.axes)
    for figure in drawn[:3]:
        (legend,) = figure.legends
        (said,) = (text.get_text() for text in legend.get_texts() if "reweighted" in text.get_text())
        assert said == f"reweighted ({'no finite stderr where no bar' if endless else '1 stderr'})"
        (bars,) = figure.axes[0].containers[-1].lines[2]
        assert any(len(bar) == 2 and np.ptp(bar[:, 1]) > 0 for bar in bars.get_segments()) == (not endless)


@pytest.mark.parametrize(("value", "stderr", "text"), [
    (12.3456, 0.0123, "12.346 ± 0.012"), (-43.0, 0.1, "-43.00 ± 0.10"), (5.0, 12.0, "5 ± 12"), (1.0, 0.0, "1"), (1.0, 1e-17, "1"),
    (2.5, math.nan, "2.5 ± ?"), (2.5, math.inf, "2.5 ± ?"), (2.5, None, "2.5 ± ?"), (None, None, tables.NONE)])
def test_values_are_rounded_where_their_error_begins(value, stderr, text):
    assert tables.with_error(value, stderr) == text


def test_page_holds_every_figure_and_fetches_nothing():
    weighted = weighted_gaussian(500, seed=0)
    content = content_of(weighted)
    system = load_system("gmm40")
    text = page.render(content, pictures(weighted, diagnose(weighted), None, system))
    for rows in (tables.weight_rows(content), tables.average_rows(content), tables.density_rows(content), tables.cost_rows(content)):
        assert all(f">{escape(cell)}<" in text for row in rows for cell in row)
    assert content["verdict"] in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) >= 5 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_page_escapes_what_it_is_given():
    text = page.render(content_of(weighted_gaussian(100, seed=0), system="<b>bold</b>", verdict="1 < 2 & so on"), [])
    assert "<b>bold" not in text and "1 &lt; 2 &amp; so on" in text


def test_page_marks_doubt_edits_and_far_off_averages():
    weighted = weighted_gaussian(400, seed=0)
    wrong = diagnose(weighted, reference=ReferenceSet(estimates={"u": Estimate(value=9.0, stderr=0.01)}))
    text = page.render(to_json_dict(wrong) | {"provenance": PROVENANCE, "edits": ["truncated 3 weights"]}, [])
    assert 'class="verdict doubt"' in text and "truncated 3 weights" in text and '<td class="bad">' in text
    fine = page.render(content_of(weighted_gaussian(2000, seed=0)), [])
    assert 'class="verdict trust"' in fine and '<td class="bad">' not in fine and 'class="edits"' not in fine


def test_report_of_resampled_rows_says_which_effective_sample_size_it_prints(toy):
    system = load_system("toy")
    copies = resample(weigh(reference_samples(system), system.target), 900, generator=torch.Generator().manual_seed(0))
    report = write_report(toy.root, copies, system, held_out=None, provenance=PROVENANCE)
    shown = {name: value for name, value, _ in tables.weight_rows(report.content)}
    assert 0.35 < report.content["ess"]["value"] < 0.45, "600 rows drawn 900 times: 1 / (1 + 1.5)"
    assert "ESS" not in shown and shown["ESS per ancestor"] != tables.NONE == shown["Pareto k"]
    assert "ESS per ancestor" in report.html.read_text()
    unknown = replace(copies, proposal=replace(copies.proposal, ancestor=None))
    shown = {name: value for name, value, _ in tables.weight_rows(content_of(unknown))}
    assert shown["ESS per ancestor"] == shown["largest weight"] == tables.NONE
    assert not any("first N samples" in caption for _, caption in pictures(unknown, diagnose(unknown), None, system))


def test_report_of_markov_chains_has_no_log_z(toy):
    system = load_system("toy")
    weighted = weigh(reference_samples(system), system.target)
    report = write_report(toy.root, weighted, system, held_out=None, provenance=PROVENANCE)
    assert report.content["log_z"] is None and report.content["n_groups"] == 20
    assert report.content["reference"] == {} and any("not compared with them" in note for note in report.content["notes"])
    assert "for want of an independent reference" in report.content["verdict"]
    others = weighted_toy(system, 300)
    assert set(write_report(toy.root, others, system, held_out=None, provenance=PROVENANCE).content["reference"]) >= {"u", "coordinate_x"}
    assert not any("Pareto fit" in caption for _, caption in pictures(weighted, diagnose(weighted), None, system))
    assert json.loads(report.json.read_text())["density"] == "unnormalised"


def test_report_of_a_molecule_counts_what_is_broken_or_of_the_wrong_hand(toy):
    """One mirror image, which has every handed group inverted too, and one methyl group with two hydrogens exchanged."""
    system = load_system("ala2-vacuum")
    samples = generated(system, 60)
    x, (first, second, *_) = samples.x.clone(), equivalent_hydrogens(system.topology)[0]
    x[3], x[4, [first, second]] = -x[3], x[4, [second, first]]
    report = write_report(toy.root, weigh(replace(samples.proposal, x=x), system.target), system, held_out=None, provenance=PROVENANCE)
    found = json.loads(report.json.read_text())["intactness"]
    assert {name: found[name] for name in found if name.startswith("n")} == {"n": 60, "n_broken": 0, "n_inverted": 1, "n_renumbered": 2}
    assert found["inverted"]["value"] == found["renumbered"]["value"] == 0.0, "outside the chamber of the target"
    assert "2 the hydrogens of a CH3" in report.html.read_text() and found == report.content["intactness"]


def test_a_report_names_what_is_drawn_too_seldom(toy):
    """A density that is e^3 too low at phi > 0, by what it is at reference samples."""
    system = load_system("ala2-vacuum")
    samples = generated(system, 200, noise=0.3)
    known, rows = weigh(reference_samples(system), system.target), torch.arange(0, 2000, 4)
    log_q = -known.u + (samples.u + samples.proposal.log_q).mean()
    noise = 0.3 * torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = log_q + noise - 3.0 * system.functions["phi_positive"](known.x)
    held_out = HeldOut(log_q=low[rows], rows=rows)
    report = write_report(toy.root, samples, system, held_out=held_out, provenance=PROVENANCE)
    assert "phi_positive" in " ".join(part["where"] for part in json.loads(report.json.read_text())["lacking"])
    assert "drawn too seldom" in report.html.read_text()
    folded = replace(samples.proposal, density=Density.SIGNED, sign=torch.ones(200, dtype=torch.float64))
    report = write_report(toy.root, replace(samples, proposal=folded), system, held_out=held_out, provenance=PROVENANCE)
    assert report.content["lacking"] == []


@pytest.mark.parametrize("name", ["dw4", "lj13", "gmm40"])
def test_pictures_of_every_kind_of_system(name):
    system = load_system(name)
    generator = torch.Generator().manual_seed(0)
    x = system.prior.sample(60, generator=generator)
    x[0] = 0.0  # coinciding particles: u = +inf where there are pairs
    origin = Origin(method="prior", system=name, seed=0)
    proposal = Proposal(x=x, log_q=system.prior.log_prob(x), space=system.space, density=Density.EXACT, origin=origin)
    weighted = weigh(proposal, system.differentiable_target)
    held_out = reference_samples(system)
    few = replace(held_out, x=held_out.x[:60], log_q=held_out.log_q[:60], group=held_out.group[:60])
    reference = weigh(few, system.differentiable_target)
    known = ReferenceSet(samples=reference, estimates=system.references)
    for figure, caption in pictures(weighted, diagnose(weighted, reference=known), reference, system):
        figure.canvas.draw()
        assert caption and figure.axes and all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("changed", ["samples.npz", "system.toml", "reference.npz", "reference.json"])
def test_a_report_is_kept_only_while_what_it_rests_on_is(toy, changed):
    system = load_system("toy")
    weighted = weigh(reference_samples(system), system.target)
    (toy.root / "samples.npz").write_bytes(b"these")
    write_report(toy.root, weighted, system, held_out=None, provenance=PROVENANCE)
    assert kept_report(toy.root, system).content["verdict"]
    path = (toy.root if changed == "samples.npz" else toy.system) / changed
    path.write_bytes(path.read_bytes() + b" ")
    assert kept_report(toy.root, system) is None


def test_averages_use_all_reference_samples_and_forward_ess_those_with_a_density():
    """The reference samples without a density lie elsewhere, so that each figure tells which rows it is of."""
    target, wide = GaussianOracle(space=PLANE), GaussianOracle(space=PLANE, std=1.3)
    weighted = weigh(propose(wide, 2000, seed=0), target)
    x = propose(target, 1000, seed=1).x
    x[1::2] += 5.0
    samples = weigh(Proposal(x=x, log_q=-target.u(x), space=PLANE, density=Density.UNNORMALISED, group=torch.arange(1000) // 10,
                             origin=Origin(method="chains", system="plane")), target)
    rows = torch.arange(0, 1000, 2)
    observables = {"right": lambda x: (x[:, 0, 0] > 2.5).double()}
    found = diagnose(weighted, reference=ReferenceSet(samples=samples, log_q=wide.log_prob(x[rows]), rows=rows), observables=observables)
    assert abs(found.reference["right"].value - 0.5) < 0.02
    assert abs(found.forward_ess.value - found.ess.value) < 4 * math.hypot(found.forward_ess.stderr, found.ess.stderr)
    assert abs(found.log_z_bar.value - found.log_z.value) < 4 * math.hypot(found.log_z_bar.stderr, found.log_z.stderr)


@pytest.mark.parametrize("z", [math.inf, -math.inf, math.nan, 5.0])
def test_a_value_that_cannot_be_compared_is_marked(z):
    fine = diagnose(weighted_gaussian(400, seed=0), reference=ReferenceSet(estimates={"u": Estimate(value=1.0, stderr=0.1)}))
    wrong = replace(fine, reference={"u": replace(fine.reference["u"], z=z)})
    for diagnosis, marked in ((fine, False), (wrong, True)):
        rows = tables.average_rows(to_json_dict(diagnosis))
        assert tables.far_off(rows) == [marked] and rows[0][-1] != tables.NONE
