"""Click model metrics, by slice: AUC, GAUC (by user), log loss. Pure functions of arrays [R] of labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from moon_ops import metric_names

POWER = 0.84  # of a normal distribution: what lies above it is found with a chance of 80 %
CONFIDENCE = 0.95  # of an interval
RELEVANT = 0.005  # of AUC: a smaller difference is none in practice
LEAST = 50  # a slice with fewer clicks or non-clicks is left out: its AUC would be noise


def auc(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that a click is scored above a non-click. NaN if there is only one class."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")


def expected_auc(chances: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The AUC of rows that are clicks with these ``chances`` [R]: each counts as a click and as none, by its chance. NaN where one is
    missing."""
    if not np.isfinite(chances).all():
        return float("nan")
    either = np.repeat([1, 0], len(chances))
    return float(roc_auc_score(either, np.tile(scores, 2), sample_weight=np.concatenate([chances, 1 - chances])))


def gauc(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64], users: NDArray[np.int64]) -> float:
    """AUC within each user, averaged with the user's impressions as weight; users without both classes are left out."""
    if not len(users):
        return float("nan")
    order = np.lexsort((scores, users))
    labels, scores, users = labels[order], scores[order], users[order]
    first = np.append(True, users[1:] != users[:-1])  # of a user's rows
    runs = np.flatnonzero(first | np.append(True, scores[1:] != scores[:-1]))  # of equal scores: all have the mean of their ranks
    lengths = np.diff(np.append(runs, len(users)))
    user = np.cumsum(first) - 1
    ranks = np.repeat(runs + (lengths + 1) / 2, lengths) - np.flatnonzero(first)[user]  # 1 … a user's number of rows
    rows, clicks = np.bincount(user), np.bincount(user, labels)
    above = np.bincount(user, labels * ranks) - clicks * (clicks + 1) / 2  # Mann and Whitney's U
    both = (clicks > 0) & (clicks < rows)
    return float(np.average(above[both] / (clicks * (rows - clicks))[both], weights=rows[both])) if both.any() else float("nan")


def report(
    labels: NDArray[np.integer[Any]],
    scores: NDArray[np.float64],
    users: NDArray[np.int64],
    slices: Mapping[str, NDArray[np.bool_]],
    model: str = "",
) -> dict[str, float]:
    """``ctr/auc``, ``ctr/gauc``, ``ctr/logloss``, ``ctr/calibration``, all of ``model`` (e.g. :data:`moon_ops.metric_names.ID_ONLY`).

    The same for each slice, e.g. ``ctr/auc:new_items``, that has enough of both classes.
    """
    metrics: dict[str, float] = {}
    everything = np.ones(len(labels), bool)
    for name, rows in {"": everything, **slices}.items():
        chosen = labels[rows]
        if name and min(chosen.sum(), len(chosen) - chosen.sum()) < LEAST:
            continue
        called = partial(metric_names.ctr, where=name, model=model)
        metrics[called("auc")] = auc(chosen, scores[rows])
        metrics[called("gauc")] = gauc(chosen, scores[rows], users[rows])
        metrics[called("calibration")] = float(scores[rows].mean() / chosen.mean())  # clicks expected for one that came
        metrics[called("logloss")] = float(log_loss(chosen, np.clip(scores[rows], 1e-7, 1 - 1e-7), labels=[0, 1]))
    return metrics


@dataclass(frozen=True)
class Difference:
    """A difference of two AUCs, its 95 % interval over users, and what these data could have shown."""

    value: float
    low: float
    high: float
    detectable: float  # the least true difference that is found with a chance of 80 %

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``no difference`` (none above :data:`RELEVANT` would have been missed), or ``too little data``."""
        if self.low > 0 or self.high < 0:
            return "better" if self.value > 0 else "worse"
        return "no difference" if self.detectable <= RELEVANT else "too little data"


def detected(confidence: float = CONFIDENCE) -> float:
    """How many standard errors a true difference must have to be found with a chance of 80 %."""
    return float(stats.norm.ppf((1 + confidence) / 2)) + POWER


def auc_difference(
    labels: NDArray[np.integer[Any]],
    left: Sequence[NDArray[np.float64]],
    right: Sequence[NDArray[np.float64]],
    users: NDArray[np.int64],
    *,
    seed: int,
    draws: int = 1000,
    confidence: float = CONFIDENCE,
) -> Difference:
    """AUC(left) − AUC(right), the mean over P pairs of models of several seeds, with a 95 % interval (or of another ``confidence``).

    Users are drawn again (every draw judges all models on the same ones, so what is hard for all of them cancels). Seeds are too few to
    be drawn: their variance is added to the users', with Student's t for its P − 1 degrees of freedom (Welch and Satterthwaite).
    """
    generator = np.random.default_rng(seed)
    known, place = np.unique(users, return_inverse=True)
    models = [(_sorted(labels, a, place), _sorted(labels, b, place)) for a, b in zip(left, right, strict=True)]
    share, means = np.full(len(known), 1 / len(known)), np.empty(draws)
    for draw in range(draws):
        counts = generator.multinomial(len(known), share).astype(np.float64)
        means[draw] = np.mean([_weighted(a, counts) - _weighted(b, counts) for a, b in models])
    gaps = [auc(labels, a) - auc(labels, b) for a, b in zip(left, right, strict=True)]
    value, by_user = float(np.mean(gaps)), float(np.nanvar(means))
    if len(gaps) == 1:
        low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Difference(value, float(low), float(high), detected(confidence) * by_user**0.5)
    by_seed = float(np.var(gaps, ddof=1)) / len(gaps)
    freedom = (by_user + by_seed) ** 2 / (by_seed**2 / (len(gaps) - 1)) if by_seed else np.inf
    error, quantile = (by_user + by_seed) ** 0.5, float(stats.t.ppf((1 + confidence) / 2, freedom))
    return Difference(value, value - quantile * error, value + quantile * error, (quantile + POWER) * error)


@dataclass(frozen=True)
class _Sorted:
    """A model's rows by score: labels, the place of each row's user, and where runs of equal scores begin."""

    labels: NDArray[np.integer[Any]]
    place: NDArray[np.int64]
    starts: NDArray[np.int64]


def _sorted(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64], place: NDArray[np.int64]) -> _Sorted:
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return _Sorted(labels[order], place[order], np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])))


def _weighted(model: _Sorted, counts: NDArray[np.float64]) -> float:
    """The AUC when each user counts so many times."""
    weight = counts[model.place]
    clicks = np.add.reduceat(weight * model.labels, model.starts)
    others = np.add.reduceat(weight * (1 - model.labels), model.starts)
    total = clicks.sum() * others.sum()
    return float((clicks * (np.cumsum(others) - others / 2)).sum() / total) if total else float("nan")
