"""The report's picture of a training from the energy alone, drawn from stored records."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bgwork.baselines import Baseline
from bgwork.figures import RAW, REFERENCE, STYLE, WARNING, WEIGHTED, label_decades
from bgwork.learning import TrainingRecord, evaluations
from bgwork.records import WeightedSamples


def _chains(left: Axes, right: Axes, found: Sequence[Baseline]) -> None:
    """Markov chains at several budgets: effective share and quantiles of u."""
    for (method, colour), mark in zip(zip(sorted({each.method for each in found}), (REFERENCE, WARNING), strict=False), "sD", strict=False):
        mine = [each for each in found if each.method == method]
        spent, middle = [each.spent for each in mine], np.array([each.u_50 for each in mine])
        bars = np.abs(np.array([[each.u_05 for each in mine], [each.u_95 for each in mine]]) - middle)
        left.plot(spent, [each.n_eff / each.n for each in mine], mark, color=colour, ms=4, label=method)
        right.errorbar(spent, middle, bars, fmt=mark, color=colour, ms=4, lw=1, label=method)


def learning(training: TrainingRecord, reference: WeightedSamples | None) -> Figure:
    """ESS and quantiles of the raw u against the energies and gradients that a training, or chains, had asked for (log axis)."""
    rows = training.rows
    asked = np.array([evaluations(row) for row in rows])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6))
        left, right = figure.subplots(1, 2)
        known = np.array([(n, row["ess"]) for n, row in zip(asked, rows, strict=True) if "ess" in row]).reshape(-1, 2)
        left.plot(*known.T, ".-", color=WEIGHTED, label="the sampler's ESS")
        left.set(title="Effective share of the samples", ylim=(0, 1.05 * max([1.0, *(each.n_eff / each.n for each in training.baselines)])))
        at, low, middle, high = np.array(training.quantiles).T
        right.fill_between(at, low, high, color=RAW, alpha=0.25, lw=0, label="5 - 95 %")
        right.plot(at, middle, color=RAW, label="median, fresh samples")
        _chains(left, right, training.baselines)
        for share, style in ((0.05, ":"), (0.5, "-"), (0.95, ":")) if reference is not None else ():
            right.axhline(torch.quantile(reference.u, share).item(), color=REFERENCE, lw=1, ls=style,
                          label="reference" if share == 0.5 else None)
        right.set(title="u of fresh samples  [kT]")
        _squeezed(right, low, middle, max(np.nanmax(high), *(each.u_95 for each in training.baselines), -math.inf))
        for axes in (left, right):
            _evaluations_axis(axes, asked)
            axes.legend(fontsize=9)
    return figure


def _squeezed(axes: Axes, low: np.ndarray, middle: np.ndarray, highest: float) -> None:
    """A logarithmic axis beyond the values that the second half of a training settles among, if the first ones are far away."""
    half = slice(len(middle) // 2, None)
    settled = np.nanmax(middle[half]) - np.nanmin(low[half])
    linear = 10.0 ** max(0, math.ceil(math.log10(np.nanmax(np.abs(middle[half])) + settled)))
    if highest - np.nanmin(low) > 20 * settled and highest > linear:
        axes.set_yscale("symlog", linthresh=linear, linscale=2)


def _evaluations_axis(axes: Axes, asked: np.ndarray) -> None:
    """Logarithmic, from the first evaluations on."""
    first, last = asked[asked > 0].min(), asked.max()
    axes.set(xscale="log", xlabel="energies + gradients asked for", xlim=(first, 1.15 * last))
    label_decades(axes, first, last, EngFormatter(sep=""))
