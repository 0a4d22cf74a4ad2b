"""Click model metrics, by slice: AUC, GAUC (by user), log loss. Pure functions of arrays [R] of labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

DETECTED = 1.96 + 0.84  # standard errors: found at the 5 % level with a chance of 80 %
RELEVANT = 0.005  # of AUC: a smaller difference is none in practice
LEAST = 50  # a slice with fewer clicks or non-clicks is left out: its AUC would be noise


def auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that a click is scored above a non-click. NaN if there is only one class."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")


def gauc(labels: NDArray[np.int64], scores: NDArray[np.float64], users: NDArray[np.int64]) -> float:
    """AUC within each user, averaged with the user's impressions as weight; users without both classes are left out."""
    order = np.lexsort((scores, users))
    labels, scores, users = labels[order], scores[order], users[order]
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1])) if len(users) else np.zeros(0, np.int64)
    total, weight = 0.0, 0
    for rows in np.split(np.arange(len(users)), starts[1:]):
        clicks = labels[rows].sum()
        if 0 < clicks < len(rows):
            total += auc(labels[rows], scores[rows]) * len(rows)
            weight += len(rows)
    return total / weight if weight else float("nan")


def report(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    users: NDArray[np.int64],
    slices: Mapping[str, NDArray[np.bool_]],
    suffix: str = "",
) -> dict[str, float]:
    """``ctr/auc``, ``ctr/gauc``, ``ctr/logloss``, ``ctr/calibration``, all with ``suffix`` (a model, e.g. ``_id_only``).

    The same for each slice, e.g. ``ctr/auc:new_items``, that has enough of both classes.
    """
    metrics: dict[str, float] = {}
    everything = np.ones(len(labels), bool)
    for name, rows in {"": everything, **slices}.items():
        chosen = labels[rows]
        if name and min(chosen.sum(), len(chosen) - chosen.sum()) < LEAST:
            continue
        end = suffix + (f":{name}" if name else "")
        metrics[f"ctr/auc{end}"] = auc(chosen, scores[rows])
        metrics[f"ctr/gauc{end}"] = gauc(chosen, scores[rows], users[rows])
        metrics[f"ctr/calibration{end}"] = float(scores[rows].mean() / chosen.mean())  # clicks expected for one that came
        metrics[f"ctr/logloss{end}"] = float(log_loss(chosen, np.clip(scores[rows], 1e-7, 1 - 1e-7), labels=[0, 1]))
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


def auc_difference(
    labels: NDArray[np.int64],
    left: Sequence[NDArray[np.float64]],
    right: Sequence[NDArray[np.float64]],
    users: NDArray[np.int64],
    *,
    seed: int,
    draws: int = 1000,
) -> Difference:
    """AUC(left) − AUC(right), the mean over pairs of models (of several seeds), with an interval by a bootstrap over users and pairs.

    Every draw judges all models on the same users, so what is hard for all of them cancels.
    """
    generator = np.random.default_rng(seed)
    known, place = np.unique(users, return_inverse=True)
    drawn = generator.multinomial(len(known), np.full(len(known), 1 / len(known)), draws).astype(np.float32)
    gaps = np.stack([_weighted(labels, a, place, drawn) - _weighted(labels, b, place, drawn) for a, b in zip(left, right, strict=True)])
    pairs = generator.integers(0, len(gaps), (draws, len(gaps)))
    means = np.take_along_axis(gaps.T, pairs, 1).mean(1)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    value = float(np.mean([auc(labels, a) - auc(labels, b) for a, b in zip(left, right, strict=True)]))
    return Difference(value, float(low), float(high), DETECTED * float(np.nanstd(means)))


def _weighted(
    labels: NDArray[np.int64], scores: NDArray[np.float64], place: NDArray[np.int64], drawn: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The AUC under each of the draws [N, users], in which a user counts several times or not at all: [N]."""
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.append(True, sorted_scores[1:] != sorted_scores[:-1]))  # of equal scores
    out = np.empty(len(drawn))
    for number, counts in enumerate(drawn):
        weight = counts[place[order]].astype(np.float64)
        clicks = np.add.reduceat(weight * labels[order], starts)
        others = np.add.reduceat(weight * (1 - labels[order]), starts)
        below = np.cumsum(others) - others / 2
        total = clicks.sum() * others.sum()
        out[number] = (clicks * below).sum() / total if total else np.nan
    return out
