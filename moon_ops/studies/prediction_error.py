"""How far a straight line over encoders is off on an encoder that it has not seen: the error of leaving one out, or a whole recipe.

A high R² on few encoders says little: what counts is the next one. Errors stand beside that of the mean of the other encoders' AUC,
which needs no metric at all, and metrics are compared in pairs on the same encoders.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MEAN = "the mean alone"  # in a metric's place: what the other encoders have on average
ENCODER, RECIPE = "encoder", "recipe"  # what is left out at a time
EXACT = 14  # encoders; of more, so many swaps are drawn
DRAWS = 20_000
ALPHA = 0.05
SAME = "not distinguishable"


@dataclass(frozen=True)
class Error:
    """In AUC: the root of the mean squared error and the largest one, with the encoder on which it was; each predicted by the others.

    ``left_out``: :data:`ENCODER`, or :data:`RECIPE`: all encoders of its recipe are left out with it.
    """

    metric: str
    outcome: str
    left_out: str
    rmse: float
    largest: float
    worst: int


@dataclass(frozen=True)
class Comparison:
    """A metric's error beside that of another on the same encoders: RMSE minus the other's, p after Holm, and what may be said."""

    metric: str
    other: str
    outcome: str
    difference: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Interval:
    """What a line predicts for one more encoder, with its 95 % prediction interval (Student's t, n − 2); ``outside`` the range it knows."""

    value: float
    low: float
    high: float
    outside: bool


def predicted(x: NDArray[np.float64], y: NDArray[np.float64], at: float) -> Interval:
    """The line by least squares through N encoders, read at a metric's value: s · √(1 + 1/n + (at − x̄)² / Σ(x − x̄)²) on either side, times
    Student's t. Needs three encoders that differ in x [N].
    """
    line, n = stats.linregress(x, y), len(x)
    residual = y - (line.intercept + line.slope * x)
    spread = np.sqrt(residual @ residual / (n - 2) * (1 + 1 / n + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()))
    half, value = float(stats.t.ppf(0.975, n - 2) * spread), float(line.intercept + line.slope * at)
    return Interval(value, value - half, value + half, not x.min() <= at <= x.max())


def left_out(x: NDArray[np.float64] | None, y: NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """AUC minus what is predicted [N], for each encoder by the line through those of other groups; without ``x``, or where the others do
    not differ in it, by their mean.
    """
    errors, kinds = np.empty(len(y)), np.array([list(dict.fromkeys(groups)).index(group) for group in groups])
    for kind in np.unique(kinds):
        away, rest = kinds == kind, kinds != kind
        if x is None or not np.ptp(x[rest]) > 0:
            errors[away] = y[away] - y[rest].mean()
        else:
            line = stats.linregress(x[rest], y[rest])
            errors[away] = y[away] - (line.intercept + line.slope * x[away])
    return errors


def errors(
    metrics: Mapping[str, NDArray[np.float64]], y: NDArray[np.float64], outcome: str, encoders: Sequence[int], recipes: Sequence[str]
) -> list[Error]:
    """Of every metric [N] and of the mean alone; with a recipe left out only where each leaves three encoders of others."""
    ways: dict[str, Sequence[Hashable]] = {ENCODER: list(encoders)}
    if all(sum(other != recipe for other in recipes) >= 3 for recipe in recipes):
        ways[RECIPE] = list(recipes)
    found = []
    for way, groups in ways.items():
        for name, x in {**metrics, MEAN: None}.items():
            off = np.abs(left_out(x, y, groups))
            worst = int(off.argmax())
            found.append(Error(name, outcome, way, float(np.sqrt((off**2).mean())), float(off[worst]), encoders[worst]))
    return found


def compared(metrics: Mapping[str, NDArray[np.float64]], y: NDArray[np.float64], outcome: str, other: str) -> list[Comparison]:
    """Every metric and the mean alone beside the metric ``other``, by the errors of one encoder left out.

    A paired randomisation test: were two metrics equally good, the two errors of each encoder could be swapped. p is the share of swaps
    that give mean squared errors at least as far apart; Holm's correction is for the number of metrics. It takes encoders as independent:
    where several are of one recipe, p is too small.
    """
    base = left_out(metrics[other], y, range(len(y)))
    rivals = {name: left_out(x, y, range(len(y))) for name, x in {**metrics, MEAN: None}.items() if name != other}
    raw = {name: swapped(off**2 - base**2) for name, off in rivals.items()}
    made, largest = dict[str, float](), 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        largest = made[name] = max(largest, min(1.0, (len(raw) - rank) * raw[name]))
    found = []
    for name, off in rivals.items():
        gap = float(np.sqrt((off**2).mean()) - np.sqrt((base**2).mean()))
        found.append(Comparison(name, other, outcome, gap, made[name], SAME if made[name] > ALPHA else "worse" if gap > 0 else "better"))
    return found


def swapped(differences: NDArray[np.float64]) -> float:
    """The share of sign changes of N paired differences whose sum is at least as far from zero: all 2^N, or drawn with a fixed seed."""
    n = len(differences)
    changed = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 if n <= EXACT else np.random.default_rng(0).integers(0, 2, (DRAWS, n))
    signs = 1 - 2 * changed  # [swaps, N]
    reached = int((np.abs(signs @ differences) >= np.abs(differences.sum()) * (1 - 1e-9)).sum())
    return reached / len(signs) if n <= EXACT else (reached + 1) / (DRAWS + 1)
