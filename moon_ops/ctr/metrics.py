"""Click model metrics, by slice: AUC, GAUC (by user), log loss. Pure functions of arrays [R] of labels and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

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
    """``ctr/auc``, ``ctr/gauc``, ``ctr/logloss``, all with ``suffix`` (a model, e.g. ``_id_only``).

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
        metrics[f"ctr/logloss{end}"] = float(log_loss(chosen, np.clip(scores[rows], 1e-7, 1 - 1e-7), labels=[0, 1]))
    return metrics


def auc_difference(
    labels: NDArray[np.int64],
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    seed: int,
    draws: int = 200,
) -> tuple[float, float, float]:
    """AUC(left) − AUC(right) and its 95 % interval, by a paired bootstrap over users."""
    generator = np.random.default_rng(seed)
    order = np.argsort(users, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([groups[g] for g in generator.integers(0, len(groups), len(groups))])
        drawn.append(auc(labels[rows], left[rows]) - auc(labels[rows], right[rows]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return auc(labels, left) - auc(labels, right), float(low), float(high)
