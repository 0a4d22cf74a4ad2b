"""Figures of the studies: bars of an ablation, curves of scaling; with 95 % intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from moon_ops.release.pictures import pyplot
from moon_ops.studies.encoder import Outcome, interval

BAR, REFERENCE = "#8aa4c8", "#22915a"


def ablation_figure(outcomes: Sequence[Outcome], arms: Sequence[str], reference: str, path: Path) -> None:
    """A bar for each arm's recall@10, the full recipe in green."""
    plt = pyplot()
    shown = [(arm, *interval([o.headline for o in outcomes if o.arm == arm])) for arm in arms if any(o.arm == arm for o in outcomes)]
    figure, axes = plt.subplots(figsize=(7, 0.28 * len(shown) + 1), layout="constrained")
    places = range(len(shown), 0, -1)
    errors = [0.0 if math.isnan(half) else half for _, _, half in shown]
    colours = [REFERENCE if arm == reference else BAR for arm, _, _ in shown]
    axes.barh(list(places), [mean for _, mean, _ in shown], xerr=errors, color=colours, error_kw={"lw": 0.8})
    axes.set_yticks(list(places), [arm for arm, _, _ in shown], fontsize=8)
    axes.set(xlim=(0, 1), xlabel="image search recall@10 (mean and 95 % interval over seeds)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scaling_figure(outcomes: Sequence[Outcome], path: Path) -> None:
    """Recall@10 over training tokens and over negatives per query, both axes of effort logarithmic."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    curves = {
        "training tokens": {o.arm: float(o.tokens) for o in outcomes if o.arm.startswith("tokens")},
        "negatives per query": {o.arm: float(o.arm.split()[1]) for o in outcomes if o.arm.startswith("negatives")},
    }
    for axis, (label, places) in zip(axes, curves.items(), strict=True):
        points = sorted((x, *interval([o.headline for o in outcomes if o.arm == arm])) for arm, x in places.items())
        errors = [0.0 if math.isnan(half) else half for _, _, half in points]
        axis.errorbar([x for x, _, _ in points], [mean for _, mean, _ in points], yerr=errors, marker="o", color=REFERENCE, capsize=3)
        axis.set(xscale="log", xlabel=label)
    axes[0].set(ylabel="image search recall@10", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def length_figure(aucs: Mapping[int, Sequence[float]], path: Path) -> None:
    """AUC of a click model over the number of behaviours that it reads."""
    plt = pyplot()
    points = sorted((length, *interval(values)) for length, values in aucs.items())
    errors = [0.0 if math.isnan(half) else half for _, _, half in points]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.errorbar([x for x, _, _ in points], [mean for _, mean, _ in points], yerr=errors, marker="o", color=REFERENCE, capsize=3)
    axes.set(xscale="log", xlabel="behaviours read", ylabel="AUC (mean and 95 % interval over seeds)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
