"""The report's pictures, each drawn from stored records; nothing is sampled and no energy evaluated here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from bgwork.error_bars import weighted_stderr
from bgwork.observables import pair_distances
from bgwork.pareto import fit_tail, unseen_weight
from bgwork.profiles import Profile
from bgwork.records import Estimate, WeightedSamples
from bgwork.reweighting import ess, log_z, normalised_weights
from bgwork.samplers.diagnosis import Comparison

HIGHEST = 20.0  # kT that a profile shows
REFERENCE, WEIGHTED, POOLED, RAW, WARNING = "#222222", "#0b6cb8", "#2a8a4a", "#e08214", "#b2182b"
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e8e8e8", "legend.frameon": False, "figure.constrained_layout.use": True,
    "savefig.dpi": 130,
}
BINS = 50
EQUAL = 1e-6  # range of log-weights below which they are all equal and make no picture
FAINT = -20.0  # log w / <w> below which a weight is only counted in the picture


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Normalised density per bin with its standard error, both [bins]."""

    edges: np.ndarray
    density: np.ndarray
    stderr: np.ndarray


def histogram(values: Tensor, p: Tensor, edges: np.ndarray, *, group: Tensor | None, unseen: float) -> Histogram:
    """Weighted density of one or several values per sample, with the standard error that the average of each bin's share has.

    Args:
        values: [N] or [N, k]; the k values of a sample share its weight.
        p: [N] normalised weights.
        edges: [bins + 1], increasing.
        group: [N] labels of correlated rows, or None.
        unseen: weight that no sample has reached (`pareto.unseen_weight`); errors are infinite with it, but not in empty bins.
    """
    rows = values.reshape(len(p), -1)
    bins = len(edges) - 1
    index = torch.bucketize(rows.contiguous(), torch.from_numpy(edges), right=True) - 1
    inside = (index >= 0) & (index < bins)
    flat = (torch.arange(len(p))[:, None] * bins + index)[inside]
    share = torch.bincount(flat, minlength=len(p) * bins).view(len(p), bins).double() / rows.shape[1]
    mass = p @ share
    stderr = [weighted_stderr(p, share[:, k] - mass[k], group=group, unseen=unseen) for k in range(bins)]
    width = np.diff(edges)
    return Histogram(edges=edges, density=mass.numpy() / width, stderr=np.array(stderr) / width)


def energies(weighted: WeightedSamples, reference: WeightedSamples | None) -> Figure:
    """Energy histogram, raw and reweighted, against the reference."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        _compare(figure, weighted, reference, lambda samples: samples.u[:, None], ("reduced energy u  [kT]",))
        figure.axes[0].set_title("Energy")
    return figure


def geometry(weighted: WeightedSamples, reference: WeightedSamples | None, *, length_unit: str) -> Figure:
    """Pair distances, raw and reweighted, against the reference; for one particle, its coordinates."""
    space = weighted.proposal.space
    unit = "" if length_unit == "1" else f"  [{length_unit}]"
    with mpl.rc_context(STYLE):
        if space.n > 1:
            figure = Figure(figsize=(6.4, 3.8))
            _compare(figure, weighted, reference, lambda samples: pair_distances(samples.x)[:, :, None], (f"distance{unit}",))
            figure.axes[0].set_title("Pair distances")
        else:
            figure = Figure(figsize=(3.4 * space.d, 3.6))
            names = tuple(f"$x_{k + 1}${unit}" for k in range(space.d))
            _compare(figure, weighted, reference, lambda samples: samples.x, names)
    return figure


def plane(weighted: WeightedSamples, reference: WeightedSamples | None) -> Figure:
    """Density of one particle in the plane: raw, reweighted, and in the reference samples, on one colour scale."""
    sets = [("generated, raw", weighted.x, torch.full((len(weighted),), 1 / len(weighted), dtype=torch.float64)),
            ("reweighted", weighted.x, normalised_weights(weighted))]
    if reference is not None:
        sets.append(("reference", reference.x, normalised_weights(reference)))
    points = sets[-1][1][:, 0]
    low, high = torch.quantile(points, 0.001, 0), torch.quantile(points, 0.999, 0)
    margin = 0.08 * (high - low)
    limits = torch.stack([low - margin, high + margin], 1).tolist()
    maps = [np.histogram2d(*x[:, 0].T.numpy(), bins=80, range=limits, weights=p.numpy())[0].T for _, x, p in sets]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.1 * len(sets), 3.3))
        for axes, (title, _, _), density in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, maps, strict=True):
            axes.imshow(density, origin="lower", extent=(*limits[0], *limits[1]), cmap="Blues", vmin=0, aspect="auto",
                        vmax=np.quantile(maps[-1][maps[-1] > 0], 0.98))
            axes.set(title=title, xlabel="$x_1$")
        figure.axes[0].set_ylabel("$x_2$")
    return figure


def _compare(figure: Figure, weighted: WeightedSamples, reference: WeightedSamples | None, values: Callable[[WeightedSamples], Tensor],
             names: Sequence[str]) -> None:
    """One panel for each last index of `values` ([N, ..., panels])."""
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    ours, theirs = _finite(weighted), reference and _finite(reference)
    for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
        own = values(ours)[..., k]
        other = values(theirs)[..., k] if theirs else own
        edges = _edges(own, other)
        uniform = torch.full((len(ours),), 1 / len(weighted), dtype=torch.float64)
        raw = histogram(own, uniform, edges, group=ours.proposal.group, unseen=0.0)
        axes.stairs(raw.density, edges, color=RAW, lw=1.2, label="generated, raw")
        tops = [raw.density.max()]
        if theirs:
            curve = histogram(other, normalised_weights(theirs), edges, group=theirs.proposal.group, unseen=0.0)
            axes.stairs(curve.density, edges, color=REFERENCE, lw=1.4, label="reference")
            tops.append(curve.density.max())
        beyond = max(0.0, 1 - float((raw.density * np.diff(edges)).sum()))  # round-off would print -0.0%
        axes.set_title(f"{beyond:.1%} of the raw samples lie outside", fontsize=8, loc="right", color="#777777")
        best = histogram(own, normalised_weights(ours), edges, group=ours.proposal.group, unseen=unseen_weight(weighted))
        centre = 0.5 * (edges[1:] + edges[:-1])
        stderr = drawable(best.stderr)
        axes.errorbar(centre, best.density, stderr, fmt=".", ms=3.5, lw=1, color=WEIGHTED, label=f"reweighted ({bars(stderr)})")
        axes.set(xlabel=name, xlim=(edges[0], edges[-1]), ylim=(0, 1.15 * max(*tops, best.density.max())))
    panels[0].set_ylabel("density")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)


def drawable(stderr: Sequence[float] | np.ndarray) -> np.ndarray:
    """Standard errors for matplotlib, NaN where there is no finite one: it then draws no bar or band, and its axes stay finite."""
    values = np.asarray(stderr, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def profile_curve(axes: Axes, centre: np.ndarray, profile: Profile, *, colour: str, label: str) -> None:
    """F in kT from its minimum, with bands of one and two standard errors; a bin whose neighbours are empty has bars instead.

    Args:
        axes, profile, colour, label: of the curve, K bins.
        centre: [K] where they are, in the unit of the axis.
    """
    value = torch.where(profile.value < math.inf, profile.value - profile.value.min(), math.nan).numpy()
    stderr, seen = drawable(profile.stderr), np.isfinite(value)
    for width in (2, 1):
        axes.fill_between(centre, value - width * stderr, value + width * stderr, color=colour, alpha=0.18, lw=0)
    beside = np.pad(seen, 1)
    lone = seen & ~beside[:-2] & ~beside[2:] & np.isfinite(stderr)
    for width, line in ((2, 0.8), (1, 2.4)) if lone.any() else ():
        axes.errorbar(centre[lone], value[lone], width * stderr[lone], fmt="none", ecolor=colour, alpha=0.5, elinewidth=line)
    endless = bool(torch.isinf(profile.stderr).any())  # NaN only says that a bin is empty
    axes.plot(centre, value, ".-", ms=4, lw=1.2, color=colour, label=label + endless * " (no band: infinite)")


def profile_limits(axes: Axes, profiles: Iterable[Profile]) -> str:
    """Set the limits of F and say what lies above; errors of bins that hold next to nothing would flatten the rest."""
    heights = torch.cat([(p.value - p.value.min())[p.value < math.inf] for p in profiles])
    axes.set_ylim(-0.5, min(1.1 * heights.max().item(), HIGHEST) + 0.5)
    above = int((heights > HIGHEST).sum())
    return f"; {above} points above {HIGHEST:g} kT not shown" if above else ""


def bars(stderr: np.ndarray) -> str:
    """What a legend says of bars of these `drawable` lengths."""
    return "no finite stderr where no bar" if np.isnan(stderr).any() else "1 stderr"


def _finite(samples: WeightedSamples) -> WeightedSamples:
    """The rows whose energy can be drawn (failed rows and overlaps weigh nothing)."""
    return samples.take(torch.isfinite(samples.u) & ~samples.failed)


def _edges(own: Tensor, other: Tensor) -> np.ndarray:
    """Bins over the reference and the bulk of the samples near it; a poor generator's outliers would leave no bin for the rest."""
    low, high = np.quantile(other, (0.001, 0.999))
    reach = max(high - low, 1e-9 * (1 + abs(high)))
    low = max(min(np.quantile(own, 0.005), low), low - reach)
    high = min(max(np.quantile(own, 0.98), high), high + reach)
    return np.linspace(low, high, BINS + 1)


def spread(weighted: WeightedSamples) -> float:
    """Range of the finite log-weights; MCMC samples of the target itself have none but round-off."""
    finite = weighted.log_w[torch.isfinite(weighted.log_w)]
    return (finite.max() - finite.min()).item()


def weights(weighted: WeightedSamples, *, pareto_k: float, limit: float) -> Figure:
    """Distribution of the log-weights, and the survival function of the largest with its Pareto fit."""
    log_w = weighted.log_w
    relative = log_w - (torch.logsumexp(log_w, 0) - math.log(len(log_w)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6))
        left, right = figure.subplots(1, 2)
        shown = relative[relative > FAINT]
        left.hist(shown, bins=BINS, color=WEIGHTED, alpha=0.85)
        left.axvline(0, color=REFERENCE, lw=1)
        left.set_title(f"{len(relative) - len(shown)} below {FAINT:g} or zero", fontsize=8, loc="right", color="#777777")
        left.set(title="Log-weights", xlabel=r"$\log\, w/\langle w\rangle$", ylabel="samples", yscale="log")
        _draw_tail(right, relative, pareto_k, limit)
    return figure


def _draw_tail(axes: mpl.axes.Axes, relative: Tensor, k: float, limit: float) -> None:
    """Survival function of the weights exp(relative), and of the Pareto fit whose k is reported (none where k is not finite)."""
    n, ordered = len(relative), relative.exp().sort(descending=True).values.numpy()
    axes.plot(ordered, np.arange(1, n + 1) / n, ".", ms=3, color=WEIGHTED, label="weights")
    if math.isfinite(k):
        tail = fit_tail(relative)
        above = torch.logspace(0, -math.log10(2 * len(tail.rows)), 200, dtype=torch.float64)
        axes.plot(ordered[0] * tail.quantile(1 - above), len(tail.rows) / n * above, color=WARNING if k > limit else REFERENCE,
                  lw=1.4, label=f"Pareto tail, k = {k:.2f} (limit {limit:.2f})")
    axes.set(title="Largest weights", xlabel=r"$w/\langle w\rangle$", ylabel=r"fraction of samples above", xscale="log", yscale="log",
             xlim=(max(ordered[-1], 1e-3), 2 * ordered[0]), ylim=(0.5 / n, 1.5))
    label_decades(axes, max(ordered[-1], 1e-3), 2 * ordered[0], StrMethodFormatter("{x:g}"))
    axes.legend(loc="lower left", fontsize=9)


def growth(weighted: WeightedSamples) -> Figure:
    """ESS and, where the density is normalised, log Z of the first N samples as N grows, with one standard error."""
    sizes = np.unique(np.geomspace(min(50, len(weighted)), len(weighted), 16).astype(int))
    heads = [weighted.take(slice(int(n))) for n in sizes]
    curves = [("ESS per ancestor" if weighted.proposal.resampled else "effective sample size / N", [_known(ess, head) for head in heads])]
    if weighted.proposal.density.normalised:
        curves.append((r"$\log Z$", [_known(log_z, head) for head in heads]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(curves), 3.4))
        for axes, (name, estimates) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            value, stderr = np.array([e.value for e in estimates]), drawable([e.stderr for e in estimates])
            axes.fill_between(sizes, value - stderr, value + stderr, color=WEIGHTED, alpha=0.2, lw=0)
            axes.plot(sizes, value, ".-", color=WEIGHTED)
            axes.axhline(value[-1], color=REFERENCE, lw=0.8, ls=":")
            axes.set(title=name, xlabel="samples N", xscale="log")
            axes.set_xticks(ends := sorted({int(sizes[0]), int(sizes[len(sizes) // 2]), int(sizes[-1])}), [f"{n:,}" for n in ends])
            axes.set_xticks([], minor=True)
        figure.axes[0].set_ylim(0, 1.05)
    return figure


def _known(estimate: Callable[[WeightedSamples], Estimate], head: WeightedSamples) -> Estimate:
    """An estimate from the first samples, NaN where they weigh nothing together."""
    try:
        return estimate(head)
    except ValueError:
        return Estimate(value=math.nan, stderr=math.nan)


def populations(ours: Mapping[str, Estimate], theirs: Mapping[str, Comparison]) -> Figure:
    """Populations of basins with one standard error, beside the reference where there is one."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.2, min(9.0, 2.0 + 0.5 * len(ours))), 3.6))
        axes = figure.subplots()
        for shift, values, colour, label in ((-0.14, theirs, REFERENCE, "reference"), (0.14, ours, WEIGHTED, "reweighted")):
            shown = [(place + shift, values[name]) for place, name in enumerate(ours) if name in values]
            stderr = drawable([e.stderr for _, e in shown])
            axes.errorbar([place for place, _ in shown], [e.value for _, e in shown], stderr, fmt="o", ms=4, capsize=2, lw=1.2,
                          color=colour, label=f"{label} ({bars(stderr)})")
        axes.set(xticks=range(len(ours)), xlabel="basin", ylabel="population", ylim=(0, None), title="Basins")
        axes.set_xticklabels(list(ours), fontsize=10 if len(ours) <= 20 else 7)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def deviations(z: Mapping[str, float]) -> Figure:
    """How far each average lies from its reference, in combined standard errors; beyond four is a failure."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.2 + 0.4 * len(z)))
        axes = figure.subplots()
        value = np.array(list(z.values()))
        reach = max(5.0, 1.15 * np.abs(value).max())
        axes.axvspan(-1, 1, color="#f0f0f0", lw=0)
        for limit in (-4, 4):
            axes.axvline(limit, color=WARNING, lw=1, ls="--")
        rows = np.arange(len(z))
        axes.hlines(rows, 0, value, color="#999999", lw=1)
        axes.scatter(value, rows, color=[WARNING if abs(v) >= 4 else WEIGHTED for v in value], zorder=3)
        axes.set(yticks=rows, yticklabels=list(z), ylim=(len(z) - 0.4, -0.6), xlim=(-reach, reach), title="Against the reference",
                 xlabel="difference in combined standard errors")
    return figure


def label_decades(axes: Axes, first: float, last: float, formatter: Formatter) -> None:
    """A logarithmic axis labelled at every decade and, where those are few, at 2 and 5 within; matplotlib's own labels would overlap."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if last > 300 * first else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(NullFormatter())
