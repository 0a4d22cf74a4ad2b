"""How much better a candidate is than the champion on the same queries and the same impressions, and what these data could have shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moon_ops.ctr.evaluate import Scored
from moon_ops.ctr.metrics import CONFIDENCE, Difference, auc_difference, detected
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, against_champion, ctr, recall
from moon_ops.release.recall import RecallReport

K, DRAWS = 10, 10_000
FEW = 30  # queries
NEW_ITEMS = "new_items"
JUDGED = (NEW_ITEMS, "long_tail", "small_sellers", "query_picture", "query_text")  # slices of impressions that may not lose


@dataclass(frozen=True)
class Measured:
    """A release's figures by name, and what they were counted from, where it was kept."""

    metrics: dict[str, float]
    searches: RecallReport | None = None
    clicks: Scored | None = None
    dimensions: int = 0  # of each vector that its searches compare; 0: all of them


def differences(candidate: Measured, champion: Measured | None) -> dict[str, Difference]:
    """Candidate minus champion with a 95 % interval, of what both were measured on: recall@10 and AUC of all, then of slices.

    The intervals of all slices together hold at 95 % (each at 1 − 0.05 / their number, Bonferroni): else one of many would fail by chance.
    """
    if champion is None:
        return {}
    ways = {**_searches(candidate, champion), **_clicks(candidate, champion)}
    main = next((gate for gate in (recall(IMAGE_SEARCH), recall(TEXT_SEARCH)) if gate in ways), "")
    chosen = [gate for gate in (main, ctr("auc")) if gate in ways]
    slices = [gate for gate in ways if gate not in chosen]
    found = {gate: ways[gate](CONFIDENCE) for gate in chosen}
    return found | {gate: ways[gate](1 - (1 - CONFIDENCE) / len(slices)) for gate in slices}


def _searches(candidate: Measured, champion: Measured) -> dict[str, Callable[[float], Difference]]:
    """How to compare recall of pictures and texts, of all and of new items, where both were asked such."""
    left, right = candidate.searches, champion.searches
    if left is None or right is None:
        return {}
    found: dict[str, Callable[[float], Difference]] = {}
    for search, by_picture in ((IMAGE_SEARCH, True), (TEXT_SEARCH, False)):
        for where in ("", NEW_ITEMS):
            gaps = _gaps(left, right, by_picture=by_picture, new=bool(where))
            found |= {recall(search, where=where): partial(_interval, gaps, whole=not where)} if len(gaps) else {}
    return found


def _clicks(candidate: Measured, champion: Measured) -> dict[str, Callable[[float], Difference]]:
    """How to compare AUC, on all impressions and on slices that have enough clicks for a figure, where both scored the same ones."""
    left, right = candidate.clicks, champion.clicks
    if left is None or right is None or not np.array_equal(left.rows.labels, right.rows.labels):
        return {}
    masks = {"": np.ones(len(left.rows), bool), **{name: left.slices[name] for name in JUDGED if name in left.slices}}
    known = [name for name in masks if ctr("auc", name) in candidate.metrics and ctr("auc", name) in champion.metrics]
    return {ctr("auc", name): partial(_auc, left, right, masks[name]) for name in known}


def _auc(left: Scored, right: Scored, rows: NDArray[np.bool_], confidence: float) -> Difference:
    labels, users = left.rows.labels[rows], left.rows.user_ids[rows]
    return auc_difference(labels, [left.scores[rows]], [right.scores[rows]], users, seed=0, confidence=confidence)


def _gaps(left: RecallReport, right: RecallReport, *, by_picture: bool, new: bool = False) -> NDArray[np.float64]:
    """Of each query [Q] of the kind that both were asked: 1 if only the left one found it, −1 if only the right one, else 0."""
    _, mine, theirs = np.intersect1d(left.queries.query_ids, right.queries.query_ids, return_indices=True)
    chosen = (left.queries.is_image[mine] == by_picture) & (left.queries.is_new[mine] | (not new))
    return (left.ranks[mine] <= K).astype(float)[chosen] - (right.ranks[theirs] <= K).astype(float)[chosen]


def _interval(gaps: NDArray[np.float64], confidence: float, *, whole: bool = True) -> Difference:
    """The mean of gaps [Q] and its interval by bootstrap.

    Drawing a few again shows no more than these few, so the interval of a slice of fewer than :data:`FEW` is Hoeffding's, which
    holds for any number of figures between −1 and 1.
    """
    values, counts = np.unique(gaps, return_counts=True)
    count = len(gaps)
    means = np.random.default_rng(0).multinomial(count, counts / count, size=DRAWS) @ values / count
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    error = max(float(means.std()), 1 / (2 * count))  # all alike: half a query more or less would not have been seen
    detectable = detected(confidence) * error
    if not whole and count < FEW and gaps.any():
        half = (2 * math.log(2 / (1 - confidence)) / count) ** 0.5
        low, high, detectable = gaps.mean() - half, gaps.mean() + half, max(detectable, half)
    return Difference(float(gaps.mean()), max(-1.0, float(low)), min(1.0, float(high)), min(1.0, detectable))


def as_numbers(found: Mapping[str, Difference]) -> dict[str, float]:
    """The differences as figures of the evidence."""
    out: dict[str, float] = {}
    for name, gap in found.items():
        out |= {against_champion(name, end): value for end, value in (("", gap.value), ("_low", gap.low), ("_high", gap.high))}
    return out
